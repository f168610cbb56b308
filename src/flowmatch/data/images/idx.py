"""Files of the MNIST family: ``idx``, packed by gzip or not.

Two zero bytes, the type (8 for ``uint8``), the number of dimensions, each dimension as a big-endian 32-bit number, then
the values, the last dimension fastest. A folder holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the
same for ``t10k``, the test set.

Source: LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits, section File Formats.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from flowmatch.data.images.folder import choose_split
from flowmatch.errors import InputError

__all__ = ["find_idx", "is_idx", "read_idx", "read_idx_set"]

_NAME = re.compile(r"(?P<split>.*?)[-_.]?(?P<what>images|labels)[-_.]idx[13][-_.]ubyte(\.gz)?", re.IGNORECASE)
_MOST = 2**40  # values; a header that announces more is not one


def find_idx(path: Path) -> dict[str, tuple[Path, Path | None]]:
    """Files of images and of labels in a folder, by split; ``t10k`` is called ``test``."""
    found: dict[str, dict[str, Path]] = {}
    for item in sorted(path.iterdir(), reverse=True):  # of a file and its .gz the plain one is left
        match = _NAME.fullmatch(item.name)
        if match and item.is_file():
            split = match["split"].lower()
            found.setdefault("test" if split == "t10k" else split or "train", {})[match["what"].lower()] = item
    return {split: (files["images"], files.get("labels")) for split, files in found.items() if "images" in files}


def is_idx(path: Path) -> bool:
    """Whether a file is named like one of ``idx``."""
    return re.search(r"[-_.]idx\d[-_.]ubyte(\.gz)?$|\.idx(\.gz)?$", path.name, re.IGNORECASE) is not None


def read_idx_set(
    path: Path, source: str, split: str | None = None, labels: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Images ``(N, H, W)`` of a folder or a file, and their labels ``(N,)`` if there is a file of them.

    Raises:
        InputError: no such split, no images, or files that do not belong together.
    """
    if path.is_dir():
        found = find_idx(path)
        images, beside = found[choose_split(list(found), split, source)]
    else:
        if split is not None:
            raise InputError(f"{source} is one file, so split={split!r} cannot be chosen; give its folder")
        images, beside = path, _beside(path)
    levels = read_idx(images)
    if levels.ndim != 3:
        raise InputError(f"{images.name} has shape {levels.shape}; images need three dimensions, (N, height, width)")
    if beside is None or not labels:
        return levels, None
    given = read_idx(beside)
    if given.shape != levels.shape[:1]:
        raise InputError(f"{beside.name} has shape {given.shape} and {images.name} {levels.shape}: not of one set")
    return levels, given


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an ``idx`` file of ``uint8``.

    Raises:
        InputError: damaged, of another type, or longer or shorter than it announces.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with cast(BinaryIO, gzip.open(path, "rb") if packed else path.open("rb")) as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or not head[3]:
                raise InputError(f"{path} is no idx file: it starts with {head.hex(' ') or 'nothing'}")
            if head[2] != 8:
                raise InputError(f"{path} holds values of type 0x{head[2]:02x}; only unsigned bytes, 0x08, are images")
            sides = np.frombuffer(file.read(4 * head[3]), dtype=">u4").astype(object)
            count = int(sides.prod()) if len(sides) == head[3] else -1
            content = file.read(count + 1) if 0 <= count <= _MOST else b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged: {error}; fetch it again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror or error}); check its name and rights") from error
    if len(content) != count:
        more = "more" if len(content) > count else str(len(content))
        raise InputError(f"{path} announces {max(count, 0)} values and holds {more}; it is damaged, fetch it again")
    return np.frombuffer(content, dtype=np.uint8).reshape([int(side) for side in sides])


def _beside(path: Path) -> Path | None:
    """The file of labels that belongs to a file of images."""
    name = re.sub("images([-_.])idx3", r"labels\1idx1", path.name, flags=re.IGNORECASE)
    stem = name.removesuffix(".gz")
    candidates = [path.with_name(other) for other in (name, stem, f"{stem}.gz") if other != path.name]
    return next((other for other in candidates if other.is_file()), None)
