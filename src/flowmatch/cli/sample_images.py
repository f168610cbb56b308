"""``flowmatch sample`` on a run of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmatch.cli.errors import say
from flowmatch.errors import InputError
from flowmatch.persist import write_atomically
from flowmatch.recipes import ImageRun, make_job
from flowmatch.recipes.drawing import draw
from flowmatch.recipes.previews import told_sheet

__all__ = ["Wanted", "sample_images"]

_USUAL = 64  # images, if the user does not say how many


@dataclass(frozen=True)
class Wanted:
    """What to draw.

    Attributes:
        n: number of samples; by default 64, or as many as there are images to enlarge or to paint in.
        given: class of all of them, by name.
        guidance: strength of classifier-free guidance.
        interval: times in which it acts.
        images: images to enlarge or to paint in; held-out ones of the run's data by default.
        mask: what is known of them, white being known; holes are drawn by default.
        data: where the run's data lies now.
        columns: images in a row of a sheet.
        seed: seed of the draw.
        batch: images solved at a time.
    """

    n: int | None = None
    given: str | None = None
    guidance: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    images: Path | None = None
    mask: Path | None = None
    data: str | None = None
    columns: int | None = None
    seed: int = 0
    batch: int = 256


def sample_images(run: ImageRun, wanted: Wanted, target: Path, how: dict[str, Any], quiet: bool) -> None:
    """Draw and write; ``target`` has been checked."""
    from flowmatch.data.images import to_uint8, write_images
    from flowmatch.data.images.write import png

    config = run.config.flow
    generator = torch.Generator().manual_seed(wanted.seed)
    truth, names = None, None
    if config.job == "generate":
        for name in ("images", "mask", "data"):
            if getattr(wanted, name) is not None:
                option = "--input" if name == "images" else f"--{name}"
                raise InputError(f"{option} is for runs that enlarge images or paint in; this one makes images")
        count = wanted.n or _USUAL
        cond: Any = run.labels(count, generator, wanted.given)
    else:
        if wanted.guidance is not None:
            run.guided(wanted.guidance)  # raises, and says why
        cond, truth, names = _told(run, wanted, generator)
        count = len(cond["image"])
    flow = run.flow if wanted.guidance is None else run.guided(wanted.guidance, wanted.interval)
    made = to_uint8(draw(config, flow, count, cond, how, batch=wanted.batch, generator=generator))
    if config.job != "generate" and target.suffix.lower() == ".png":
        write_atomically(target, png(told_sheet(cond["image"], made, truth, wanted.columns or 1)))
    else:
        labels = cond if config.job == "generate" else None
        if config.job != "generate" and wanted.images is not None and wanted.given is None:
            labels = cond.get("label")  # as --input has them
        write_images(made, target, labels, run.classes, wanted.columns, names)
    if not quiet:
        say(f"{count} images written to {target}")


def _told(run: ImageRun, wanted: Wanted, generator: torch.Generator) -> tuple[Any, Tensor | None, list[str] | None]:
    """What the network is told of each sample, the true images in bytes if they are known, and their names."""
    from flowmatch.data.images import scaled, to_uint8

    config = run.config.flow
    if wanted.images is None:
        if wanted.mask is not None:
            raise InputError("--mask goes with --input, the images to paint in")
        if wanted.given is not None:
            raise InputError("--given goes with --input here: held-out images have their own classes")
        rows, held = run.split(wanted.data)
        source = rows if held is None else held
        index = torch.randperm(len(source), generator=generator)[: wanted.n or _USUAL]
        truth, cond = make_job(config, source, noisy=False).take(index, generator)
        return cond, to_uint8(truth), None
    channels, height, width = run.shape
    small = (height // config.factor, width // config.factor)
    sides = small if config.job == "upscale" else (height, width)
    classes = run.classes if wanted.given is None else ()
    levels, names, labels = _read(wanted.images, channels, sides, "--input", classes)
    masks = None if wanted.mask is None else _masks(wanted.mask, len(levels), (height, width))
    levels, names = levels[: wanted.n], names[: wanted.n]
    job = make_job(config, _blank(run))
    if config.job == "upscale":
        if masks is not None:
            raise InputError("--mask says what is to be painted in; this run enlarges images")
        cond, truth = job.given(levels), None
    else:
        known = job.holes(len(levels), height, width, generator) if masks is None else masks[: len(levels)]
        cond, truth = job.given(scaled(levels), known), levels
    if run.classes:
        cond = {**cond, "label": _classes(run, wanted.given, len(levels), labels, generator)}
    return cond, truth, names


def _classes(
    run: ImageRun, given: str | None, count: int, labels: Tensor | None, generator: torch.Generator
) -> Tensor | None:
    """Class number of every image of --input: the one given, or its own.

    Raises:
        InputError: neither is there, or training saw no image of that class.
    """
    if given is not None:
        return run.labels(count, generator, given)
    if labels is None:
        raise InputError(
            f"the run at {run.folder} is told a class as well: say which with --given NAME, or put the images of "
            "--input into a sub-folder for each class"
        )
    run.check_seen(labels)
    return labels[:count]


def _read(
    source: Path, channels: int, sides: tuple[int, int], option: str, classes: Sequence[str] = ()
) -> tuple[Tensor, list[str], Tensor | None]:
    """Images of a file or a folder in bytes, which must have the sides, their names, and their numbers of classes."""
    from flowmatch.data.images import load_images
    from flowmatch.data.images.decode import DamagedError, decode
    from flowmatch.data.images.folder import list_folder
    from flowmatch.data.images.labels import known_numbers

    if source.suffix.lower() in (".npz", ".npy", ".parquet"):
        stored = load_images(
            source, channels=channels, labels=bool(classes), known=classes or None, strict=True, least=1
        )
        _check_sides(stored.levels(), sides, option, source)
        return stored.levels(), [str(number) for number in range(len(stored))], stored.labels
    if not source.exists():
        raise InputError(f"{option}: no images at {source}; give an image, a folder of images or a .npz file")
    labels = None
    if source.is_file():
        paths = [source]
    else:
        found = list_folder(source, str(source), labels=bool(classes))
        paths = [found.pictures.open(number) for number in range(len(found.pictures.names))]
        if found.labels is not None:
            labels = torch.from_numpy(known_numbers(found.labels, str(source), found.classes, classes))
    images = []
    for path in paths:
        try:
            images.append(torch.from_numpy(decode(path, channels, None, "lanczos"))[None])
        except DamagedError as error:
            raise InputError(f"{option}: {path} cannot be read: {error}") from None
        _check_sides(images[-1], sides, option, path)
    return torch.cat(images), [path.stem for path in paths], labels


def _check_sides(image: Tensor, sides: tuple[int, int], option: str, where: Path) -> None:
    if tuple(image.shape[2:]) != sides:
        raise InputError(
            f"{option} must hold images of {sides[0]} x {sides[1]} for this run, got {image.shape[2]} x "
            f"{image.shape[3]} in {where}; resize them"
        )


def _masks(source: Path, count: int, sides: tuple[int, int]) -> Tensor:
    masks = _read(source, 1, sides, "--mask")[0] >= 128
    if len(masks) not in (1, count):
        raise InputError(f"--mask must hold one image, or one for each of the {count} of --input, got {len(masks)}")
    return masks.expand(count, -1, -1, -1)


def _blank(run: ImageRun) -> Any:
    """A set of images of the run's shape, to make conditions with."""
    from flowmatch.data.images import Images

    return Images(torch.zeros(2, *run.shape, dtype=torch.uint8))
