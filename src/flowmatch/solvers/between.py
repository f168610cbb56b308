"""States at times of the user's own, read from the adaptive steps that pass them.

Samples pass a time in steps of their own, so the pieces come in no order; they are put in order at the end. Nothing is
written in place, so gradients flow through.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowmatch.tensors import time_dtype

__all__ = ["Between"]


class Between:
    """Collects states ``x(t)`` of every sample.

    Args:
        wanted: times inside the span, in the order of the solve.
        start: first time of the solve.
        x: state there, ``(B, *event)``.
    """

    def __init__(self, wanted: list[float], start: float, x: Tensor) -> None:
        self.times = torch.tensor(wanted, dtype=time_dtype(x.dtype), device=x.device)
        self.size, self.event = x.shape[0], x.shape[1:]
        first = wanted[0] == start
        self.places = [torch.arange(self.size if first else 0, device=x.device)]
        self.values = [x if first else x[:0]]

    def read(
        self, index: Tensor, t: Tensor, end: Tensor, good: Tensor, dense: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        """Read the times in ``(t, end]`` of the samples whose step is good.

        Args:
            index: places of the samples in the batch ``(b,)``.
            t: where their steps start ``(b,)``.
            end: where they end ``(b,)``.
            good: which are accepted ``(b,)``.
            dense: state at shares of the steps of some rows, ``(n,), (n,) -> (n, *event)``.
        """
        share = (self.times[:, None] - t) / (end - t)
        which, row = (good & (share > 0) & (share <= 1)).nonzero(as_tuple=True)
        if row.shape[0]:
            self.places.append(which * self.size + index[row])
            self.values.append(dense(share[which, row], row))

    def collect(self, reached: Tensor, forward: bool) -> tuple[list[float], Tensor]:
        """The times that every sample has passed, and the states there ``(T, B, *event)``."""
        passed = self.times[:, None] <= reached if forward else self.times[:, None] >= reached
        count = int(passed.all(1).sum())
        places, values = torch.cat(self.places), torch.cat(self.values)
        order = places.argsort()
        order = order[places[order] < count * self.size]
        return self.times[:count].tolist(), values[order].reshape(count, self.size, *self.event)
