"""``flowmatch train`` on images, and its dry run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from flowmatch.cli.errors import note, say
from flowmatch.cli.progress import TrainingProgress
from flowmatch.cli.starting import check_unchanged, is_main, launched, merged, prepare
from flowmatch.errors import InputError
from flowmatch.recipes.estimate import estimate
from flowmatch.recipes.folder import check_folder
from flowmatch.recipes.image_runs import ImageRunConfig, train_image_run
from flowmatch.recipes.paper import RECIPES
from flowmatch.recipes.paper import recipe as options_of
from flowmatch.recipes.previews import Previews

__all__ = ["dry_run", "train_images"]


def train_images(chosen: dict[str, Any], out: Path | None, *, resume: bool, overwrite: bool, quiet: bool) -> None:
    """Train on what ``chosen`` names, as ``flowmatch train`` does."""
    if resume:
        assert out is not None
        known = ImageRunConfig.read(out / "config.yaml")
        config = ImageRunConfig.parse(merged(known.model_dump(), chosen, ("images", "flow", "train")))
        check_unchanged(known, config, ("rows", "holdout", "images"))
        images = config.load()
    else:
        images = _read(chosen)
        config = ImageRunConfig.choose(chosen, images, launched())
        out = out or Path("runs") / Path(config.data).stem
    folder, source = out.resolve(), Path(config.data)
    if source.is_dir() and source in (folder, *folder.parents):
        raise InputError(f"the run folder {out} lies inside the images {source}, and would be read as such; give --out")
    main = is_main()
    check_folder(out, overwrite=overwrite, resume=resume)
    if main:
        for line in images.report.lines():
            note(line)
    if main and not quiet:
        _announce(config, images, out)
    _, held = config.split(images)
    previews = Previews(config, images if held is None else held, out)
    with TrainingProgress(config.train.steps, quiet=quiet or not main, unit="images") as progress:
        run, result = train_image_run(
            config,
            images,
            out,
            callbacks=[progress, previews],
            resume=resume,
            main=main,
            ready=lambda: prepare(out, overwrite, resume),
        )
    if main and not quiet:
        say(f"trained {result.step} steps in {result.seconds:.0f} s; the run is at {out}")
        given = f" --given {shlex.quote(run.classes[0])}" if run.classes else ""
        if config.flow.job == "generate":
            say(f"next: flowmatch sample {out} -n 64 --out new.png{given}")
        else:
            say(f"next: flowmatch sample {out} --input IMAGES --out new/{given}")
        say(f"      flowmatch evaluate {out}")


def dry_run(chosen: dict[str, Any], throughput: float | None) -> None:
    """Say what the training that ``chosen`` describes will take."""
    if isinstance(chosen.get("data"), str):
        images = _read(chosen)
        config = ImageRunConfig.choose(chosen, images)
        rows, _ = config.split(images)
        shape, count, classes = images.shape, len(rows), len(images.classes)
        source = f"{config.data}: {len(images)} images"
    elif chosen.get("recipe") is not None:
        options_of(chosen["recipe"])  # raises for one that there is not
        known = RECIPES[chosen["recipe"]]
        config = ImageRunConfig.parse({"data": ".", **chosen})
        size, channels = config.images.size or known.shape[1], config.images.channels or known.shape[0]
        shape, count, classes = (channels, size, size), config.rows or known.images, known.classes
        source = f"{known.about}: {count} images"
    else:
        raise InputError("--dry-run needs a folder of images, or a --recipe, which knows its own")
    told = config.images.learns_labels(config.flow.job)
    found = estimate(config.flow, config.train, shape, count, classes if told else 0, launched())
    say(f"{source} of {' x '.join(map(str, shape))}, network {config.flow.network}")
    for line in found.lines(throughput):
        say(f"  {line}")


def _read(chosen: dict[str, Any]) -> Any:
    if not isinstance(chosen.get("data"), str):
        raise InputError("no data: give a folder of images, or a --config that names data")
    # The whole of it is checked, so that a wrong option is told before minutes of reading.
    return ImageRunConfig.parse(chosen).load()


def _announce(config: ImageRunConfig, images: Any, out: Path) -> None:
    kinds = f" of {len(images.classes)} classes" if images.classes else ""
    sides = " x ".join(map(str, images.shape))
    jobs = {
        "generate": "",
        "upscale": f", enlarged {config.flow.factor} times",
        "inpaint": f", with {config.flow.holes} holes to paint in",
    }
    say(
        f"{config.data}: {len(images)} images{kinds}, {sides}{jobs[config.flow.job]}; {config.flow.path} path, "
        f"{config.flow.network} network, {config.train.steps} steps of {config.train.batch_size} images -> {out}"
    )
