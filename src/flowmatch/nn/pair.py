"""Two networks as one module, for objectives that learn two fields at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["Pair"]


class Pair(nn.Module):
    """Two networks on one input, ``(t, x) -> (first, second)``.

    One module, so that one optimiser, one average and one wrapper for many devices serve both.

    Args:
        first: network ``(t, x)`` or ``(t, x, cond)``.
        second: the same.

    Example:
        >>> import torch
        >>> from flowmatch.nn import MLP
        >>> drift, noise = Pair(MLP(dim=2), MLP(dim=2))(torch.zeros(3), torch.zeros(3, 2))
        >>> drift.shape, noise.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, t: Tensor, x: Tensor, *cond: Any) -> tuple[Tensor, Tensor]:
        return self.first(t, x, *cond), self.second(t, x, *cond)

    def config(self) -> dict[str, Any]:
        """The arguments that make this module again, apart from the weights."""
        return {"first": self.first, "second": self.second}
