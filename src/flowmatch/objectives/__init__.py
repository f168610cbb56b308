"""Objectives: how a field is trained."""

from flowmatch.objectives.base import Draw, Loss
from flowmatch.objectives.matching import FlowMatching

__all__ = ["Draw", "FlowMatching", "Loss"]
