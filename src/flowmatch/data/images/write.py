"""Images to disc: each in a file, all in an array, or side by side on a sheet."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch.data.images.decode import pillow
from flowmatch.data.images.pixels import check_levels
from flowmatch.errors import InputError

__all__ = ["check_image_target", "png", "sheet", "write_images"]

_SHEET_PIXELS = 900  # a sheet of small images is enlarged to about this width, so that a person can see them
_MARGIN = 2


def sheet(levels: Tensor, columns: int | None = None, scale: int | None = None) -> Tensor:
    """Images row by row on one white sheet, with a blank line between them.

    Args:
        levels: bytes ``(N, C, H, W)``.
        columns: images in a row; about as many as there are rows by default.
        scale: how often each pixel is repeated; by default as suits a screen.

    Returns:
        One image in bytes, ``(C, height, width)``.

    Raises:
        TypeError: not bytes.
        ValueError: no images, or another shape.

    Example:
        >>> sheet(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), columns=3, scale=1).shape
        torch.Size([1, 14, 20])
    """
    check_levels(levels)
    count, channels, height, width = levels.shape
    if not count:
        raise ValueError("there are no images to lay out; give at least one")
    columns = max(1, round(count**0.5)) if columns is None else min(columns, count)
    scale = max(1, _SHEET_PIXELS // (columns * (width + _MARGIN))) if scale is None else scale
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    rows = -(-count // columns)
    margin = _MARGIN * (1 if scale < 4 else 2)
    tall, wide = height * scale + margin, width * scale + margin
    white = torch.full((channels, rows * tall + margin, columns * wide + margin), 255, dtype=torch.uint8)
    large = levels.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    for place, image in enumerate(large):
        top, left = margin + place // columns * tall, margin + place % columns * wide
        white[:, top : top + height * scale, left : left + width * scale] = image
    return white


def png(levels: Tensor) -> bytes:
    """One image in bytes ``(C, H, W)`` as the content of a PNG file.

    Raises:
        ImportError: Pillow is not installed.
    """
    array = levels.cpu().numpy()
    picture = pillow().fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def check_image_target(target: Path, overwrite: bool) -> None:
    """Raise before the work if images could not be written to ``target``.

    Raises:
        InputError: a suffix that is no format, something that is there already, a folder that is not.
    """
    if target.suffix.lower() not in ("", ".png", ".npz"):
        raise InputError(
            f"cannot write {target}: give a name in .png for one sheet, in .npz for an array, or a folder for a file "
            "an image"
        )
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already; give another name or --overwrite")
    if not target.suffix and target.exists() and not _replaceable(target):
        raise InputError(f"{target} holds other files than images, so it will not be replaced; give another folder")
    if not target.parent.is_dir():
        raise InputError(f"no folder {target.parent} to write {target.name} into; make it first")


def write_images(
    levels: Tensor,
    target: Path,
    labels: Tensor | None = None,
    classes: Sequence[str] = (),
    columns: int | None = None,
) -> None:
    """Write images as a sheet (``.png``), an array (``.npz``) or a folder of files, which replaces one that is there.

    A folder has a sub-folder for each class, and an array has their names as ``labels``, so that
    :func:`flowmatch.data.images.load_images` reads back what was written.

    Args:
        levels: bytes ``(N, C, H, W)``.
        target: where to.
        labels: class number of every image ``(N,)``.
        classes: their names.
        columns: images in a row of a sheet.

    Raises:
        ImportError: Pillow is not installed.
    """
    check_levels(levels)
    suffix = target.suffix.lower()
    if suffix == ".png":
        _whole(target, png(sheet(levels, columns)))
        return
    if suffix == ".npz":
        arrays = {"images": levels.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()}
        if labels is not None:
            arrays["labels"] = np.array(list(classes))[labels.cpu().numpy()]
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        _whole(target, buffer.getvalue())
        return
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    digits = len(str(max(0, len(levels) - 1)))
    for place, image in enumerate(levels):
        folder = unfinished if labels is None else unfinished / _safe(classes[int(labels[place])])
        folder.mkdir(exist_ok=True)
        (folder / f"{place:0{digits}d}.png").write_bytes(png(image))
    if target.exists():
        shutil.rmtree(target)
    unfinished.rename(target)


def _replaceable(folder: Path) -> bool:
    """Whether a folder holds nothing but PNG files, in sub-folders perhaps."""
    return folder.is_dir() and all(path.is_dir() or path.suffix == ".png" for path in folder.rglob("*"))


def _safe(name: str) -> str:
    """A class name as the name of a folder."""
    return "".join("_" if c in '/\\:\0<>"|?*' else c for c in name).strip(". ") or "_"


def _whole(target: Path, content: bytes) -> None:
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(target)
