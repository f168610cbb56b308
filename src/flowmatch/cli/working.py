"""One line on a terminal while a command works."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Working"]


class Working:
    """The share that is done and what comes next, where there is a terminal; use as a context.

    Args:
        what: what the command does.
        quiet: draw nothing.
    """

    def __init__(self, what: str, quiet: bool = False) -> None:
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        self.bar = Progress(*columns, console=console, disable=quiet or not console.is_terminal)
        self.task = self.bar.add_task(what, total=1.0)

    def __enter__(self) -> Working:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, done: float, what: str) -> None:
        """``done`` is a share, from 0 to 1."""
        self.bar.update(self.task, completed=done, description=what)
