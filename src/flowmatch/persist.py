"""Flows on disc: a readable description and safe tensors, written atomically, never unpickled.

``flow.json`` names the parts (network, path, schedule, source, solver) and the arguments that made them;
``model.safetensors`` holds the weights. Only classes that the package itself makes public can be named, so a
foreign file can build nothing else. The hash of the weights is in the description: a half-written or
exchanged file is told from a good one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from torch import nn

from flowmatch.errors import InputError
from flowmatch.paths import AffinePath

if TYPE_CHECKING:
    from flowmatch.flow import Flow

__all__ = ["load_flow", "save_flow", "write_atomically"]

FORMAT = "flowmatch.flow"
VERSION = 1


def write_atomically(path: FilePath, content: bytes) -> None:
    """Write a file so that at any moment the old or the new content is there, whole.

    Raises:
        OSError: the disc refused; the old file is untouched and no half-written one is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_flow(flow: Flow, folder: FilePath) -> None:
    """Write the flow into ``folder``, which is made if it is not there."""
    tensors = _safetensors()
    weights = {}
    if isinstance(flow.field, nn.Module):
        weights = {name: value.detach().cpu().contiguous() for name, value in flow.field.state_dict().items()}
    content = tensors.save(weights, metadata={"format": "pt"})
    description = {
        "format": FORMAT,
        "version": VERSION,
        "event_shape": list(flow.event_shape),
        "field": _describe(flow.field),
        "path": _describe(flow.path),
        "source": _describe(flow.source),
        "solver": None if flow.solver is None else _describe(flow.solver),
        "weights_sha256": hashlib.sha256(content).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    # The description goes last: it vouches for the weights.
    write_atomically(folder / "model.safetensors", content)
    write_atomically(folder / "flow.json", (json.dumps(description, indent=2) + "\n").encode())


def load_flow(cls: type[Flow], folder: FilePath, field: nn.Module | None) -> Flow:
    """Read a flow back from ``folder``."""
    description = _read_description(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{path} is missing beside flow.json; train again, or copy the whole run folder")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != description["weights_sha256"]:
        raise InputError(
            f"{path} is damaged or belongs to another flow: its hash is not the one in flow.json; "
            "restore it from a copy, or resume the training from checkpoints/"
        )
    weights = _safetensors().load(content)
    network = field if field is not None else _build(description["field"], folder)
    if isinstance(network, nn.Module):
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"the weights in {path} do not fit {type(network).__name__}: {error}") from None
        dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
        if len(dtypes) == 1:
            network.to(dtypes.pop())
            network.load_state_dict(weights)  # again, unrounded
    parts = {name: _build(description[name], folder) for name in ("path", "source", "solver")}
    flow = cls(network, event_shape=tuple(description["event_shape"]), **parts)
    return flow.eval()


def _read_description(folder: FilePath) -> dict[str, Any]:
    path = folder / "flow.json"
    if not path.is_file():
        hint = "the training may not have finished; resume it" if (folder / "checkpoints").is_dir() else "give a run folder"
        raise InputError(f"no flow at {folder}: flow.json is missing; {hint}")
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
    return description


def _describe(part: Any) -> dict[str, Any]:
    """Class and arguments of a part; a part of the user's own is named but cannot be built from the name."""
    kind = type(part)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(part, AffinePath):
        arguments: dict[str, Any] = {"schedule": _describe(part.schedule)}
    elif dataclasses.is_dataclass(part):
        arguments = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    elif hasattr(part, "config"):
        arguments = part.config()
    else:
        arguments = {}
    return {"class": name, "arguments": arguments}


def _build(spec: dict[str, Any] | None, folder: FilePath) -> Any:
    if spec is None:
        return None
    module, _, name = str(spec.get("class")).rpartition(".")
    known = module == "flowmatch" or module.startswith("flowmatch.")
    public = getattr(importlib.import_module(module), "__all__", ()) if known and _is_module(module) else ()
    if name not in public:
        raise InputError(
            f"{folder / 'flow.json'} names {module}.{name}, which flowmatch cannot build; for a network of your own give "
            "it to Flow.load(folder, field=network), other parts of your own have to be set on the loaded flow"
        )
    arguments = {
        key: _build(value, folder) if isinstance(value, dict) and "class" in value else value
        for key, value in spec.get("arguments", {}).items()
    }
    try:
        return getattr(importlib.import_module(module), name)(**arguments)
    except TypeError as error:
        raise InputError(f"{folder / 'flow.json'} holds wrong arguments for {name}: {error}") from None


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise ImportError('saving and loading needs safetensors: pip install "flowmatch[train]"') from None
