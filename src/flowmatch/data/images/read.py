"""From encoded images to a store: all are decoded once, and what is damaged is found before training starts.

A set that does not fit into memory is decoded once as well, and only the digests are kept: a truncated file is then
named at the start and not hours later, and the fingerprint of the data is that of its content.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from flowmatch.data.images.decode import Damaged, DamagedError, decode, natural_channels, pillow
from flowmatch.data.images.resize import Resample
from flowmatch.data.images.stores import Held, Lazy, Pictures, Store, digest, in_blocks
from flowmatch.errors import InputError

__all__ = ["Read", "read_pictures", "refuse_damaged"]


class Read(NamedTuple):
    """A store, which pictures it holds, and which could not be read."""

    store: Store
    kept: NDArray[np.int64]
    damaged: tuple[Damaged, ...]


def read_pictures(
    pictures: Pictures,
    source: str,
    size: tuple[int, int] | None,
    channels: int | None,
    resample: Resample,
    strict: bool,
    memory: int,
    workers: int,
) -> Read:
    """Decode every picture once.

    Raises:
        InputError: one is damaged and ``strict``; none can be read; or they differ in size and ``size`` is not given.
    """
    module = pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", module.DecompressionBombWarning)  # decode refuses them
        if channels is None:
            channels = _channels(pictures, workers)
        shape = (channels, *(size or _first_size(pictures, source, channels, resample, strict)))
        return _decoded(pictures, source, shape, size, resample, strict, memory, workers)


def _decoded(
    pictures: Pictures,
    source: str,
    shape: tuple[int, int, int],
    size: tuple[int, int] | None,
    resample: Resample,
    strict: bool,
    memory: int,
    workers: int,
) -> Read:
    count = len(pictures.names)
    fits = count * shape[0] * shape[1] * shape[2] <= memory
    levels = np.empty((count if fits else 0, *shape), dtype=np.uint8)
    digests = np.empty((0 if fits else count, 16), dtype=np.uint8)
    found: dict[int, str] = {}
    others: dict[int, tuple[int, ...]] = {}

    def job(number: int) -> None:
        try:
            image = decode(pictures.open(number), shape[0], size, resample)
        except DamagedError as error:
            if strict:
                refuse_damaged([Damaged(pictures.names[number], str(error))], source)
            found[number] = str(error)
            return
        if image.shape != shape:
            others[number] = image.shape
        elif fits:
            levels[number] = image
        else:
            digests[number] = digest(image)

    in_blocks(job, count, workers)
    damaged = tuple(Damaged(pictures.names[number], found[number]) for number in sorted(found))
    if len(damaged) == count:
        refuse_damaged(damaged, source, every=True)
    if others:
        _refuse_mixed(pictures.names, next(n for n in range(count) if n not in found | others), shape, others, source)
    kept = np.array([number for number in range(count) if number not in found], dtype=np.int64)
    if not fits:
        store: Store = Lazy(pictures, tuple(kept.tolist()), shape, resample, digests[kept], workers)
        return Read(store, kept, damaged)
    for row, number in enumerate(kept):
        if row != number:  # moved up in place: a copy would need the memory twice
            levels[row] = levels[number]
    return Read(Held(torch.from_numpy(levels[: len(kept)])), kept, damaged)


def refuse_damaged(damaged: Sequence[Damaged], source: str, every: bool = False) -> None:
    """Raise InputError that names the first damaged image."""
    first = damaged[0]
    if every:
        raise InputError(
            f"none of the {len(damaged)} images of {source} can be read; the first is {first.name}: {first.reason}"
        )
    raise InputError(
        f"{first.name} in {source} is damaged: {first.reason}. Mend or remove it, or read without strict to skip it"
    )


def _channels(pictures: Pictures, workers: int) -> int:
    """1 if every image is grey, else 3."""
    colour = np.zeros(len(pictures.names), dtype=bool)

    def job(number: int) -> None:
        try:
            colour[number] = natural_channels(pictures.open(number)) == 3
        except DamagedError:
            return  # named when it is decoded

    in_blocks(job, len(colour), workers)
    return 3 if colour.any() else 1


def _first_size(pictures: Pictures, source: str, channels: int, resample: Resample, strict: bool) -> tuple[int, int]:
    """Height and width of the first image that can be read."""
    damaged = []
    for number, name in enumerate(pictures.names):
        try:
            image = decode(pictures.open(number), channels, None, resample)
        except DamagedError as error:
            damaged.append(Damaged(name, str(error)))
            if strict:
                refuse_damaged(damaged, source)
        else:
            return image.shape[1], image.shape[2]
    refuse_damaged(damaged, source, every=True)
    raise AssertionError


def _refuse_mixed(
    names: Sequence[str], first: int, shape: tuple[int, int, int], others: dict[int, tuple[int, ...]], source: str
) -> None:
    number = min(others)
    least = min(*shape[1:], *(min(other[1:]) for other in others.values()))
    more = f", and {len(others) - 1} more differ from it" if len(others) > 1 else ""
    raise InputError(
        f"the images of {source} differ in size: {names[first]} is {shape[2]} x {shape[1]} (width x height), "
        f"{names[number]} is {others[number][2]} x {others[number][1]}{more}. Give size=, such as size={least}, to "
        "crop and resize them all"
    )
