"""The independent coupling, the paper's own choice: every pair is as likely as any other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.tensors import check_pair
from flowmatch.typing import Cond

__all__ = ["Independent"]


@dataclass(frozen=True)
class Independent:
    """Pair the rows as they come: independent for fresh draws, and it leaves given pairs alone.

    Example:
        >>> i, j = Independent()(torch.zeros(3, 2), torch.ones(3, 2))
        >>> i, j
        (tensor([0, 1, 2]), tensor([0, 1, 2]))
    """

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Index tensors ``(i, j)`` of shape ``(B,)``; raises if the two batches differ in shape."""
        check_pair(x0, x1)
        index = torch.arange(x1.shape[0], device=x1.device)
        return index, index
