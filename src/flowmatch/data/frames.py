"""Looking at data frames: what kind a column is, which cells are bad, which name was meant.

pandas is needed for tables only, so it is imported where a table is met and never before.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowmatch.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Kind",
    "Name",
    "as_numbers",
    "check_frame",
    "did_you_mean",
    "dtype_name",
    "kind_of",
    "named_dtype",
    "need",
    "not_a_number",
    "quoted",
    "refuse_bad_cells",
]

Name = str | int
"""A column's name: text, or the number that a frame without a header has."""

Kind = Literal["float", "integer", "bool", "text", "category", "datetime", "other"]

_OBJECT_KINDS: dict[str, Kind] = {
    "string": "text",
    "integer": "integer",
    "boolean": "bool",
    "floating": "float",
    "mixed-integer-float": "float",
    "empty": "float",
    "datetime": "datetime",
    "datetime64": "datetime",
    "date": "datetime",
    "time": "datetime",
    "timedelta": "datetime",
    "timedelta64": "datetime",
    "period": "datetime",
}


def need(module: str) -> Any:
    """Import a module of the ``tables`` extra, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'tables need {module}; install it with: pip install "flowmatch[tables]"') from error


def quoted(names: Iterable[object], most: int = 8) -> str:
    """Names in quotes for a message, cut after ``most``.

    Example:
        >>> quoted(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    names = [str(name) if isinstance(name, np.generic) else name for name in names]
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def did_you_mean(name: object, names: Iterable[object]) -> str:
    """A hint for a message: the name that is close to the one given, or nothing.

    Example:
        >>> did_you_mean("mons", ["moons", "rings"])
        " (did you mean 'moons'?)"
    """
    known = {str(n).lower(): n for n in names}
    near = get_close_matches(str(name).lower(), known, n=1)
    return f" (did you mean {known[near[0]]!r}?)" if near else ""


def check_frame(frame: pd.DataFrame) -> None:
    """Raise unless ``frame`` is a data frame with usable, distinct column names.

    Raises:
        TypeError: not a ``pandas.DataFrame``.
        InputError: duplicated names, or names that are neither text nor whole numbers.
    """
    pd = need("pandas")
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"frame must be a pandas.DataFrame, got {type(frame).__name__}; wrap it in one")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique()
        raise InputError(f"column names must differ, but {quoted(twice)} occur more than once; rename them")
    odd = [name for name in frame.columns if isinstance(name, bool) or not isinstance(name, str | int)]
    if odd:
        raise InputError(
            f"column names must be text or whole numbers, got {quoted(odd)}; rename them with frame.columns = [...]"
        )


def kind_of(series: pd.Series[Any]) -> Kind:
    """What a column holds, whichever of the many types stores it.

    Example:
        >>> import pandas as pd
        >>> kind_of(pd.Series([1, 2], dtype="Int8")), kind_of(pd.Series([1, 2.5], dtype=object))
        ('integer', 'float')
    """
    pd = need("pandas")
    types, dtype = pd.api.types, series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if dtype == np.dtype(object):
        return _OBJECT_KINDS.get(types.infer_dtype(series, skipna=True), "other")
    kinds: tuple[tuple[Any, Kind], ...] = (
        (types.is_bool_dtype, "bool"),
        (types.is_integer_dtype, "integer"),
        (types.is_float_dtype, "float"),
        (types.is_string_dtype, "text"),
        (types.is_datetime64_any_dtype, "datetime"),
        (types.is_timedelta64_dtype, "datetime"),
    )
    named = next((kind for test, kind in kinds if test(dtype)), None)
    return named or ("datetime" if isinstance(dtype, pd.PeriodDtype) else "other")


def dtype_name(dtype: Any) -> str:
    """Name of a column type that :func:`named_dtype` turns back; a sparse type is named by its dense one.

    Example:
        >>> import pandas as pd
        >>> dtype_name(pd.StringDtype("pyarrow")), dtype_name(pd.Series([0.5]).dtype)
        ('string[pyarrow]', 'float64')
    """
    pd = need("pandas")
    if isinstance(dtype, pd.ArrowDtype):
        return f"arrow:{dtype.pyarrow_dtype}"
    if isinstance(dtype, pd.SparseDtype):
        return str(dtype.subtype)
    # Both text types of pandas print alike whatever stores them.
    return f"string[{dtype.storage}]" if str(dtype) == "string" else str(dtype)


def named_dtype(name: str) -> Any:
    """The column type of that name.

    Raises:
        ValueError, TypeError: there is none.
    """
    if name.startswith("arrow:"):
        return need("pandas").ArrowDtype(need("pyarrow").type_for_alias(name.removeprefix("arrow:")))
    return need("pandas").api.types.pandas_dtype(name)


def refuse_bad_cells(frame: pd.DataFrame, names: Sequence[Name]) -> None:
    """Raise InputError if a named column has missing or infinite cells, with count and first row of each column."""
    found = []
    for name in names:
        bad = _bad_cells(frame[name])
        if bad.any():
            found.append(f"column {name!r} has {int(bad.sum())}, the first in row {int(bad.argmax())}")
    if found:
        more = f"; and {len(found) - 5} more columns" if len(found) > 5 else ""
        raise InputError(
            f"cells are missing, NaN or infinite: {'; '.join(found[:5])}{more} (rows count from 0). "
            "Drop these rows (frame.dropna()), impute the cells (frame.fillna(...)), or leave the columns out"
        )


def _bad_cells(series: pd.Series[Any]) -> NDArray[np.bool_]:
    """Mark the cells that are missing, or infinite: ``(N,)``."""
    bad = np.array(series.isna(), dtype=bool)
    if kind_of(series) == "float":
        bad |= ~np.isfinite(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return bad


def as_numbers(series: pd.Series[Any], name: Name) -> NDArray[Any]:
    """A numeric column without missing cells as int64, uint64 or float64: ``(N,)``.

    Raises:
        InputError: the column is not numeric, or its whole numbers do not fit 64 bits.
    """
    kind = kind_of(series)
    if kind not in ("float", "integer", "bool"):
        raise InputError(f"column {name!r} must be numeric, got {kind} ({series.dtype}){not_a_number(series)}")
    if kind == "float":
        return np.asarray(series.to_numpy(dtype=np.float64))
    for dtype in (np.int64, np.uint64):
        try:
            values = np.asarray(series.to_numpy(dtype=dtype))
        except (OverflowError, ValueError, TypeError):
            continue
        # A large unsigned number turns negative in int64 without a word; then the next type is the right one.
        if dtype is np.uint64 or not _is_unsigned(series) or (values >= 0).all():
            return values
    raise InputError(f"column {name!r} holds whole numbers beyond 64 bits; convert it with .astype(float)")


def _is_unsigned(series: pd.Series[Any]) -> bool:
    return bool(need("pandas").api.types.is_unsigned_integer_dtype(series.dtype))


def not_a_number(series: pd.Series[Any]) -> str:
    """For a text column that is nearly numeric, which cell keeps it from being so; else nothing.

    Example:
        >>> import pandas as pd
        >>> not_a_number(pd.Series(["1", "2.5", "?"]))
        "; 1 of 3 cells does not read as a number, the first is '?' in row 2"
    """
    if kind_of(series) not in ("text", "other") or series.dtype.kind == "c":
        return ""
    numbers = need("pandas").to_numeric(series.astype(object), errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.isnan(numbers) & ~np.array(series.isna(), dtype=bool)
    count, row = int(wrong.sum()), int(wrong.argmax()) if len(wrong) else 0
    if count == 0 and len(wrong):
        return "; all its cells read as numbers, so pandas.to_numeric can convert it"
    if count > len(wrong) / 2 or not len(wrong):
        return ""
    verb, first = "does" if count == 1 else "do", series.iloc[row]
    return f"; {count} of {len(wrong)} cells {verb} not read as a number, the first is {first!r} in row {row}"
