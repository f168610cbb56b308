"""``flowmatch sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

from flowmatch.cli.devices import DeviceOption, device_of
from flowmatch.cli.errors import reported, say
from flowmatch.cli.options import refuse_for_tables
from flowmatch.cli.sample_images import Wanted, sample_images
from flowmatch.cli.solving import NfeOption, RtolOption, SolverOption, StepsOption, solving
from flowmatch.cli.tables import check_target, write_table
from flowmatch.data.images.write import check_image_target
from flowmatch.errors import InputError
from flowmatch.fields.stochastic import Form
from flowmatch.recipes import ImageRun, Run
from flowmatch.recipes.kinds import open_run
from flowmatch.recipes.previews import HOW

__all__ = ["sample"]

FORMS: tuple[str, ...] = get_args(Form)


@reported
def sample(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    n: Annotated[
        int | None,
        typer.Option(
            "-n", "--number", help="Rows or images to draw. (default: 1000 rows, 64 images)", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Rows: .csv, .parquet, .npy or .npz. Images: .png for a sheet, .npz, or a folder of files. "
            "(default: samples.csv or samples.png in RUN)",
            show_default=False,
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--given", help="COLUMN=VALUE of the condition; the class of images.", show_default=False),
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
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    batch: Annotated[
        int | None,
        typer.Option(help="Rows solved at a time. (default: 10000 rows, 256 images)", show_default=False),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Strength of classifier-free guidance; 1 is none.", rich_help_panel="Images", show_default=False
        ),
    ] = None,
    interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Times in which guidance acts. (default: 0 1)", rich_help_panel="Images", show_default=False),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="Images to enlarge or to paint in. (default: held-out ones)",
            rich_help_panel="Images",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="What is known of --input, in white. (default: drawn)", rich_help_panel="Images", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Where the training images lie now.", rich_help_panel="Images", show_default=False),
    ] = None,
    sheet_columns: Annotated[
        int | None,
        typer.Option(
            "--sheet-columns", help="Images in a row of a sheet.", rich_help_panel="Images", show_default=False
        ),
    ] = None,
    gif: Annotated[
        Path | None, typer.Option(help="Also animate noise to data; two columns only.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Draw new rows or images from a run.

    A conditional run without --given draws conditions as often as they occur in its training data. Images are solved
    in 20 calls if nothing else is said.
    """
    how = solving(steps, solver, rtol, nfe)
    if diffusion is not None:
        how = {**how, **noisy(diffusion, steps, solver)}
    for name, value in (("-n", n), ("--batch", batch), ("--sheet-columns", sheet_columns)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    opened = open_run(run)
    opened.flow.to(device_of(device, images=isinstance(opened, ImageRun)))
    if diffusion is not None and guidance is not None:
        raise InputError("--diffusion keeps the law of a flow, and --guidance changes it; leave one of the two out")
    if nfe is not None and guidance is not None:
        raise InputError("--nfe takes a solver tuned without guidance; leave out --guidance, or say --steps")
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
    if isinstance(opened, ImageRun):
        if gif is not None:
            raise InputError("--gif needs a run of two columns, this is one of images")
        if given is not None and (len(given) > 1 or ("=" in given[0] and given[0] not in opened.classes)):
            raise InputError(f"--given names one class of images, got {' '.join(given)}")
        if interval is not None and (guidance is None or not 0 <= interval[0] < interval[1] <= 1):
            raise InputError("--interval is two times from 0 to 1, the smaller one first, and goes with --guidance")
        target = out or run / "samples.png"
        by_class = opened.config.flow.job == "generate" or (images is not None and given is None)
        classes = opened.classes if by_class else ()
        check_image_target(target, overwrite or out is None, classes)
        wanted = Wanted(
            n=n,
            given=given[0] if given else None,
            guidance=guidance,
            interval=interval or (0.0, 1.0),
            images=images,
            mask=mask,
            data=data,
            columns=sheet_columns,
            seed=seed,
            batch=batch or 256,
        )
        left_open = steps is None and rtol is None and nfe is None and solver is None
        sample_images(opened, wanted, target, HOW if left_open else how, quiet)
        return
    foreign = {"--guidance": guidance, "--interval": interval, "--input": images, "--mask": mask, "--data": data}
    refuse_for_tables(run, {**foreign, "--sheet-columns": sheet_columns})
    n, batch = 1000 if n is None else n, batch or 10_000
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
