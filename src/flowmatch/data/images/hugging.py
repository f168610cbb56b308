"""Image sets of Hugging Face ``datasets``: saved to disc, as parquet, or rows that Python gives.

A folder of ``save_to_disk`` holds Arrow streams, which are mapped into memory and read by pyarrow; the package
``datasets`` is not needed, and no script of a set is run. Of a parquet file the encoded images are held in memory. Any
other rows, such as those of a streaming ``IterableDataset``, are decoded as they come.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowmatch.data.frames import need, quoted
from flowmatch.data.images.decode import DamagedError
from flowmatch.data.images.folder import choose_split
from flowmatch.data.images.stores import Pictures
from flowmatch.errors import InputError

__all__ = ["Rows", "find_parquet", "given_rows", "is_saved", "opened_cell", "parquet_rows", "saved_rows"]

_LABELS = ("label", "labels", "fine_label")


class Rows(NamedTuple):
    """Images of a table.

    Attributes:
        pictures: the images.
        labels: what the column of labels holds, if there is one.
        names: names of the classes that the labels count, if they are told.
    """

    pictures: Pictures
    labels: Sequence[Any] | None
    names: tuple[str, ...] | None


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def saved_rows(path: Path, source: str, split: str | None, column: str | None, labels: bool | str) -> Rows:
    """Rows of a folder that ``save_to_disk`` wrote."""
    pyarrow = need("pyarrow")
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        path = path / choose_split(splits, split, source)
    elif split is not None:
        raise InputError(f"{source} is one split, so split={split!r} cannot be chosen; leave it out")
    files = json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
    info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    ipc = need("pyarrow.ipc")
    tables = [ipc.open_stream(pyarrow.memory_map(str(path / item["filename"]))).read_all() for item in files]
    return _table_rows(pyarrow.concat_tables(tables), info.get("features") or {}, source, column, labels)


def find_parquet(path: Path) -> dict[str, list[Path]]:
    """Parquet files of a folder, or of its folder ``data``, by split; ``""`` where the names tell none."""
    found: dict[str, list[Path]] = {}
    for item in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        match = re.fullmatch(r"(\w+?)(-\d+-of-\d+(-\w+)?)?\.parquet", item.name)
        found.setdefault(match[1] if match else "", []).append(item)
    return found


def parquet_rows(path: Path, source: str, split: str | None, column: str | None, labels: bool | str) -> Rows:
    """Rows of a parquet file, or of those of one split in a folder."""
    if path.is_dir():
        found = find_parquet(path)
        one = len(found) == 1 and split is None
        files = next(iter(found.values())) if one else found[choose_split(list(found), split, source)]
    else:
        files = [path]
        if split is not None:
            raise InputError(f"{source} is one file, so split={split!r} cannot be chosen; give its folder")
    table = need("pyarrow").concat_tables([need("pyarrow.parquet").read_table(item) for item in files])
    stored = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(stored)["info"].get("features") if stored else None
    return _table_rows(table, features or {}, source, column, labels)


def given_rows(
    rows: Any, limit: int | None, column: str | None, labels: bool | str, keep: Callable[[Any], Any]
) -> tuple[list[Any], Rows]:
    """At most ``limit`` rows of an iterable of dicts, and what ``keep`` makes of the image of each.

    Raises:
        InputError: rows without an end and without a limit, no rows, a row that cannot be read, or no clear column of
            images.
    """
    source = type(rows).__name__
    if limit is None and not hasattr(rows, "__len__"):
        raise InputError(f"{source} does not say how many rows it has; give rows= to take that many of it")
    features = dict(getattr(rows, "features", None) or {})
    typed = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    images: list[Any] = []
    found: list[Any] = []
    image, label = column or "", None
    for row in _each_row(rows, limit, source):
        if not images:
            if column is None:
                image = _only(
                    [name for name, value in row.items() if _is_image(value)], source, "images", "column=", row
                )
            label = _label_column(list(row), typed, labels, source)
        missing = [name for name in (image, label) if name is not None and name not in row]
        if missing:
            raise InputError(f"row {len(images)} of {source} has no column {missing[0]!r}; it has {quoted(row)}")
        images.append(keep(row[image]))
        found.append(None if label is None else row[label])
    if not images:
        raise InputError(f"{source} has no rows")
    names = getattr(features.get(label or ""), "names", None)
    places = tuple(f"row {row}" for row in range(len(images)))
    return images, Rows(
        Pictures(places, images.__getitem__), None if label is None else found, None if names is None else tuple(names)
    )


def _each_row(rows: Any, limit: int | None, source: str) -> Iterator[Mapping[str, Any]]:
    iterator, number = iter(rows), 0
    while limit is None or number < limit:
        try:
            row = next(iterator)
        except StopIteration:
            return
        # Whatever a data set's own decoder raises.
        except Exception as error:
            raise InputError(
                f"row {number} of {source} cannot be read ({type(error).__name__}: {error}). To skip damaged images, "
                "let them come encoded: cast_column(name, datasets.Image(decode=False))"
            ) from error
        if not isinstance(row, Mapping):
            raise InputError(f"rows of {source} must be dicts of columns, got {type(row).__name__}")
        yield row
        number += 1


def _table_rows(table: Any, features: Mapping[str, Any], source: str, column: str | None, labels: bool | str) -> Rows:
    types, arrow = {field.name: field.type for field in table.schema}, need("pyarrow").types
    if column is None:
        holds = [
            name
            for name, kind in types.items()
            if features.get(name, {}).get("_type") == "Image"
            or (arrow.is_struct(kind) and kind.get_field_index("bytes") >= 0)
            or (not features and (arrow.is_binary(kind) or arrow.is_large_binary(kind)))
        ]
        column = _only(holds, source, "images", "column=", types)
    elif column not in types:
        raise InputError(f"{source} has no column {column!r}; it has {quoted(types)}")
    typed = [name for name, kind in features.items() if isinstance(kind, Mapping) and kind.get("_type") == "ClassLabel"]
    label = _label_column(list(types), typed, labels, source)
    values = None if label is None else table.column(label).to_pylist()
    names = None if label is None else features.get(label, {}).get("names")
    cells = table.column(column)
    places = tuple(f"row {row}" for row in range(len(cells)))
    return Rows(
        Pictures(places, lambda row: opened_cell(cells[row].as_py())), values, None if names is None else tuple(names)
    )


def opened_cell(cell: Any) -> Any:
    """A binary file of what a cell holds: bytes, or a struct of bytes and a path."""
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if isinstance(content, bytes):
        return io.BytesIO(content)
    path = cell.get("path") if isinstance(cell, Mapping) else None
    if path and Path(path).is_file():
        return path
    raise DamagedError(f"it has no bytes, and there is no file {path!r}" if path else "it is empty")


def _is_image(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "bytes" in value
    return (
        hasattr(value, "getexif")
        or isinstance(value, bytes)
        or (isinstance(value, np.ndarray) and value.ndim in (2, 3))
    )


def _label_column(names: list[str], typed: list[str], labels: bool | str, source: str) -> str | None:
    if isinstance(labels, str):
        if labels not in names:
            raise InputError(f"{source} has no column {labels!r}; it has {quoted(names)}")
        return labels
    found = typed or [name for name in names if name.lower() in _LABELS]
    return _only(found, source, "labels", "labels=", names) if labels and found else None


def _only(found: Sequence[str], source: str, what: str, option: str, names: Iterable[str]) -> str:
    if len(found) != 1:
        seen = f"{what} in {quoted(found)}" if found else f"no column of {what} among {quoted(names)}"
        raise InputError(f"{source} has {seen}; choose one with {option}")
    return found[0]
