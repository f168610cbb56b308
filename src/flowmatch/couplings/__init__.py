"""Couplings: who is joined to whom, told as indices so that conditions follow for free."""

from flowmatch.couplings.independent import Independent

__all__ = ["Independent"]
