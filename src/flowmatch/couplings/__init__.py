"""Couplings: which source sample is joined to which data sample."""

from flowmatch.couplings.assignment import assign
from flowmatch.couplings.conditional import ConditionAware
from flowmatch.couplings.exact import ExactOT
from flowmatch.couplings.independent import Independent
from flowmatch.couplings.partial import PartialOT
from flowmatch.couplings.plan import Plan
from flowmatch.couplings.semidiscrete import SemiDiscrete
from flowmatch.couplings.sinkhorn import Sinkhorn, sinkhorn
from flowmatch.couplings.unbalanced import UnbalancedOT, unbalanced_sinkhorn

__all__ = [
    "ConditionAware",
    "ExactOT",
    "Independent",
    "PartialOT",
    "Plan",
    "SemiDiscrete",
    "Sinkhorn",
    "UnbalancedOT",
    "assign",
    "sinkhorn",
    "unbalanced_sinkhorn",
]
