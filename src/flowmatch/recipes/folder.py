"""Run folders: made ready before a run, and the small files in them read with care."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from flowmatch.errors import InputError
from flowmatch.persist import write_atomically
from flowmatch.train import Callback, explain

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Description",
    "RunOptions",
    "check_folder",
    "check_same",
    "mapping",
    "prepare_folder",
    "read_history",
    "read_json",
    "read_options",
]

#: Files that only runs have together; a config.yaml alone may be anybody's.
MARKS = ("config.yaml", "data.json")


def prepare_folder(out: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Make an empty run folder, or keep the one to resume; what :func:`check_folder` refuses is left alone.

    Raises:
        InputError: as there.
    """
    check_folder(out, overwrite=overwrite, resume=resume)
    if not resume:
        if out.is_dir() and any(out.iterdir()):
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)


def check_folder(out: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raise unless a run may be written to ``out``; nothing is changed.

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
        if not all((out / mark).is_file() for mark in MARKS):
            raise InputError(f"{out} is not a run folder, so it will not be overwritten; give another --out")


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
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a run that was killed may have left half a line
            found.append(json.loads(line))
    return found


class RunOptions(BaseModel):
    """What the configs of runs have in common: how they are made from options, written and read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, options: Any) -> Self:
        """Config from a plain dict; problems become one :class:`~flowmatch.InputError`."""
        if not isinstance(options, dict):
            raise InputError(f"a run's config is a mapping of options to values, got {type(options).__name__}")
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise InputError("; ".join(explain(problem, cls) for problem in error.errors())) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Config from ``config.yaml`` of a run.

        Raises:
            InputError: missing, not YAML, or not such a config.
        """
        options = read_options(path)
        try:
            return cls.parse(options)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def to_yaml(self) -> str:
        """The config as YAML text; :meth:`parse` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class Description(Callback):
    """Writes ``config.yaml`` and ``data.json`` once a run is known to go on.

    A resume that is refused must leave both as they are, or it could never be mended.

    Args:
        out: run folder.
        config: text of the config.
        described: what ``data.json`` holds.
    """

    def __init__(self, out: Path, config: str, described: dict[str, Any]) -> None:
        self.out, self.config, self.described = out, config, described

    def on_start(self, step: int) -> None:
        """Write both."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / "config.yaml", self.config.encode())
        write_atomically(self.out / "data.json", (json.dumps(self.described, indent=2) + "\n").encode())


def check_same(path: Path, fingerprint: str, source: str) -> None:
    """Raise unless the data are those that a run to go on with was begun with.

    Raises:
        InputError: they have changed.
    """
    if read_json(path).get("fingerprint") != fingerprint:
        raise InputError(
            f"{source} is not what this run was begun with: its content has changed, and rows held out then might be "
            "trained on now; give the original data, or start another run"
        )


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
