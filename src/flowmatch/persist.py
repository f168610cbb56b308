"""Flows on disc: a readable description and safe tensors, written atomically, never unpickled.

``flow.json`` names the parts (network, path, schedule, source, solvers) and the arguments that made them;
``model.safetensors`` holds the weights. A name is looked up among the public classes of the one room that its part
comes from; it is never imported and no function is ever called, so a foreign file can build nothing else. A part that
is code of the user's own (a formula, a network) is named but not stored, and is given again on loading.

**Two files, one moment.** The description holds the hash of the weights, so a half-written or exchanged file is told
from a good one. While the pair is being exchanged the weights that the old description vouches for stay beside the
new ones, as ``model.previous.safetensors``; whichever file the description vouches for is the one that is read. So at
every moment, whatever stops the save, the folder holds a whole flow: the old one until the last step, then the new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import os
from pathlib import Path as FilePath
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import flowmatch.nn
from flowmatch import fields, paths, schedules, solvers, sources
from flowmatch.errors import InputError
from flowmatch.paths import Path
from flowmatch.schedules import Schedule
from flowmatch.solvers import Learned, Solver

if TYPE_CHECKING:
    from flowmatch.flow import Flow

__all__ = ["load_flow", "save_flow", "write_atomically"]

FORMAT = "flowmatch.flow"
VERSION = 1
DESCRIPTION, WEIGHTS, PREVIOUS = "flow.json", "model.safetensors", "model.previous.safetensors"

#: The rooms whose public classes a part may be, and what it must be.
ROOMS: dict[str, tuple[tuple[ModuleType, ...], type]] = {
    "field": ((flowmatch.nn, fields), nn.Module),
    "path": ((paths,), Path),
    "schedule": ((schedules,), Schedule),
    "source": ((sources,), object),
    "solver": ((solvers,), Solver),
}

#: Arguments of a part that are parts themselves, and which.
NESTED = {"net": "field", "field": "field", "model": "field", "first": "field", "second": "field"}
NESTED |= {"weak": "field", "path": "path", "path_from": "path", "path_to": "path", "schedule": "schedule"}
NESTED |= {"solver": "solver"}


def write_atomically(path: FilePath, content: bytes) -> None:
    """Write a file so that at any moment the old or the new content is there, whole.

    Raises:
        OSError: the disc refused; the old file is untouched and no half-written one is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_through(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_flow(flow: Flow, folder: FilePath) -> None:
    """Write the flow into ``folder``, which is made if it is not there."""
    weights = {}
    if isinstance(flow.field, nn.Module):
        # Copies, since two names of one tensor (tied weights) may not share memory in the file.
        weights = {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in flow.field.state_dict().items()
        }
    content = _safetensors().save(weights, metadata={"format": "pt"})
    description = {
        "format": FORMAT,
        "version": VERSION,
        "event_shape": list(flow.event_shape),
        "field": _describe(flow.field, "field"),
        "path": _describe(flow.path, "path"),
        "source": _describe(flow.source, "source"),
        "solver": None if flow.solver is None else _describe(flow.solver, "solver"),
        "independent": flow.independent,
        "tuned": {str(nfe): _describe(solver, "solver") for nfe, solver in sorted(flow.tuned.items())},
        "weights_sha256": _hash(content),
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS}.{os.getpid()}.tmp"
    try:
        _write_through(temporary, content)  # a full disc is met here, before anything is touched
        if (folder / WEIGHTS).is_file() and _hash((folder / WEIGHTS).read_bytes()) == _vouched(folder):
            os.replace(folder / WEIGHTS, folder / PREVIOUS)
        os.replace(temporary, folder / WEIGHTS)
    finally:
        temporary.unlink(missing_ok=True)
    write_atomically(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())
    (folder / PREVIOUS).unlink(missing_ok=True)


def load_flow(cls: type[Flow], folder: FilePath, **given: Any) -> Flow:
    """Read a flow back from ``folder``; parts in ``given`` that are not ``None`` stand in for those it names."""
    description = _read_description(folder)
    weights = _read_weights(folder, description["weights_sha256"])
    parts = {
        name: _build(description[name], name, folder) if given.get(name) is None else given[name]
        for name in ("field", "path", "source", "solver")
    }
    network = parts["field"]
    if isinstance(network, nn.Module):
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"the weights in {folder} do not fit {type(network).__name__}: {error}") from None
        trained = {name for name, _ in network.named_parameters()}
        dtypes = {value.dtype for name, value in weights.items() if name in trained and value.is_floating_point()}
        if len(dtypes) == 1:
            network.to(dtypes.pop())
            network.load_state_dict(weights)  # again, unrounded
    # Folders of before noise could be added do not say how pairs were made, and noise would be wrong with some.
    independent = description.get("independent", False)
    flow = cls(event_shape=tuple(description["event_shape"]), independent=bool(independent), **parts).eval()
    flow.tuned = _build_tuned(description.get("tuned", {}), folder)
    return flow


def _read_description(folder: FilePath) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        hint = (
            "the training may not have finished; resume it"
            if (folder / "checkpoints").is_dir()
            else "give a run folder"
        )
        raise InputError(f"no flow at {folder}: {DESCRIPTION} is missing; {hint}")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from a copy or train again") from None
    needed = {"event_shape", "field", "path", "source", "solver", "weights_sha256"}
    if not isinstance(description, dict) or description.get("format") != FORMAT or not needed <= description.keys():
        raise InputError(f"{path} was not written by flowmatch; give the folder of a flowmatch run")
    if description.get("version") != VERSION:
        raise InputError(
            f"{path} has version {description.get('version')}, this flowmatch reads {VERSION}; "
            "use the flowmatch that wrote it, or train again"
        )
    shape = description["event_shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise InputError(f"{path} is damaged: event_shape is {shape!r}, not a list of sizes; restore it from a copy")
    return description


def _read_weights(folder: FilePath, wanted: str) -> dict[str, torch.Tensor]:
    tensors = _safetensors()
    for path in (folder / WEIGHTS, folder / PREVIOUS):
        if path.is_file() and _hash(content := path.read_bytes()) == wanted:
            try:
                weights: dict[str, torch.Tensor] = tensors.load(content)
            except importlib.import_module("safetensors").SafetensorError as error:
                raise InputError(f"{path} is no safetensors file ({error}); restore it from a copy") from None
            return weights
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder / WEIGHTS} is missing beside {DESCRIPTION}; train again, or copy the whole run folder"
        )
    raise InputError(
        f"{folder / WEIGHTS} is damaged or belongs to another flow: its hash is not the one in {DESCRIPTION}; "
        "restore it from a copy, or resume the training from checkpoints/"
    )


def _public(part: str) -> dict[str, type]:
    """Classes that a file may name for a part, by their public names."""
    rooms, base = ROOMS[part]
    kinds = {f"{room.__name__}.{name}": getattr(room, name) for room in rooms for name in room.__all__}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, base)}


def _describe(value: Any, part: str) -> dict[str, Any]:
    """Public name and arguments; what is not ours is named for the reader, without arguments."""
    kind = type(value)
    for name, known in _public(part).items():
        if known is kind:
            return {"class": name, "arguments": _arguments(value)}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": None}


def _arguments(value: Any) -> dict[str, Any] | None:
    """What makes a part of ours again; ``None`` for one that holds the user's functions or data."""
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    config = getattr(value, "config", None)
    if not callable(config):
        return None
    arguments: dict[str, Any] | None = config()
    if arguments is None:
        return None
    return {name: _describe(part, NESTED[name]) if name in NESTED else part for name, part in arguments.items()}


def _build(spec: Any, part: str, folder: FilePath, slot: str | None = None) -> Any:
    """Make a part from its description; ``slot`` is the part of the flow that it lies in."""
    slot = slot or part
    if spec is None and part == "solver":
        return None
    name, arguments = (spec.get("class"), spec.get("arguments")) if isinstance(spec, dict) else (spec, None)
    kind = _public(part).get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(arguments, dict):
        raise InputError(
            f"{folder / DESCRIPTION} names {name!r} as the {part}, which flowmatch cannot build from the file; if it "
            f"is code of your own, make it and give it with Flow.load(folder, {slot}=...)"
        )
    nested = [argument for argument in inspect.signature(kind).parameters if argument in NESTED]
    arguments |= {argument: _build(arguments.get(argument), NESTED[argument], folder, slot) for argument in nested}
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder / DESCRIPTION} holds wrong arguments for {name}: {error}") from None


def _build_tuned(specs: Any, folder: FilePath) -> dict[int, Learned]:
    """Solvers that were tuned to the flow; folders of before there were any have none."""
    broken = 'restore it from a copy, or remove its "tuned" and tune again'
    if not isinstance(specs, dict):
        raise InputError(f"{folder / DESCRIPTION} is damaged: what it names as tuned is no list of solvers; {broken}")
    tuned = {}
    for nfe, spec in specs.items():
        if isinstance(spec, dict) and spec.get("arguments", ()) is None:
            continue  # of a class of the user's own: named, not stored
        try:
            solver = _build(spec, "solver", folder)
        except InputError as error:
            raise InputError(f"a tuned solver cannot be read: {error}") from None
        if not isinstance(solver, Learned) or str(solver.nfe) != nfe:
            raise InputError(f"{folder / DESCRIPTION} is damaged: what it names as tuned to {nfe} is not; {broken}")
        tuned[solver.nfe] = solver
    return tuned


def _vouched(folder: FilePath) -> str | None:
    """Hash of the weights that the description in ``folder`` belongs to."""
    try:
        vouched: str = json.loads((folder / DESCRIPTION).read_bytes())["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return vouched


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_through(path: FilePath, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise ImportError('saving and loading needs safetensors: pip install "flowmatch[train]"') from None
