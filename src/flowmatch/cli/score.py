"""``flowmatch score``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import typer

from flowmatch.cli.errors import reported, say
from flowmatch.cli.sample import conditions
from flowmatch.cli.solving import RtolOption, SolverOption, StepsOption, solving
from flowmatch.cli.tables import check_target, write_table
from flowmatch.data import load_table
from flowmatch.errors import InputError
from flowmatch.recipes import Run

__all__ = ["score"]


@reported
def score(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    source: Annotated[str, typer.Argument(help="Table with the run's columns.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Table to write, with a column log_likelihood.", show_default=False),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--given", help="COLUMN=VALUE, if the table lacks the condition.", show_default=False),
    ] = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    rtol: RtolOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise that spreads whole numbers.")] = 0,
    batch: Annotated[int, typer.Option(help="Rows solved at a time.")] = 2000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Log-likelihood of every row of a table, in nats and in the units of the data.

    Columns of whole numbers are spread by uniform noise of width one, so that their density is a bound on the
    probability.
    """
    how = solving(steps, solver, rtol)
    if batch < 1:
        raise InputError(f"--batch must be at least 1, got {batch}")
    opened = Run.open(run)
    if out is not None:
        check_target(out, overwrite)
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
