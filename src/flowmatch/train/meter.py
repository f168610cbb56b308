"""Loss, speed, waiting and memory since the last line of metrics, read off the device as rarely as can be.

A look at a number on an accelerator waits for everything that was queued before it. So losses are kept as tensors, one
a step, and read together when a line is due; all of them, because the first that is not finite tells the step at which
the training broke.

``waiting`` is the share of the steps' time in which the loop stood still for its next batch; if it is not near zero,
draw ahead. ``memory_mib`` is the most memory of the main process so far: what PyTorch had allocated on a GPU, or the
resident memory of the process on a CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
import time
from collections.abc import Iterator
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
        self._earlier = self._busy = self._waited = 0.0
        self._steps = self._skipped = 0
        self._scaled = list[Tensor]()

    @property
    def seconds(self) -> float:
        """Time of the whole run so far, earlier parts and pauses included."""
        return self._earlier + time.perf_counter() - self._begin

    def begin(self) -> None:
        """Start the clock of the run."""
        self._begin = self._lap = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time what the loop waits for."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def tell(self, norm: Tensor) -> None:
        """Keep the norm of a gradient that came through a loss scale: where it is not finite the step was left out."""
        self._scaled.append(norm.isfinite())

    def add(self, loss: Tensor) -> None:
        """Keep the loss of one part of a step; nothing is computed."""
        self._pending.append(loss.detach())

    def read(self, step: int) -> tuple[float, int] | None:
        """Fetch the losses up to ``step``; the first that is not finite with its step, if there is one."""
        if not self._pending:
            return None
        losses: list[float] = self._accelerator.reduce(torch.stack(self._pending), "mean").tolist()
        self._pending.clear()
        if self._scaled:
            self._skipped += len(self._scaled) - int(torch.stack(self._scaled).sum())
            self._scaled.clear()
        steps = len(losses) // self._parts
        self._busy, self._steps = self._busy + time.perf_counter() - self._lap, self._steps + steps
        self._losses += losses
        bad = (i for i, loss in enumerate(losses) if not math.isfinite(loss))
        return next(((losses[i], step - steps + i // self._parts + 1) for i in bad), None)

    def resume(self) -> None:
        """Go on timing after a pause."""
        self._lap = time.perf_counter()

    def line(self, rate: float, norm: float, scaled: bool = False) -> Metrics:
        """Metrics since the last line; starts the next one."""
        busy = max(self._busy, 1e-9)
        line = {"loss": fmean(self._losses), "lr": rate}
        if math.isfinite(norm):  # else the step was left out
            line["grad_norm"] = norm
        if scaled:
            line["skipped_steps"] = self._skipped
        line["samples_per_second"] = round(self._steps * self._rows / busy, 1)
        line["waiting"] = round(min(self._waited / busy, 1.0), 4)
        line["memory_mib"] = round(_peak(self._accelerator.device), 1)
        line["seconds"] = round(self.seconds, 3)
        self._losses.clear()
        self._busy, self._waited, self._steps = 0.0, 0.0, 0
        return line

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to finish a line that is half collected; read first."""
        return {"losses": list(self._losses), "seconds": self.seconds, "skipped": self._skipped}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` gave; call it before :meth:`begin`."""
        self._losses, self._earlier = list(state["losses"]), float(state["seconds"])
        self._skipped = int(state.get("skipped", 0))


def _peak(device: torch.device) -> float:
    """Most memory so far in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows; Accelerate brings psutil along
        psutil: Any = importlib.import_module("psutil")
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10
