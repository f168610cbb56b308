"""Tables from text files: find the delimiter, and say what is wrong in terms of the file."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowmatch.data.frames import kind_of, need, quoted
from flowmatch.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_csv"]

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


def read_csv(path: Path, source: str) -> tuple[pd.DataFrame, list[str]]:
    """A UTF-8 text table with a header line as a frame, and notes on how it was read.

    Lines before the header that are blank or start with ``#`` are skipped. The delimiter is the one of comma,
    semicolon, tab and bar that the header has most of.
    """
    pandas = need("pandas")
    try:
        header, skipped, delimiter = _header(path, source)
        with path.open(encoding="utf-8-sig", newline="") as file, warnings.catch_warnings():
            # pandas only warns when rows are longer than the header, and then drops what does not fit.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            for _ in range(skipped):
                next(file)
            frame = pandas.read_csv(file, sep=delimiter, index_col=False, low_memory=False)
    except UnicodeError as error:
        raise InputError(f"{source} is not UTF-8 text ({error}); save it as UTF-8") from error
    except (pandas.errors.ParserError, pandas.errors.ParserWarning, csv.Error) as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise InputError(
            f"{source} is not an even table with {_DELIMITERS[delimiter]} between cells ({reason}); each line needs as "
            "many cells as the header, and cells that hold the delimiter need quotes"
        ) from error
    notes = [] if delimiter == "," else [f"{source} is read with a {_DELIMITERS[delimiter]} between cells"]
    _refuse_odd_cells(frame, delimiter, source)
    return _without_nameless(frame, header, source, notes), notes


def _header(path: Path, source: str) -> tuple[list[str], int, str]:
    """Names in the first line that has any, the number of lines before it, and the delimiter."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        skipped = 0
        for line in file:
            if line.strip() and not line.startswith("#"):
                break
            skipped += 1
        else:
            raise InputError(f"{source} is empty; the first line must name the columns and rows must follow")
        bare = "".join(line.split('"')[::2])
        delimiter = max(_DELIMITERS, key=bare.count)
        names = next(csv.reader([line], delimiter=delimiter))
    _check_names([name.strip() for name in names], skipped, source)
    return names, skipped, delimiter


def _check_names(names: list[str], skipped: int, source: str) -> None:
    twice = list(dict.fromkeys(name for name in names if name and names.count(name) > 1))
    fractions = [name for name in names if _is_fraction(name)]
    if 2 * len(fractions) >= len(names):
        also = "; lines that start with # do not count" if skipped else ""
        raise InputError(
            f"the first line of {source} looks like data ({quoted(names, 4)}) and would be lost as column names; "
            f"add a line with names above it{also}"
        )
    if twice:
        raise InputError(f"column names in {source} must differ, but {quoted(twice)} occur more than once; rename them")


def _is_fraction(name: str) -> bool:
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):
        return False


def _refuse_odd_cells(frame: pd.DataFrame, delimiter: str, source: str) -> None:
    """Numbers with decimal commas and columns parted by spaces arrive as text; say so instead of calling them text."""
    head = frame.head(100)
    texts = {name: head[name].dropna().astype(str) for name in frame.columns if kind_of(frame[name]) == "text"}
    commas = [name for name, cells in texts.items() if len(cells) and cells.str.fullmatch(r"\s*[-+]?\d+,\d+\s*").all()]
    if commas:
        raise InputError(
            f"{quoted(commas)} in {source} hold numbers with commas in them; write them with points, for example "
            f'pandas.read_csv(path, sep={delimiter!r}, decimal=",").to_csv(new_path, index=False)'
        )
    if frame.shape[1] == 1 and len(texts) == 1:
        name, cells = next(iter(texts.items()))
        words = len(str(name).split())
        if words > 1 and len(cells) and all(len(cell.split()) == words for cell in cells):
            raise InputError(f"the cells of {source} are parted by spaces; part them with commas")


def _without_nameless(frame: pd.DataFrame, header: list[str], source: str, notes: list[str]) -> pd.DataFrame:
    """Leave out nameless columns that count the rows, as ``DataFrame.to_csv`` writes one, or that are empty."""
    left_out = []
    for k, (name, column) in enumerate(zip(header, frame.columns, strict=False)):
        cells, rows = frame[column], np.arange(len(frame))
        counts = kind_of(cells) == "integer" and any(np.array_equal(cells, rows + first) for first in (0, 1))
        if not name.strip() and len(cells) and (counts or bool(cells.isna().all())):
            left_out.append(column)
            what = "counts the rows" if counts else "is empty"
            notes.append(f"column {k + 1} of {source} has no name and {what}; it is left out")
    return frame.drop(columns=left_out)
