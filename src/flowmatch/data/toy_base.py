"""What a toy set is: samples, and the density they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.randomness import rand, randn
from flowmatch.tensors import check_event, time_dtype

__all__ = ["Dice", "Toy"]


class Dice(NamedTuple):
    """Where the randomness of one call comes from, and the type and device it arrives in."""

    generator: torch.Generator | None
    device: torch.device | str | None
    dtype: torch.dtype

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws."""
        return randn(shape, self.generator, self.device, self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Draws uniform on [0, 1)."""
        return rand(shape, self.generator, self.device, self.dtype)

    def choose(self, k: int, n: int) -> Tensor:
        """Draw ``n`` whole numbers in ``0..k-1``, as floats of shape ``(n,)``."""
        return (k * self.uniform(n)).floor().clamp(max=k - 1)


class Toy(ABC):
    """A known law in a few dimensions: it can be drawn from and its log-density can be read.

    A toy set is also a source of a flow, up to the shape argument of ``sample``.

    Args:
        name: the name it is asked for by.
        dim: number of dimensions.
        entropy: differential entropy in nats, the best mean negative log-likelihood any model can
            reach; ``None`` where it is not known.
    """

    def __init__(self, name: str, dim: int, entropy: float | None) -> None:
        self.name, self.dim, self.entropy = name, dim, entropy

    @abstractmethod
    def _draw(self, n: int, dice: Dice) -> Tensor:
        """Draw ``(n, dim)`` in the dtype of the dice, which is float32 or float64."""

    @abstractmethod
    def _log_density(self, x: Tensor) -> Tensor:
        """Log-density ``(B,)`` at ``x`` of ``(B, dim)`` in float32 or float64."""

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``n`` points, shape ``(n, dim)``; the same generator state gives the same points.

        Raises:
            ValueError: ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"n must be at least 0, got {n}")
        kept = torch.get_default_dtype() if dtype is None else dtype
        return self._draw(n, Dice(generator, device, time_dtype(kept))).to(kept)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, ``(B, dim) -> (B,)``, in float64 for float64 points and else in float32.

        Raises:
            TypeError: not a floating tensor.
            ValueError: another shape than ``(B, dim)``.
        """
        check_event(x)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (B, {self.dim}) for toy {self.name!r}, got {tuple(x.shape)}")
        return self._log_density(x.to(time_dtype(x.dtype)))

    def __repr__(self) -> str:
        return f"toy({self.name!r})"
