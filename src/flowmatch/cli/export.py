"""``flowmatch export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowmatch.cli.errors import reported, say
from flowmatch.errors import InputError
from flowmatch.flow import Flow

__all__ = ["export"]

FORMS = ("diffusers", "onnx")


@reported
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    to: Annotated[
        str, typer.Option("--to", metavar="|".join(FORMS), help="What it is opened with.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write. (default: RUN/diffusers or RUN/onnx)", show_default=False),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option("--license", help="Licence that the model card names, as apache-2.0.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Write a run as a folder that others open: plain diffusers, or onnxruntime.

    The folder has a model card and is ready to be published; nothing is uploaded. What was written is opened again and
    compared with the run.
    """
    if to not in FORMS:
        raise InputError(f"there is no export to {to}; known are {', '.join(FORMS)}")
    if not run.is_dir():
        raise InputError(f"no run folder at {run}; give the folder that flowmatch train wrote (--out)")
    from flowmatch.export import run_facts, to_diffusers, to_onnx

    flow, target = Flow.load(run), out or run / to
    write = to_diffusers if to == "diffusers" else to_onnx
    done = write(flow, target, facts=run_facts(run), license=license, overwrite=overwrite)
    if not quiet:
        say(f"written to {target}")
        say(
            f"opened again: velocities differ by at most {done.velocity:.1e}, samples after four Euler steps by "
            f"{done.sample:.1e}"
        )
        if license is None:
            say("the model card names no licence; give one with --license before you publish it")
