"""``flowmatch score`` on a run of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flowmatch.cli.errors import note, say
from flowmatch.cli.tables import write_table
from flowmatch.cli.working import Working
from flowmatch.errors import InputError
from flowmatch.recipes import ImageRun, make_job
from flowmatch.recipes.kinds import kind_of_source
from flowmatch.recipes.scoring import bits_of_images, divergence_for, labels_for

if TYPE_CHECKING:
    from flowmatch.data.images import Images

__all__ = ["Scored", "score_images"]


@dataclass(frozen=True)
class Scored:
    """What to score.

    Attributes:
        source: where the images are.
        split: which of several sets there.
        given: class of all of them.
        noises: noises of each.
        probes: probes of the divergence of each; ``None`` for the exact one where it is cheap, else one.
        seed: seed of both.
        batch: images solved at a time.
        out: table to write.
    """

    source: str
    split: str | None
    given: str | None
    noises: int
    probes: int | None
    seed: int
    batch: int
    out: Path | None


def score_images(run: ImageRun, wanted: Scored, how: dict[str, Any] | None, quiet: bool) -> None:
    """Count the bits of every image, write the table and say the mean."""
    images = _read(run, wanted)
    if not quiet:
        for line in images.report.lines():
            note(line)
    labels = labels_for(run, images, wanted.given)
    config, generator = run.config.flow, torch.Generator().manual_seed(wanted.seed)
    if config.job == "upscale":
        plain = images.subset(torch.arange(len(images)), flip=False, dequantize=False)
        _, cond = make_job(config, plain, noisy=False).take(torch.arange(len(images)), generator)
        cond = cond if labels is None else {**cond, "label": labels}
    else:
        cond = labels
    with Working("scoring", quiet) as working:
        bits, _ = bits_of_images(
            run,
            images.levels(),
            cond,
            noises=wanted.noises,
            divergence=divergence_for(run, wanted.probes),
            generator=generator,
            batch=wanted.batch,
            tick=lambda share: working.update(share, "scoring"),
            how=how,
        )
    nats = -bits * math.prod(run.shape) * math.log(2)
    if wanted.out is not None:
        import pandas as pd

        columns: dict[str, Any] = {"image": images.names}
        if labels is not None:
            columns["class"] = [(*run.classes, "")[number] for number in labels.tolist()]
        write_table(pd.DataFrame({**columns, "bits_per_dim": bits, "log_likelihood": nats}), wanted.out)
    if not quiet:
        error = bits.std().item() / math.sqrt(len(bits)) if len(bits) > 1 else math.nan
        if labels is not None and wanted.given is None and images.labels is None:
            note("the images have no classes: scored under the law of all classes together")
        say(f"{len(bits)} images: {bits.mean().item():.4f} +- {error:.4f} bits a dimension")
        say(f"most bits: {bits.max().item():.4f}, {images.names[int(bits.argmax())]}")
        if wanted.out is not None:
            say(f"written to {wanted.out}")


def _read(run: ImageRun, wanted: Scored) -> Images:
    """The images, in the shape of the run's and with its numbers of classes.

    Raises:
        InputError: they cannot be read, have another size, or a class the run does not know.
    """
    if kind_of_source(wanted.source) != "images":
        raise InputError(
            f"{run.folder} is a run of images, and {wanted.source} is none: give a folder of images, or a .npz, .npy, "
            ".parquet or idx file of them"
        )
    config = run.config.images.model_copy(update={"channels": run.shape[0]})
    if wanted.given is not None:
        config = config.model_copy(update={"labels": False})
    images = config.load(wanted.source, None, wanted.split, run.config.flow.job, run.classes, least=1)
    if images.shape != run.shape:
        raise InputError(
            f"{wanted.source} holds images of {images.shape[1]} x {images.shape[2]}, and the run at {run.folder} was "
            f"trained on {run.shape[1]} x {run.shape[2]}; resize them"
        )
    return images
