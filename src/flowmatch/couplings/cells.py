r"""Cells of a data set: which point of it is nearest once every point has a handicap of its own.

A point that occurs several times is one atom of more mass, since two equal points cannot have two cells. Distances are
taken through one matrix product, :math:`|x - y|^2 - |x|^2 = |y|^2 - 2 x \cdot y`, of coordinates centred on the data,
since a common offset would cost the digits of the differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flowmatch.randomness import rand
from flowmatch.tensors import time_dtype

__all__ = ["Cells"]


class Cells:
    """The distinct points of a data set, and the weighted nearest one of them.

    Args:
        data: points ``(N, *event)``.
        chunk: numbers held at a time, in the comparison of a batch with the data.

    Attributes:
        atoms: distinct points, flat and centred, ``(K, d)``.
        atom: the atom of every row of the data, ``(N,)``.
        share: mass of every atom, ``(K,)``.
        first: a row of the data for every atom, ``(K,)``.
    """

    def __init__(self, data: Tensor, chunk: int) -> None:
        flat = data.detach().to(time_dtype(data.dtype)).reshape(data.shape[0], -1)
        self.centre, self.chunk = flat.mean(0), chunk
        self.atoms, self.atom, self.counts = torch.unique(
            flat - self.centre, dim=0, return_inverse=True, return_counts=True
        )
        self.squares, self.share = self.atoms.square().sum(1), self.counts.to(self.atoms.dtype) / data.shape[0]
        self._rows = torch.argsort(self.atom, stable=True)  # the rows of equal points side by side
        self._start = self.counts.cumsum(0) - self.counts
        self.first = self._rows[self._start]

    def flat(self, x: Tensor) -> Tensor:
        """Points ``(B, *event)`` as ``(B, d)``, centred like the atoms and of their type."""
        return x.detach().to(self.atoms.dtype).reshape(x.shape[0], self.centre.shape[0]) - self.centre

    def nearest(self, x: Tensor, g: Tensor) -> Tensor:
        """The atom with the least ``|x - atom|^2 - g`` for every flat point, ``(B, d)`` and ``(K,)`` to ``(B,)``."""
        least = x.new_full(x.shape[:1], torch.inf)
        cell = torch.zeros(x.shape[:1], dtype=torch.long, device=x.device)
        for start, values in self._values(x, g):
            value, index = values.min(1)
            better = value < least
            least, cell = torch.where(better, value, least), torch.where(better, index + start, cell)
        return cell

    def gap(self, x: Tensor, g: Tensor) -> float:
        """Mean difference of the second smallest value from the smallest; 0 if there is one atom alone."""
        two = x.new_full((x.shape[0], 2), torch.inf)
        for _, values in self._values(x, g):
            two = torch.cat([two, values], 1).topk(2, dim=1, largest=False).values
        gap = float((two[:, 1] - two[:, 0]).mean())
        return gap if math.isfinite(gap) else 0.0

    def count(self, cell: Tensor) -> Tensor:
        """How often every atom occurs in ``cell``, ``(K,)``."""
        return torch.bincount(cell, minlength=self.atoms.shape[0])

    def row(self, cell: Tensor, generator: torch.Generator | None) -> Tensor:
        """A row of the data for every atom in ``cell``; drawn where several rows are equal."""
        if self.atoms.shape[0] == self.atom.shape[0]:
            return self.first[cell]
        level = rand(tuple(cell.shape), generator, cell.device, torch.float64)
        return self._rows[self._start[cell] + (level * self.counts[cell]).long()]

    def _values(self, x: Tensor, g: Tensor) -> Iterator[tuple[int, Tensor]]:
        """``|x - atom|^2 - |x|^2 - g``, for as many atoms at a time as ``chunk`` allows."""
        width = max(1, self.chunk // max(1, x.shape[0]))
        for start in range(0, g.shape[0], width):
            part = slice(start, start + width)
            yield start, torch.addmm(self.squares[part] - g[part], x, self.atoms[part].T, alpha=-2.0)
