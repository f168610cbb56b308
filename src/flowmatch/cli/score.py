"""``flowmatch score``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import typer

from flowmatch.cli.devices import DeviceOption, device_of
from flowmatch.cli.errors import reported, say
from flowmatch.cli.options import refuse_for_tables
from flowmatch.cli.sample import conditions
from flowmatch.cli.score_images import Scored, score_images
from flowmatch.cli.solving import RtolOption, SolverOption, StepsOption, solving
from flowmatch.cli.tables import check_target, write_table
from flowmatch.data import load_table
from flowmatch.errors import InputError
from flowmatch.recipes import ImageRun
from flowmatch.recipes.kinds import open_run

__all__ = ["score"]


@reported
def score(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    source: Annotated[str, typer.Argument(help="Table with the run's columns; or images.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Table to write, with a column log_likelihood; of images also bits_per_dim.",
            show_default=False,
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--given",
            help="COLUMN=VALUE, if the table lacks it; the class of all images.",
            show_default=False,
        ),
    ] = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    rtol: RtolOption = None,
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise that spreads whole numbers, and of probes.")] = 0,
    batch: Annotated[
        int | None, typer.Option(help="Rows solved at a time. (default: 2000 rows, 64 images)", show_default=False)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of the source, such as test. (default: as in training)",
            rich_help_panel="Images",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels/--no-labels",
            help="Score each image under its own class, or under the law of all classes together.",
            rich_help_panel="Images",
        ),
    ] = True,
    noises: Annotated[
        int, typer.Option(help="Noises that dequantise each image; more tighten the bound.", rich_help_panel="Images")
    ] = 1,
    probes: Annotated[
        int | None,
        typer.Option(
            help="Probes of each image's divergence; more make its bits surer. (default: 1; exact up to 64 numbers)",
            rich_help_panel="Images",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Log-likelihood of every row of a table, in nats and in the units of the data; or of every image.

    Columns of whole numbers are spread by uniform noise of width one, so that their density is a bound on the
    probability. So are the bytes of images, whose likelihoods are also told in bits a dimension; lower is better.
    """
    how = solving(steps, solver, rtol)
    for name, value in (("--batch", batch), ("--noises", noises), ("--probes", probes)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    opened = open_run(run)
    opened.flow.to(device_of(device, images=isinstance(opened, ImageRun)))
    if out is not None:
        check_target(out, overwrite)
    if isinstance(opened, ImageRun):
        if given and len(given) > 1:
            raise InputError(f"--given says the class of all images, one, got {' and '.join(given)}")
        left_open = steps is None and rtol is None and solver is None
        wanted = Scored(source, split, given[0] if given else None, labels, noises, probes, seed, batch or 64, out)
        score_images(opened, wanted, None if left_open else how, quiet)
        return
    foreign = {"--split": split, "--probes": probes, "--noises": None if noises == 1 else noises}
    refuse_for_tables(run, {**foreign, "--no-labels": None if labels else True})
    batch = batch or 2000
    table = load_table(source)
    frame = table.frame
    generator = torch.Generator().manual_seed(seed)
    if given:
        cond = conditions(opened, given, 1, generator)
        filled = opened.codec.decode(torch.zeros(1, opened.codec.dim), cond)
        frame = frame.assign(**{str(opened.config.condition): filled[opened.config.condition].iloc[0]})
    x, cond = opened.codec.encode(frame, generator)
    parts = [
        opened.flow.log_prob(x[start : start + batch], None if cond is None else cond[start : start + batch], **how)
        for start in range(0, len(x), batch)
    ]
    log_likelihood = torch.cat(parts).double() + opened.codec.log_det
    if out is not None:
        write_table(table.frame.assign(log_likelihood=log_likelihood.numpy()), out)
    if not quiet:
        error = log_likelihood.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan
        say(f"{len(x)} rows: mean log-likelihood {log_likelihood.mean().item():.4f} +- {error:.4f} nats a row")
        say(f"lowest {log_likelihood.min().item():.4f} in row {int(log_likelihood.argmin())}, counted from 0")
        if out is not None:
            say(f"written to {out}")
