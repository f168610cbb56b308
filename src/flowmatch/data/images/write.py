"""Images to disc: each in a file, all in an array, or side by side on a sheet.

A folder is the only target whose replacement deletes files. So each that is written here gets a hidden marker, and only
a folder with the marker, or an empty one, is ever replaced: a folder of images may as well be somebody's data set.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch.data.images.decode import pillow
from flowmatch.data.images.folder import is_hidden, is_split
from flowmatch.data.images.pixels import check_levels
from flowmatch.errors import InputError

__all__ = ["check_image_target", "png", "sheet", "write_images"]

_SHEET_PIXELS = 900  # a sheet of small images is enlarged to about this width, so that a person can see them
_MARGIN = 2
_MARKER = ".flowmatch-images"  # hidden, so that readers of the folder pass it over


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


def check_image_target(target: Path, overwrite: bool, classes: Sequence[str] = ()) -> None:
    """Raise before the work if images could not be written to ``target``.

    Args:
        target: where to.
        overwrite: whether what is there may be replaced.
        classes: names of the classes, which become sub-folders if the target is a folder.

    Raises:
        InputError: a suffix that is no format, something that is there already, a folder that is not, one that was not
            written by :func:`write_images`, or a link to one; names of classes that cannot be read back from folders.
    """
    if target.suffix.lower() not in ("", ".png", ".npz"):
        raise InputError(
            f"cannot write {target}: give a name in .png for one sheet, in .npz for an array, or a folder for a file "
            "an image"
        )
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already; give another name or --overwrite")
    if not target.suffix:
        _check_folder(target)
        _check_classes(classes)
    if not target.parent.is_dir():
        raise InputError(f"no folder {target.parent} to write {target.name} into; make it first")


def write_images(
    levels: Tensor,
    target: Path,
    labels: Tensor | None = None,
    classes: Sequence[str] = (),
    columns: int | None = None,
    names: Sequence[str] | None = None,
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
        names: of the files of a folder, one an image and without an extension; one that occurs twice gets a number
            behind it. By default they are numbered.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: another number of names than of images.
        InputError: a folder that is there and was not written here, or names of classes that cannot be folders.
    """
    check_levels(levels)
    if names is not None and len(names) != len(levels):
        raise ValueError(f"names must be one an image, got {len(names)} for {len(levels)} images")
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
    _check_folder(target)
    if labels is not None:
        _check_classes(classes)
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    (unfinished / _MARKER).touch()
    digits = len(str(max(0, len(levels) - 1)))
    taken = set[Path]()
    for place, image in enumerate(levels):
        folder = unfinished if labels is None else unfinished / _safe(classes[int(labels[place])])
        folder.mkdir(exist_ok=True)
        stem = f"{place:0{digits}d}" if names is None else _safe(names[place])
        (folder / f"{_free(folder, stem, taken)}.png").write_bytes(png(image))
    if target.exists():
        shutil.rmtree(target)
    unfinished.rename(target)


def _check_folder(target: Path) -> None:
    """Raise InputError unless nothing is at ``target``, or a folder that may be replaced."""
    if target.is_symlink():
        raise InputError(f"{target} is a link, which will not be replaced; give the folder itself, or another name")
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file, so it will not be replaced by a folder; give another name")
    held = list(target.rglob("*"))
    if held and target / _MARKER not in held:
        raise InputError(
            f"{target} was not written by flowmatch (it has no {_MARKER}), so it will not be replaced; give another "
            "folder"
        )
    if not all(path.is_dir() or path.suffix == ".png" or path == target / _MARKER for path in held):
        raise InputError(f"{target} holds other files than images, so it will not be replaced; give another folder")


def _check_classes(classes: Sequence[str]) -> None:
    """Raise InputError unless every class would be read back from a sub-folder of its own."""
    seen: dict[str, str] = {}
    for name in classes:
        folder = _safe(name)
        other = seen.setdefault(folder.casefold(), name)
        if is_hidden(name) or is_hidden(folder):
            why = f"class {name!r} would be passed over as a hidden folder"
        elif is_split(folder):
            why = f"class {name!r} would be read as a split of a data set"
        elif other != name:
            why = f"classes {other!r} and {name!r} would share the folder {folder!r}"
        else:
            continue
        raise InputError(f"{why}; write a file in .npz instead, which holds the names as they are")


def _free(folder: Path, stem: str, taken: set[Path]) -> str:
    """The stem, with a number behind it if there is such a file already, in whatever case."""
    name, number = stem, 1
    while folder / name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(folder / name.casefold())
    return name


def _safe(name: str) -> str:
    """A class name as the name of a folder."""
    return "".join("_" if c in '/\\:\0<>"|?*' else c for c in name).strip(". ") or "_"


def _whole(target: Path, content: bytes) -> None:
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(target)
