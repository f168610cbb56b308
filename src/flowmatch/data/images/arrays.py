"""Images in NumPy files, and arrays of images cropped and resized.

A ``.npy`` holds the images. A ``.npz`` holds them under ``images``, ``image``, ``x`` or ``data`` and the labels under
``labels``, ``label``, ``y`` or ``targets``; a split may be part of the name, before or behind (``train_images``,
``x_test``). One array alone, or ``arr_0`` and ``arr_1``, will do. Objects inside are refused, not unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmatch.data.images.decode import pillow
from flowmatch.data.images.folder import choose_split
from flowmatch.data.images.resize import Resample, cropped, gray, pool, resized
from flowmatch.data.images.stores import Held, Mapped, Store, in_blocks
from flowmatch.errors import InputError

__all__ = ["array_store", "channels_first", "read_npy", "read_npz"]

_IMAGES = ("images", "image", "x", "data", "arr_0")
_LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
_FIT_ROWS = 4096  # images pooled at a time, so that the sums need little memory


def read_npy(path: Path, source: str) -> NDArray[Any]:
    """The array of a ``.npy`` file, mapped and not yet read."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{source} is an archive of arrays, not one; rename it to .npz")
    return array


def read_npz(
    path: Path, source: str, split: str | None = None, column: str | None = None, labels: bool | str = True
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Images and labels of a ``.npz`` file.

    Args:
        path: the file.
        source: its name in messages.
        split: which set of several.
        column: name of the images, found by default.
        labels: name of the labels, ``True`` to find them and ``False`` for none.

    Raises:
        InputError: names that are not found or not clear, or no such split.
    """
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise InputError(f"{source} is one array, not an archive; rename it to .npy")
    with archive:
        names = list(archive.files)
        if column is None:
            column = _one(names, _IMAGES, split, source, "images", "column=")
            if column is None:
                held = ", ".join(names) or "nothing"
                raise InputError(f"{source} holds {held}; expected {', '.join(_IMAGES[:4])}, or column=")
        elif split is not None:
            raise InputError(f"column={column!r} names the array, so split={split!r} has nothing to choose; leave one")
        label: str | None = labels if isinstance(labels, str) else None
        if labels is True:
            own = re.sub("|".join(_IMAGES), "", column.lower())  # what is left is the split
            near = [name for name in names if re.sub("|".join(_LABELS), "", name.lower()) == own and name != column]
            label = _one(near, _LABELS, None, source, "labels", "labels=")
        for name in (column, label):
            if name is not None and name not in names:
                raise InputError(f"{source} has no array {name!r}; it holds {', '.join(names)}")
        return archive[column], None if label is None else archive[label]


def _one(
    names: list[str], known: tuple[str, ...], split: str | None, source: str, what: str, option: str
) -> str | None:
    """The name among ``names`` that is known, of the split asked for."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = re.fullmatch(rf"(?:(\w+)_)?({'|'.join(known)})(?:_(\w+))?", name.lower())
        if match:
            found.setdefault(match[1] or match[3] or "", []).append(name)
    if not found:
        return names[0] if len(names) == 1 and what == "images" else None
    chosen = "" if split is None and "" in found else "" if len(found) == 1 and split is None else None
    key = next(iter(found)) if chosen == "" and "" not in found else chosen
    if key is None:
        key = choose_split(list(found), split, source)
    if len(found[key]) > 1:
        raise InputError(f"{source} has {what} under {', '.join(found[key])}; choose one with {option}")
    return found[key][0]


def channels_first(array: NDArray[Any], source: str) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """How to see a part of ``array`` as ``(n, C, H, W)``.

    Raises:
        InputError: not bytes, no images, or two readings.
    """
    shape = array.shape
    if array.dtype != np.uint8:
        how = (
            "numbers in [0, 1] become bytes by (255 * array).round().astype(numpy.uint8)"
            if array.dtype.kind == "f"
            else "convert them with array.astype(numpy.uint8) if they lie in 0..255"
        )
        raise InputError(f"{source} holds {array.dtype} of shape {shape}; images need uint8: {how}")
    if array.ndim not in (3, 4) or 0 in shape:
        raise InputError(f"{source} has shape {shape}; images need (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if array.ndim == 3:
        if shape[2] in (1, 3):
            raise InputError(
                f"{source} of shape {shape} may be one image (H, W, C) or {shape[0]} images (N, H, W); make it clear "
                "with array[None] or array[:, None]"
            )
        return lambda part: part[:, None]
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first and last and shape[1:] != (1, 1, 1):
        raise InputError(
            f"{source} of shape {shape} may have its channels first or last; save one (N, H, W) array of grey images, "
            "or images of another size"
        )
    if not first and not last:
        raise InputError(
            f"{source} has shape {shape}; 1 or 3 channels are needed, first or last. Drop an alpha channel"
        )
    return (lambda part: part) if first else (lambda part: part.transpose(0, 3, 1, 2))


def array_store(
    array: NDArray[Any],
    source: str,
    size: tuple[int, int] | None,
    channels: int | None,
    resample: Resample,
    memory: int,
    workers: int,
) -> Store:
    """A store of the images of an array, mapped if it is, does not fit into ``memory`` and stays as it is.

    Raises:
        InputError: not images, or they need more memory than allowed.
    """
    view = channels_first(array, source)
    _, own, *sides = view(array[:1]).shape
    channels = own if channels is None else channels
    height, width = sides if size is None else size
    bytes_ = len(array) * channels * height * width
    same = channels == own and [height, width] == list(sides)
    if bytes_ > memory:
        if same and isinstance(array, np.memmap):
            return Mapped(array, view)
        raise InputError(
            f"the images of {source} need {bytes_:,} bytes, more than memory={memory:,}; raise memory=, give a smaller "
            "size=, or save them with the right size and channels as .npy, which is read as it is needed"
        )
    if same:
        return Held(torch.from_numpy(np.array(view(array), order="C")))
    out = torch.empty((len(array), channels, height, width), dtype=torch.uint8)
    for start in range(0, len(array), _FIT_ROWS):
        part = torch.from_numpy(np.array(view(array[start : start + _FIT_ROWS]), order="C"))
        if channels != own:
            part = gray(part) if channels == 1 else part.expand(-1, 3, -1, -1)
        out[start : start + _FIT_ROWS] = _resized(part, (height, width), resample, workers)
    return Held(out)


def _resized(levels: Tensor, size: tuple[int, int], resample: Resample, workers: int) -> Tensor:
    """Images ``(n, C, H, W)`` cropped and brought to ``size``, as ``fit`` does with one."""
    top, left, height, width = cropped((levels.shape[2], levels.shape[3]), size)
    levels = levels[:, :, top : top + height, left : left + width]
    if (height, width) == size:
        return levels
    if resample == "box" and not (height % size[0] or width % size[1]):
        return pool(levels, size)
    module, out = pillow(), np.empty((*levels.shape[:2], *size), dtype=np.uint8)
    pixels = levels.permute(0, 2, 3, 1).contiguous().numpy()

    def job(number: int) -> None:
        image = pixels[number]
        out[number] = resized(module.fromarray(image[..., 0] if image.shape[-1] == 1 else image), size, resample)

    in_blocks(job, len(out), workers)
    return torch.from_numpy(out)
