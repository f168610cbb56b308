"""``flowmatch evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flowmatch.cli.errors import reported, say
from flowmatch.cli.sample import animate
from flowmatch.cli.solving import RtolOption, SolverOption, StepsOption, solving
from flowmatch.data import toy
from flowmatch.errors import InputError
from flowmatch.recipes import Run

__all__ = ["evaluate"]


@reported
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[
        str | None, typer.Option(help="Where the training data lies now, if it has moved.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples to compare with the held-out rows.")] = 2000,
    likelihood_rows: Annotated[
        int | None, typer.Option(help="Rows to score at most. (default: from the columns)", show_default=False)
    ] = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    rtol: RtolOption = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    gif: Annotated[bool, typer.Option("--gif", help="Also animate noise to data; two columns only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Measure a run on its held-out rows and write report.html into its folder.

    Every number stands beside its floor: the same measure between two halves of real data.
    """
    from flowmatch.report import evaluate as measure  # brings matplotlib and scikit-learn
    from flowmatch.report import readings

    how = solving(steps, solver, rtol)
    opened = Run.open(run)
    if gif and opened.codec.dim != 2:
        raise InputError(f"--gif needs a run of two columns, this one has {opened.codec.dim}")
    train, heldout = opened.split(data)
    if not len(heldout):
        raise InputError(f"the run at {run} kept no rows out of training; train with --holdout above 0")
    source = opened.config.data
    entropy = toy(source.partition(":")[2]).entropy if source.startswith("toy:") else None
    shape = opened.image_shape
    with _Progress(quiet) as progress:
        result = measure(
            opened.flow,
            opened.codec,
            train,
            heldout,
            run,
            history=opened.history(),
            samples=samples,
            steps=how.get("steps"),
            rtol=how.get("rtol"),
            solver=how["solver"],
            seed=seed,
            image_shape=(shape[0], shape[1]) if shape else None,
            progress=progress.update,
            likelihood_rows=likelihood_rows,
            entropy=entropy if opened.config.condition is None else None,
        )
    if gif:
        animate(opened, run / "plots" / "flow.gif", opened.codec.draw_condition(1000), seed)
    if not quiet:
        for reading in readings(result):
            beside = "; ".join(f"{what} {value}" for what, value in reading.beside)
            say(f"{reading.name}: {' '.join((reading.value, reading.error)).strip()} {reading.unit} ({beside})")
        say(f"report written to {run / 'report.html'}")


class _Progress:
    """One line while an evaluation works, where there is a terminal."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> _Progress:
        self.bar.start()
        self.task = self.bar.add_task("evaluating", total=1.0)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, done: float, what: str) -> None:
        self.bar.update(self.task, completed=done, description=what)
