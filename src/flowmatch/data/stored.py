"""A table's codec as JSON: plain, readable, and exact, since Python writes floats so that they read back equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from flowmatch.data.columns import Constant, Numeric
from flowmatch.data.condition import Classes, Number
from flowmatch.errors import InputError

if TYPE_CHECKING:
    from flowmatch.data.codec import TableCodec
    from flowmatch.data.frames import Name

__all__ = ["read_codec", "write_codec"]

_FORMAT, _VERSION = "flowmatch-table", 1


def write_codec(
    order: Sequence[Name],
    columns: Sequence[Numeric],
    constants: Sequence[Constant],
    condition: Classes | Number | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The parts of a codec as JSON values."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "order": list(order),
        "columns": [_plain(column) for column in columns],
        "constants": [_plain(constant) for constant in constants],
        "condition": None if condition is None else _plain(condition),
        "notes": list(notes),
    }


def read_codec(codec: type[TableCodec], payload: Mapping[str, Any]) -> TableCodec:
    """A codec from JSON values.

    Raises:
        InputError: another format or version, or a part that is missing or wrong.
    """
    if not isinstance(payload, Mapping) or payload.get("format") != _FORMAT:
        raise InputError(f"not the description of a table: expected a JSON object with format {_FORMAT!r}")
    if payload.get("version") != _VERSION:
        raise InputError(
            f"the description of the table has version {payload.get('version')!r}, this flowmatch reads version "
            f"{_VERSION}; update flowmatch or train again"
        )
    # Whatever is wrong inside shows as one of these when the parts are built, for they check what they are given.
    try:
        read = codec(
            tuple(payload["order"]),
            tuple(_numeric(part) for part in payload["columns"]),
            tuple(Constant(**part) for part in payload["constants"]),
            _condition(payload["condition"]),
            [_text(note) for note in payload["notes"]],
        )
        _rehearse(read)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"the description of the table is damaged: {detail}; restore data.json from a copy or train again"
        ) from error
    return read


def _rehearse(codec: TableCodec) -> None:
    """Decode one row of every class, so that types and levels that do not fit each other show now and not later."""
    cond = None if codec.condition is None else torch.zeros(1, 1)
    if isinstance(codec.condition, Classes):
        cond = torch.arange(codec.classes)
    x = torch.zeros(1 if cond is None else len(cond), codec.dim)
    _, again = codec.encode(codec.decode(x, cond))
    if isinstance(codec.condition, Classes) and not torch.equal(torch.as_tensor(again), torch.arange(codec.classes)):
        raise ValueError(f"levels of condition {codec.condition.name!r} are not of type {codec.condition.dtype}")


def _plain(part: Numeric | Constant | Classes | Number) -> dict[str, Any]:
    return {key: _listed(value) for key, value in asdict(part).items()}


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _numeric(part: Mapping[str, Any]) -> Numeric:
    span = part["span"]
    return Numeric(**{**part, "span": None if span is None else tuple(span)})


def _condition(part: Mapping[str, Any] | None) -> Classes | Number | None:
    if part is None:
        return None
    if "column" in part:
        return Number(**{**part, "column": _numeric(part["column"]), "quantiles": tuple(part["quantiles"])})
    categories = part["categories"]
    tuples = {
        "levels": tuple(part["levels"]),
        "counts": tuple(part["counts"]),
        "categories": None if categories is None else tuple(categories),
    }
    return Classes(**{**part, **tuples})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a note must be text, got {value!r}")
    return value
