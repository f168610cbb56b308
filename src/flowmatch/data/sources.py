"""Where a table comes from: a file, a toy set or a set that scikit-learn ships.

Reading never runs what it reads: arrays that hold Python objects are refused, not unpickled.
Everything that can be wrong with a source is an :class:`~flowmatch.errors.InputError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from flowmatch.data.arrays import read_npy, read_npz
from flowmatch.data.frames import check_frame, did_you_mean, need, quoted
from flowmatch.data.texts import read_csv
from flowmatch.data.toy import TOYS, toy
from flowmatch.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SKLEARN", "Table", "load_table"]

SKLEARN: tuple[str, ...] = ("digits", "wine", "breast_cancer", "iris")
"""Names that ``sklearn:NAME`` knows."""

_TOY_ROWS = 10_000

_FORMS = (
    "give a .csv, .parquet, .npy or .npz file, toy:NAME or sklearn:NAME (a text table of another extension can be "
    "renamed to .csv, a spreadsheet exported to it)"
)


@dataclass(frozen=True)
class Table:
    """A table and where it came from.

    Args:
        frame: the rows.
        source: what was asked for.
        image_shape: height and width if each row is an image, its pixels row by row in the first columns.
        notes: what the reader did that the user should know.
    """

    frame: pd.DataFrame
    source: str
    image_shape: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def load_table(source: str | Path, rows: int | None = None, seed: int = 0) -> Table:
    """Read a table.

    Args:
        source: a ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file, ``toy:NAME`` or ``sklearn:NAME``. In a ``.csv``
            the first line names the columns, and the delimiter is found among comma, semicolon, tab and bar. An
            array has columns ``x0, x1, ...``; one of shape ``(N, H, W)`` is a table of images. A ``.npz`` holds one
            array, or ``x`` (or ``data``) and perhaps ``y`` (or ``target``), which becomes the column ``target``.
        rows: how many rows to draw from a toy set (10000 by default), or to pick from any other source.
        seed: seed of that draw.

    Returns:
        The :class:`Table`, of two rows at least.

    Raises:
        InputError: nothing is there, it cannot be read, or it is not a table; the message says how to mend it.

    Example:
        >>> table = load_table("sklearn:digits")
        >>> table.frame.shape, table.image_shape
        ((1797, 65), (8, 8))
    """
    text = str(source)
    scheme, _, name = text.partition(":")
    if rows is not None and rows < 2:
        raise InputError(f"rows must be at least 2, got {rows}")
    if scheme == "toy":
        return _toy_table(text, name, _TOY_ROWS if rows is None else rows, seed)
    table = _sklearn_table(text, name) if scheme == "sklearn" else _file_table(Path(source), text)
    check_frame(table.frame)
    n, width = table.frame.shape
    if n < 2 or width == 0:
        raise InputError(f"{text} has {n} rows and {width} columns; at least 2 rows and 1 column are needed")
    return table if rows is None else _pick(table, rows, seed)


def _pick(table: Table, rows: int, seed: int) -> Table:
    n = len(table.frame)
    if rows > n:
        raise InputError(f"rows={rows} asked for, but {table.source} has {n}; leave rows out to have them all")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:rows]
    return replace(table, frame=table.frame.iloc[order.sort().values.numpy()].reset_index(drop=True))


def _toy_table(source: str, name: str, rows: int, seed: int) -> Table:
    x = toy(name).sample(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    frame = need("pandas").DataFrame(x.numpy(), columns=[f"x{d}" for d in range(x.shape[1])])
    return Table(frame, source)


def _sklearn_table(source: str, name: str) -> Table:
    if name not in SKLEARN:
        hint = did_you_mean(name, SKLEARN)
        raise InputError(f"no scikit-learn set is called {name!r}{hint}; there are {', '.join(SKLEARN)}")
    frame: pd.DataFrame = getattr(need("sklearn.datasets"), f"load_{name}")(as_frame=True).frame
    if name != "digits":
        return Table(frame, source)
    return Table(frame.astype(np.int64), source, image_shape=(8, 8))


def _file_table(path: Path, source: str) -> Table:
    readers: dict[str, Callable[[Path, str], Table]] = {
        ".csv": _csv_table,
        ".parquet": _parquet_table,
        ".npy": _npy_table,
        ".npz": _npz_table,
    }
    try:
        if not path.exists():
            raise InputError(f"there is no file {source}{_near_file(path, source)}; {_FORMS}")
        if path.is_dir():
            inside = sorted(item.name for item in path.iterdir() if item.suffix.lower() in readers)
            raise InputError(f"{source} is a folder; give one file{': ' + ', '.join(inside[:8]) if inside else ''}")
        if path.suffix.lower() not in readers:
            raise InputError(f"{source} has {f'extension {path.suffix}' if path.suffix else 'no extension'}; {_FORMS}")
        return readers[path.suffix.lower()](path, source)
    except (InputError, ImportError):
        raise
    except OSError as error:
        raise InputError(f"{source} cannot be opened ({error.strerror or error}); check its name and rights") from error
    # The readers under pandas, pyarrow and NumPy answer damaged bytes with errors of a dozen unrelated types.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{source} cannot be read as {path.suffix.lower()} ({reason}); it is damaged or of another kind"
        ) from error


def _csv_table(path: Path, source: str) -> Table:
    frame, notes = read_csv(path, source)
    return Table(frame, source, notes=tuple(notes))


def _parquet_table(path: Path, source: str) -> Table:
    need("pyarrow")
    frame: pd.DataFrame = need("pandas").read_parquet(path, engine="pyarrow")
    named = [name for name in frame.index.names if name is not None]
    notes = [f"the index {quoted(named)} of {source} is not used; store it as a column if it matters"] if named else []
    return Table(frame.reset_index(drop=True), source, notes=tuple(notes))


def _npy_table(path: Path, source: str) -> Table:
    frame, image_shape = read_npy(path, source)
    return Table(frame, source, image_shape)


def _npz_table(path: Path, source: str) -> Table:
    frame, image_shape = read_npz(path, source)
    return Table(frame, source, image_shape)


def _near_file(path: Path, source: str) -> str:
    if source in TOYS or source in SKLEARN:
        return f" (did you mean '{'toy' if source in TOYS else 'sklearn'}:{source}'?)"
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    return did_you_mean(path.name, (item.name for item in path.parent.iterdir()))
