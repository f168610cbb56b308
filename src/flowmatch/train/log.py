"""Where the metrics of a run go: callbacks that write them, and what a callback is.

The library itself prints nothing. A progress bar, a plot or a stop condition is a callback too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from flowmatch.errors import InputError

if TYPE_CHECKING:
    from flowmatch.train.trainer import TrainResult

__all__ = ["Callback", "JsonLines", "Metrics", "TensorBoard"]

Metrics: TypeAlias = dict[str, float]


class Callback:
    """What happens beside training, on the main process alone. Override what you need.

    An exception raised here ends the training; the checkpoints stay.

    Example:
        >>> class Watch(Callback):
        ...     def on_log(self, step, metrics):
        ...         self.last = step, metrics["loss"]
        >>> watch = Watch()
        >>> watch.on_log(10, {"loss": 0.5})
        >>> watch.last
        (10, 0.5)
    """

    def on_log(self, step: int, metrics: Metrics) -> None:
        """After a line of metrics: ``step`` updates are done."""

    def on_evaluate(self, step: int, metrics: Metrics) -> None:
        """After an evaluation, before the line that carries it; ``metrics`` holds ``heldout_loss``."""

    def on_end(self, result: TrainResult) -> None:
        """After the last step and the last checkpoint."""


class JsonLines(Callback):
    """One JSON object a line, on the disc as soon as it is known.

    The file is opened for every line: a killed run loses nothing and leaves no handle behind.

    Args:
        path: the file, ``metrics.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, step: int, metrics: Metrics) -> None:
        self._write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n", "a")

    def sync(self) -> None:
        """Force the lines onto the disc, before a checkpoint that counts on them."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, step: int) -> list[dict[str, Any]]:
        """Drop the lines beyond ``step``, and a last line that was cut short; return what is left.

        A run that stopped between two checkpoints has written lines that the resumed run will write again.
        """
        kept: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and row.get("step", step + 1) <= step:
                kept.append(row)
        self._write("".join(json.dumps(row) + "\n" for row in kept), "w")
        return kept

    def _write(self, text: str, mode: str) -> None:
        # Rewritten beside the old file, so that a stop in the middle leaves one of the two whole.
        path = self.path if mode == "a" else self.path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(mode, encoding="utf-8") as file:
                file.write(text)
            if path != self.path:
                path.replace(self.path)
        except OSError as error:
            raise InputError(
                f"could not write {self.path}: {error.strerror or error}; make room or give another folder, "
                "then resume the run from its last checkpoint"
            ) from error


class TensorBoard(Callback):
    """TensorBoard events of the same metrics; look with ``tensorboard --logdir FOLDER``.

    Args:
        folder: where the events go.
        start: number of updates done before; events beyond it, of a run that was stopped, are hidden.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                'TensorBoard is not installed; run: pip install "flowmatch[train]", or set tensorboard=False'
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def on_log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending and end the writer's thread."""
        self._writer.close()
