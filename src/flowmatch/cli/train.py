"""``flowmatch train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flowmatch.cli.errors import note, reported, say
from flowmatch.cli.options import given_options, with_options
from flowmatch.cli.progress import TrainingProgress
from flowmatch.cli.starting import check_unchanged, is_main, merged, prepare
from flowmatch.cli.train_images import dry_run, train_images
from flowmatch.data import load_table
from flowmatch.errors import InputError
from flowmatch.recipes import FlowConfig, ImageConfig, ImageDataConfig, MatchingConfig, RunConfig, train_run
from flowmatch.recipes.folder import check_folder, mapping, read_options
from flowmatch.recipes.kinds import kind_of_run, kind_of_source
from flowmatch.recipes.paper import recipe as options_of
from flowmatch.train import TrainConfig

__all__ = ["train"]

#: Parts of a config that are merged option by option, and what they are made of.
PARTS: dict[str, dict[str, type[Any]]] = {
    "table": {"flow": FlowConfig, "train": TrainConfig},
    "images": {"images": ImageDataConfig, "flow": ImageConfig, "train": TrainConfig},
}


@reported
@with_options(
    model=MatchingConfig, tables=FlowConfig, images=ImageConfig, image_files=ImageDataConfig, training=TrainConfig
)
def train(
    source: Annotated[
        str | None,
        typer.Argument(
            help="FILE.csv, .parquet, .npy or .npz; toy:NAME; sklearn:NAME; a folder of images.", show_default=False
        ),
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
    rows: Annotated[
        int | None,
        typer.Option(help="Rows to draw from a toy set; so many of the images, spread evenly.", show_default=False),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(help="Share kept out of training. (default: 0.1; of images 5000 at most)", show_default=False),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="table|images", help="What the source holds, if its form misleads.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Options by name; see flowmatch recipes.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of options; the command line overrides it.", show_default=False)
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what a training on images will take, and stop.")] = False,
    throughput: Annotated[
        float | None, typer.Option(help="Images a second, for the hours that --dry-run tells.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run at --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    **options: Any,
) -> None:
    """Train a flow on a table or on images and write a run folder.

    Every option that is left open is chosen from the size of the data.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    chosen = options_of(recipe) if recipe is not None else {}
    chosen = merged(chosen, read_options(config) if config is not None else {}, ("images", "flow", "train"))
    given: dict[str, Any] = {"data": source, "condition": condition, "rows": rows, "holdout": holdout, "kind": kind}
    given |= {"columns": _names(columns), "drop": _names(drop)}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if resume and out is None:
        out = _usual(chosen, "--resume needs the run folder: give --out")
    found = _kind(chosen, out if resume else None)
    chosen.pop("kind", None)
    for part, model in PARTS[found].items():
        chosen[part] = {**mapping(chosen, part), **given_options(model, options)}
    _check_options(found, {name for name, value in options.items() if value is not None}, chosen)
    if throughput is not None and not (dry and throughput > 0):
        raise InputError("--throughput is a positive number of images a second, and goes with --dry-run")
    if found == "images":
        chosen["kind"] = "images"
        if dry:
            dry_run(chosen, throughput)
        else:
            train_images(chosen, out, resume=resume, overwrite=overwrite, quiet=quiet)
        return
    if dry:
        raise InputError("--dry-run estimates image networks, and this is a table; leave it out")
    _train_table(chosen, out, resume=resume, overwrite=overwrite, quiet=quiet)


def _train_table(chosen: dict[str, Any], out: Path | None, *, resume: bool, overwrite: bool, quiet: bool) -> None:
    if resume:
        assert out is not None
        run_config = _resumed(chosen, out)
    elif not isinstance(chosen.get("data"), str):
        raise InputError("no data: give a file, a folder of images, toy:NAME or sklearn:NAME, or a --config with data")
    # The seed draws a toy set too, so it must be known before the table is.
    seed = run_config.train.seed if resume else chosen["train"].get("seed", 0)
    wanted = (run_config.data, run_config.rows) if resume else (chosen["data"], chosen.get("rows"))
    table = load_table(wanted[0], rows=wanted[1], seed=seed if isinstance(seed, int) else 0)
    if not resume:
        run_config = RunConfig.choose(chosen, table)
    codec = run_config.codec(table)  # before anything is written or replaced
    out = out or _usual({"data": run_config.data})
    main = is_main()
    check_folder(out, overwrite=overwrite, resume=resume)
    if main and not quiet:
        _announce(run_config, table, out)
    with TrainingProgress(run_config.train.steps, quiet=quiet or not main) as progress:
        run, result = train_run(
            run_config,
            table,
            codec,
            out,
            callbacks=[progress],
            resume=resume,
            main=main,
            ready=lambda: prepare(out, overwrite, resume),
        )
    if not main:
        return
    for message in run.codec.notes:
        note(message)
    if not quiet:
        say(f"trained {result.step} steps in {result.seconds:.0f} s; the run is at {out}")
        given_hint = f" --given {run_config.condition}=VALUE" if run_config.condition else ""
        say(f"next: flowmatch sample {out} -n 1000 --out new.csv{given_hint}")
        say(f"      flowmatch evaluate {out}")


def _resumed(chosen: dict[str, Any], out: Path) -> RunConfig:
    """Config of the run to go on with, with what the user gave on top."""
    known = RunConfig.read(out / "config.yaml")
    config = RunConfig.parse(merged(known.model_dump(), chosen, ("flow", "train")))
    check_unchanged(known, config, ("rows", "holdout", "condition", "columns", "drop"))
    return config


def _kind(chosen: dict[str, Any], resumed: Path | None) -> str:
    """What the data are, as told by the options, the run to go on with, or the data themselves."""
    told = chosen.get("kind")
    if told is not None and told not in PARTS:
        raise InputError(f"--kind must be table or images, got {told!r}")
    if resumed is not None:
        check_folder(resumed, resume=True)
        return kind_of_run(resumed)
    if told is not None:
        return str(told)
    if chosen.get("recipe") is not None:
        return "images"
    data = chosen.get("data")
    return kind_of_source(data) if isinstance(data, str) else "table"


def _check_options(kind: str, given: set[str], chosen: dict[str, Any]) -> None:
    """Raise on options that mean nothing for this kind of data."""
    known = {name for model in PARTS[kind].values() for name in model.model_fields}
    foreign = given - known
    own = {"condition", "columns", "drop"} if kind == "images" else {"recipe", "images"}
    foreign |= {name for name in own & chosen.keys() if chosen[name]}
    job = mapping(chosen, "flow").get("job", "generate")
    unused = {"factor", "cond_noise"} & given if job != "upscale" else set()
    unused |= {"holes"} & given if job != "inpaint" else set()
    if kind == "images" and unused:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
        raise InputError(f"{names}: not for --job {job}; leave it out, or choose the job it is for")
    if foreign:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
        other = "tables" if kind == "images" else "images"
        raise InputError(f"{names}: for {other} alone, and the data are {kind}; leave it out, or say --kind")


def _announce(config: RunConfig, table: Any, out: Path) -> None:
    kind = f", conditioned on {config.condition}" if config.condition else ""
    say(
        f"{table.source}: {len(table.frame)} rows, {table.frame.shape[1]} columns{kind}; "
        f"{config.flow.path} path, {config.flow.depth} x {config.flow.hidden} network, "
        f"{config.train.steps} steps of {config.train.batch_size} rows -> {out}"
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _usual(chosen: dict[str, Any], missing: str = "no data given") -> Path:
    """The folder of a run that has been given none."""
    data = chosen.get("data")
    if not isinstance(data, str):
        raise InputError(missing)
    name = data.partition(":")[2] if data.startswith(("toy:", "sklearn:")) else Path(data).resolve().stem
    return Path("runs") / name
