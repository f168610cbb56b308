"""Loss and speed since the last line of metrics, read off the device as rarely as can be.

A look at a number on an accelerator waits for everything that was queued before it. So losses are kept as tensors, one
a step, and read together when a line is due; all of them, because the first that is not finite tells the step at which
the training broke.
"""

from __future__ import annotations

import math
import time
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowmatch.train.log import Metrics

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Meter"]


class Meter:
    """Collects losses between two lines of metrics and times the steps, pauses left out.

    Args:
        accelerator: takes the mean over the processes.
        parts: number of losses a step.
        rows: rows of a step.
    """

    def __init__(self, accelerator: Accelerator, parts: int, rows: int) -> None:
        self._accelerator, self._parts, self._rows = accelerator, parts, rows
        self._pending: list[Tensor] = []
        self._losses: list[float] = []
        self._earlier = self._busy = 0.0
        self._steps = 0

    @property
    def seconds(self) -> float:
        """Time of the whole run so far, earlier parts and pauses included."""
        return self._earlier + time.perf_counter() - self._begin

    def begin(self) -> None:
        """Start the clock of the run."""
        self._begin = self._lap = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        """Keep the loss of one part of a step; nothing is computed."""
        self._pending.append(loss.detach())

    def read(self, step: int) -> tuple[float, int] | None:
        """Fetch the losses up to ``step``; the first that is not finite with its step, if there is one."""
        if not self._pending:
            return None
        losses: list[float] = self._accelerator.reduce(torch.stack(self._pending), "mean").tolist()
        self._pending.clear()
        steps = len(losses) // self._parts
        self._busy, self._steps = self._busy + time.perf_counter() - self._lap, self._steps + steps
        self._losses += losses
        bad = (i for i, loss in enumerate(losses) if not math.isfinite(loss))
        return next(((losses[i], step - steps + i // self._parts + 1) for i in bad), None)

    def resume(self) -> None:
        """Go on timing after a pause."""
        self._lap = time.perf_counter()

    def line(self, rate: float, norm: float) -> Metrics:
        """Metrics since the last line; starts the next one."""
        speed = self._steps * self._rows / max(self._busy, 1e-9)
        loss = fmean(self._losses)
        self._losses.clear()
        self._busy, self._steps = 0.0, 0
        seconds = round(self.seconds, 3)
        return {"loss": loss, "lr": rate, "grad_norm": norm, "samples_per_second": round(speed, 1), "seconds": seconds}

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to finish a line that is half collected; read first."""
        return {"losses": list(self._losses), "seconds": self.seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` gave; call it before :meth:`begin`."""
        self._losses, self._earlier = list(state["losses"]), float(state["seconds"])
