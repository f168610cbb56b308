"""Progress of a training in the terminal: step, loss, speed, remaining time."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowmatch.train import Callback

__all__ = ["TrainingProgress"]


class TrainingProgress(Callback):
    """A callback that draws one line; where there is no terminal it prints a line every tenth of the way.

    Args:
        steps: number of steps of the training.
        quiet: draw nothing.
        unit: what a step takes some of.
    """

    def __init__(self, steps: int, quiet: bool = False, unit: str = "rows") -> None:
        self.steps, self.quiet, self.unit = steps, quiet, unit
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal and not quiet
        self.next_line = 0.0
        self.heldout = ""
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("training", total=steps, status="")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def on_evaluate(self, step: int, metrics: dict[str, float]) -> None:
        """Remember the held-out loss for the next line."""
        if "heldout_loss" in metrics:
            self.heldout = f"  held-out {metrics['heldout_loss']:.4f}"

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Draw."""
        if "loss" not in metrics:
            return
        speed: Any = metrics.get("samples_per_second", 0.0)
        status = f"loss {metrics['loss']:.4f}{self.heldout}  {speed:,.0f} {self.unit}/s"
        self.bar.update(self.task, completed=step, status=status)
        if not self.live and not self.quiet and step >= self.next_line:
            self.console.print(f"step {step} of {self.steps}: {status}", highlight=False)
            self.next_line = step + self.steps / 10
