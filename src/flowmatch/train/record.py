"""The record of a run: its folder, its history, and those who listen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.train.checkpoint import Checkpoint, Checkpoints
from flowmatch.train.config import TrainConfig
from flowmatch.train.log import Callback, JsonLines, Metrics, TensorBoard, Wandb

if TYPE_CHECKING:
    from flowmatch.train.trainer import TrainResult

__all__ = ["Record"]


class Record:
    """Keeps the history and the checkpoints of a run, and tells the callbacks.

    Args:
        out: folder of the run, or ``None`` to keep the history in memory alone.
        config: options of the run.
        callbacks: listeners besides the record's own files.
        writes: whether this process writes; one of all does.

    Raises:
        ImportError: ``config.wandb`` without the package.
        InputError: ``config.wandb`` without a folder.
    """

    def __init__(self, out: Path | None, config: TrainConfig, callbacks: Sequence[Callback], writes: bool) -> None:
        self.out, self.history = out, list[dict[str, Any]]()
        self._config, self._callbacks, self._writes = config, tuple(callbacks), writes
        self._files = (
            None if out is None else (Checkpoints(out / "checkpoints", config.keep), JsonLines(out / "metrics.jsonl"))
        )
        self._boards: list[TensorBoard | Wandb] = []
        if config.wandb:
            if out is None:
                raise InputError("wandb=True needs the folder of the run; give the Trainer out=, or set wandb=False")
            Wandb.module()  # before hours of training, not after

    def find(self, resume: bool) -> Checkpoint | None:
        """The checkpoint to start from; ``None`` for a fresh run.

        Raises:
            InputError: nothing to resume, or a fresh run would mix with one that is there.
        """
        if self._files is None:
            if resume:
                raise InputError("nothing to resume without a folder; give the Trainer out=, the folder of the run")
            return None
        checkpoints, _ = self._files
        if resume:
            return checkpoints.load()
        if checkpoints.paths():
            raise InputError(f"{self.out} already holds a run; resume it, or give another folder")
        return None

    @contextlib.contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Open the files for a run that starts after ``step`` updates, and close them whatever happens."""
        if self._writes and self._files is not None and self.out is not None:
            checkpoints, metrics = self._files
            checkpoints.clean()
            self.history = metrics.cut(step)
            if self._config.tensorboard:
                self._boards.append(TensorBoard(self.out / "tensorboard", step))
            if self._config.wandb:
                self._boards.append(Wandb(self.out, self._config.model_dump(), step))
        try:
            yield
        finally:
            for board in self._boards:
                board.close()
            self._boards = []

    def started(self, step: int) -> None:
        """Tell the callbacks that the run goes on from ``step``."""
        for callback in self._callbacks if self._writes else ():
            callback.on_start(step)

    def log(self, step: int, metrics: Metrics) -> None:
        """Add a line to the history, the files and the callbacks."""
        self.history.append({"step": step, **metrics})
        if self._writes:
            files = [] if self._files is None else [self._files[1]]
            for listener in [*files, *self._boards, *self._callbacks]:
                listener.on_log(step, metrics)

    def evaluated(self, step: int, metrics: Metrics) -> None:
        """Tell the callbacks of an evaluation."""
        for callback in self._callbacks if self._writes else ():
            callback.on_evaluate(step, metrics)

    @torch.no_grad()
    def sampled(self, step: int, model: nn.Module, device: torch.device) -> None:
        """Let the callbacks look at samples, and send on their pictures; the generators stay as they were."""
        if not (self._writes and self._callbacks):
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for callback in self._callbacks:
                for name, picture in (callback.on_sample(step, model) or {}).items():
                    for board in self._boards:
                        board.image(name, picture, step)

    def ended(self, result: TrainResult) -> None:
        """Tell the callbacks of the end."""
        for callback in self._callbacks if self._writes else ():
            callback.on_end(result)

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, once the lines of metrics up to it are safe."""
        if self._writes and self._files is not None:
            checkpoints, metrics = self._files
            metrics.sync()
            checkpoints.save(step, tensors, {**state, "config": self._config.model_dump()})

    def last_good(self) -> str:
        """A sentence on where to go on from, for an error that ends the run."""
        paths = [] if self._files is None else self._files[0].paths()
        return f"The last checkpoint, {paths[-1]}, is good" if paths else "No checkpoint had been written"
