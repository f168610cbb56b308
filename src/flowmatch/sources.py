"""Sources: where a flow starts. Anything with ``sample`` and ``log_prob`` will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from flowmatch.randomness import randint, randn
from flowmatch.tensors import check_data, gaussian_log_prob

__all__ = ["Empirical", "Normal"]


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


class Empirical:
    """A finite set as the source: rows drawn with replacement, for flows from data to data.

    It has no density, so a flow from it samples and encodes but has no likelihood.

    Args:
        data: points ``(N, *event)``.

    Raises:
        TypeError: ``data`` is not floating point.
        ValueError: there are no points, or one is not finite.

    Example:
        >>> source = Empirical(torch.tensor([[1.0], [2.0]]))
        >>> source.sample((4, 1), generator=torch.Generator().manual_seed(0)).flatten()
        tensor([1., 2., 2., 1.])
    """

    def __init__(self, data: Tensor) -> None:
        check_data(data)
        self.data = data

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``x0`` of ``shape``, whose event must be that of the data."""
        if tuple(shape[1:]) != tuple(self.data.shape[1:]):
            raise ValueError(
                f"the source has points of shape {tuple(self.data.shape[1:])}, asked for {tuple(shape[1:])}"
            )
        index = randint(len(self.data), (shape[0],), generator, self.data.device)
        return self.data[index].to(device=device or self.data.device, dtype=dtype)

    def log_prob(self, x: Tensor) -> NoReturn:
        """Raise: points have no density."""
        raise ValueError(
            "a finite set has no density, so a flow from it has no log_prob; use a source with one, such as fm.Normal()"
        )

    def __repr__(self) -> str:
        return f"Empirical({len(self.data)} points of shape {tuple(self.data.shape[1:])})"
