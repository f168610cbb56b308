"""``flowmatch tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flowmatch.cli.errors import reported, say
from flowmatch.cli.sample import conditions
from flowmatch.errors import InputError
from flowmatch.recipes import Run

__all__ = ["tune"]

#: Rows of conditions to draw from.
CONDITIONS = 10_000


@reported
def tune(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    nfe: Annotated[int, typer.Option("--nfe", help="Network calls that the solver may make.")] = 8,
    trajectories: Annotated[int, typer.Option(help="Trajectories to fit and, a quarter of them, to choose by.")] = 512,
    steps: Annotated[int, typer.Option(help="Steps of the fit at most.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Rows solved at a time. (default: by the columns)")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Fit a solver of few calls to a run; flowmatch sample RUN --nfe then uses it.

    Errors are distances to an exact solve, in standard deviations of a column, over starts that took no part in the
    fit. A conditional run draws conditions as often as they occur in its training data.
    """
    for name, value, least in (("nfe", nfe, 1), ("trajectories", trajectories, 8), ("steps", steps, 1)):
        if value < least:
            raise InputError(f"--{name} must be at least {least}, got {value}")
    if batch is not None and batch < 1:
        raise InputError(f"--batch must be at least 1, got {batch}")
    opened = Run.open(run)
    generator = torch.Generator().manual_seed(seed)
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("tuning", total=1.0)
        solver = opened.flow.tune(
            nfe,
            conditions(opened, [], CONDITIONS, generator),
            trajectories=trajectories,
            steps=steps,
            generator=generator,
            rows=batch,
            progress=lambda done, what: bar.update(task, completed=done, description=what),
        )
    opened.flow.save(run)
    if quiet:
        return
    measured = solver.fitted
    shown = [(nfe, "tuned solver", measured.tuned)]
    shown += [(calls, f"best general solver ({found.name})", found) for calls, found in measured.general.items()]
    for calls, name, found in shown:
        say(f"{name}, {calls} calls: error {found.error:.2e}, median {found.median:.2e}")
    say(f"next: flowmatch sample {run} --nfe {nfe} --out new.csv")
