"""The condition of a table: one column that the model is told, as a class or as a number.

Text, categories, truth values and whole numbers with few distinct values become classes,
``(N,)`` int64, numbered in sorted order. Any other number becomes one standardised float, ``(N, 1)``.
Both keep the law of the column as it was seen, so that conditions can be drawn when none is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flowmatch.data.columns import Constant, Numeric, fit_column
from flowmatch.data.frames import Name, dtype_name, kind_of, named_dtype, need, quoted
from flowmatch.errors import InputError
from flowmatch.randomness import rand

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MOST_CLASSES", "Classes", "Level", "Number", "fit_condition"]

MOST_CLASSES = 50
"""Whole numbers with more distinct values than this are a number, not classes."""

Level = str | int | float | bool

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Classes:
    """A condition with named levels.

    Args:
        name: name of the column.
        dtype: name of its type; for a category, of the type of its levels.
        levels: distinct values seen, in order; class ``k`` is ``levels[k]``.
        counts: how often each was seen.
        categories: every level of a category column, seen or not; ``None`` for other columns.
        ordered: whether the category is ordered.

    Raises:
        ValueError, TypeError: the values do not describe a condition, as from a damaged file.
    """

    name: Name
    dtype: str
    levels: tuple[Level, ...]
    counts: tuple[int, ...]
    categories: tuple[Level, ...] | None = None
    ordered: bool = False

    cond_dim: ClassVar[int] = 0

    def __post_init__(self) -> None:
        named_dtype(self.dtype)
        if not isinstance(self.ordered, bool):
            raise TypeError(f"condition {self.name!r} is ordered or it is not, got {self.ordered!r}")
        every = self.levels if self.categories is None else (*self.levels, *self.categories)
        if not all(isinstance(v, str | int | float) and (isinstance(v, str) or math.isfinite(v)) for v in every):
            raise TypeError(f"levels of condition {self.name!r} must be text or finite numbers, got {quoted(every)}")
        if not self.levels or len(set(self.levels)) != len(self.levels) or len(self.counts) != len(self.levels):
            raise ValueError(f"condition {self.name!r} needs distinct levels, each with a count")
        if not all(isinstance(count, int) and count > 0 for count in self.counts):
            raise ValueError(f"counts of condition {self.name!r} must be positive whole numbers, got {self.counts!r}")
        if self.categories is not None and not set(self.levels) <= set(self.categories):
            raise ValueError(f"levels of condition {self.name!r} must be among its categories")

    @property
    def classes(self) -> int:
        """Number of levels."""
        return len(self.levels)

    def encode(self, series: pd.Series[Any]) -> Tensor:
        """Class numbers ``(N,)`` int64.

        Raises:
            InputError: a level that was not seen when the codec was made.
        """
        pandas = need("pandas")
        cells = series.to_numpy(dtype=object)
        index = pandas.Index(self.levels, dtype=object).get_indexer(pandas.Index(cells, dtype=object))
        if (index < 0).any():
            new = list(dict.fromkeys(cells[index < 0]))
            row = int((index < 0).argmax())
            raise InputError(
                f"condition {self.name!r} has {quoted(new)}, first in row {row}, not seen when the model was made; "
                f"its levels are {quoted(self.levels, 20)}"
            )
        return torch.from_numpy(index.astype(np.int64))

    def decode(self, cond: Tensor) -> pd.Series[Any]:
        """The column that class numbers ``(N,)`` stand for.

        Raises:
            ValueError: not whole numbers in ``0..classes-1`` of shape ``(N,)``.
        """
        pandas = need("pandas")
        if cond.ndim != 1 or cond.is_floating_point():
            raise ValueError(f"cond must hold class numbers of shape (N,), got {tuple(cond.shape)} of {cond.dtype}")
        index, dtype = cond.cpu().numpy(), named_dtype(self.dtype)
        if index.size and (index.min() < 0 or index.max() >= self.classes):
            raise ValueError(f"class numbers must lie in 0..{self.classes - 1}, got {index.min()} to {index.max()}")
        cells: pd.Series[Any] = pandas.Series(self.levels, dtype=dtype).take(index).reset_index(drop=True)
        if self.categories is None:
            return cells
        return cells.astype(pandas.CategoricalDtype(pandas.Index(self.categories, dtype=dtype), self.ordered))

    def parse(self, value: object, n: int) -> Tensor:
        """The class of one value, given as it is or as text, ``n`` times.

        Raises:
            InputError: no level has that value.
        """
        for k, level in enumerate(self.levels):
            if level == value or _reads_as(str(value).strip(), level):
                return torch.full((n,), k, dtype=torch.int64)
        raise InputError(f"condition {self.name!r} has no level {value!r}; its levels are {quoted(self.levels, 20)}")

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw class numbers ``(n,)`` as often as they were seen."""
        share = torch.tensor(self.counts, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(share, rand((n,), generator, dtype=torch.float64) * share[-1], right=True)


@dataclass(frozen=True)
class Number:
    """A condition that is one number, standardised.

    Args:
        column: the column and its statistics.
        quantiles: standardised quantiles at equal steps from 0 to 1.
    """

    column: Numeric
    quantiles: tuple[float, ...]

    classes: ClassVar[int] = 0
    cond_dim: ClassVar[int] = 1

    def __post_init__(self) -> None:
        q = self.quantiles
        if len(q) < 2 or not all(isinstance(v, float) and math.isfinite(v) for v in q) or list(q) != sorted(q):
            raise ValueError(f"condition {self.name!r} needs growing quantiles")

    @property
    def name(self) -> Name:
        """Name of the column."""
        return self.column.name

    def encode(self, series: pd.Series[Any]) -> Tensor:
        """Standardised values ``(N, 1)`` float32.

        Raises:
            InputError: the column is not numeric, or a value is beyond float32 once standardised.
        """
        cond = torch.from_numpy(self.column.encode(series)[:, None]).float()
        if not cond.isfinite().all():
            raise InputError(f"condition {self.name!r} is too far from what was seen to compute with")
        return cond

    def decode(self, cond: Tensor) -> pd.Series[Any]:
        """The column that standardised values ``(N, 1)`` stand for.

        Raises:
            ValueError: another shape than ``(N, 1)``.
        """
        if cond.ndim != 2 or cond.shape[1] != 1:
            raise ValueError(f"cond must have shape (N, 1), got {tuple(cond.shape)}")
        return self.column.decode(cond.detach().cpu().double().numpy()[:, 0])

    def parse(self, value: object, n: int) -> Tensor:
        """One standardised value, given as a number or as text, ``n`` times.

        Raises:
            InputError: not a finite number, or a fraction for a column of whole numbers.
        """
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (self.column.span is not None and number != round(number)):
            what = "a number" if self.column.span is None else "a whole number"
            raise InputError(f"condition {self.name!r} expects {what}, got {value!r}")
        return self.encode(need("pandas").Series([number])).expand(n, 1).clone()

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(n, 1)`` from the values seen, by their quantiles."""
        at = np.linspace(0, 1, len(self.quantiles))
        u = rand((n,), generator, dtype=torch.float64).numpy()
        return torch.from_numpy(np.interp(u, at, self.quantiles)[:, None]).float()


def fit_condition(series: pd.Series[Any], name: Name) -> Classes | Number:
    """Make classes or a number of a column without missing cells.

    Raises:
        InputError: a column that is neither, or that has one value only.
    """
    kind = kind_of(series)
    if kind in ("datetime", "other"):
        raise InputError(
            f"column {name!r} ({series.dtype}) cannot be a condition: it must hold text, categories, truth values or "
            "numbers; convert it first"
        )
    distinct = series.nunique()
    is_number = kind == "float" or (kind == "integer" and distinct > MOST_CLASSES)
    column = fit_column(series, name) if is_number else None
    if distinct < 2 or isinstance(column, Constant):
        raise InputError(f"condition column {name!r} has one value only, which tells nothing; leave the condition out")
    if column is not None:
        quantiles = np.quantile(column.encode(series), np.linspace(0, 1, 101))
        # Interpolation may break the order in the last digit.
        return Number(column, tuple(np.maximum.accumulate(quantiles).tolist()))
    return _fit_classes(series, name)


def _fit_classes(series: pd.Series[Any], name: Name) -> Classes:
    held: Any = series.dtype if kind_of(series) == "category" else None
    counts = series.value_counts(sort=False)
    seen = {_plain(level): int(count) for level, count in counts.items() if count > 0}
    # Python objects become the type of what they hold, but text stays as it is stored.
    plain = series if kind_of(series) == "text" else series.infer_objects()
    dtype = plain.dtype if held is None else held.categories.dtype
    if held is not None and held.ordered:
        levels: Sequence[Level] = [_plain(level) for level in held.categories if _plain(level) in seen]
    else:
        try:
            levels = sorted(seen)
        except TypeError:
            raise _no_levels(name, seen) from None
    categories = None if held is None else tuple(_plain(level) for level in held.categories)
    ordered = bool(held is not None and held.ordered)
    try:
        return Classes(name, dtype_name(dtype), tuple(levels), tuple(seen[v] for v in levels), categories, ordered)
    except TypeError:
        raise _no_levels(name, seen) from None


def _no_levels(name: Name, seen: Sequence[Any] | dict[Any, int]) -> InputError:
    return InputError(
        f"condition column {name!r} must have levels that are all text or all finite numbers, got {quoted(seen)}; "
        "convert it with .astype(str)"
    )


def _plain(level: Any) -> Any:
    """A level as Python's own type, which JSON keeps."""
    return level.item() if isinstance(level, np.generic) else level


def _reads_as(text: str, level: Level) -> bool:
    if isinstance(level, str):
        return text == level
    if isinstance(level, bool):
        return _TRUTH.get(text.lower()) is level
    try:
        return float(text) == level
    except ValueError:
        return False
