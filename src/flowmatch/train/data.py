r"""Data as the trainer sees it, and the order in which it is seen.

**Everything random at step** ``k`` **is a pure function of** ``(seed, k)``. The rows of step ``k`` are places
``kB, ..., kB + B - 1`` of one endless sequence: the permutation of epoch 0, then that of epoch 1, and so on, each drawn
from a seed made of ``(seed, epoch)``. So no row is dropped, a batch may straddle two epochs or be larger than the data,
and a resumed run finds its place by arithmetic. There is no sampler state to save.

Seeds for different purposes and steps are mixed by SplitMix64's finaliser, a bijection of 64 bits in which every input
bit reaches every output bit; nearby seeds give unrelated streams.

Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014, Figure 16,
https://doi.org/10.1145/2714064.2660195.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flowmatch.errors import InputError
from flowmatch.tensors import check_event, check_finite, take
from flowmatch.typing import Cond

__all__ = ["Batches", "Data", "TensorData", "mix"]

_MASK = 2**64 - 1
_ORDER = 1  # purpose of a seed: the permutation of an epoch


class Data(Protocol):
    """A number of rows, and a way to take some of them.

    ``take`` may draw fresh noise from the generator, for dequantisation or augmentation, and from nothing else.
    """

    def __len__(self) -> int: ...

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Cond]: ...


class TensorData:
    """Rows of a tensor, with their conditions.

    Args:
        x1: data ``(N, *event)``.
        cond: condition of every row, a tensor ``(N, ...)`` or a tree of them.

    Raises:
        TypeError: ``x1`` is not floating point.
        ValueError: a row is not finite, or the condition has another number of rows.

    Example:
        >>> data = TensorData(torch.eye(3), cond=torch.tensor([7, 8, 9]))
        >>> data.take(torch.tensor([2]))
        (tensor([[0., 0., 1.]]), tensor([9]))
    """

    def __init__(self, x1: Tensor, cond: Cond = None) -> None:
        check_event(x1, "x1")
        check_finite(x1, "x1")
        for leaf in pytree.tree_leaves(cond):
            rows = leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None
            if leaf is not None and rows != len(x1):
                raise ValueError(
                    f"cond must have one entry a row of x1, {len(x1)}, got {type(leaf).__name__} with {rows} rows"
                )
        self.x1, self.cond = x1, cond

    def __len__(self) -> int:
        return len(self.x1)

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Cond]:
        """Rows ``index`` of shape ``(B,)``: data ``(B, *event)`` and their condition."""
        index = index.to(self.x1.device)
        return self.x1.index_select(0, index), None if self.cond is None else take(self.cond, index)


class Batches:
    """Row numbers of the batch of any step.

    Args:
        rows: number of rows of the data.
        size: number of rows of a batch.
        seed: seed of the permutations.

    Raises:
        InputError: there are no rows.

    Example:
        >>> batches = Batches(rows=3, size=2, seed=0)
        >>> torch.cat([batches(step) for step in range(3)]).reshape(2, 3).sort().values
        tensor([[0, 1, 2],
                [0, 1, 2]])
    """

    def __init__(self, rows: int, size: int, seed: int) -> None:
        if rows < 1:
            raise InputError("the training data has no rows; give at least one")
        self.rows, self.size, self.seed = rows, size, seed
        self._generator = torch.Generator()
        self._cached: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int) -> Tensor:
        """Row numbers ``(size,)`` of the batch of ``step``, counted from 0."""
        epoch, place = divmod(step * self.size, self.rows)
        parts, missing = [], self.size
        while missing:
            part = self._order(epoch)[place : place + missing]
            parts.append(part)
            epoch, place, missing = epoch + 1, 0, missing - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if self._cached[0] != epoch:
            self._generator.manual_seed(mix(self.seed, _ORDER, epoch))
            self._cached = epoch, torch.randperm(self.rows, generator=self._generator)
        return self._cached[1]


def mix(*keys: int) -> int:
    """Mix integers into one seed of 63 bits; the order of the keys counts.

    Example:
        >>> mix(0, 1) != mix(1, 0), mix(5, 7) == mix(5, 7)
        (True, True)
    """
    state = 0
    for key in keys:
        state = (state + key + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1
