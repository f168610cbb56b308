"""Tables to disc, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowmatch.errors import InputError
from flowmatch.persist import write_atomically

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_target", "write_table"]

SUFFIXES = (".csv", ".parquet", ".npy", ".npz")


def check_target(path: Path, overwrite: bool) -> None:
    """Raise before the work if the result could not be written.

    Raises:
        InputError: unknown suffix, a file that is there already, a folder that is not.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot write {path}: the name must end in one of {', '.join(SUFFIXES)}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; give another name or --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} into; make it first")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table in the format of the path's suffix, atomically."""
    buffer: Any = io.BytesIO()
    suffix = path.suffix.lower()
    if suffix == ".csv":
        frame.to_csv(buffer, index=False)
    elif suffix == ".parquet":
        frame.to_parquet(buffer, index=False)
    elif suffix == ".npy":
        np.save(buffer, _numbers(frame, path), allow_pickle=False)
    else:
        arrays: dict[str, Any] = {str(name): _numbers(frame[[name]], path)[:, 0] for name in frame.columns}
        np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _numbers(frame: pd.DataFrame, path: Path) -> np.ndarray[Any, Any]:
    array = frame.to_numpy()
    if array.dtype == object:
        raise InputError(f"cannot write text columns to {path}; use .csv or .parquet")
    return array
