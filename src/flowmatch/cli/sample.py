"""``flowmatch sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

from flowmatch.cli.errors import reported, say
from flowmatch.cli.solving import NfeOption, RtolOption, SolverOption, StepsOption, solving
from flowmatch.cli.tables import check_target, write_table
from flowmatch.errors import InputError
from flowmatch.fields.stochastic import Form
from flowmatch.recipes import Run

__all__ = ["sample"]

FORMS: tuple[str, ...] = get_args(Form)


@reported
def sample(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    n: Annotated[int, typer.Option("-n", "--number", help="Rows to draw.")] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help=".csv, .parquet, .npy or .npz. (default: RUN/samples.csv)", show_default=False
        ),
    ] = None,
    given: Annotated[
        list[str] | None, typer.Option("--given", help="COLUMN=VALUE of the condition.", show_default=False)
    ] = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    rtol: RtolOption = None,
    nfe: NfeOption = None,
    diffusion: Annotated[
        str | None,
        typer.Option(
            "--diffusion",
            metavar="|".join(FORMS),
            help="Sample with noise of this form, which keeps the law; needs --steps.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    batch: Annotated[int, typer.Option(help="Rows solved at a time.")] = 10_000,
    gif: Annotated[
        Path | None, typer.Option(help="Also animate noise to data; two columns only.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Draw new rows from a run.

    A conditional run without --given draws conditions as often as they occur in its training data.
    """
    how = solving(steps, solver, rtol, nfe)
    if diffusion is not None:
        how = {**how, **noisy(diffusion, steps, solver)}
    if n < 1 or batch < 1:
        raise InputError(f"-n and --batch must be at least 1, got {n} and {batch}")
    opened = Run.open(run)
    if diffusion is not None and not opened.flow.independent:
        raise InputError(
            f"the run at {run} was trained with pairs of a coupling, and noise would change the law of its samples; "
            "leave out --diffusion, or train with --coupling independent"
        )
    if nfe is not None and nfe not in opened.flow.tuned:
        there = ", ".join(map(str, sorted(opened.flow.tuned))) or "none"
        raise InputError(
            f"the run at {run} has no solver of {nfe} calls (there is: {there}); make one with "
            f"flowmatch tune {run} --nfe {nfe}"
        )
    target = out or run / "samples.csv"
    check_target(target, overwrite or out is None)
    if gif is not None and opened.codec.dim != 2:
        raise InputError(f"--gif needs a run of two columns, this one has {opened.codec.dim}")
    generator = torch.Generator().manual_seed(seed)
    cond = conditions(opened, given or [], n, generator)
    parts = []
    for start in range(0, n, batch):
        rows = slice(start, min(start + batch, n))
        part = None if cond is None else cond[rows]
        parts.append(opened.flow.sample(rows.stop - rows.start, part, generator=generator, **how))
    frame = opened.codec.decode(torch.cat(parts), cond)
    write_table(frame, target)
    if not quiet:
        say(f"{n} rows written to {target}")
    if gif is not None:
        animate(opened, gif, cond, seed)
        if not quiet:
            say(f"animation written to {gif}")


def noisy(diffusion: str, steps: int | None, solver: str | None) -> dict[str, Any]:
    """Keyword arguments for a draw with noise.

    Raises:
        InputError: an unknown form, or options that do not go with noise.
    """
    if diffusion not in FORMS:
        raise InputError(f"there is no diffusion {diffusion}; known are {', '.join(FORMS)}")
    if steps is None or solver is not None:
        raise InputError(
            "--diffusion takes fixed steps and a solver of its own: say how many with --steps, and no --solver"
        )
    return {"diffusion": diffusion}


def conditions(run: Run, given: list[str], n: int, generator: torch.Generator) -> Any:
    """Conditions of ``n`` samples: the ones given, or draws from the training data's own."""
    pairs = {}
    for text in given:
        column, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"--given needs COLUMN=VALUE, got {text}")
        pairs[column.strip()] = value.strip()
    if not pairs:
        return run.codec.draw_condition(n, generator)
    return run.codec.encode_condition(pairs, n)


def animate(run: Run, path: Path, cond: Any, seed: int, points: int = 1000) -> None:
    """Animation of noise turning into data, in the units of the data."""
    from flowmatch.plot import animate as draw

    n = points if cond is None else min(points, len(cond))
    grid = torch.linspace(*run.flow.path.interval, 61)
    solution = run.flow.trajectory(
        n, None if cond is None else cond[:n], generator=torch.Generator().manual_seed(seed), grid=grid, rtol=1e-4
    )
    assert solution.trajectory is not None
    draw(solution.trajectory, path, times=solution.t)
