"""What a source of data or a run folder holds: a table, or images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowmatch.errors import InputError
from flowmatch.recipes.folder import read_options
from flowmatch.recipes.image_runs import ImageRun
from flowmatch.recipes.runs import Run

__all__ = ["kind_of_run", "kind_of_source", "open_run"]

Kind = Literal["table", "images"]


def kind_of_source(source: str) -> Kind:
    """Whether ``source`` holds images or a table, told by its name and the head of the file.

    A folder holds images. So does a file of arrays of bytes with three dimensions or more, of idx, and of parquet with
    a column of encoded files; every other file is a table.
    """
    if source.startswith(("toy:", "sklearn:")):
        return "table"
    path = Path(source).expanduser()
    if path.is_dir():
        return "images"
    if not path.is_file():
        return "table"  # whose reader says what is wrong with it
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return "images" if _holds_pictures(path) else "table"
    if suffix == ".parquet":
        return "images" if _has_encoded(path) else "table"
    from flowmatch.data.images.idx import is_idx

    return "images" if is_idx(path) else "table"


def kind_of_run(folder: Path) -> Kind:
    """Whether a run is one of images or of a table.

    Raises:
        InputError: no run there.
    """
    if not folder.is_dir():
        raise InputError(f"no run folder at {folder}; give the folder that flowmatch train wrote (--out)")
    return "images" if read_options(folder / "config.yaml").get("kind") == "images" else "table"


def open_run(folder: Path) -> Run | ImageRun:
    """Open a run folder of either kind.

    Raises:
        InputError: no run there, or a damaged one.
    """
    return ImageRun.open(folder) if kind_of_run(folder) == "images" else Run.open(folder)


def _holds_pictures(path: Path) -> bool:
    """Whether an array file holds bytes with three dimensions or more; only heads are read."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return _is_pictures(file)
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    if _is_pictures(member):
                        return True
    except (OSError, ValueError, zipfile.BadZipFile):
        pass  # the reader of the file says what is wrong with it
    return False


def _is_pictures(file: Any) -> bool:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return dtype == np.uint8 and len(shape) >= 3


def _has_encoded(path: Path) -> bool:
    """Whether a parquet file has a column of encoded files, as image sets of Hugging Face do."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pq.read_schema(path)
    except (ImportError, OSError, ValueError):
        return False  # the reader of tables says what is wrong with it
    kinds = [field.type for field in schema]
    inner = [part.type for kind in kinds if pa.types.is_struct(kind) for part in kind]
    return any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds + inner)
