"""A folder of images: which files are images, and which class each is of.

The sub-folders of the first level are the classes, in sorted order; what lies deeper in one belongs to it. A folder of
images without sub-folders has no labels. Names that start with a dot are not looked at, nor what is no image by its
extension.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowmatch.data.frames import quoted
from flowmatch.data.images.labels import check_names
from flowmatch.data.images.stores import Pictures
from flowmatch.errors import InputError

__all__ = ["SUFFIXES", "Folder", "choose_split", "is_hidden", "is_split", "list_folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
"""Extensions of the files that are taken for images, in any case of letters."""

_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
        pictures: the images.
        labels: class number of each, if there are classes.
        classes: names of the classes.
        ignored: files that are no images by their names.
    """

    pictures: Pictures
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    ignored: tuple[str, ...]


def choose_split(names: list[str], split: str | None, source: str) -> str:
    """The split asked for, ``"train"`` by default.

    Raises:
        InputError: there is none of that name.
    """
    wanted = "train" if split is None else split
    if wanted not in names:
        asked = "and none is called 'train'" if split is None else f"not {split!r}"
        raise InputError(f"{source} has the splits {quoted(sorted(names))}, {asked}; choose one with split=")
    return wanted


def is_split(name: str) -> bool:
    """Whether a folder of this name may be a part of a data set instead of a class."""
    return name.lower() in _SPLITS


def list_folder(path: Path, source: str, split: str | None = None, labels: bool = True) -> Folder:
    """Find the images of a folder; nothing is opened.

    Args:
        path: the folder.
        source: its name in messages.
        split: sub-folder to read, where the folder has ``train``, ``test`` and the like.
        labels: whether sub-folders are classes.

    Raises:
        InputError: no images, a class without any, images beside class folders, class names that are told apart by
            case only, or no such split.
    """
    inner = sorted(item.name for item in path.iterdir() if item.is_dir() and not is_hidden(item.name))
    if inner and (set(map(str.lower, inner)) <= _SPLITS or (split is not None and split in inner)):
        return list_folder(path / choose_split(inner, split, source), f"{source} ({split or 'train'})", None, labels)
    if split is not None:
        raise InputError(f"{source} has no splits, so split={split!r} cannot be chosen; leave it out")
    files: list[str] = []
    ignored: list[str] = []
    for name in _walk(path):
        (files if os.path.splitext(name)[1].lower() in SUFFIXES else ignored).append(name)
    if not files:
        seen = f"; it holds {quoted(ignored, 4)}" if ignored else ""
        raise InputError(f"there are no images in {source} ({', '.join(SUFFIXES)}){seen}")
    pictures = Pictures(tuple(files), lambda number: path / files[number])
    if not inner or not labels:
        return Folder(pictures, None, (), tuple(ignored))
    loose = [name for name in files if "/" not in name]
    if loose:
        raise InputError(
            f"{source} has images beside its class folders: {quoted(loose, 4)}; move each into the folder of its "
            "class, or read all without classes by labels=False"
        )
    classes = check_names(inner, source)
    numbers = {name: number for number, name in enumerate(classes)}
    found = np.array([numbers[name.partition("/")[0]] for name in files], dtype=np.int64)
    empty = [name for name, number in numbers.items() if number not in set(found.tolist())]
    if empty:
        raise InputError(
            f"{source} has class folders without images: {quoted(empty)}; put images into them or remove them"
        )
    return Folder(pictures, found, classes, tuple(ignored))


def _walk(root: Path) -> Iterator[str]:
    """Files below ``root``, in sorted order, as paths with slashes; hidden ones are left out, links are followed."""

    def below(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in above:
            return  # a link to a folder that it lies in
        with os.scandir(folder) as items:
            entries = sorted((item for item in items if not is_hidden(item.name)), key=lambda item: item.name)
        for item in entries:
            if item.is_dir():
                yield from below(item.path, f"{prefix}{item.name}/", (*above, real))
            else:
                yield prefix + item.name

    return below(str(root), "", ())


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "__MACOSX"
