r"""Batches with their randomness spent: drawn from a pool larger than the batch, and ahead of the step that needs them.

**Pool.** A coupling joins the points that it sees. Joined over ``P`` points, pairs are nearer to those of the whole
laws than over ``B < P`` (the bias of minibatch transport), but the network needs ``B`` rows a step. So ``P`` points are
joined once, and the pairs are handed out in ``P / B`` batches; the cost of joining is paid once in ``P / B`` steps.

**Ahead.** What step ``k`` draws is a pure function of ``(seed, k // (P / B))`` and nothing else, so it may as well be
computed before: a worker thread joins the next pool while the network trains on this one. Tensor operations and the
compiled assignment release Python's lock, so on a machine with a second core, or a GPU, the step does not wait. The
result is the same, bit for bit, with and without it.

**Whole data.** A semidiscrete coupling joins source points to the whole data set, not to a batch of it. Its objective
says so (``whole_data``), and is given all rows at every draw.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.train.data import Batches, Data, mix
from flowmatch.train.heldout import rows_in, rows_of
from flowmatch.typing import Cond

__all__ = ["Draws"]

_DRAW = 2  # purpose of a seed, see data.py


class Draws:
    """The draw of any step, by number; computed ahead in a thread if asked.

    Use it as a context, or call :meth:`close`, to end the thread.

    Args:
        objective: what draws: a :class:`~flowmatch.FlowMatching` or the like.
        data: the rows, such as a :class:`TensorData`.
        batch_size: rows of one step.
        pool: rows that are coupled together, a multiple of ``batch_size``; ``batch_size`` by default.
        ahead: number of pools that a worker thread computes before they are needed; 0 for none.
        seed: seed of everything.

    Raises:
        InputError: a pool that is no multiple of the batch, a negative ``ahead``, a coupling that leaves rows out in a
            pool, or one of the whole data with a pool.

    Example:
        >>> import flowmatch as fm
        >>> from flowmatch.train import TensorData
        >>> objective = fm.FlowMatching(fm.AffinePath())
        >>> with Draws(objective, TensorData(torch.ones(50, 2)), batch_size=8, pool=32, ahead=1) as draws:
        ...     draws(0).sample.x_t.shape
        torch.Size([8, 2])
    """

    def __init__(
        self, objective: Any, data: Data, batch_size: int, pool: int | None = None, ahead: int = 0, seed: int = 0
    ) -> None:
        pool = batch_size if pool is None else pool
        if pool < batch_size or pool % batch_size:
            raise InputError(f"pool must be a multiple of batch_size = {batch_size}, got {pool}")
        if ahead < 0:
            raise InputError(f"ahead must be at least 0, got {ahead}")
        self.objective, self.data, self.batch_size, self.pool, self.seed = objective, data, batch_size, pool, seed
        self.ahead = ahead
        self._batches = Batches(len(data), pool, seed)
        self._whole = self._all() if getattr(objective, "whole_data", False) else None
        if self._whole is not None and pool != batch_size:
            raise InputError("a coupling of the whole data set is joined anew for every row, so it takes no pool")
        self._kept: tuple[int, Any] = (-1, None)
        self._coming: dict[int, Future[Any]] = {}
        self._worker: ThreadPoolExecutor | None = None

    def __call__(self, step: int) -> Any:
        """The draw of ``step``, counted from 0: a tree of ``(batch_size, ...)`` tensors."""
        parts = self.pool // self.batch_size
        number, part = divmod(step, parts)
        whole = self._of(number)
        if parts == 1:
            return whole
        first = part * self.batch_size
        return rows_of(whole, first, first + self.batch_size)

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
                self._kept = number, self._join(number)
            else:
                if self._worker is None:
                    self._worker = ThreadPoolExecutor(1, thread_name_prefix="flowmatch-draws")
                for later in range(number, number + self.ahead + 1):
                    if later not in self._coming:
                        self._coming[later] = self._worker.submit(self._join, later)
                self._kept = number, self._coming[number].result()
                self._coming = {later: job for later, job in self._coming.items() if later > number}
        return self._kept[1]

    @torch.no_grad()  # a path may have weights, whose graph must not join the batches of a pool
    def _join(self, number: int) -> Any:
        """Take the rows of a pool and spend its randomness; run by one thread at a time."""
        # A generator of its own: two threads may not share one.
        generator = torch.Generator().manual_seed(mix(self.seed, _DRAW, number))
        if self._whole is not None:
            x1, cond = self._whole
            return self.objective.draw(x1, cond=cond, generator=generator, size=self.batch_size)
        x1, cond = self.data.take(self._batches(number), generator)
        draw = self.objective.draw(x1, cond=cond, generator=generator)
        rows = rows_in(draw)
        if self.pool != self.batch_size and rows != self.pool:
            raise InputError(
                f"the coupling joined {rows} of the {self.pool} rows of a pool, which then cannot be shared out in "
                f"batches of {self.batch_size}; use a coupling of all rows, or no pool"
            )
        return draw

    def _all(self) -> tuple[Tensor, Cond]:
        """All rows, once: a coupling that was fitted to a data set needs that very set."""
        generator = torch.Generator().manual_seed(mix(self.seed, _DRAW))
        return self.data.take(torch.arange(len(self.data)), generator)
