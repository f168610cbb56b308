"""``flowmatch tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from flowmatch.cli.devices import DeviceOption, device_of
from flowmatch.cli.errors import reported, say
from flowmatch.cli.sample import conditions
from flowmatch.cli.working import Working
from flowmatch.errors import InputError
from flowmatch.recipes import Run, make_job
from flowmatch.recipes.drawing import on_device
from flowmatch.recipes.kinds import open_run

__all__ = ["tune"]

#: Rows of conditions to draw from.
CONDITIONS = 10_000
HELD = 2_000


@reported
def tune(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    nfe: Annotated[int, typer.Option("--nfe", help="Network calls that the solver may make.")] = 8,
    trajectories: Annotated[int, typer.Option(help="Trajectories to fit and, a quarter of them, to choose by.")] = 512,
    steps: Annotated[int, typer.Option(help="Steps of the fit at most.")] = 40,
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Rows solved at a time. (default: by the columns)")] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the images lie now, of a run that is told some.", show_default=False)
    ] = None,
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
    opened = open_run(run)
    opened.flow.to(device_of(device, images=not isinstance(opened, Run)))
    generator = torch.Generator().manual_seed(seed)
    if isinstance(opened, Run):
        drawn = conditions(opened, [], CONDITIONS, generator)
    elif opened.config.flow.job == "generate":
        drawn = opened.labels(CONDITIONS, generator)
    else:
        source = next(part for part in reversed(opened.split(data)) if part is not None)
        index = torch.randperm(len(source), generator=generator)[:HELD]
        _, drawn = make_job(opened.config.flow, source, noisy=False).take(index, generator)
    with Working("tuning", quiet) as working:
        solver = opened.flow.tune(
            nfe,
            on_device(drawn, opened.flow.home.device),
            trajectories=trajectories,
            steps=steps,
            generator=generator,
            rows=batch,
            progress=working.update,
        )
    opened.flow.cpu().save(run)
    if quiet:
        return
    measured = solver.fitted
    shown = [(nfe, "tuned solver", measured.tuned)]
    shown += [(calls, f"best general solver ({found.name})", found) for calls, found in measured.general.items()]
    for calls, name, found in shown:
        say(f"{name}, {calls} calls: error {found.error:.2e}, median {found.median:.2e}")
    say(f"next: flowmatch sample {run} --nfe {nfe} --out new.{'csv' if isinstance(opened, Run) else 'png'}")
