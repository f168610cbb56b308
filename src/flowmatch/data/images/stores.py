r"""Where the bytes of the images are: in memory, in an array on disc, or still in the files.

A store gives rows as ``uint8``. **The rule**: what fits into ``memory`` bytes when decoded, ``N C H W``, is decoded
once and held. Beyond it a ``.npy`` of the right shape is mapped, and files are decoded anew at every draw, by a pool of
threads; Pillow lets other threads run while it decodes. All three give the same bytes.

The digest of an image is BLAKE2b over its decoded bytes, so a store has the same digests wherever its bytes are.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmatch.data.images.decode import DamagedError, decode
from flowmatch.data.images.resize import Resample
from flowmatch.errors import InputError

__all__ = ["Held", "Lazy", "Mapped", "Pictures", "Store", "count_workers", "digest", "in_blocks"]

_BLOCK = 16  # images that a thread takes at a time


class Store(Protocol):
    """Images in bytes, by number."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    def __len__(self) -> int: ...

    def rows(self, index: Tensor) -> Tensor:
        """Images ``index`` of shape ``(B,)`` as ``uint8``: ``(B, C, H, W)``."""

    def digests(self) -> NDArray[np.uint8]:
        """Digest of every image ``(N, 16)``."""


@dataclass(frozen=True)
class Pictures:
    """Encoded images: their names, and how to open one.

    Attributes:
        names: path or place of each in its source.
        open: from the number of an image to a path, a binary file or a ``PIL.Image.Image``; a
            :class:`DamagedError` if there is none.
    """

    names: tuple[str, ...]
    open: Callable[[int], Any]


class Held:
    """Images in memory.

    Args:
        levels: bytes ``(N, C, H, W)``.
    """

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels
        self.shape = (levels.shape[1], levels.shape[2], levels.shape[3])

    def __len__(self) -> int:
        return len(self.levels)

    def rows(self, index: Tensor) -> Tensor:
        return self.levels.index_select(0, index.to(self.levels.device))

    def digests(self) -> NDArray[np.uint8]:
        return _digests(self.levels.cpu().numpy())


class Mapped:
    """Images in an array on disc, read as they are asked for.

    Args:
        array: a memory map of bytes ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``.
        view: from a part of its rows to ``(n, C, H, W)``.
    """

    def __init__(self, array: NDArray[np.uint8], view: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
        self.array, self.view = array, view
        _, channels, height, width = view(array[:1]).shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, index: Tensor) -> Tensor:
        place = index.cpu().numpy()
        if len(place) and not 0 <= int(place.min()) <= int(place.max()) < len(self):
            raise IndexError(f"index out of range: {int(place.min())} to {int(place.max())} of {len(self)} images")
        return torch.from_numpy(np.ascontiguousarray(self.view(np.asarray(self.array[place]))))

    def digests(self) -> NDArray[np.uint8]:
        parts = [_digests(self.view(self.array[start : start + 4096])) for start in range(0, len(self), 4096)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Lazy:
    """Images in files, decoded as they are asked for.

    Args:
        pictures: the files.
        kept: number of each image among the pictures, damaged ones left out.
        shape: ``(C, H, W)``.
        resample: the filter.
        known: digest of every image, from when all were read.
        workers: number of threads.
    """

    pictures: Pictures
    kept: tuple[int, ...]
    shape: tuple[int, int, int]
    resample: Resample
    known: NDArray[np.uint8]
    workers: int

    def __len__(self) -> int:
        return len(self.kept)

    def rows(self, index: Tensor) -> Tensor:
        places = [self.kept[row] for row in index.tolist()]
        out = np.empty((len(places), *self.shape), dtype=np.uint8)

        def job(number: int) -> None:
            place = places[number]
            try:
                out[number] = decode(self.pictures.open(place), self.shape[0], self.shape[1:], self.resample)
            except DamagedError as error:
                raise InputError(
                    f"{self.pictures.names[place]} was read when the images were loaded and cannot be read now "
                    f"({error}); leave the files as they are while a model trains"
                ) from error

        # A block for every thread, since a batch is small and its images are large.
        in_blocks(job, len(places), self.workers, block=max(1, math.ceil(len(places) / (4 * self.workers))))
        return torch.from_numpy(out)

    def digests(self) -> NDArray[np.uint8]:
        return self.known


def in_blocks(job: Callable[[int], None], count: int, workers: int, block: int = _BLOCK) -> None:
    """Call ``job`` for every number below ``count``, in threads; the first error in order is raised."""

    def several(start: int) -> None:
        for number in range(start, min(start + block, count)):
            job(number)

    if workers == 1 or count <= block:
        for start in range(0, count, block):
            several(start)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="flowmatch-images") as threads:
        # The iterator drops what is not begun when one block fails.
        for _ in threads.map(several, range(0, count, block)):
            pass


def count_workers(workers: int | None) -> int:
    """Number of threads: as asked, or the cores that this process may use, 16 at most.

    Raises:
        InputError: below 1.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return min(cores or 1, 16)
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    return workers


def digest(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digest ``(16,)`` of the decoded bytes of an image ``(C, H, W)``."""
    return np.frombuffer(hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest(), dtype=np.uint8)


def _digests(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = np.empty((len(levels), 16), dtype=np.uint8)
    for row, image in enumerate(levels):
        out[row] = digest(image)
    return out
