"""``flowmatch evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowmatch.cli.devices import DeviceOption, device_of
from flowmatch.cli.errors import reported, say
from flowmatch.cli.evaluate_images import Compared, evaluate_images, in_one_line
from flowmatch.cli.options import refuse_for_tables
from flowmatch.cli.sample import animate
from flowmatch.cli.solving import RtolOption, SolverOption, StepsOption, solving
from flowmatch.cli.working import Working
from flowmatch.data import toy
from flowmatch.errors import InputError
from flowmatch.recipes import ImageRun
from flowmatch.recipes.kinds import open_run
from flowmatch.recipes.previews import HOW

__all__ = ["evaluate"]


@reported
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[
        str | None, typer.Option(help="Where the training data lies now, if it has moved.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples to compare with held-out rows or images.")] = 2000,
    likelihood_rows: Annotated[
        int | None, typer.Option(help="Rows to score at most. (default: by the columns; 32 images)", show_default=False)
    ] = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    rtol: RtolOption = None,
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of the source to compare with, such as test. (default: held-out images)",
            rich_help_panel="Images",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="inception, or a file of flowmatch features. (default: made from the run's own classes)",
            rich_help_panel="Images",
            show_default=False,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Strength of classifier-free guidance.", rich_help_panel="Images", show_default=False),
    ] = None,
    noises: Annotated[
        int, typer.Option(help="Noises that dequantise each image scored.", rich_help_panel="Images")
    ] = 1,
    gif: Annotated[bool, typer.Option("--gif", help="Also animate noise to data; two columns only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Measure a run on held-out rows or images and write report.html into its folder.

    Every number stands beside its floor: the same measure between two halves of real data.
    """
    from flowmatch.report import evaluate as measure  # brings matplotlib and scikit-learn
    from flowmatch.report import readings

    how = solving(steps, solver, rtol)
    opened = open_run(run)
    opened.flow.to(device_of(device, images=isinstance(opened, ImageRun)))
    if isinstance(opened, ImageRun):
        if gif:
            raise InputError("--gif needs a run of two columns, this is one of images")
        left_open = steps is None and rtol is None and solver is None
        wanted = Compared(samples, split, features, guidance, noises, likelihood_rows, seed, data)
        evaluate_images(opened, wanted, HOW if left_open else how, quiet)
        return
    foreign = {"--split": split, "--features": features, "--guidance": guidance}
    refuse_for_tables(run, {**foreign, "--noises": None if noises == 1 else noises})
    if gif and opened.codec.dim != 2:
        raise InputError(f"--gif needs a run of two columns, this one has {opened.codec.dim}")
    train, heldout = opened.split(data)
    if not len(heldout):
        raise InputError(f"the run at {run} kept no rows out of training; train with --holdout above 0")
    source = opened.config.data
    entropy = toy(source.partition(":")[2]).entropy if source.startswith("toy:") else None
    shape = opened.image_shape
    with Working("evaluating", quiet) as progress:
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
            say(in_one_line(reading))
        say(f"report written to {run / 'report.html'}")
