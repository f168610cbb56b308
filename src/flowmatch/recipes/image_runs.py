"""A run on images: from a folder of images to a run folder that samples, and back from the folder.

The run folder is that of :mod:`flowmatch.recipes.runs`; ``config.yaml`` says ``kind: images``, and ``data.json`` holds
what has to be known of the images without reading them again: their shape, the names and numbers of their classes, and
the hash that pins the run to its data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.fields import Guided
from flowmatch.flow import Flow
from flowmatch.persist import write_atomically
from flowmatch.recipes.folder import Description, RunOptions, check_same, mapping, read_history, read_json
from flowmatch.recipes.image_card import image_card
from flowmatch.recipes.images import ImageConfig, ImageDataConfig, fit_images, suggest_images
from flowmatch.train import TrainConfig, TrainResult

if TYPE_CHECKING:
    from flowmatch.data.images import Images

__all__ = ["ImageRun", "ImageRunConfig", "train_image_run"]

#: Images kept out of training at most, if the user does not say how many.
_HELD = 5000


class ImageRunConfig(RunOptions):
    """Everything that makes a run on images, as written to ``config.yaml``."""

    kind: Literal["images"] = "images"
    recipe: str | None = Field(None, description="the recipe that the options come from")
    data: str = Field(description="folder of images, or a .npz, .npy, .parquet or idx file")
    rows: int | None = Field(None, ge=2, description="so many of the images only, spread evenly")
    holdout: float = Field(0.1, ge=0, le=0.5, description="share of the images kept out of training")
    images: ImageDataConfig = Field(default_factory=ImageDataConfig)
    flow: ImageConfig = Field(default_factory=ImageConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: str) -> str:
        """A run must find its data from any working directory."""
        return str(Path(data).expanduser().resolve())

    @classmethod
    def choose(cls, options: dict[str, Any], images: Images, processes: int = 1) -> ImageRunConfig:
        """Fill in from the number of images what ``options`` leave open, for so many processes.

        Raises:
            InputError: an unknown option or a value out of its limits; every problem is named.
        """
        holdout = options.get("holdout", min(0.1, _HELD / len(images)))
        flow = mapping(options, "flow")
        train = suggest_images(len(images), bool(images.classes), str(flow.get("job", "generate")), processes)
        return cls.parse({**options, "holdout": holdout, "train": {**train, **mapping(options, "train")}})

    def load(self, source: str | None = None, split: str | None = None, classes: Sequence[str] | None = None) -> Images:
        """Read the images, from ``source`` if they have moved; or all of another split."""
        rows = self.rows if split is None else None
        return self.images.load(self.data if source is None else source, rows, split, self.flow.job, classes)

    def split(self, images: Images) -> tuple[Images, Images | None]:
        """Images to train on, and those held out."""
        held = int(self.holdout * len(images))
        if not held:
            return images, None
        return images.split(held, self.train.seed)


@dataclass(frozen=True)
class ImageRun:
    """A trained run on images, opened from its folder.

    Attributes:
        folder: where it lies.
        config: what made it.
        flow: the flow on images ``(B, C, H, W)`` in ``[-1, 1]``, with the averaged weights.
        counts: number of training images of every class, by name; empty without classes.
        fingerprint: hash of the images, held-out ones included.
    """

    folder: Path
    config: ImageRunConfig
    flow: Flow
    counts: dict[str, int]
    fingerprint: str

    @classmethod
    def open(cls, folder: str | Path) -> ImageRun:
        """Open a run folder.

        Raises:
            InputError: no run on images there, or a damaged one; the message names the file.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"no run folder at {folder}; give the folder that flowmatch train wrote (--out)")
        flow = Flow.load(folder)
        config = ImageRunConfig.read(folder / "config.yaml")
        described = read_json(folder / "data.json")
        try:
            return cls(folder, config, flow, dict(described["counts"]), str(described["fingerprint"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder / 'data.json'} lacks {error}; restore it from a copy or train again") from None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; none if the run has no labels."""
        return tuple(self.counts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return self.flow.event_shape

    def split(self, source: str | None = None) -> tuple[Images, Images | None]:
        """The images the run was trained on and those held out, from the original data.

        Args:
            source: where the data lies now, if it has moved.

        Raises:
            InputError: the data cannot be read or has changed since.
        """
        images = self.config.load(source)
        if images.fingerprint != self.fingerprint:
            raise InputError(
                f"{source or self.config.data} does not hold the images this run was trained on: their content has "
                "changed; give the original with --data"
            )
        return self.config.split(images)

    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_history(self.folder)

    def labels(self, n: int, generator: torch.Generator, given: str | None = None) -> Tensor | None:
        """Class numbers ``(n,)``: of the class given by name, or drawn as often as in training; ``None`` without any.

        Raises:
            InputError: a class that the run does not know.
        """
        if given is not None:
            if given not in self.counts:
                known = ", ".join(self.counts) or "none"
                raise InputError(f"the run at {self.folder} has no class {given!r}; it knows {known}")
            if not self.counts[given]:
                raise InputError(f"the run at {self.folder} saw no image of class {given!r} in training")
            return torch.full((n,), self.classes.index(given))
        if not self.counts:
            return None
        weights = torch.tensor(list(self.counts.values()), dtype=torch.float64)
        return torch.multinomial(weights, n, replacement=True, generator=generator)

    def check_seen(self, labels: Tensor) -> None:
        """Raise unless training saw images of every class among these numbers.

        Raises:
            InputError: of one it saw none.
        """
        for number in labels.unique().tolist():
            self.labels(0, torch.Generator(), self.classes[number])

    def guided(self, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Flow:
        """The flow under classifier-free guidance.

        Raises:
            InputError: a run whose network never saw the empty label, or one that is conditioned on images.
        """
        if self.config.flow.job != "generate" or not self.counts:
            raise InputError(
                f"guidance strengthens a class, and the run at {self.folder} is not one of images by class; leave out "
                "--guidance"
            )
        if not self.config.train.label_dropout:
            raise InputError(
                f"the run at {self.folder} was trained with label_dropout 0, so that its network does not know images "
                "without a class; train with --label-dropout 0.1 for guidance"
            )
        if not math.isfinite(scale):
            raise InputError(f"guidance must be a finite number, got {scale}")
        field = Guided(self.flow.field, scale, len(self.counts), interval)
        return Flow(field, self.flow.path, self.shape, self.flow.source, self.flow.solver, self.flow.independent).eval()


def train_image_run(
    config: ImageRunConfig,
    images: Images,
    out: Path,
    *,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
    main: bool = True,
    ready: Callable[[], Any] | None = None,
) -> tuple[ImageRun, TrainResult]:
    """Train on images and write the run folder.

    Args:
        config: what to do.
        images: the images, as :meth:`ImageRunConfig.load` reads them.
        out: run folder.
        callbacks: told about progress.
        resume: go on from the newest good checkpoint.
        main: whether this process writes; one process of several does.
        ready: called once all options have been checked, to make the folder ready (see :func:`prepare_folder`).

    Returns:
        The run, and the trainer's account.
    """
    rows, held = config.split(images)
    if resume:
        check_same(out / "data.json", images.fingerprint, config.data)
    described = {
        "shape": list(images.shape),
        "counts": rows.counts,
        "fingerprint": images.fingerprint,
        "rows": len(rows),
        "heldout_rows": 0 if held is None else len(held),
        "damaged": [list(one) for one in images.damaged],
    }
    flow, result = fit_images(
        rows,
        held,
        flow=config.flow,
        train=config.train,
        out=out,
        callbacks=[Description(out, config.to_yaml(), described), *callbacks],
        resume=resume,
        ready=ready,
    )
    run = ImageRun(out, config, flow.cpu(), rows.counts, images.fingerprint)
    if main:
        flow.save(out)
        card = image_card(out.name, config, run, result, len(rows), 0 if held is None else len(held))
        write_atomically(out / "README.md", card.encode())
    return run, result
