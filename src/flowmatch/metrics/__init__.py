"""Metrics: how far samples lie from data. Every number here has a floor; read it beside the value."""

from flowmatch.metrics.c2st import c2st
from flowmatch.metrics.mmd import mmd
from flowmatch.metrics.wasserstein import sliced_wasserstein, wasserstein

__all__ = ["c2st", "mmd", "sliced_wasserstein", "wasserstein"]
