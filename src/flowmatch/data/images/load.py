"""From whatever holds images to :class:`Images`.

Nothing that is read is run: no object is unpickled, no loading script of a data set is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmatch.data.images.arrays import array_store
from flowmatch.data.images.find import Found, find_given, find_images
from flowmatch.data.images.images import ImageReport, Images
from flowmatch.data.images.labels import class_numbers, known_numbers
from flowmatch.data.images.read import Read, read_pictures
from flowmatch.data.images.resize import Resample, check_size
from flowmatch.data.images.stores import Pictures, count_workers
from flowmatch.errors import InputError

__all__ = ["load_images"]


def load_images(
    source: str | Path | Any,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    *,
    split: str | None = None,
    labels: bool | str = True,
    classes: Sequence[str] | None = None,
    known: Sequence[str] | None = None,
    column: str | None = None,
    rows: int | None = None,
    least: int = 2,
    resample: Resample = "lanczos",
    flip: bool = False,
    dequantize: bool = False,
    strict: bool = False,
    memory: int = 2**31,
    workers: int | None = None,
) -> Images:
    """Read images for training.

    Args:
        source: a folder of images, of ``idx`` files, of parquet files or of a Hugging Face set saved by
            ``save_to_disk``; a ``.npz``, ``.npy``, ``.parquet`` or ``idx`` file; or rows of a Hugging Face set, or any
            iterable of dicts, in Python.
        size: side, or height and width, to crop from the centre and resize to; without it all must be of one size.
        channels: 1 for grey, 3 for colour; by default 1 if every image is grey.
        split: which set of several: ``"train"`` by default, where there is more than one.
        labels: whether to read the classes; the name of their column or array where it is not clear.
        classes: names that whole-numbered labels stand for.
        known: names of classes numbered elsewhere, such as those of a training set, whose numbers the classes get here;
            some may be lacking.
        column: name of the column or array of images where it is not clear.
        rows: so many images only, spread evenly over the source, which may be sorted by class: of ``N`` images the
            numbers ``floor(k N / rows)``. Of a stream the first, and it needs them, as it has no end to wait for.
        least: fewest images that will do; two are needed to train on.
        resample: ``"lanczos"``, ``"bicubic"`` or ``"box"``, see :mod:`flowmatch.data.images.resize`; the box over a
            whole number of pixels is exact mean pooling.
        flip: mirror each image left to right with probability 1/2 when it is taken.
        dequantize: spread bytes over their cells when they are taken.
        strict: stop at the first damaged image; else it is left out, named in ``.damaged`` and counted.
        memory: bytes that decoded images may take, in each process; more are decoded when they are taken.
        workers: threads that decode; the cores of this process by default.

    Returns:
        The :class:`Images`, ``least`` of them or more.

    Raises:
        InputError: nothing is there, it holds no images or cannot be read, sizes differ without ``size``, or an image
            is damaged and ``strict``; the message says how to mend it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "pictures.npz"
        ...     np.savez(path, images=np.zeros((6, 28, 28), dtype=np.uint8), labels=np.arange(6) % 2)
        ...     load_images(path, size=14, resample="box")
        Images(6 of shape (1, 14, 14), 2 classes, in memory)
    """
    sides, workers = check_size(size, resample), count_workers(workers)
    if channels not in (None, 1, 3):
        raise InputError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")
    if least < 1:
        raise InputError(f"least must be at least 1, got {least}")
    if rows is not None and rows < least:
        raise InputError(f"rows must be at least {least}, got {rows}")
    if memory < 0:
        raise InputError(f"memory must be a number of bytes, got {memory}")
    if isinstance(source, str | Path):
        name = str(source)
        found = find_images(Path(source), name, split, column, labels)
    else:
        if split is not None:
            raise InputError(f"split={split!r} chooses within a source on disc; give the rows of one split")
        name = type(source).__name__
        found = find_given(source, rows, column, labels, sides, channels, resample, memory)
    if rows is not None and rows > len(found):
        raise InputError(f"rows={rows} asked for, but {name} has {len(found)}; leave rows out to have them all")
    if found.labels is not None and len(found.labels) != len(found):
        raise InputError(f"{name} has {len(found.labels)} labels for {len(found)} images; one each is needed")
    found = found if rows is None else found.spread(rows, name)
    if len(found) < least:
        raise InputError(f"{name} has {len(found)} image{'s' * (len(found) != 1)}; {_needed(least)}")
    if known is not None and found.labels is not None:
        told, names = found.classes if classes is None else classes, tuple(known)
        numbers: NDArray[np.int64] | None = known_numbers(found.labels, name, told, names)
    else:
        numbers, names = _classes(found, classes, name)
    if isinstance(found.images, Pictures):
        read = read_pictures(found.images, name, sides, channels, resample, strict, memory, workers)
    else:
        store = array_store(found.images, name, sides, channels, resample, memory, workers)
        read = Read(store, np.arange(len(store)), ())
    if len(read.kept) < least:
        raise InputError(f"only {len(read.kept)} of {len(found)} images of {name} can be read; {_needed(least)}")
    if numbers is not None:
        lost = np.setdiff1d(numbers, numbers[read.kept])
        if len(lost):
            raise InputError(f"every image of class {names[lost[0]]!r} of {name} is damaged; mend them or remove all")
        numbers = numbers[read.kept]
    report = ImageReport(name, len(read.kept), read.damaged, found.ignored)
    called = [found.images.names[k] for k in read.kept] if isinstance(found.images, Pictures) else None
    return Images(read.store, numbers, names or None, flip, dequantize, report, called)


def _needed(least: int) -> str:
    return f"at least {least} {'is' if least == 1 else 'are'} needed"


def _classes(
    found: Found, names: Sequence[str] | None, source: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Class number of every image, if there are classes, and their names."""
    if found.labels is None:
        if names is not None:
            raise InputError(f"{source} has no labels, so classes= has nothing to name; leave it out")
        return None, ()
    return class_numbers(found.labels, source, found.classes if names is None else names)
