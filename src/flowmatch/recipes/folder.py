"""Run folders: made ready before a run, and the small files in them read with care."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flowmatch.errors import InputError

__all__ = ["mapping", "prepare_folder", "read_history", "read_json", "read_options"]

MARKS = ("config.yaml", "data.json", "flow.json", "checkpoints", "metrics.jsonl")


def prepare_folder(out: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Make an empty run folder, or keep the one to resume.

    Raises:
        InputError: the folder holds something and neither ``overwrite`` nor ``resume`` is given; it holds something
            that is not a run; there is nothing to resume.
    """
    if resume:
        if not (out / "config.yaml").is_file():
            raise InputError(f"nothing to resume at {out}: no config.yaml there; train without --resume")
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(
                f"{out} already holds something; use another --out, --resume to go on with that run, "
                "or --overwrite to replace it"
            )
        if not any((out / mark).exists() for mark in MARKS):
            raise InputError(f"{out} is not a run folder, so it will not be overwritten; give another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def read_options(path: Path) -> dict[str, Any]:
    """Read a YAML file of options, which may be incomplete."""
    if not path.is_file():
        raise InputError(f"no config at {path}; give an existing .yaml file")
    content = _read(path, yaml.safe_load, yaml.YAMLError, "is not valid YAML")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of options to values, got {type(content).__name__}")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that a run wrote."""
    mend = "restore it from a copy or train again"
    if not path.is_file():
        raise InputError(f"{path} is missing; {mend}")
    content = _read(path, json.loads, json.JSONDecodeError, f"is damaged; {mend}")
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (it holds no object); {mend}")
    return content


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, none if there is no such file."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def mapping(options: dict[str, Any], name: str) -> dict[str, Any]:
    """The part ``name`` of a config, empty if it is not there; an error if it holds no options."""
    part = options.get(name) or {}
    if not isinstance(part, dict):
        raise InputError(f"{name} must be a mapping of options to values, got {type(part).__name__}")
    return part


def _read(path: Path, parse: Callable[[str], Any], broken: type[Exception], what: str) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (broken, UnicodeDecodeError) as error:
        raise InputError(f"{path} {what}: {' '.join(str(error).split())}") from None
