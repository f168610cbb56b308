"""Likelihood: the density of a flow, exact or estimated, and what it means in bits."""

from flowmatch.likelihood.bits import Bits, bits_per_dim, nats_to_bits
from flowmatch.likelihood.density import Likelihood, log_likelihood
from flowmatch.likelihood.divergences import Divergence, Exact, Hutchinson, divergence
from flowmatch.likelihood.hutch_plus_plus import HutchPlusPlus

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
    "nats_to_bits",
]
