"""Uniform times, and stratified times of any law."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.randomness import rand, randperm
from flowmatch.times.base import TimesLaw, check_interval, onto, within

__all__ = ["Stratified", "Uniform"]


@dataclass(frozen=True)
class Uniform(TimesLaw):
    """Independent times, uniform on ``[low, high)``.

    Args:
        low: smallest time, at least 0.
        high: largest time, at most 1.

    Raises:
        ValueError: unless ``0 <= low < high <= 1``.

    Example:
        >>> Uniform()(3, generator=torch.Generator().manual_seed(0))
        tensor([0.4963, 0.7682, 0.0885])
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)

    def _quantile(self, u: Tensor) -> Tensor:
        return u

    def _density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def __call__(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``n`` times, shape ``(n,)``."""
        t = rand((n,), generator, device, dtype)
        return t if (self.low, self.high) == (0.0, 1.0) else _below(onto(t, self.low, self.high), self.high)


@dataclass(frozen=True)
class Stratified(TimesLaw):
    """One time in each of ``n`` cells of equal probability, in random order.

    Args:
        low: smallest time, at least 0.
        high: largest time, at most 1.
        base: the law, with an interval of its own; uniform on ``[low, high)`` by default.

    Raises:
        TypeError: ``base`` has no quantile function.
        ValueError: unless ``0 <= low < high <= 1``, or an interval that is not that of ``base``.

    Source:
        Owen, Monte Carlo theory, methods and examples, 2013, section 8.4.

    Example:
        >>> t = Stratified()(4, generator=torch.Generator().manual_seed(0))
        >>> (4 * t).floor().sort().values
        tensor([0., 1., 2., 3.])
    """

    low: float = 0.0
    high: float = 1.0
    base: TimesLaw | None = None

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        if self.base is None:
            return
        if not isinstance(self.base, TimesLaw):
            raise TypeError(f"base must be a law of single times such as fm.LogitNormal(), got {self.base!r}")
        own = (self.base.low, self.base.high)
        if (self.low, self.high) not in ((0.0, 1.0), own):
            raise ValueError(f"base has the interval {own}, got ({self.low}, {self.high}); give the interval to base")
        object.__setattr__(self, "low", own[0])
        object.__setattr__(self, "high", own[1])

    def _quantile(self, u: Tensor) -> Tensor:
        return u if self.base is None else self.base._quantile(u)

    def _place(self, u: Tensor) -> Tensor:
        return u if self.base is None else self.base._place(u)

    def _density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t) if self.base is None else self.base._density(t)

    def __call__(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``n`` times, shape ``(n,)``."""
        # The order must not follow the rows: a sorted batch would tie the time to the sample.
        cell = randperm(n, generator, device)
        inside = rand((n,), generator, device, dtype if self.base is None else torch.float64)
        unit = (cell + inside) / max(n, 1)
        if self.base is None:
            return _below(onto(unit.to(inside.dtype), self.low, self.high), self.high)
        return within(onto(self.base._place(unit), self.low, self.high), self.low, self.high, dtype)


def _below(t: Tensor, high: float) -> Tensor:
    """Rounding may lift a time to ``high``, and it is put below."""
    return t.clamp(max=high * (1 - torch.finfo(t.dtype).eps))
