"""``flowmatch sample`` on a run of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flowmatch.cli.errors import say
from flowmatch.errors import InputError
from flowmatch.recipes import ImageRun, make_job
from flowmatch.recipes.previews import told_sheet
from flowmatch.tensors import take

__all__ = ["Wanted", "sample_images"]


@dataclass(frozen=True)
class Wanted:
    """What to draw.

    Attributes:
        n: number of samples.
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

    n: int
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

    job = run.config.flow.job
    generator = torch.Generator().manual_seed(wanted.seed)
    truth: Tensor | None = None
    if job == "generate":
        for name in ("images", "mask", "data"):
            if getattr(wanted, name) is not None:
                option = "--input" if name == "images" else f"--{name}"
                raise InputError(f"{option} is for runs that enlarge images or paint in; this one makes images")
        cond: Any = run.labels(wanted.n, generator, wanted.given)
    else:
        if wanted.guidance is not None:
            run.guided(wanted.guidance)  # raises, and says why
        cond, truth = _told(run, wanted, generator)
    flow = run.flow if wanted.guidance is None else run.guided(wanted.guidance, wanted.interval)
    count = wanted.n if cond is None else len(pytree.tree_leaves(cond)[0])
    home = flow.home
    parts = []
    for rows in torch.arange(count).split(wanted.batch):
        part = None if cond is None else pytree.tree_map(lambda leaf: leaf.to(home.device), take(cond, rows))
        parts.append(to_uint8(flow.sample(len(rows), part, generator=generator, **how).float().cpu()))
    made = torch.cat(parts)
    labels = cond if isinstance(cond, Tensor) else None if cond is None else cond.get("label")
    if job != "generate" and target.suffix.lower() == ".png":
        target.write_bytes(png(told_sheet(cond["image"], made, truth, wanted.columns or 1)))
    else:
        write_images(made, target, labels, run.classes, wanted.columns)
    if not quiet:
        say(f"{count} images written to {target}")


def _told(run: ImageRun, wanted: Wanted, generator: torch.Generator) -> tuple[Any, Tensor | None]:
    """What the network is told of each sample, and the true images in bytes if they are known."""
    from flowmatch.data.images import to_uint8

    job = run.config.flow.job
    if wanted.images is None:
        if wanted.mask is not None:
            raise InputError("--mask goes with --input, the images to paint in")
        rows, held = run.split(wanted.data)
        source = rows if held is None else held
        index = torch.randperm(len(source), generator=generator)[: wanted.n]
        if wanted.given is not None:
            raise InputError("--given goes with --input here: held-out images have their own classes")
        truth, cond = make_job(run.config.flow, source).take(index, generator)
        return cond, to_uint8(truth)
    channels, height, width = run.shape
    if job == "upscale":
        factor = run.config.flow.factor
        small = _read(wanted.images, channels, (height // factor, width // factor), "--input")[: wanted.n]
        cond = make_job(run.config.flow, _blank(run)).given(small)
        truth = None
    else:
        from flowmatch.data.images import scaled

        levels = _read(wanted.images, channels, (height, width), "--input")[: wanted.n]
        job_data = make_job(run.config.flow, _blank(run))
        known = (
            job_data.holes(len(levels), height, width, generator)
            if wanted.mask is None
            else _masks(wanted.mask, len(levels), (height, width))
        )
        cond, truth = job_data.given(scaled(levels), known), levels
    labels = run.labels(len(cond["image"]), generator, wanted.given) if run.classes else None
    if labels is not None and wanted.given is None:
        raise InputError(f"the run at {run.folder} is told a class as well: say which with --given NAME")
    return cond | ({} if labels is None else {"label": labels}), truth


def _read(source: Path, channels: int, sides: tuple[int, int], option: str) -> Tensor:
    """Images of a file or a folder in bytes, which must have the sides."""
    from flowmatch.data.images import load_images
    from flowmatch.data.images.decode import DamagedError, decode
    from flowmatch.data.images.folder import SUFFIXES

    if source.suffix.lower() in (".npz", ".npy", ".parquet"):
        stored = load_images(source, channels=channels, labels=False, strict=True).levels()
        images = dict.fromkeys([str(source)], stored)
    else:
        paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise InputError(f"{option}: no images at {source}; give an image, a folder of images or a .npz file")
        images = {}
        for path in paths:
            try:
                images[str(path)] = torch.from_numpy(decode(path, channels, None, "lanczos"))[None]
            except DamagedError as error:
                raise InputError(f"{option}: {path} cannot be read: {error}") from None
    for name, image in images.items():
        if tuple(image.shape[2:]) != sides:
            raise InputError(
                f"{option} must hold images of {sides[0]} x {sides[1]} for this run, got {image.shape[2]} x "
                f"{image.shape[3]} in {name}; resize them"
            )
    return torch.cat(list(images.values()))


def _masks(source: Path, count: int, sides: tuple[int, int]) -> Tensor:
    masks = _read(source, 1, sides, "--mask") >= 128
    if len(masks) not in (1, count):
        raise InputError(f"--mask must hold one image, or one for each of the {count} of --input, got {len(masks)}")
    return masks.expand(count, -1, -1, -1)


def _blank(run: ImageRun) -> Any:
    """A set of images of the run's shape, to make conditions with."""
    from flowmatch.data.images import Images

    return Images(torch.zeros(2, *run.shape, dtype=torch.uint8))
