r"""From a data frame to what a model reads, and back.

A model sees ``x``, an ``(N, D)`` float32 matrix of standardised columns, and a condition. The codec
remembers everything that this leaves behind: names, order and types of the columns, constants, levels.
It goes into the run folder as plain JSON. How one column is treated is told in
:mod:`flowmatch.data.columns` and :mod:`flowmatch.data.condition`.

The log-density of a row, over the modelled columns, is that of its code plus :attr:`TableCodec.log_det`:

.. math:: \log p(\mathrm{row}) = \log p_z(x) - \sum_d \log s_d .
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flowmatch.data.choose import choose_columns, told_to_user
from flowmatch.data.columns import Constant, Numeric, fit_column
from flowmatch.data.condition import Classes, Number, fit_condition
from flowmatch.data.frames import Name, check_frame, did_you_mean, need, quoted, refuse_bad_cells
from flowmatch.data.stored import read_codec, write_codec
from flowmatch.errors import InputError
from flowmatch.randomness import rand
from flowmatch.tensors import check_event, check_finite

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TableCodec", "TableData"]


@dataclass(frozen=True)
class TableCodec:
    """Two-way map between rows of a table and the tensors of a model. Make it with :meth:`fit`.

    Args:
        order: names of all columns of the table, in their order.
        columns: the modelled columns; ``x[:, d]`` is ``columns[d]``.
        constants: columns with one value, left out of the model.
        condition: the condition, if there is one.
        notes: things the user should be told.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"size": [1.0, 2.0, 3.0], "legs": [2, 4, 4], "kind": ["hen", "cat", "dog"]})
        >>> codec = TableCodec.fit(frame, condition="kind")
        >>> x, cond = codec.encode(frame)
        >>> x.shape, cond, codec.dim, codec.classes
        (torch.Size([3, 2]), tensor([2, 0, 1]), 2, 3)
        >>> codec.decode(x, cond).round(6).equals(frame)
        True
    """

    order: tuple[Name, ...]
    columns: tuple[Numeric, ...]
    constants: tuple[Constant, ...] = ()
    condition: Classes | Number | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = [column.name for column in self.columns] + [constant.name for constant in self.constants]
        parts += [] if self.condition is None else [self.condition.name]
        named_once = len(set(parts)) == len(parts) == len(self.order) and set(parts) == set(self.order)
        if not self.columns or not named_once:
            raise ValueError("a codec needs one modelled column at least, and its order must name each column once")

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        condition: Name | None = None,
        columns: Sequence[Name] | None = None,
        drop: Sequence[Name] = (),
    ) -> TableCodec:
        """Read names, types and statistics of a table.

        Args:
            frame: the table, two rows at least.
            condition: column that becomes the condition; it is not modelled.
            columns: columns to model, all by default.
            drop: columns to leave out altogether.

        Returns:
            The codec. ``codec.notes`` says what was done to the table and is worth knowing.

        Raises:
            InputError: unknown or doubled names, too few rows, missing or infinite cells, text where a
                number is needed, or nothing left to model.
        """
        check_frame(frame)
        if len(frame) < 2:
            raise InputError(f"a table needs at least 2 rows to learn from, got {len(frame)}")
        names, told = choose_columns(frame, condition, columns, drop)
        kept = set(names) if told is None else {*names, told}
        order = [name for name in frame.columns if name in kept]
        refuse_bad_cells(frame, order)
        parts = [fit_column(frame[name], name) for name in names]
        modelled = tuple(part for part in parts if isinstance(part, Numeric))
        constants = tuple(part for part in parts if isinstance(part, Constant))
        if not modelled:
            raise InputError(f"every column is constant ({quoted(names)}), so there is nothing to learn")
        given = None if told is None else fit_condition(frame[told], told)
        return cls(tuple(order), modelled, constants, given, told_to_user(frame, modelled, constants, given))

    @property
    def dim(self) -> int:
        """Number of modelled columns, the ``D`` of ``x``."""
        return len(self.columns)

    @property
    def classes(self) -> int:
        """Number of classes of the condition, 0 if it is a number or there is none."""
        return 0 if self.condition is None else self.condition.classes

    @property
    def cond_dim(self) -> int:
        """1 if the condition is a number, else 0."""
        return 0 if self.condition is None else self.condition.cond_dim

    @property
    def log_det(self) -> float:
        """What to add to the log-density of ``x`` to have that of the row, in nats."""
        return -math.fsum(math.log(column.std) for column in self.columns)

    @cached_property
    def step(self) -> Tensor:
        """Width ``(D,)`` of one unit of each column of whole numbers in ``x``, 0 for other columns."""
        return torch.tensor([0.0 if c.span is None else 1 / c.std for c in self.columns], dtype=torch.float32)

    def encode(self, frame: pd.DataFrame, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Turn rows into tensors. Columns may come in any order; those the codec does not know are ignored.

        Args:
            frame: the table; constant columns may be missing.
            generator: spreads whole numbers evenly over their unit interval; without it they stay put.

        Returns:
            ``x`` of ``(N, D)`` float32, and the condition: ``(N,)`` int64, ``(N, 1)`` float32 or ``None``.

        Raises:
            InputError: a column is missing or cannot be read as what it was, or a level is new.
        """
        check_frame(frame)
        names = [column.name for column in self.columns]
        needed = names if self.condition is None else [*names, self.condition.name]
        if missing := [name for name in needed if name not in frame.columns]:
            hint = did_you_mean(missing[0], frame.columns)
            raise InputError(
                f"the table lacks {quoted(missing)}{hint}; the model needs {quoted(needed)}, got {quoted(frame)}"
            )
        refuse_bad_cells(frame, needed)
        matrix = np.empty((len(frame), self.dim), dtype=np.float32)
        with np.errstate(over="ignore"):
            for d, column in enumerate(self.columns):
                matrix[:, d] = column.encode(frame[column.name])
        if not np.isfinite(matrix).all():
            row, d = (int(v) for v in np.argwhere(~np.isfinite(matrix))[0])
            raise InputError(f"column {names[d]!r} is too far from what was seen to compute with, first in row {row}")
        x = self.dequantise(torch.from_numpy(matrix), generator)
        return x, None if self.condition is None else self.condition.encode(frame[self.condition.name])

    def dequantise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Add noise, uniform over one unit, to the columns of whole numbers of ``x`` made without it."""
        if generator is None or not self.step.any():
            return x
        return x + (rand(tuple(x.shape), generator, dtype=torch.float32) - 0.5) * self.step

    def decode(self, x: Tensor, cond: Tensor | None = None) -> pd.DataFrame:
        """Turn tensors into rows, with the names, order and types of the table.

        Args:
            x: samples ``(N, D)``, floating, on any device.
            cond: their condition, as :meth:`encode` gives it; needed if the codec has one.

        Raises:
            ValueError: wrong shape, NaN or infinite entries, or the condition is missing.
        """
        check_event(x)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (N, {self.dim}), one column a modelled column, got {tuple(x.shape)}")
        check_finite(x, "x")
        matrix = x.detach().cpu().double().numpy()
        cells = {column.name: column.decode(matrix[:, d]) for d, column in enumerate(self.columns)}
        cells.update({constant.name: constant.decode(len(matrix)) for constant in self.constants})
        got = None if cond is None else tuple(cond.shape)
        if (self.condition is None) != (got is None):
            what = "no condition" if self.condition is None else f"the condition {self.condition.name!r}"
            raise ValueError(f"the table has {what}, got cond of shape {got}")
        if self.condition is not None and cond is not None:
            if cond.shape[:1] != x.shape[:1]:
                raise ValueError(f"cond must have one entry a row of x, {len(x)}, got shape {got}")
            cells[self.condition.name] = self.condition.decode(cond)
        frame: pd.DataFrame = need("pandas").DataFrame({name: cells[name] for name in self.order})
        return frame

    def encode_condition(self, given: Mapping[str, object] | None, n: int) -> Tensor | None:
        """The condition that a user writes, such as ``{"target": "3"}``, for ``n`` samples.

        Args:
            given: value of the condition column, as it is or as text; none or empty without a condition.
            n: number of samples.

        Returns:
            ``(n,)`` int64, ``(n, 1)`` float32, or ``None`` if the codec has no condition.

        Raises:
            InputError: a column that is not the condition, a value that cannot be one, or none given.
        """
        given = given or {}
        if self.condition is None:
            if given:
                raise InputError(f"the model has no condition, got {quoted(given)}; train it with a condition first")
            return None
        name = self.condition.name
        if unknown := [key for key in given if key != name and key != str(name)]:
            hint = did_you_mean(unknown[0], [name])
            raise InputError(f"{unknown[0]!r} is not the condition{hint}; the model's condition is {name!r}")
        if not given:
            raise InputError(f"the model's condition {name!r} needs a value")
        return self.condition.parse(next(iter(given.values())), n)

    def draw_condition(self, n: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw ``n`` conditions as they were seen in the table; ``None`` if the codec has no condition."""
        return None if self.condition is None else self.condition.draw(n, generator)

    def to_json(self) -> dict[str, Any]:
        """The codec as plain lists, dicts, text and numbers; :meth:`from_json` gives an equal one."""
        return write_codec(self.order, self.columns, self.constants, self.condition, self.notes)

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> TableCodec:
        """Read back what :meth:`to_json` gave.

        Raises:
            InputError: damaged, or not a table's codec at all.
        """
        return read_codec(cls, payload)


class TableData:
    """A table as training data: encoded once, and whole numbers get fresh noise each time they are taken.

    Args:
        codec: the codec of the table.
        frame: the rows.

    Attributes:
        x: codes ``(N, D)`` without noise.
        cond: conditions of the rows, or ``None``.
    """

    def __init__(self, codec: TableCodec, frame: pd.DataFrame) -> None:
        self.codec = codec
        self.x, self.cond = codec.encode(frame)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows ``index`` of shape ``(B,)``: ``(x1, cond)``, with noise if a generator is given."""
        x = self.codec.dequantise(self.x[index], generator)
        return x, None if self.cond is None else self.cond[index]
