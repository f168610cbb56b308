"""What the start of every training needs: options put together, a folder made ready, processes told apart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flowmatch.errors import InputError
from flowmatch.recipes.folder import mapping, prepare_folder
from flowmatch.train import join_processes

__all__ = ["check_unchanged", "is_main", "launched", "merged", "prepare"]


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def launched() -> int:
    """Number of processes that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_unchanged(known: Any, config: Any, names: tuple[str, ...]) -> None:
    """Raise where a run to go on with would be given other data: rows held out would then be trained on.

    Raises:
        InputError: one of the options differs, or the seed, which decides what is held out.
    """
    changed = [name for name in names if getattr(known, name) != getattr(config, name)]
    changed += ["train.seed"] if known.train.seed != config.train.seed else []
    if changed:
        raise InputError(
            f"{', '.join(changed)}: not to be changed when a run goes on, since other rows would be held out; leave it "
            "out, or start another run"
        )


def merged(first: dict[str, Any], second: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    """Two configs, the second of which counts; their parts are merged option by option."""
    both = {**first, **second}
    for part in parts:
        if part in first and part in second:
            both[part] = {**mapping(first, part), **mapping(second, part)}
    return both


def prepare(out: Path, overwrite: bool, resume: bool) -> None:
    """Make the run folder ready, by one process alone while the others wait."""
    if is_main():
        prepare_folder(out, overwrite=overwrite, resume=resume)
    if launched() > 1:
        join_processes().wait_for_everyone()
