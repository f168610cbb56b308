"""``flowmatch train`` on images, and its dry run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from flowmatch.cli.errors import note, say
from flowmatch.cli.progress import TrainingProgress
from flowmatch.errors import InputError
from flowmatch.recipes.estimate import estimate
from flowmatch.recipes.folder import prepare_folder
from flowmatch.recipes.image_runs import ImageRunConfig, read_image_config, train_image_run
from flowmatch.recipes.images import make_image_model, make_job
from flowmatch.recipes.paper import RECIPES
from flowmatch.recipes.previews import Previews

__all__ = ["dry_run", "train_images"]


def train_images(chosen: dict[str, Any], out: Path | None, *, resume: bool, overwrite: bool, quiet: bool) -> None:
    """Train on what ``chosen`` names, as ``flowmatch train`` does."""
    from flowmatch.cli.train import merged, prepare

    if resume:
        assert out is not None
        prepare_folder(out, resume=True)
        known = read_image_config(out / "config.yaml").model_dump()
        config = ImageRunConfig.parse(merged(known, chosen, ("images", "flow", "train")))
        images = config.load()
    else:
        images = _read(chosen)
        config = ImageRunConfig.choose(chosen, images)
        out = out or Path("runs") / Path(config.data).stem
    # Both raise before anything is written or replaced.
    make_job(config.flow, images)
    with torch.device("meta"):
        make_image_model(config.flow, images.shape, len(images.classes))
    main = prepare(out, overwrite, resume)
    if main:
        for line in images.report.lines():
            note(line)
    if main and not quiet:
        _announce(config, images, out)
    _, held = config.split(images)
    previews = Previews(config, images if held is None else held, out)
    with TrainingProgress(config.train.steps, quiet=quiet or not main, unit="images") as progress:
        callbacks = [progress, previews]
        run, result = train_image_run(config, images, out, callbacks=callbacks, resume=resume, main=main)
    if main and not quiet:
        say(f"trained {result.step} steps in {result.seconds:.0f} s; the run is at {out}")
        if config.flow.job == "generate":
            given = f" --given {run.classes[0]}" if run.classes else ""
            say(f"next: flowmatch sample {out} -n 64 --out new.png{given}")
        else:
            say(f"next: flowmatch sample {out} --input IMAGES --out new/")
        say(f"      flowmatch evaluate {out}")


def dry_run(chosen: dict[str, Any], throughput: float | None) -> None:
    """Say what the training that ``chosen`` describes will take."""
    if isinstance(chosen.get("data"), str):
        images = _read(chosen)
        config = ImageRunConfig.choose(chosen, images)
        rows, _ = config.split(images)
        shape, count, classes = images.shape, len(rows), len(images.classes)
        source = f"{config.data}: {len(images)} images"
    elif "recipe" in chosen:
        known = RECIPES[chosen["recipe"]]
        config = ImageRunConfig.parse({"data": ".", **chosen})
        size, channels = config.images.size or known.shape[1], config.images.channels or known.shape[0]
        shape, count, classes = (channels, size, size), config.rows or known.images, known.classes
        source = f"{known.about}: {count} images"
    else:
        raise InputError("--dry-run needs a folder of images, or a --recipe, which knows its own")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    found = estimate(config.flow, config.train, shape, count, classes if config.images.labels else 0, processes)
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
