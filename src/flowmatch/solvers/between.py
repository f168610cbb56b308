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
        sign: 1 where time runs forward, -1 where it runs back.
        x: state at the start, ``(B, *event)``.
    """

    def __init__(self, wanted: list[float], start: float, sign: float, x: Tensor) -> None:
        self.times = torch.tensor(wanted, dtype=time_dtype(x.dtype), device=x.device)
        self.sign, self.size, self.event = sign, x.shape[0], x.shape[1:]
        first = bool(self.times[0] == self.times.new_tensor(start))
        self.places = [torch.arange(self.size if first else 0, device=x.device)]
        self.values = [x if first else x[:0]]

    def read(
        self,
        index: Tensor,
        t: Tensor,
        end: Tensor,
        good: Tensor,
        dense: Callable[[Tensor, Tensor], Tensor] | None,
        rows: Tensor | None = None,
    ) -> None:
        """Read the times in ``(t, end]`` of the samples whose step is good.

        Args:
            index: places of the samples in the batch ``(b,)``.
            t: where their steps start ``(b,)``.
            end: where they end ``(b,)``.
            good: which are accepted ``(b,)``.
            dense: state at shares of the steps of some rows, ``(n,), (n,) -> (n, *event)``.
            rows: the samples that ``dense`` is of, where it is not of all.
        """
        if rows is not None:
            index, t, end, good = index[rows], t[rows], end[rows], good[rows]
        if dense is None:
            return
        order = self.sign * self.times
        first, last = (torch.searchsorted(order, self.sign * edge, right=True) for edge in (t, end))
        count = torch.where(good, last - first, 0)
        row = torch.arange(len(t), device=t.device).repeat_interleave(count)
        if row.shape[0]:
            which = first[row] + torch.arange(len(row), device=t.device) - (count.cumsum(0) - count)[row]
            share = (self.times[which] - t[row]) / (end - t)[row]
            self.places.append(which * self.size + index[row])
            self.values.append(dense(share, row))

    def collect(self, reached: Tensor) -> tuple[list[float], Tensor]:
        """The times that every sample has passed, and the states there ``(T, B, *event)``."""
        count = int((self.sign * self.times[:, None] <= self.sign * reached).all(1).sum())
        places, values = torch.cat(self.places), torch.cat(self.values)
        order = places.argsort()
        order = order[places[order] < count * self.size]
        return self.times[:count].tolist(), values[order].reshape(count, self.size, *self.event)
