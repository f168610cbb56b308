"""``flowmatch train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flowmatch.cli.errors import note, reported, say
from flowmatch.cli.options import given_options, with_options
from flowmatch.cli.progress import TrainingProgress
from flowmatch.data import load_table
from flowmatch.errors import InputError
from flowmatch.recipes import FlowConfig, RunConfig, prepare_folder, train_run
from flowmatch.recipes.runs import mapping, read_config, read_options
from flowmatch.train import TrainConfig, join_processes

__all__ = ["train"]


@reported
@with_options(model=FlowConfig, training=TrainConfig)
def train(
    source: Annotated[
        str | None, typer.Argument(help="FILE.csv, .parquet, .npy or .npz; toy:NAME; sklearn:NAME.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder. (default: runs/NAME)", show_default=False)
    ] = None,
    condition: Annotated[
        str | None, typer.Option(help="Column that the model is conditioned on.", show_default=False)
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns to keep, separated by commas.", show_default=False)
    ] = None,
    drop: Annotated[
        str | None, typer.Option(help="Columns to leave out, separated by commas.", show_default=False)
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Rows to draw from a toy set.", show_default=False)] = None,
    holdout: Annotated[
        float | None, typer.Option(help="Share of the rows kept out of training. (default: 0.1)", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of options; the command line overrides it.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run at --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    **options: Any,
) -> None:
    """Train a flow on a table and write a run folder.

    Every option that is left open is chosen from the size of the data.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    chosen = read_options(config) if config is not None else {}
    given: dict[str, Any] = {"data": source, "condition": condition, "rows": rows, "holdout": holdout}
    given |= {"columns": _names(columns), "drop": _names(drop)}
    chosen |= {name: value for name, value in given.items() if value is not None}
    for part, model in (("flow", FlowConfig), ("train", TrainConfig)):
        chosen[part] = {**mapping(chosen, part), **given_options(model, options)}
    if resume:
        run_config, out = _resumed(chosen, out)
    elif not isinstance(chosen.get("data"), str):
        raise InputError("no data: give a file, toy:NAME or sklearn:NAME, or a --config that names data")
    # The seed draws a toy set too, so it must be known before the table is.
    seed = run_config.train.seed if resume else chosen["train"].get("seed", 0)
    wanted = (run_config.data, run_config.rows) if resume else (chosen["data"], chosen.get("rows"))
    table = load_table(wanted[0], rows=wanted[1], seed=seed if isinstance(seed, int) else 0)
    if not resume:
        run_config = RunConfig.choose(chosen, table)
    codec = run_config.codec(table)  # before anything is written or replaced
    out = out or Path("runs") / _name(run_config.data)
    main = int(os.environ.get("RANK", "0")) == 0
    _prepare(out, main, overwrite, resume)
    if main and not quiet:
        _announce(run_config, table, out)
    with TrainingProgress(run_config.train.steps, quiet=quiet or not main) as progress:
        run, result = train_run(run_config, table, codec, out, callbacks=[progress], resume=resume, main=main)
    if not main:
        return
    for message in run.codec.notes:
        note(message)
    if not quiet:
        say(f"trained {result.step} steps in {result.seconds:.0f} s; the run is at {out}")
        given_hint = f" --given {run_config.condition}=VALUE" if run_config.condition else ""
        say(f"next: flowmatch sample {out} -n 1000 --out new.csv{given_hint}")
        say(f"      flowmatch evaluate {out}")


def _resumed(chosen: dict[str, Any], out: Path | None) -> tuple[RunConfig, Path]:
    """Config of the run to go on with, with what the user gave on top."""
    if out is None:
        if not isinstance(chosen.get("data"), str):
            raise InputError("--resume needs the run folder: give --out")
        out = Path("runs") / _name(chosen["data"])
    prepare_folder(out, resume=True)
    known = read_config(out / "config.yaml").model_dump()
    parts = {part: {**known[part], **chosen[part]} for part in ("flow", "train")}
    return RunConfig.parse({**known, **chosen, **parts}), out


def _prepare(out: Path, main: bool, overwrite: bool, resume: bool) -> None:
    """Only one process prepares the folder, and the others wait for it."""
    if main:
        prepare_folder(out, overwrite=overwrite, resume=resume)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        join_processes().wait_for_everyone()


def _announce(config: RunConfig, table: Any, out: Path) -> None:
    kind = f", conditioned on {config.condition}" if config.condition else ""
    say(
        f"{table.source}: {len(table.frame)} rows, {table.frame.shape[1]} columns{kind}; "
        f"{config.flow.path} path, {config.flow.depth} x {config.flow.hidden} network, "
        f"{config.train.steps} steps of {config.train.batch_size} rows -> {out}"
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _name(data: str) -> str:
    return data.partition(":")[2] if data.startswith(("toy:", "sklearn:")) else Path(data).stem
