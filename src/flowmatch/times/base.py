r"""What the laws of times share: a quantile function on the unit interval, and the map onto ``[low, high)``.

With ``u`` uniform and :math:`Q = F^{-1}` the quantile function, ``t = Q(u)`` has distribution function ``F``. So one
function gives independent times, and stratified ones too: they only take other ``u``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flowmatch.randomness import rand
from flowmatch.tensors import time_dtype

__all__ = ["TimesLaw", "check_interval", "onto", "within"]


class TimesLaw(ABC):
    """A law of single times on ``[low, high)``: subclasses give its quantile and density for the interval [0, 1]."""

    low: float
    high: float

    @abstractmethod
    def _quantile(self, u: Tensor) -> Tensor:
        """Quantile function on [0, 1]; ``u`` is float64."""

    @abstractmethod
    def _density(self, t: Tensor) -> Tensor:
        """Density on [0, 1]; ``t`` is float64, and in the closed interval."""

    def _place(self, u: Tensor) -> Tensor:
        """Any map that makes uniform ``u`` times of the law; strata of ``u`` become strata of times."""
        return self._quantile(u)

    def _draw(self, n: int, generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
        """Independent draws on [0, 1], float64."""
        return self._quantile(rand((n,), generator, device, torch.float64))

    def __call__(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``n`` times, shape ``(n,)``."""
        return within(onto(self._draw(n, generator, device), self.low, self.high), self.low, self.high, dtype)

    def quantile(self, u: Tensor) -> Tensor:
        """The time below which a part ``u`` of the law lies, ``(n,)`` in [0, 1] to ``(n,)`` in ``[low, high]``."""
        if not u.is_floating_point():
            raise TypeError(f"u must be floating point, got {u.dtype}")
        if not bool(((u >= 0) & (u <= 1)).all()):
            raise ValueError(f"u must lie in [0, 1], got values from {float(u.min()):g} to {float(u.max()):g}")
        return onto(self._quantile(u.double()), self.low, self.high).to(u.dtype)

    def density(self, t: Tensor) -> Tensor:
        """Density at times ``(n,)`` with respect to ``dt``; zero outside ``[low, high]``, float32 at least."""
        if not t.is_floating_point():
            raise TypeError(f"t must be floating point, got {t.dtype}")
        width = self.high - self.low
        unit = (t.double() - self.low) / width
        inside = (unit >= 0) & (unit <= 1)
        value = torch.where(inside, self._density(unit.clamp(0, 1)) / width, 0.0)
        return value.to(time_dtype(t.dtype))


def onto(unit: Tensor, low: float, high: float) -> Tensor:
    """Map [0, 1] to ``[low, high]``."""
    return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit


def within(t: Tensor, low: float, high: float, dtype: torch.dtype | None) -> Tensor:
    """Round to ``dtype`` and put what rounding lifted to ``high`` below it, and what fell to ``low`` above it.

    A law may have no density at its ends; a time there would have an infinite weight.
    """
    t = t.to(dtype or torch.get_default_dtype())
    info = torch.finfo(t.dtype)
    return t.clamp(min=low * (1 + 2 * info.eps) if low > 0 else info.tiny, max=high * (1 - info.eps))


def check_interval(low: float, high: float) -> None:
    """Raise ValueError unless ``0 <= low < high <= 1``."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"times need 0 <= low < high <= 1, got low={low} and high={high}")
