r"""Times of one law or of another.

With probabilities :math:`w_i` a time comes from law ``i``, so the density is :math:`\sum_i w_i p_i` and the
distribution function :math:`F = \sum_i w_i F_i`. Drawing needs no inverse of ``F``: cut [0, 1) into pieces of lengths
:math:`w_i`, and send ``u`` in the piece of law ``i``, stretched to [0, 1), through its quantile function. Strata of
``u`` are then strata of every law, so that stratified times serve here as well. The quantile function of the mixture
itself has no formula, and is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch.randomness import rand
from flowmatch.times.base import TimesLaw

__all__ = ["Mixed"]

_HALVINGS = 56  # of [0, 1], beyond the digits of a double


@dataclass(frozen=True)
class Mixed(TimesLaw):
    r"""Times of several laws, each with a probability.

    .. math:: p(t) = \sum_i w_i\, p_i(t)

    For instance mostly the middle, where a network has most to learn, and now and then the data's end, which decides
    likelihoods: ``Mixed([LogitNormal(), Power(4.0)], [0.7, 0.3])``.

    Args:
        laws: laws of single times, all on one interval.
        weights: probability of each, with sum 1.

    Raises:
        TypeError: one of them is no law of single times.
        ValueError: no laws, not as many weights, weights that are not positive with sum 1, or different intervals.

    Example:
        >>> from flowmatch.times import Power, Uniform
        >>> law = Mixed([Uniform(), Power(1.0)], [0.5, 0.5])
        >>> law.density(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.5000, 1.0000, 1.5000])
        >>> law.quantile(torch.tensor([0.375]))  # F(t) = (t + t^2) / 2
        tensor([0.5000])
    """

    laws: Sequence[TimesLaw]
    weights: Sequence[float]
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        laws, weights = tuple(self.laws), tuple(float(weight) for weight in self.weights)
        for law in laws:
            if not isinstance(law, TimesLaw):
                raise TypeError(f"laws must be laws of single times such as fm.LogitNormal(), got {law!r}")
        if not laws or len(laws) != len(weights):
            raise ValueError(
                f"Mixed needs a weight for each of its laws, got {len(laws)} laws and {len(weights)} weights"
            )
        if not all(0 < weight <= 1 for weight in weights) or not math.isclose(sum(weights), 1, abs_tol=1e-9):
            raise ValueError(f"weights must be positive with sum 1, got {weights}")
        spans = {(law.low, law.high) for law in laws}
        if len(spans) > 1:
            raise ValueError(f"the laws must have one interval, got {', '.join(map(str, sorted(spans)))}")
        for name, value in (("laws", laws), ("weights", weights), ("low", laws[0].low), ("high", laws[0].high)):
            object.__setattr__(self, name, value)

    def _draw(self, n: int, generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
        return self._place(rand((n,), generator, device, torch.float64))

    def _place(self, u: Tensor) -> Tensor:
        placed, start = torch.zeros_like(u), 0.0
        for number, (law, weight) in enumerate(zip(self.laws, self.weights, strict=True)):
            last = number == len(self.laws) - 1
            own = (u >= start) & ((u < start + weight) | last)
            placed = torch.where(own, law._place(((u - start) / weight).clamp(0, 1)), placed)
            start += weight
        return placed

    def _density(self, t: Tensor) -> Tensor:
        return sum((w * law._density(t) for law, w in zip(self.laws, self.weights, strict=True)), torch.zeros_like(t))

    def _quantile(self, u: Tensor) -> Tensor:
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            share = sum(w * _distribution(law, middle) for law, w in zip(self.laws, self.weights, strict=True))
            low, high = torch.where(share < u, middle, low), torch.where(share < u, high, middle)
        return torch.where(u <= 0, 0.0, torch.where(u >= 1, 1.0, (low + high) / 2))


def _distribution(law: TimesLaw, t: Tensor) -> Tensor:
    """Share of a law below ``t``, the inverse of its quantile function."""
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = law._quantile(middle) < t
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
