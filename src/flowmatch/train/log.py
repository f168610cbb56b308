"""Where the metrics of a run go: callbacks that write them, and what a callback is.

The library itself prints nothing. A progress bar, a plot or a stop condition is a callback too.
"""

from __future__ import annotations

import importlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from flowmatch.errors import InputError

if TYPE_CHECKING:
    from flowmatch.train.trainer import TrainResult

__all__ = ["Callback", "JsonLines", "Metrics", "TensorBoard", "Wandb"]

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

    def on_start(self, step: int) -> None:
        """Before the first step: ``step`` updates were restored, 0 for a fresh run. A run that is refused never starts.

        By now the run is known to go on, so this is where to write what describes it.
        """

    def on_log(self, step: int, metrics: Metrics) -> None:
        """After a line of metrics: ``step`` updates are done."""

    def on_evaluate(self, step: int, metrics: Metrics) -> None:
        """After an evaluation, before the line that carries it; ``metrics`` holds ``heldout_loss``."""

    def on_sample(self, step: int, model: nn.Module) -> Mapping[str, Tensor] | None:
        """Every ``config.sample_every`` updates, to look at samples.

        The averaged model comes in evaluation mode, without gradients, and PyTorch's generators are put back
        afterwards, so that training goes on as if nobody had looked.

        Returns:
            Pictures by name for TensorBoard and the like, ``(C, H, W)`` in ``[0, 1]`` or bytes; or ``None``.
        """
        return None

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

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """A picture ``(C, H, W)``, floating in ``[0, 1]`` or bytes."""
        self._writer.add_image(name, _bytes(picture), step)

    def close(self) -> None:
        """Write what is pending and end the writer's thread."""
        self._writer.close()


class Wandb(Callback):
    """The same metrics and pictures at Weights & Biases.

    Args:
        folder: folder of the run; its name is the run's. Under what number it is known there is kept in ``wandb.id``.
        config: options to show beside it.
        start: number of updates done before; a run that goes on keeps its number, a fresh one gets a new one.

    Raises:
        ImportError: the package ``wandb`` is not installed.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int = 0) -> None:
        self._wandb, file = self.module(), folder / "wandb.id"
        folder.mkdir(parents=True, exist_ok=True)
        if not (start and file.exists()):
            file.write_text(uuid.uuid4().hex, encoding="utf-8")
        known = file.read_text(encoding="utf-8").strip()
        self._run = self._wandb.init(
            project="flowmatch", name=folder.name, id=known, resume="allow", dir=str(folder), config=dict(config)
        )

    @staticmethod
    def module() -> Any:
        """The package."""
        try:
            return importlib.import_module("wandb")
        except ImportError as error:
            raise ImportError("wandb is not installed; run: pip install wandb, or set wandb=False") from error

    def on_log(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """A picture ``(C, H, W)``, floating in ``[0, 1]`` or bytes."""
        self._run.log({name: self._wandb.Image(_bytes(picture).movedim(0, -1).numpy())}, step=step)

    def close(self) -> None:
        """Send what is pending."""
        self._run.finish()


def _bytes(picture: Tensor) -> Tensor:
    if picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise InputError(f"a picture must have shape (1, H, W) or (3, H, W), got {tuple(picture.shape)}")
    picture = picture.detach().cpu()
    return (picture.clamp(0, 1) * 255).round().byte() if picture.is_floating_point() else picture
