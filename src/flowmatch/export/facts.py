"""What the files of a run folder tell of it, for the card and the metadata of an export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmatch.errors import InputError

__all__ = ["Facts", "read_json", "run_facts"]


#: Numbers of an evaluation that say how it was done and not what came out.
SETTINGS = {"batch", "classes", "columns", "folds", "noises", "projections", "repeats", "rows", "samples", "seconds"}
SETTINGS |= {"seed", "steps", "tolerance", "width"}


@dataclass(frozen=True)
class Facts:
    """What a card says of a run.

    Attributes:
        title: name of the run.
        table: rows of two columns on how it was made.
        numbers: what was measured, by name.
        classes: names of the classes in the order of their numbers.
        codec: how rows of a table became numbers, as ``data.json`` has it; ``None`` for other data.
    """

    title: str | None = None
    table: tuple[tuple[str, str], ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()
    classes: tuple[str, ...] = ()
    codec: dict[str, Any] | None = None


def run_facts(folder: str | Path) -> Facts:
    """What the files of a run folder tell: its card's table, the numbers of its evaluation, the names of its classes.

    A folder without these files, such as one of :meth:`flowmatch.Flow.save`, gives the name alone.

    Raises:
        InputError: a damaged file.
    """
    folder = Path(folder)
    data = read_json(folder / "data.json") if (folder / "data.json").is_file() else {}
    numbers: list[tuple[str, float]] = []
    if (folder / "evaluation.json").is_file():
        numbers = _flat(read_json(folder / "evaluation.json"))
    table = []
    if (folder / "README.md").is_file():
        for line in (folder / "README.md").read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if line.startswith("|") and len(cells) == 2 and any(cells) and not set(line) <= set("|-: "):
                table.append((cells[0], cells[1]))
    codec = data.get("codec")
    condition = codec.get("condition") if isinstance(codec, dict) else None
    classes = data.get("counts") or (condition or {}).get("levels") or ()
    return Facts(folder.resolve().name, tuple(table), tuple(numbers), tuple(map(str, classes)), codec)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; give a whole folder, or restore the file from a copy")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from a copy") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no object; restore it from a copy")
    return content


def _flat(found: dict[str, Any], above: str = "") -> list[tuple[str, float]]:
    """Numbers of an evaluation with their names joined; lists, texts, and what says how it was done, left out."""
    numbers: list[tuple[str, float]] = []
    for key, value in found.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if key in SETTINGS:
            continue
        if isinstance(value, dict):
            numbers += _flat(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append((name, float(value)))
    return numbers
