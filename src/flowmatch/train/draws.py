r"""Batches with their randomness spent: drawn from a pool larger than the batch, and ahead of the step that needs them.

**Pool.** A coupling joins the points that it sees. Joined over ``P`` points, pairs are nearer to those of the whole
laws than over ``B < P`` (the bias of minibatch transport), but the network needs ``B`` rows a step. So ``P`` points are
joined once, and the pairs are handed out in ``P / B`` batches; the cost of joining is paid once in ``P / B`` steps.

**Ahead.** What step ``k`` draws is a pure function of ``(seed, k // (P / B))`` and nothing else, so it may as well be
computed before: a worker thread takes and joins the next pool while the network trains on this one. Tensor operations,
decoding and the compiled assignment release Python's lock, so on a machine with a second core, or a GPU, the step does
not wait. The result is the same, bit for bit, with and without it. For a GPU the worker also puts it into pinned
memory, from which it is copied while the GPU computes.

**Shares.** Every process needs its own rows alone, but a coupling of the whole batch is a function of all of them: then
each process draws the whole, which costs little beside the network unless images have to be decoded. Independent pairs
need no other rows. There the batch is cut into blocks, as many whatever the number of processes; each block has a seed
of its own for all that is random in it, and a process draws the blocks in which its rows lie. So the batch is the same
for any number of processes, and each of them decodes its share. Blocks hold some 16,000 numbers at least, so that small
rows are drawn whole: cutting them would cost more than it saves. And a batch has 32 blocks at most, however large its
rows: images are decoded by threads within a block, which a block of one row would leave idle. What is shared over the
rows, such as stratified times, is shared within a block.

**Whole data.** A semidiscrete coupling joins source points to the whole data set, not to a batch of it. Its objective
says so (``whole_data``), and is given all rows at every draw.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flowmatch.errors import InputError
from flowmatch.train.data import Batches, Data, mix
from flowmatch.train.heldout import rows_in, rows_of
from flowmatch.typing import Cond

__all__ = ["Draws"]

_DRAW = 2  # purpose of a seed, see data.py
_CHANGE = 5  # the same: what is done to a draw afterwards
_NUMBERS = 2**14  # a block with fewer costs more calls than numbers
_BLOCKS = 32  # more a batch leave too few rows in each for the threads that decode and for times in strata


class Draws:
    """The draw of any step, by number; computed ahead in a thread if asked.

    Use it as a context, or call :meth:`close`, to end the thread.

    Args:
        objective: what draws: a :class:`~flowmatch.FlowMatching` or the like. One whose pairs are independent may say
            so by an attribute ``by_row``.
        data: the rows, such as a :class:`TensorData`.
        batch_size: rows of one step.
        pool: rows that are coupled together, a multiple of ``batch_size``; ``batch_size`` by default. Independent
            pairs have no use for one, and it is passed over.
        ahead: number of pools that a worker thread computes before they are needed; 0 for none.
        seed: seed of everything.
        change: ``(draw, generator) -> draw``, applied after the pairs are joined, such as :class:`LabelDropout`.
        share: number of this process and number of all; the rows of this process are handed out.
        device: where the draws are needed; the host by default.

    Raises:
        InputError: a pool that is no multiple of the batch, a negative ``ahead``, a coupling that leaves rows out in a
            pool, or one of the whole data with a pool.

    Example:
        >>> import flowmatch as fm
        >>> from flowmatch.train import TensorData
        >>> objective = fm.FlowMatching(fm.AffinePath(), coupling=fm.ExactOT())
        >>> with Draws(objective, TensorData(torch.ones(50, 2)), batch_size=8, pool=32, ahead=1) as draws:
        ...     draws(0).sample.x_t.shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        objective: Any,
        data: Data,
        batch_size: int,
        pool: int | None = None,
        ahead: int = 0,
        seed: int = 0,
        change: Callable[[Any, torch.Generator], Any] | None = None,
        share: tuple[int, int] = (0, 1),
        device: torch.device | None = None,
    ) -> None:
        pool = batch_size if pool is None else pool
        if pool < batch_size or pool % batch_size:
            raise InputError(f"pool must be a multiple of batch_size = {batch_size}, got {pool}")
        if ahead < 0:
            raise InputError(f"ahead must be at least 0, got {ahead}")
        self.by_row = bool(getattr(objective, "by_row", False))
        self.pool = pool = batch_size if self.by_row else pool
        self.objective, self.data, self.batch_size, self.seed = objective, data, batch_size, seed
        self.ahead, self.change, self.share = ahead, change, share
        self.device = torch.device("cpu") if device is None else device
        self._batches = Batches(len(data), pool, seed)
        self._blocks = self._count() if self.by_row else 1
        self._whole = self._all() if getattr(objective, "whole_data", False) else None
        if self._whole is not None and pool != batch_size:
            raise InputError("a coupling of the whole data set is joined anew for every row, so it takes no pool")
        self._kept: tuple[int, Any] = (-1, None)
        self._coming: dict[int, Future[Any]] = {}
        self._worker: ThreadPoolExecutor | None = None

    def __call__(self, step: int) -> Any:
        """The draw of ``step``, counted from 0: a tree of ``(rows, ...)`` tensors, the share of this process."""
        parts = self.pool // self.batch_size
        number, part = divmod(step, parts)
        whole = self._of(number)
        rank, world = self.share
        if self.by_row or (parts, world) == (1, 1):
            return whole
        rows = rows_in(whole) // parts
        first = part * rows
        return rows_of(whole, first + rank * rows // world, first + (rank + 1) * rows // world)

    def parts(self, step: int, count: int) -> list[Any]:
        """The draw of ``step`` in ``count`` equal parts, on the device.

        Raises:
            InputError: the coupling joined a number of rows that cannot be shared so.
        """
        draw = self(step)
        if count == self.share[1] == 1 and self.device.type == "cpu":
            return [draw]
        joined = rows_in(self._kept[1]) if self.pool == self.batch_size and not self.by_row else self.batch_size
        world = self.share[1]
        size, left = divmod(joined, world * count)
        if left:
            raise InputError(
                f"the coupling joined {joined} of {self.batch_size} rows, which {world} processes in {count} parts "
                "each cannot share; use a coupling of all rows, or one part"
            )
        return [rows_of(draw, start, start + size, self.device) for start in range(0, count * size, size)]

    def close(self) -> None:
        """End the worker thread; what it had not begun is dropped."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
            self._worker = None
        self._coming.clear()

    def __enter__(self) -> Draws:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _of(self, number: int) -> Any:
        """The pool of a number, kept until the next one is asked for."""
        if self._kept[0] != number:
            if not self.ahead:
                self._kept = number, self._make(number)
            else:
                if self._worker is None:
                    self._worker = ThreadPoolExecutor(1, thread_name_prefix="flowmatch-draws")
                for later in range(number, number + self.ahead + 1):
                    if later not in self._coming:
                        self._coming[later] = self._worker.submit(self._make, later)
                self._kept = number, self._coming[number].result()
                self._coming = {later: job for later, job in self._coming.items() if later > number}
        return self._kept[1]

    @torch.no_grad()  # a path may have weights, whose graph must not join the batches of a pool
    def _make(self, number: int) -> Any:
        """A pool, or the rows of this process, with the randomness spent; run by one thread at a time."""
        draw = self._rows(number) if self.by_row else self._join(number)
        if self.device.type == "cuda":
            draw = pytree.tree_map(lambda leaf: leaf.pin_memory() if isinstance(leaf, Tensor) else leaf, draw)
        return draw

    def _join(self, number: int) -> Any:
        """Take the rows of a pool and join them."""
        # A generator of its own: two threads may not share one.
        generator = torch.Generator().manual_seed(mix(self.seed, _DRAW, number))
        if self._whole is not None:
            x1, cond = self._whole
            draw = self.objective.draw(x1, cond=cond, generator=generator, size=self.batch_size)
        else:
            x1, cond = self.data.take(self._batches(number), generator)
            draw = self.objective.draw(x1, cond=cond, generator=generator)
        rows = rows_in(draw)
        if self.pool != self.batch_size and rows != self.pool:
            raise InputError(
                f"the coupling joined {rows} of the {self.pool} rows of a pool, which then cannot be shared out in "
                f"batches of {self.batch_size}; use a coupling of all rows, or no pool"
            )
        return self._changed(draw, number)

    def _rows(self, number: int) -> Any:
        """Take the rows of this process alone, by the blocks in which they lie."""
        rank, world = self.share
        first, last = (place * self.batch_size // world for place in (rank, rank + 1))
        size, index = self.batch_size // self._blocks, self._batches(number)
        draws = []
        for block in range(first // size, -(-last // size)):
            # A batch that is one block has the stream that it has in one piece.
            keys = (number,) if self._blocks == 1 else (number, block)
            generator = torch.Generator().manual_seed(mix(self.seed, _DRAW, *keys))
            x1, cond = self.data.take(index[block * size : (block + 1) * size], generator)
            draw = self._changed(self.objective.draw(x1, cond=cond, generator=generator), *keys)
            inside = max(first - block * size, 0), min(last - block * size, size)
            draws.append(draw if inside == (0, size) else rows_of(draw, *inside))
        return draws[0] if len(draws) == 1 else pytree.tree_map(_side_by_side, *draws)

    def _changed(self, draw: Any, *keys: int) -> Any:
        if self.change is None:
            return draw
        return self.change(draw, torch.Generator().manual_seed(mix(self.seed, _CHANGE, *keys)))

    def _count(self) -> int:
        """Number of blocks of a batch: a power of two that divides it, not too many, and each holds enough numbers."""
        x1, _ = self.data.take(torch.zeros(1, dtype=torch.long), torch.Generator().manual_seed(self.seed))
        blocks, size = 1, self.batch_size
        while 2 * blocks <= _BLOCKS and size % (2 * blocks) == 0 and size // (2 * blocks) * x1.numel() >= _NUMBERS:
            blocks *= 2
        return blocks

    def _all(self) -> tuple[Tensor, Cond]:
        """All rows, once: a coupling that was fitted to a data set needs that very set."""
        generator = torch.Generator().manual_seed(mix(self.seed, _DRAW))
        return self.data.take(torch.arange(len(self.data)), generator)


def _side_by_side(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]
