"""Schedules: the two scalar functions of an affine path."""

from flowmatch.schedules.base import Schedule
from flowmatch.schedules.diffusion import (
    DiffusionCosine,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from flowmatch.schedules.flows import Cosine, Linear, Polynomial, Trigonometric
from flowmatch.schedules.learned import Learned

__all__ = [
    "Cosine",
    "DiffusionCosine",
    "Learned",
    "Linear",
    "Polynomial",
    "Schedule",
    "SubVariancePreserving",
    "Trigonometric",
    "VarianceExploding",
    "VariancePreserving",
]
