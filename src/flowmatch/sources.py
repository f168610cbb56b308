"""Sources: where a flow starts. Anything with ``sample`` and ``log_prob`` will do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.tensors import gaussian_log_prob, randn

__all__ = ["Normal"]


@dataclass(frozen=True)
class Normal:
    r"""Independent normals, :math:`x_0 \sim N(0, \mathrm{std}^2 I)` over the event.

    Args:
        std: standard deviation, the same in every dimension.

    Raises:
        ValueError: ``std`` is not positive.

    Example:
        >>> Normal().log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf"):
            raise ValueError(f"std must be a positive number, got {self.std}")

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``x0`` of ``shape``, the batch dimension included."""
        x0 = randn(shape, generator, device, dtype)
        return x0 if self.std == 1 else self.std * x0

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, ``(B, *event) -> (B,)``."""
        return gaussian_log_prob(x, 0.0, self.std)
