"""Checkpoints that are whole or not there, read without pickle and checked before they are used.

**Writing.** Everything goes into a hidden folder beside the checkpoints; each file is forced onto the disc, then the
folder, and then the folder is renamed to ``step_00001000``. A rename is atomic, so whatever stops a save (a full disc,
a kill, a power cut), the checkpoints that were there stay as they were, and what is half written has a name that nobody
reads and the next start removes. Old checkpoints are removed only after the new one is in place.

**Reading.** ``state.json`` holds every scalar, and the SHA-256 of every other file and of itself. The newest checkpoint
that verifies is used; a damaged one is named in a warning and skipped. A checkpoint of another program, or of another
model, is an error: continuing without a word from an older one would hide the mistake.

Source: Pillai et al., All File Systems Are Not Created Equal, 2014,
https://www.usenix.org/conference/osdi14/technical-sessions/presentation/pillai, for why both the files and the folders
are forced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.train.files import write_tensors

__all__ = ["Checkpoint", "Checkpoints", "check_fit"]

_FORMAT, _VERSION = "flowmatch.checkpoint", 1
_TEMPORARY = ".unfinished_"
_NAME = re.compile(r"step_(\d{8,})")


class Checkpoint(NamedTuple):
    """One checkpoint, read and verified.

    Attributes:
        path: its folder.
        step: number of updates done.
        tensors: groups of named tensors, one a file: ``{"model": {"weight": ...}, ...}``.
        state: everything that is not a tensor.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made at the first save.
        keep: number of newest checkpoints that survive a save.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(Path(folder), keep=2)
        ...     for step in (10, 20, 30):
        ...         _ = checkpoints.save(step, {"model": {"w": torch.ones(1)}}, {"lr": 0.1})
        ...     [path.name for path in checkpoints.paths()], checkpoints.load().state
        (['step_00000020', 'step_00000030'], {'lr': 0.1})
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Folders of the checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)

    def clean(self) -> None:
        """Remove what an interrupted save or removal left behind."""
        for path in self.folder.glob(_TEMPORARY + "*"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove the oldest beyond ``keep``.

        Raises:
            InputError: the disc is full or cannot be written; the earlier checkpoints are untouched.
        """
        final = self.folder / f"step_{step:08d}"
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            files = {f"{name}.safetensors": group for name, group in tensors.items()}
            hashes = {name: write_tensors(temporary / name, group) for name, group in files.items()}
            _write_state(temporary, step, hashes, state)
            _sync_folder(temporary)
            _discard(final)  # there is one only if it was damaged, or the run went back before it
            temporary.rename(final)
            _sync_folder(self.folder)
            # Newer ones are what a resumed run found damaged; counting them would push out the good.
            for path in [path for path in self.paths() if _step(path) <= step][: -self.keep]:
                _discard(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            whole = [path.name for path in self.paths()]
            raise InputError(
                f"could not save the checkpoint of step {step} in {self.folder}: {error.strerror or error}. "
                + (f"The last one there, {whole[-1]}, is untouched. " if whole else "")
                + "Make room on the disc, or keep fewer checkpoints, then resume the run"
            ) from error
        return final

    def load(self) -> Checkpoint:
        """The newest checkpoint that verifies; warns of every damaged one that it skips.

        Raises:
            InputError: there is no checkpoint, none of them verifies, or the newest whole one is not ours.
        """
        paths = self.paths()
        if not paths:
            raise InputError(f"no checkpoint in {self.folder}, so there is nothing to resume; start the run without it")
        damaged = []
        for path in reversed(paths):
            try:
                found = _read(path)
            except _DamagedError as error:
                damaged.append(f"{path.name} ({error})")
                continue
            if damaged:
                warnings.warn(
                    f"damaged checkpoints in {self.folder} are skipped: {', '.join(damaged)}; using {path.name}",
                    stacklevel=2,
                )
            return found
        raise InputError(
            f"every checkpoint in {self.folder} is damaged: {', '.join(damaged)}; "
            "restore one of them from a copy, or start the run again in another folder"
        )


def check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, where: Path) -> None:
    """Raise unless two groups of tensors have the same names, shapes and types.

    Raises:
        InputError: they differ; the message names the first few differences.

    Example:
        >>> check_fit({"w": torch.ones(2)}, {"w": torch.ones(3)}, "model", Path("step_00000010"))
        Traceback (most recent call last):
            ...
        flowmatch.errors.InputError: step_00000010 belongs to another model: w is (2,) torch.float32 there and \
(3,) torch.float32 here; resume with the options the run was started with
    """
    both = [(name, found[name], here) for name, here in expected.items() if name in found]
    differences = [
        f"{name} is {_kind(there)} there and {_kind(here)} here"
        for name, there, here in both
        if _kind(there) != _kind(here)
    ]
    differences += [f"{name} is missing there" for name in expected if name not in found]
    differences += [f"{name} is missing here" for name in found if name not in expected]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise InputError(
            f"{where} belongs to another {what}: {', '.join(differences[:3])}{more}; "
            "resume with the options the run was started with"
        )


class _DamagedError(Exception):
    """The checkpoint is not what was written."""


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _write_state(folder: Path, step: int, hashes: Mapping[str, str], state: Mapping[str, Any]) -> None:
    head = {"format": _FORMAT, "version": _VERSION, "step": step, "torch": str(torch.__version__)}
    body = {**head, "sha256": dict(hashes), "state": dict(state)}
    _write(folder / "state.json", json.dumps({**body, "sha256_of_this": _digest(body)}, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is all there is
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _discard(path: Path) -> None:
    """Remove a folder so that no moment shows half of it under its name."""
    if path.exists():
        hidden = path.with_name(f"{_TEMPORARY}old_{path.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _digest(body: Mapping[str, Any]) -> str:
    # Through JSON once, because a tuple or an integer key is not the same after reading.
    plain = json.loads(json.dumps(body))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        body = json.loads((path / "state.json").read_bytes())
    except FileNotFoundError:
        raise _DamagedError("state.json is missing") from None
    except (OSError, ValueError) as error:
        raise _DamagedError(f"state.json cannot be read: {error}") from None
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise InputError(f"{path} was not written by flowmatch; give the folder of a run that was started with it")
    if body.get("version") != _VERSION:
        raise InputError(
            f"{path} has version {body.get('version')} of the format and this flowmatch reads version {_VERSION}; "
            "install the release that wrote it"
        )
    if body.pop("sha256_of_this", None) != _digest(body):
        raise _DamagedError("state.json has changed")
    tensors = {}
    for name, expected in body["sha256"].items():
        try:
            content = (path / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != expected:
                raise _DamagedError(f"{name} has changed")
            tensors[name.removesuffix(".safetensors")] = load(content)
        except FileNotFoundError:
            raise _DamagedError(f"{name} is missing") from None
        except (OSError, SafetensorError) as error:
            raise _DamagedError(f"{name} cannot be read: {error}") from None
    return Checkpoint(path, body["step"], tensors, body["state"])
