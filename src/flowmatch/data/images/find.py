r"""Which kind of source it is, told by names and folders; what it holds, not yet decoded.

**Fewer rows.** Sources are often sorted by class, so the first rows would be the first classes. Image ``k`` of ``n``
out of ``N`` is number :math:`\lfloor k N / n \rfloor`: spread evenly, the same at every call, in the source's order.
Only of a stream, whose length nobody knows, the first are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmatch.data.frames import did_you_mean
from flowmatch.data.images.arrays import channels_first, read_npy, read_npz
from flowmatch.data.images.decode import DamagedError, decode, natural_channels, pillow
from flowmatch.data.images.folder import SUFFIXES, list_folder
from flowmatch.data.images.hugging import (
    Rows,
    find_parquet,
    given_rows,
    is_saved,
    opened_cell,
    parquet_rows,
    saved_rows,
)
from flowmatch.data.images.idx import find_idx, is_idx, read_idx_set
from flowmatch.data.images.resize import Resample
from flowmatch.data.images.stores import Pictures
from flowmatch.errors import InputError

__all__ = ["Found", "find_given", "find_images"]

_FORMS = (
    "give a folder of images (class sub-folders are labels), of idx files, of parquet files or of a saved Hugging Face "
    "set, a .npz, .npy, .parquet or idx file, or rows of an image data set in Python"
)
_PICKLES = ("data_batch_1", "test_batch", "batches.meta")  # of the CIFAR sets


@dataclass(frozen=True)
class Found:
    """What a source holds.

    Attributes:
        images: encoded pictures, or an array of images.
        labels: one an image, as they are stored.
        classes: names of the classes, if the source tells them.
        ignored: files that are no images by their names.
    """

    images: Pictures | NDArray[Any]
    labels: Any = None
    classes: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images.names) if isinstance(self.images, Pictures) else len(self.images)

    def spread(self, rows: int, source: str) -> Found:
        """So many images, evenly spaced.

        Raises:
            InputError: the source is an array on disc, and not of images.
        """
        if rows == len(self):
            return self
        places, images, labels = _spaced(len(self), rows), self.images, self.labels
        few = _on_disc(images, source) if isinstance(images, np.memmap) else images
        few = _chosen(few, places) if isinstance(few, Pictures) else few[places]
        if labels is not None:
            labels = labels[places] if isinstance(labels, np.ndarray) else [labels[place] for place in places]
        return Found(few, labels, self.classes, self.ignored)


def find_images(path: Path, source: str, split: str | None, column: str | None, labels: bool | str) -> Found:
    """What a file or a folder holds.

    Raises:
        InputError: nothing is there, or nothing that can be read as images.
    """
    try:
        if not path.exists():
            raise InputError(f"there is no file or folder {source}{_near(path)}; {_FORMS}")
        return (
            _folder(path, source, split, column, labels)
            if path.is_dir()
            else _file(path, source, split, column, labels)
        )
    except (InputError, ImportError, MemoryError):
        raise
    except OSError as error:
        raise InputError(f"{source} cannot be opened ({error.strerror or error}); check its name and rights") from error
    # NumPy, pyarrow and JSON answer damaged bytes with errors of many unrelated types.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{source} cannot be read ({reason}); it is damaged or of another kind") from error


def _folder(path: Path, source: str, split: str | None, column: str | None, labels: bool | str) -> Found:
    if is_saved(path):
        return _of_rows(saved_rows(path, source, split, column, labels))
    if find_idx(path):
        return Found(*read_idx_set(path, source, split, bool(labels)))
    if any((path / name).is_file() for name in _PICKLES):
        raise _pickle(source)
    if find_parquet(path):
        return _of_rows(parquet_rows(path, source, split, column, labels))
    if isinstance(labels, str) or column is not None:
        raise InputError(
            f"{source} is a folder of images, which has no columns; leave column= and the name of labels out"
        )
    return Found(*list_folder(path, source, split, labels))


def _file(path: Path, source: str, split: str | None, column: str | None, labels: bool | str) -> Found:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return Found(*read_npz(path, source, split, column, labels))
    if suffix == ".parquet":
        return _of_rows(parquet_rows(path, source, split, column, labels))
    if is_idx(path):
        return Found(*read_idx_set(path, source, split, bool(labels)))
    if suffix == ".npy":
        if split is not None:
            raise InputError(f"{source} is one array, so split={split!r} cannot be chosen; leave it out")
        return Found(read_npy(path, source))
    if suffix in SUFFIXES:
        raise InputError(f"{source} is one image; give its folder, {path.parent}")
    with path.open("rb") as file:
        head = file.read(2)
    if suffix in (".pkl", ".pickle") or path.name in _PICKLES or (not suffix and head[:1] == b"\x80"):
        raise _pickle(source)
    if suffix in (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"):
        raise InputError(f"{source} is packed; unpack it and give the folder")
    raise InputError(f"{source} has {f'extension {path.suffix}' if suffix else 'no extension'}; {_FORMS}")


def find_given(
    rows: Any,
    limit: int | None,
    column: str | None,
    labels: bool | str,
    size: tuple[int, int] | None,
    channels: int | None,
    resample: Resample,
    memory: int,
) -> Found:
    """What rows in Python hold. Encoded images are kept as they are, open ones are decoded as they come."""
    if isinstance(rows, Mapping):
        names = ", ".join(map(str, rows))
        raise InputError(f"these are several sets, {names}; give one of them, such as source[{next(iter(rows), '')!r}]")
    if not hasattr(rows, "__iter__"):
        raise InputError(f"a {type(rows).__name__} is no source of images; {_FORMS}")
    pillow()
    places = None
    if limit is not None and hasattr(rows, "__len__") and hasattr(rows, "__getitem__") and limit < len(rows):
        places = _spaced(len(rows), limit)
        # A set's own way keeps what it knows of its columns.
        own = hasattr(rows, "features") and hasattr(rows, "select")
        rows = rows.select(places) if own else map(rows.__getitem__, places)
    used = 0

    def keep(value: Any) -> Any:
        nonlocal used
        if isinstance(value, bytes | Mapping):
            return value
        try:
            image = _as_image(value)
            array = decode(image, channels or natural_channels(image), size, resample)
        except DamagedError as error:
            return error
        used += array.nbytes
        if used > memory:
            raise InputError(f"the images take more than memory={memory:,} bytes; give fewer rows=, or raise memory=")
        return array

    kept, found = given_rows(rows, limit, column, labels, keep)

    def opened(number: int) -> Any:
        value = kept[number]
        if isinstance(value, DamagedError):
            raise DamagedError(str(value))
        if isinstance(value, np.ndarray):
            return _as_image(value[0] if len(value) == 1 else np.ascontiguousarray(value.transpose(1, 2, 0)))
        return opened_cell(value)

    shown = found.pictures.names if places is None else tuple(f"row {place}" for place in places)
    return _of_rows(found._replace(pictures=Pictures(shown, opened)))


def _spaced(count: int, rows: int) -> list[int]:
    return [place * count // rows for place in range(rows)]


def _chosen(pictures: Pictures, places: list[int]) -> Pictures:
    return Pictures(tuple(pictures.names[place] for place in places), lambda number: pictures.open(places[number]))


def _on_disc(array: NDArray[Any], source: str) -> Pictures:
    """Images of a mapped array, each read when it is opened: a copy of those chosen may not fit into memory."""
    view = channels_first(array, source)

    def opened(number: int) -> Any:
        image = view(array[number : number + 1])[0]
        return _as_image(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))

    return Pictures(tuple(f"image {number}" for number in range(len(array))), opened)


def _as_image(value: Any) -> Any:
    """An open image, from one or from an array."""
    if not isinstance(value, np.ndarray):
        if hasattr(value, "getexif"):
            return value
        raise DamagedError("there is no image" if value is None else f"a {type(value).__name__} is no image")
    try:
        return pillow().fromarray(value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value)
    except (TypeError, ValueError) as error:
        raise DamagedError(f"an array of {value.dtype} and shape {value.shape} is no image") from error


def _of_rows(rows: Rows) -> Found:
    labels = rows.labels
    if labels is not None and set(labels) <= {None, -1}:
        labels = None  # how sets write that a test split has none
    return Found(rows.pictures, labels, None if labels is None else rows.names)


def _pickle(source: str) -> InputError:
    return InputError(
        f"{source} holds Python pickles, which can run anything when they are opened, so they are not; save the arrays "
        "as a .npz (images=, labels=) with a program that you trust, or take the images as files"
    )


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    return did_you_mean(path.name, (item.name for item in path.parent.iterdir()))
