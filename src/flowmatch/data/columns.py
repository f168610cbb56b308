r"""One numeric column: how its cells become standard numbers, and how they come back.

**Scaling.** A cell ``v`` becomes :math:`(v - \mu)/s` with mean and standard deviation of the column in
float64. The change of variables of one row is :math:`\log p(v) = \log p_z(x) - \sum \log s`.

**Whole numbers.** A density on a grid of whole numbers can grow without bound at the grid points,
so it says nothing. Spreading each cell evenly over its unit interval, :math:`v + u` with ``u`` uniform in
[-1/2, 1/2), gives a law with a density, and by Jensen's inequality that density bounds the
probability of the cell: :math:`\log P(v) \ge E_u \log p(v + u)`. Rounding takes the noise away again.
What the model sees has the variance of the column plus 1/12, that of the noise, so :math:`s^2` is this
sum: a pixel that is nearly always 0 then has unit spread like any other column.

**Exactness.** Whole numbers are measured from the smallest one seen, by integer arithmetic, before
anything is rounded to a float. So a column of nanoseconds since 1970 comes back exactly; what counts is
the range of a column, not its size. Ranges above 2^23 exceed the 24 bits of float32 and come
back to about 1e-7 of the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowmatch.data.frames import Name, as_numbers, dtype_name, kind_of, named_dtype, need
from flowmatch.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Constant", "Numeric", "fit_column"]

_LARGEST = 1e300  # beyond it a difference of two cells may overflow
_BELOW_2_64 = 2.0**64 - 2048  # the largest float that fits 64 bits


@dataclass(frozen=True)
class Numeric:
    """A numeric column with its statistics.

    Args:
        name: name of the column.
        dtype: name of its type.
        mean: mean of the cells; for whole numbers, of their distance from the smallest one.
        std: standard deviation; for whole numbers, of the cells with noise on them.
        span: smallest and largest cell of a column of whole numbers, ``None`` for any other.

    Raises:
        ValueError, TypeError: the values do not describe a column, as from a damaged file.
    """

    name: Name
    dtype: str
    mean: float
    std: float
    span: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_name(self.name, self.dtype)
        if not (isinstance(self.mean, float) and math.isfinite(self.mean)):
            raise ValueError(f"mean of column {self.name!r} must be a finite number, got {self.mean!r}")
        if not (isinstance(self.std, float) and 0 < self.std < math.inf):
            raise ValueError(f"std of column {self.name!r} must be a positive number, got {self.std!r}")
        if self.span is not None:
            low, high = self.span
            if not (_is_whole(low) and _is_whole(high) and -(2**63) <= low < high < 2**64):
                raise ValueError(f"span of column {self.name!r} must be two growing whole numbers, got {self.span!r}")

    def encode(self, series: pd.Series[Any]) -> NDArray[np.float64]:
        """Standardise the cells of a column, ``(N,)`` in float64, without noise.

        Raises:
            InputError: the column is not numeric, or has fractions where whole numbers were seen.
        """
        values = as_numbers(series, self.name)
        # What overflows here is infinite, and the codec names its column.
        with np.errstate(over="ignore"):
            return (self._offset(values) - self.mean) / self.std

    def decode(self, x: NDArray[np.float64]) -> pd.Series[Any]:
        """Give back cells of the column's own type; whole numbers are rounded and kept within the span."""
        with np.errstate(over="ignore"):  # brought back into the range of the type below
            values = x * self.std + self.mean
        return _series(values if self.span is None else self._whole(values, *self.span), self.dtype)

    def _offset(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Distance from the smallest cell seen, exact up to 2^53; for other columns the cells as they are."""
        if self.span is None:
            return values.astype(np.float64)
        low = self.span[0]
        near = values.astype(np.float64) - float(low)
        if values.dtype.kind == "f":
            broken = values != np.rint(values)
            if broken.any():
                row = int(broken.argmax())
                raise InputError(
                    f"column {self.name!r} held whole numbers when the model was made, got {values[row]!s} in row {row}"
                    "; round the column"
                )
            return near
        # Differences modulo 2^64 are exact for every pair of types and cannot overflow.
        exact = (values.view(np.uint64) - np.uint64(low % 2**64)).view(np.int64)
        return np.where(np.abs(near) < 2.0**53, exact, near)

    def _whole(self, offset: NDArray[np.float64], low: int, high: int) -> NDArray[Any]:
        # floor(v + 1/2) is the inverse of noise in [-1/2, 1/2); rounding half to even is not.
        rounded = np.floor(offset + 0.5)
        inside = rounded.clip(0.0, _BELOW_2_64).astype(np.uint64)
        cells = np.where(rounded < float(high - low), inside, np.uint64(high - low)) + np.uint64(low % 2**64)
        return cells if high >= 2**63 else cells.view(np.int64)


@dataclass(frozen=True)
class Constant:
    """A column with one value: nothing to learn, so it is kept beside the model.

    Raises:
        ValueError, TypeError: the values do not describe a column, as from a damaged file.
    """

    name: Name
    dtype: str
    value: float | int

    def __post_init__(self) -> None:
        _check_name(self.name, self.dtype)
        if not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise ValueError(f"constant column {self.name!r} must hold a finite number, got {self.value!r}")

    def decode(self, n: int) -> pd.Series[Any]:
        """The constant, ``n`` times, in the column's own type."""
        kind = np.float64 if isinstance(self.value, float) else np.uint64 if self.value >= 2**63 else np.int64
        return _series(np.full(n, self.value, dtype=kind), self.dtype)


def fit_column(series: pd.Series[Any], name: Name) -> Numeric | Constant:
    """Read the statistics of a numeric column without missing cells.

    Raises:
        InputError: not numeric, or cells too large or too close together for float64.
    """
    # A column of Python objects comes back as the type of what it holds.
    values, dtype, kind = as_numbers(series, name), dtype_name(series.infer_objects().dtype), kind_of(series)
    low, high = values.min(), values.max()
    if low == high:
        return Constant(name, dtype, float(low) if kind == "float" else int(low))
    span = None if kind == "float" else (int(low), int(high))
    cells = values if span is None else Numeric(name, dtype, 0.0, 1.0, span)._offset(values)
    size = float(np.abs(cells).max())
    if size > _LARGEST:
        raise InputError(f"column {name!r} holds values up to {size:g}, too large to compute with; rescale it")
    # In units of the largest cell no square overflows or vanishes.
    scaled = cells / size
    mean = float(scaled.mean())
    spread = np.abs(scaled - mean).max()
    std = float(spread * np.sqrt(np.mean(((scaled - mean) / spread) ** 2))) * size if spread > 0 else 0.0
    if span is not None:
        std = math.sqrt(std**2 + 1 / 12)
    if std < np.finfo(np.float64).tiny:
        raise InputError(f"the values of column {name!r} differ by too little to compute with; rescale or drop it")
    return Numeric(name, dtype, mean * size, std, span)


def _series(values: NDArray[Any], dtype: str) -> pd.Series[Any]:
    """A series of the named type: bool by way of 0 and 1, floats kept inside the type's range."""
    kind = named_dtype(dtype)
    numpy_kind = getattr(kind, "numpy_dtype", kind)
    if getattr(numpy_kind, "kind", "") == "f" and values.dtype.kind == "f":
        limit = np.finfo(numpy_kind)
        values = values.clip(float(limit.min), float(limit.max))
    if numpy_kind == np.dtype(bool):
        values = values.astype(bool)
    series: pd.Series[Any] = need("pandas").Series(values).astype(kind)
    return series


def _check_name(name: object, dtype: object) -> None:
    if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(dtype, str):
        raise TypeError(f"a column needs a name and a type, got {name!r} and {dtype!r}")
    named_dtype(dtype)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
