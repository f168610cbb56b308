"""Objectives: how a field is trained."""

from flowmatch.objectives.base import Draw, Loss
from flowmatch.objectives.bridge import ScoreAndFlow
from flowmatch.objectives.matching import FlowMatching
from flowmatch.objectives.weighting import Implied, LearnedUncertainty, MinSNR, PowerSNR, Sigmoid, Weighting

__all__ = [
    "Draw",
    "FlowMatching",
    "Implied",
    "LearnedUncertainty",
    "Loss",
    "MinSNR",
    "PowerSNR",
    "ScoreAndFlow",
    "Sigmoid",
    "Weighting",
]
