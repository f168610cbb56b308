"""``flowmatch score`` on a run of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowmatch.cli.errors import note, say
from flowmatch.cli.tables import write_table
from flowmatch.cli.working import Working
from flowmatch.errors import InputError
from flowmatch.recipes import ImageRun
from flowmatch.recipes.scoring import bits_of_images, check_scorable, divergence_for, labels_for

if TYPE_CHECKING:
    from flowmatch.data.images import Images

__all__ = ["Scored", "score_images"]

_TEXT = (".csv", ".parquet")  # forms of a table that hold text
_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".json")


@dataclass(frozen=True)
class Scored:
    """What to score.

    Attributes:
        source: where the images are.
        split: which of several sets there.
        given: class of all of them.
        labels: whether each is scored under its own class, if nothing is given.
        noises: noises of each.
        probes: probes of the divergence of each; ``None`` for the exact one where it is cheap, else one.
        seed: seed of both.
        batch: images solved at a time.
        out: table to write.
    """

    source: str
    split: str | None
    given: str | None
    labels: bool
    noises: int
    probes: int | None
    seed: int
    batch: int
    out: Path | None


def score_images(run: ImageRun, wanted: Scored, how: dict[str, Any] | None, quiet: bool) -> None:
    """Count the bits of every image, write the table and say the mean."""
    if wanted.out is not None and wanted.out.suffix.lower() not in _TEXT:
        raise InputError(f"cannot write the names of images to {wanted.out}; use {' or '.join(_TEXT)}")
    check_scorable(run)
    images = _read(run, wanted)
    labels = labels_for(run, images, wanted.given)
    if not quiet:
        _tell(run, wanted, images, labels)
    with Working("scoring", quiet) as working:
        bits, _ = bits_of_images(
            run,
            images,
            labels,
            noises=wanted.noises,
            divergence=divergence_for(run, wanted.probes),
            generator=torch.Generator().manual_seed(wanted.seed),
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
        say(f"{len(bits)} images: {bits.mean().item():.4f} +- {error:.4f} bits a dimension")
        say(f"most bits: {bits.max().item():.4f}, {images.names[int(bits.argmax())]}")
        if wanted.out is not None:
            say(f"written to {wanted.out}")


def _tell(run: ImageRun, wanted: Scored, images: Images, labels: Tensor | None) -> None:
    """Say what the numbers depend on."""
    for line in images.report.lines():
        note(line)
    if labels is not None and wanted.given is None and images.labels is None:
        note("no classes are told: the images are scored under the law of all classes together")
    if not run.config.images.dequantize:
        note("the run was trained on bytes without noise, so that its densities have peaks and the bits mean little")


def _read(run: ImageRun, wanted: Scored) -> Images:
    """The images, in the shape of the run's and with its numbers of classes.

    What tells the images in the run's own data, such as a split or a column, says nothing of other data.

    Raises:
        InputError: they cannot be read, have another size, or a class the run does not know.
    """
    path = Path(wanted.source).expanduser()
    if wanted.source.startswith(("toy:", "sklearn:")) or (path.is_file() and path.suffix.lower() in _TABLES):
        raise InputError(
            f"{run.folder} is a run of images, and {wanted.source} is a table: give a folder of images, or a .npz, "
            ".npy, .parquet or idx file of them"
        )
    labels = bool(run.classes) and wanted.given is None and wanted.labels
    change: dict[str, Any] = {"channels": run.shape[0], "labels": labels, "strict": False}
    if str(path.resolve()) != run.config.data:
        change |= {"split": None, "column": None}
    config = run.config.images.model_copy(update=change)
    try:
        images = config.load(wanted.source, None, wanted.split, run.config.flow.job, run.classes, least=1)
    except InputError as error:
        if not labels:
            raise
        mend = "To score them without classes of their own, say --given CLASS or --no-labels"
        raise InputError(f"{error}. {mend}") from None
    if images.shape != run.shape:
        raise InputError(
            f"{wanted.source} holds images of {images.shape[1]} x {images.shape[2]}, and the run at {run.folder} was "
            f"trained on {run.shape[1]} x {run.shape[2]}; resize them"
        )
    return images
