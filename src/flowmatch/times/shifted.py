r"""Times moved towards the source, as images of higher resolution need.

A picture with more pixels shows the same content through more noise: averaged over :math:`k^2` pixels, noise falls by
:math:`k`. On the linear path, whose noise level is :math:`s = 1 - t`, a constant picture of :math:`n` pixels is known
at level ``s`` up to :math:`s / ((1 - s) \sqrt n)`. For :math:`m` pixels the same uncertainty is met at the level
:math:`s'` with :math:`s'/(1 - s') = k\, s/(1 - s)`, :math:`k = \sqrt{m/n}`, which is

.. math:: s' = \frac{k s}{1 + (k - 1) s}.

With :math:`s = 1 - t` and :math:`s' = 1 - t'` this becomes

.. math:: t' = 1 - \frac{k (1 - t)}{1 + (k - 1)(1 - t)} = \frac{t}{t + k (1 - t)},
          \qquad t = \frac{k t'}{1 + (k - 1) t'}, \qquad \frac{dt}{dt'} = \frac{k}{(1 + (k - 1) t')^2}.

So the log-odds of ``t`` fall by :math:`\log k`: with :math:`k > 1` training looks more at the source's end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from flowmatch.tensors import time_dtype
from flowmatch.times.base import TimesLaw, within
from flowmatch.times.uniform import Uniform
from flowmatch.typing import Times

__all__ = ["Shifted"]

Time = TypeVar("Time", float, Tensor)


@dataclass(frozen=True)
class Shifted(TimesLaw):
    r"""Times of another sampler, shifted for a resolution :math:`k` times as fine.

    .. math:: t' = \frac{t}{t + k (1 - t)}

    The interval is the shifted one of ``base``; see ``low`` and ``high``.

    Args:
        base: any sampler of times; uniform on [0, 1) by default.
        shift: :math:`k`, the root of the ratio of pixels; above 1 towards the source, 1 leaves the times alone.

    Raises:
        ValueError: ``shift`` is not positive.
        TypeError: ``base`` cannot be called; or, on use, ``base`` has no density or quantile to shift.

    Source:
        Esser et al., Scaling rectified flow transformers for high-resolution image synthesis, 2024, section
        5.3.2, https://arxiv.org/abs/2403.03206; its ``t`` is the noise level.

    Example:
        >>> Shifted(shift=3.0).quantile(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.2500, 1.0000])
    """

    base: Times = field(default_factory=Uniform)
    shift: float = 3.0

    def __post_init__(self) -> None:
        if not callable(self.base):
            raise TypeError(f"base must be a sampler of times such as fm.LogitNormal(), got {self.base!r}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be a positive number, got {self.shift}")

    @property
    def low(self) -> float:  # type: ignore[override]
        """Smallest time."""
        return self._move(getattr(self.base, "low", 0.0))

    @property
    def high(self) -> float:  # type: ignore[override]
        """Largest time."""
        return self._move(getattr(self.base, "high", 1.0))

    def __call__(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``n`` times, shape ``(n,)``."""
        # Half precision is shifted in float32: at 1 - 2^-8 it has no digits left to shift.
        wide = time_dtype(dtype or torch.get_default_dtype())
        t = self._move(self.base(n, generator, device, wide))
        return within(t, self.low, self.high, dtype)

    def density(self, t: Tensor) -> Tensor:
        """Density at times ``(n,)`` with respect to ``dt``; zero outside ``[low, high]``, float32 at least."""
        if not t.is_floating_point():
            raise TypeError(f"t must be floating point, got {t.dtype}")
        wide = t.double()
        grown = 1 + (self.shift - 1) * wide
        # The ends are known to a rounding only, so the base is asked inside its own interval.
        inside = (wide >= self.low) & (wide <= self.high)
        base = self._law()
        source = (self.shift * wide / grown).clamp(base.low, base.high)
        value = torch.where(inside, base.density(source) * self.shift / grown**2, 0.0)
        return value.to(time_dtype(t.dtype))

    def quantile(self, u: Tensor) -> Tensor:
        """The time below which a part ``u`` of the law lies, ``(n,)`` in [0, 1] to ``(n,)`` in ``[low, high]``."""
        return self._move(self._law().quantile(u.double())).to(u.dtype)

    def _quantile(self, u: Tensor) -> Tensor:
        return (self.quantile(u) - self.low) / (self.high - self.low)

    def _density(self, t: Tensor) -> Tensor:
        width = self.high - self.low
        return self.density(self.low + width * t) * width

    def _law(self) -> TimesLaw:
        if not isinstance(self.base, TimesLaw):
            raise TypeError(f"{self.base!r} has no density and no quantile function; use a law of flowmatch.times")
        return self.base

    def _move(self, t: Time) -> Time:
        return t / (t + self.shift * (1 - t))
