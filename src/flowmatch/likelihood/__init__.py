"""Likelihood: the density of a flow, exact or estimated, and what it means in bits."""

from flowmatch.likelihood.bits import Bits, bits_per_dim
from flowmatch.likelihood.density import Likelihood, log_likelihood
from flowmatch.likelihood.divergences import Divergence, Exact, Hutchinson, HutchPlusPlus, divergence

__all__ = [
    "Bits",
    "Divergence",
    "Exact",
    "HutchPlusPlus",
    "Hutchinson",
    "Likelihood",
    "bits_per_dim",
    "divergence",
    "log_likelihood",
]
