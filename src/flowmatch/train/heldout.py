r"""The loss on rows that training never sees, by one fixed set of times and noise.

A flow matching loss has two sources of noise: the rows, and the ``(t, x0)`` drawn for each. Two evaluations with fresh
draws differ more than two models do. So every evaluation of a run uses the same rows and the same draws, several for
each row, and the difference of two of its values is due to the weights alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flowmatch.errors import InputError
from flowmatch.train.config import TrainConfig
from flowmatch.train.data import Batches, Data, mix
from flowmatch.typing import Cond, Field

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["HeldOut", "Objective", "rows_in", "rows_of"]

_DRAWS = 4  # draws of (t, x0) a row
_ROWS = 4096  # rows beyond these cost time and change the third digit only
_PURPOSE = 3  # purpose of a seed, see data.py


class _Loss(Protocol):
    def mean(self) -> Tensor: ...


class Objective(Protocol):
    """How a field is trained: :class:`~flowmatch.FlowMatching`, or anything with these two methods.

    ``draw`` spends all the randomness of a batch and returns a tree of ``(B, ...)`` tensors; ``loss`` calls the model
    on such a tree, or on a part of its rows, and is the mean over them.
    """

    def draw(
        self, x1: Tensor, x0: Tensor | None = None, cond: Cond = None, generator: torch.Generator | None = None
    ) -> Any: ...

    def loss(self, model: Field, draw: Any) -> _Loss: ...


class HeldOut:
    """Held-out loss of a field, the same draws at every call.

    Args:
        objective: what is trained.
        data: the held-out rows.
        config: options of the run; the seed, the batch size and the parts of a batch count here.
        accelerator: shares the work among the processes.

    Raises:
        InputError: there are no rows.
    """

    def __init__(self, objective: Objective, data: Data, config: TrainConfig, accelerator: Accelerator) -> None:
        if len(data) < 1:
            raise InputError("the held-out data has no rows; give at least one, or none at all with holdout=None")
        # A weight that is learnt along changes the loss without the model: held-out losses are compared without it.
        self.objective: Objective = getattr(objective, "without_learnt", lambda: objective)()
        self.data, self.seed, self.accelerator = data, config.seed, accelerator
        rows = Batches(len(data), min(len(data), _ROWS), config.seed)(0)
        # A batch has the size of training's, because a coupling's loss depends on it.
        self._chunks = list(rows.split(config.batch_size))
        # But the network meets no more rows at once than in training, whose memory they were chosen for.
        self._parts = config.accumulate
        self._generator = torch.Generator()

    @torch.no_grad()
    def __call__(self, field: Field) -> float:
        """Mean loss of ``field`` over the rows and their draws."""
        device = self.accelerator.device
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        total = torch.zeros((), device=device)
        rows = 0
        for number in range(_DRAWS):
            for place, index in enumerate(self._chunks):
                self._generator.manual_seed(mix(self.seed, _PURPOSE, number, place))
                x1, cond = self.data.take(index, self._generator)
                draw = self.objective.draw(x1, cond=cond, generator=self._generator)
                size = rows_in(draw)  # fewer than were taken, if the coupling leaves some out
                rows += size
                start, end = rank * size // world, (rank + 1) * size // world
                for part in range(self._parts):
                    first, last = (start + place * (end - start) // self._parts for place in (part, part + 1))
                    if first < last:
                        loss = self.objective.loss(field, rows_of(draw, first, last, device))
                        total += loss.mean() * (last - first)
        return float(self.accelerator.reduce(total, "sum")) / rows


def rows_in(draw: Any) -> int:
    """Number of rows of a draw."""
    return next((len(leaf) for leaf in pytree.tree_leaves(draw) if isinstance(leaf, Tensor)), 0)


def rows_of(draw: Any, first: int, last: int, device: torch.device | None = None) -> Any:
    """Rows ``first`` to ``last`` of every tensor of a draw, on ``device`` or where they are."""

    def pick(leaf: Any) -> Any:
        return leaf[first:last].to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(pick, draw)
