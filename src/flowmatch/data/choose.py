"""Which columns of a table are modelled, which one is the condition, and what to tell the user about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowmatch.data.columns import Constant, Numeric
from flowmatch.data.condition import Classes, Number
from flowmatch.data.frames import Name, did_you_mean, kind_of, not_a_number, quoted
from flowmatch.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["choose_columns", "told_to_user"]


def choose_columns(
    frame: pd.DataFrame,
    condition: Name | None = None,
    columns: Sequence[Name] | Name | None = None,
    drop: Sequence[Name] | Name = (),
) -> tuple[list[Name], Name | None]:
    """Names of the columns to model, in the order of the table, and of the condition.

    Raises:
        InputError: unknown names, a dropped condition, no column left, or a column that is not numeric.
    """
    dropped = {_resolve(name, frame, "drop") for name in _listed(drop)}
    told = None if condition is None else _resolve(condition, frame, "condition")
    if told in dropped:
        raise InputError(f"column {told!r} is both the condition and dropped; do one of the two")
    asked = frame.columns if columns is None else [_resolve(name, frame, "columns") for name in _listed(columns)]
    chosen = set(asked) - dropped - {told}
    names: list[Name] = [name for name in frame.columns if name in chosen]
    if not names:
        raise InputError("no column is left to model; choose fewer to drop or more to keep")
    _refuse_text(frame, names)
    return names, told


def told_to_user(
    frame: pd.DataFrame, columns: Sequence[Numeric], constants: Sequence[Constant], given: Classes | Number | None
) -> list[str]:
    """Notes for the user: what was done to the table, and what is odd about it."""
    notes = []
    if constants:
        shown = ", ".join(f"{c.name!r} (always {c.value})" for c in constants[:8])
        more = f" and {len(constants) - 8} more" if len(constants) > 8 else ""
        notes.append(f"constant columns are left out of the model and written back as they are: {shown}{more}")
    wide = [c.name for c in columns if c.span is not None and c.span[1] - c.span[0] >= 2**23]
    if wide:
        notes.append(f"whole numbers in {quoted(wide)} span more than float32 can tell apart; they come back rounded")
    even = [c.name for c in columns if c.span is None and not (frame[c.name].to_numpy(dtype=np.float64) % 1).any()]
    if even:
        notes.append(
            f"{quoted(even)} hold whole numbers stored as floats; convert them with .astype(int) if they are counts, "
            "since a log-density on a grid of whole numbers means little"
        )
    if isinstance(given, Classes) and len(frame) < 5 * given.classes:
        notes.append(f"condition {given.name!r} has {given.classes} levels for {len(frame)} rows, fewer than 5 a level")
    return notes


def _listed(names: Sequence[Name] | Name) -> Iterable[Name]:
    return [names] if isinstance(names, str | int) else names


def _resolve(name: Name, frame: pd.DataFrame, role: str) -> Name:
    """The column meant; a number written as text finds a column named by that number."""
    if name in frame.columns:
        return name
    for known in frame.columns:
        if str(known) == str(name):
            return known
    hint = did_you_mean(name, frame.columns)
    raise InputError(f"{role}: no column is called {name!r}{hint}; the table has {quoted(frame.columns, 20)}")


def _refuse_text(frame: pd.DataFrame, names: Sequence[Name]) -> None:
    wrong = [(name, kind_of(frame[name])) for name in names if kind_of(frame[name]) not in ("float", "integer", "bool")]
    if wrong:
        shown = ", ".join(f"{name!r} ({kind}{not_a_number(frame[name])})" for name, kind in wrong[:8])
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(
            f"only numbers can be modelled, and these columns hold something else: {shown}{more}. Leave them out with "
            "--drop or choose others with --columns, turn dates into numbers, or make one column of text or categories "
            "the --condition (in Python: drop=, columns=, condition=)"
        )
