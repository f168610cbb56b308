r"""Images as training sees them.

They stay bytes until a batch is taken. Then rows are picked, some are flipped, and bytes become numbers in ``[-1, 1]``
by :mod:`flowmatch.data.images.pixels`. Flips are drawn before the noise, both from the generator that is given, so a
batch is a function of its rows and of that generator's state alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmatch.data.images.decode import Damaged
from flowmatch.data.images.labels import class_numbers
from flowmatch.data.images.pixels import check_levels, dequantized, scaled
from flowmatch.data.images.split import split_rows
from flowmatch.data.images.stores import Held, Store
from flowmatch.errors import InputError
from flowmatch.randomness import rand
from flowmatch.typing import Cond

__all__ = ["ImageReport", "Images"]


@dataclass(frozen=True)
class ImageReport:
    """What happened when images were read.

    Attributes:
        source: what was read.
        read: number of images that can be used.
        damaged: those that cannot, with reasons.
        ignored: files beside them that are no images by their names.
    """

    source: str
    read: int
    damaged: tuple[Damaged, ...] = ()
    ignored: tuple[str, ...] = ()

    def lines(self, most: int = 8) -> list[str]:
        """What to tell a user; nothing if all is well."""
        told = []
        if self.damaged:
            total = self.read + len(self.damaged)
            told.append(f"{len(self.damaged)} of {total} images of {self.source} are damaged and skipped")
            told += [f"  {name}: {reason}" for name, reason in self.damaged[:most]]
            told += [f"  and {len(self.damaged) - most} more"] if len(self.damaged) > most else []
        if self.ignored:
            shown = ", ".join(self.ignored[:most])
            more = f" and {len(self.ignored) - most} more" if len(self.ignored) > most else ""
            told.append(f"{len(self.ignored)} files are no images by their names: {shown}{more}")
        return told


class Images:
    """Images with perhaps a class each, as the trainer takes them.

    Args:
        levels: bytes ``(N, C, H, W)``, ``C`` being 1 or 3, or a store of them.
        labels: class number of every image ``(N,)``; it is the condition.
        classes: names of the classes; the numbers by default.
        flip: mirror each image left to right with probability 1/2.
        dequantize: spread every byte over its cell, see :mod:`flowmatch.data.images.pixels`.
        report: what happened when they were read.
        names: what each is called where it comes from, such as the path in its folder; the numbers by default.

    Raises:
        TypeError: ``levels`` is not ``uint8``.
        ValueError: it is not ``(N, C, H, W)``.
        InputError: labels or names that do not fit.

    Example:
        >>> images = Images(torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2), labels=torch.tensor([1, 0]))
        >>> x1, label = images.take(torch.tensor([1]))
        >>> x1.shape, label, images.counts
        (torch.Size([1, 1, 2, 2]), tensor([0]), {'0': 1, '1': 1})
    """

    def __init__(
        self,
        levels: Tensor | Store,
        labels: Tensor | NDArray[np.int64] | Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        flip: bool = False,
        dequantize: bool = False,
        report: ImageReport | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if isinstance(levels, Tensor):
            check_levels(levels)
        elif not hasattr(levels, "rows"):
            raise TypeError(f"levels must be a torch.uint8 tensor of shape (N, C, H, W), got {type(levels).__name__}")
        self._store: Store = Held(levels) if isinstance(levels, Tensor) else levels
        self._picked: Tensor | None = None
        self.labels: Tensor | None = None
        self.classes: tuple[str, ...] = ()
        if labels is not None:
            numbers, self.classes = class_numbers(np.asarray(labels), "these images", classes)
            if len(numbers) != len(levels):
                raise InputError(f"there are {len(numbers)} labels for {len(levels)} images; give one each")
            self.labels = torch.from_numpy(numbers)
        self.flip, self.dequantize = flip, dequantize
        self.report = ImageReport("a tensor", len(levels)) if report is None else report
        if names is not None and len(names) != len(levels):
            raise InputError(f"there are {len(names)} names for {len(levels)} images; give one each")
        self._names = None if names is None else tuple(names)

    def __len__(self) -> int:
        return len(self._store) if self._picked is None else len(self._picked)

    def __repr__(self) -> str:
        where = {"Held": "in memory", "Mapped": "mapped from disc", "Lazy": "decoded when taken"}
        kinds = f", {len(self.classes)} classes" if self.classes else ""
        how = "".join(f", {name}" for name in ("flip", "dequantize") if getattr(self, name))
        place = where.get(type(self._store).__name__, type(self._store).__name__)
        return f"Images({len(self)} of shape {self.shape}{kinds}, {place}{how})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self._store.shape

    @property
    def names(self) -> tuple[str, ...]:
        """What each image is called where it comes from."""
        numbers = range(len(self._store)) if self._picked is None else self._picked.tolist()
        return tuple(str(number) if self._names is None else self._names[number] for number in numbers)

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """Images that could not be read, with reasons."""
        return self.report.damaged

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of every class, by name; empty without classes."""
        if self.labels is None:
            return {}
        counts: list[int] = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over pixels, labels, class names and their order; pins a run to its data.

        It does not depend on flips, noise, file names or on where the bytes are held.
        """
        total = hashlib.sha256(json.dumps(["flowmatch images 1", self.shape, self.classes]).encode())
        total.update(self._digests().tobytes())
        if self.labels is not None:
            total.update(self.labels.numpy().astype("<i8").tobytes())
        return total.hexdigest()

    def levels(self, index: Tensor | None = None) -> Tensor:
        """Bytes ``(B, C, H, W)`` of the images ``index`` ``(B,)``, or of all; neither flipped nor scaled."""
        index = torch.arange(len(self)) if index is None else index.cpu()
        return self._store.rows(index if self._picked is None else self._picked.index_select(0, index))

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Cond]:
        """Images ``index`` ``(B,)`` as float32 in ``[-1, 1]``: ``(B, C, H, W)``, and their labels ``(B,)`` if any."""
        x1 = self.numbers(self.augmented(index, generator), generator)
        return x1, None if self.labels is None else self.labels.index_select(0, index.cpu())

    def numbers(self, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bytes as float32 in ``[-1, 1]``, with noise if these images are dequantized."""
        return dequantized(levels, generator) if self.dequantize else scaled(levels)

    def augmented(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bytes of the images ``index``, flipped where the generator says so."""
        levels = self.levels(index)
        if self.flip:
            turned = (rand((len(levels),), generator, levels.device) < 0.5).nonzero()[:, 0]
            # Half of the images are copied, not all of them twice.
            levels.index_copy_(0, turned, levels.index_select(0, turned).flip(-1))
        return levels

    def subset(self, index: Tensor, flip: bool | None = None, dequantize: bool | None = None) -> Images:
        """Some of the images, in the order of ``index``; the pixels are shared and not copied.

        Args:
            index: numbers ``(K,)``.
            flip: mirror at random; as here by default.
            dequantize: spread bytes over their cells; as here by default.
        """
        index = index.cpu().long()
        part = copy.copy(self)
        part.__dict__.pop("fingerprint", None)
        part._picked = index.clone() if self._picked is None else self._picked.index_select(0, index)
        part.labels = None if self.labels is None else self.labels.index_select(0, index)
        part.flip = self.flip if flip is None else flip
        part.dequantize = self.dequantize if dequantize is None else dequantize
        return part

    def split(
        self, holdout: float | int = 0.1, seed: int = 0, by: Literal["index", "content"] = "index"
    ) -> tuple[Images, Images]:
        """Images to train on, and images held out, which are not flipped.

        Args:
            holdout: share of the images, or their number.
            seed: seed of the choice.
            by: ``"index"`` shuffles each class; ``"content"`` orders each class by a keyed hash of the pixels, which
                does not depend on file names or order, and keeps equal images on one side.

        Raises:
            InputError: nothing would be left on one of the sides.
        """
        labels = None if self.labels is None else self.labels.numpy()
        held = split_rows(len(self), holdout, seed, labels, self._digests() if by == "content" else None)
        rest = np.setdiff1d(np.arange(len(self)), held)
        return self.subset(torch.from_numpy(rest)), self.subset(torch.from_numpy(held), flip=False)

    def _digests(self) -> NDArray[np.uint8]:
        every = self._store.digests()
        return every if self._picked is None else every[self._picked.numpy()]
