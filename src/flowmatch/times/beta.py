r"""Beta-distributed times, and the incomplete beta function that their quantiles need.

Source of the continued fraction: DLMF 8.17.22, https://dlmf.nist.gov/8.17#v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from flowmatch.randomness import drawn
from flowmatch.times.base import TimesLaw, check_interval

__all__ = ["Beta"]

KNOTS = 4097  # of the table in which the root of F(t) = u is bracketed; three Newton steps are left


@dataclass(frozen=True)
class Beta(TimesLaw):
    r"""Times with a beta density.

    .. math:: p(t) = \frac{t^{a - 1} (1 - t)^{b - 1}}{B(a, b)}

    Mapped onto ``[low, high)``. ``a > b`` looks more at the data's end; both below 1 look at the two ends. Single draws
    are a ratio of gamma variables, :math:`t = g_a / (g_a + g_b)`; stratified ones invert the distribution function,
    which costs some milliseconds a batch.

    Args:
        a: exponent at ``t = low``, from 0.1 to 10^4.
        b: exponent at ``t = high``, from 0.1 to 10^4.
        low: smallest time, at least 0.
        high: largest time, at most 1.

    Raises:
        ValueError: ``a`` or ``b`` out of range, or unless ``0 <= low < high <= 1``.

    Source:
        Devroye, Non-uniform random variate generation, 1986, section 9.4.

    Example:
        >>> Beta(2.0, 1.0).density(torch.tensor([0.25, 0.5]))
        tensor([0.5000, 1.0000])
        >>> Beta(2.0, 1.0).quantile(torch.tensor([0.25]))
        tensor([0.5000])
    """

    a: float
    b: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        if not (0.1 <= self.a <= 1e4 and 0.1 <= self.b <= 1e4):
            raise ValueError(f"Beta needs a and b from 0.1 to 10000, got a={self.a} and b={self.b}")

    def _draw(self, n: int, generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
        gamma = drawn(self._gamma, (n, 2), generator, device, torch.float64)
        return gamma[:, 0] / gamma.sum(1)

    def _gamma(self, shape: tuple[int, ...], generator: torch.Generator | None, **home: Any) -> Tensor:
        return torch._standard_gamma(torch.tensor([self.a, self.b], **home).expand(shape).contiguous(), generator)

    def _density(self, t: Tensor) -> Tensor:
        log_p = torch.xlogy(torch.full_like(t, self.a - 1), t) + torch.xlogy(torch.full_like(t, self.b - 1), 1 - t)
        return (log_p - _log_beta(self.a, self.b)).exp()

    def _quantile(self, u: Tensor) -> Tensor:
        odds, level = (x.to(u.device) for x in _table(self.a, self.b))
        cell = torch.searchsorted(level, u.contiguous(), right=True).clamp(1, KNOTS - 1)
        below, above = odds[cell - 1], odds[cell]
        x = 0.5 * (below + above)
        for _ in range(60):
            excess = _distribution(self.a, self.b, x) - u
            below, above = torch.where(excess <= 0, x, below), torch.where(excess <= 0, above, x)
            t, rest = torch.sigmoid(x), torch.sigmoid(-x)
            slope = (self.a * t.log() + self.b * rest.log() - _log_beta(self.a, self.b)).exp()
            step = x - excess / slope
            new = torch.where((step > below) & (step < above), step, 0.5 * (below + above))
            # In the upper tail u is known to a rounding of 1 only, and x then less well than to its own digits.
            found = excess.abs() < 1e-15
            small = (new - x).abs() < 1e-12 * (1 + x.abs())
            x = torch.where(found, x, new)
            if bool((found | small).all()):
                break
        return torch.where(u <= 0, 0.0, torch.where(u >= 1, 1.0, torch.sigmoid(x)))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@lru_cache(maxsize=64)
def _table(a: float, b: float) -> tuple[Tensor, Tensor]:
    """Log-odds and the distribution function there, from where the tails hold 1e-17 to where they do."""
    low = min(-1.0, (-40 + math.log(a) + _log_beta(a, b)) / a)
    high = max(1.0, (40 - math.log(b) - _log_beta(a, b)) / b)
    odds = torch.linspace(low, high, KNOTS, dtype=torch.float64)
    return odds, _distribution(a, b, odds)


def _distribution(a: float, b: float, odds: Tensor) -> Tensor:
    """The regularised incomplete beta function at log-odds, from the side on which its fraction converges."""
    t, rest = torch.sigmoid(odds), torch.sigmoid(-odds)
    front = (a * t.log() + b * rest.log() - _log_beta(a, b)).exp()
    small = t < (a + 1) / (a + b + 2)
    left = front * _fraction(a, b, torch.where(small, t, 0.0)) / a
    right = front * _fraction(b, a, torch.where(small, 0.0, rest)) / b
    return torch.where(small, left, 1 - right)


def _fraction(a: float, b: float, t: Tensor) -> Tensor:
    """Continued fraction of the incomplete beta function, by the method of Lentz and Thompson."""
    c = torch.ones_like(t)
    d = 1 / (1 - (a + b) * t / (a + 1))
    value = d
    for k in range(1, 1000):
        even = k * (b - k) * t / ((a + 2 * k - 1) * (a + 2 * k))
        d, c = 1 / (1 + even * d), 1 + even / c
        value = value * d * c
        odd = -(a + k) * (a + b + k) * t / ((a + 2 * k) * (a + 2 * k + 1))
        d, c = 1 / (1 + odd * d), 1 + odd / c
        value = value * d * c
        if not t.numel() or float((d * c - 1).abs().max()) < 1e-15:
            break
    return value
