"""A flow's velocity as an ONNX file, for onnxruntime and whatever else reads that format.

The file holds the whole field, wrappers included: guidance with its strength, a change of output with its schedule. Its
inputs are ``t`` ``(B,)``, ``x`` ``(B, *event)`` and what the field is told: ``label`` ``(B,)``, ``cond``
``(B, cond_dim)``, or the keys of a dict. The batch is free, everything is float32. What else is needed to sample is in
the file's metadata: where time begins and ends, the source, the classes, and for a table the columns.

torch follows the field on a batch of three, since a batch of one would be taken for fixed. Sizes that a network treats
apart (diffusers' U-Net takes 64 images and more in another memory format) bound what torch vouches for, but not the
file; tests run batches of 1 and of 100.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flowmatch
from flowmatch.errors import InputError
from flowmatch.export.card import check_license, onnx_card
from flowmatch.export.compare import ROWS, Exported, compare, example_condition, inner_network, single_precision
from flowmatch.export.facts import Facts
from flowmatch.export.folder import fresh_folder
from flowmatch.flow import Flow
from flowmatch.persist import write_atomically
from flowmatch.randomness import rand

__all__ = ["to_onnx"]

#: Bytes of weights from which on they do not fit into the file itself.
LARGE = 1_900_000_000

NAME = "model.onnx"


def to_onnx(
    flow: Flow,
    target: str | Path,
    *,
    cond: Any = None,
    facts: Facts | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the flow's velocity as an ONNX file.

    Args:
        flow: the flow; its field must be a module.
        target: a file ``NAME.onnx``, or a folder, which then holds ``model.onnx`` and a model card.
        cond: an example of the condition, of three rows at least: a tensor, or a dict of tensors that become inputs by
            name. Only needed for a network that is not one of :mod:`flowmatch.nn`.
        facts: what the metadata and the model card say of the run, see :func:`~flowmatch.export.run_facts`.
        license: the licence that the card names; it is yours to choose.
        overwrite: whether an earlier export may be replaced.

    Returns:
        Where it lies, and the largest differences found when onnxruntime ran it.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed, or torch is older than 2.6.
        InputError: a field that torch cannot follow, a target that holds something else, or a licence that is no
            identifier.
    """
    _check_installed()
    check_license(license)
    target, facts = Path(target), facts or Facts()
    if not isinstance(flow.field, nn.Module):
        raise InputError("the field of this flow is a function; make it an nn.Module to export it")
    single = single_precision(flow)
    told = _sample_condition(single.field, cond)
    large = sum(value.numel() * value.element_size() for value in single.field.state_dict().values()) > LARGE
    if large and target.suffix == ".onnx":
        raise InputError(f"the weights are too large for one file {target.name}; give a folder")
    with _target(target, overwrite) as file:
        program = _program(single, told)
        program.model.metadata_props.update(_metadata(flow, facts))
        # A protocol buffer holds two gigabytes; weights of more go into a file beside it.
        program.save(file, external_data=large)
        found = _compare(single, told, file)
        if file.name == NAME:
            card = onnx_card(target.resolve().name, _inputs(single, told), flow, facts, license)
            write_atomically(file.with_name("README.md"), card.encode())
    return Exported(target, *found)


class _Called(nn.Module):
    """The field with its condition as a tuple of tensors."""

    def __init__(self, field: nn.Module, keys: list[str] | None) -> None:
        super().__init__()
        self.field, self.keys = field, keys

    def forward(self, t: Tensor, x: Tensor, told: tuple[Tensor, ...]) -> Tensor:
        if not told:
            velocity: Tensor = self.field(t, x)
        else:
            velocity = self.field(t, x, told[0] if self.keys is None else dict(zip(self.keys, told, strict=True)))
        return velocity


def _sample_condition(field: nn.Module, cond: Any) -> Any:
    """A condition of as many rows as the comparison has: that of the user, or one that is drawn."""
    if cond is None:
        return example_condition(field, ROWS, torch.Generator().manual_seed(1))
    parts = list(cond.values()) if isinstance(cond, Mapping) else [cond]
    if not parts or not all(isinstance(part, Tensor) and part.ndim and len(part) >= ROWS for part in parts):
        raise InputError(f"cond must be a tensor or a dict of tensors, of {ROWS} rows at least, as an example")
    rows: dict[str, Tensor] = {key: _single(part[:ROWS]) for key, part in _named(cond).items()}
    return rows if isinstance(cond, Mapping) else next(iter(rows.values()))


def _single(x: Tensor) -> Tensor:
    return x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu()


def _named(cond: Any) -> dict[str, Tensor]:
    """Inputs beside ``t`` and ``x``, by name."""
    if cond is None:
        return {}
    return dict(cond) if isinstance(cond, Mapping) else {"cond" if cond.is_floating_point() else "label": cond}


def _program(flow: Flow, cond: Any) -> Any:
    """What torch makes of the field: an ONNX program with a free batch."""
    named = _named(cond)
    generator = torch.Generator().manual_seed(2)
    told = tuple(named.values())
    inputs = (rand((ROWS,), generator), flow.start(ROWS, generator), told)
    called = _Called(flow.field, list(named) if isinstance(cond, Mapping) else None).eval()
    free = {0: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.no_grad():
        try:
            followed = torch.export.export(
                called, inputs, dynamic_shapes=(free, free, tuple(free for _ in told)), strict=False
            )
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(
                f"torch cannot follow {type(flow.field).__name__} to export it: {reason.strip()}; see where with "
                "torch.export.export, often a branch that looks at the values of a tensor"
            ) from error
        program: Any = torch.onnx.export(
            followed, (), input_names=["t", "x", *named], output_names=["velocity"], dynamo=True, verbose=False
        )
    batch = importlib.import_module("onnx_ir").SymbolicDim("batch")
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        value.shape = type(value.shape)([batch, *list(value.shape)[1:]])
    return program


def _compare(flow: Flow, cond: Any, file: Path) -> tuple[float, float]:
    """Open the file with onnxruntime, and hold it against the flow."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # more would wait for each other longer than this work takes
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    told = {key: value.numpy() for key, value in _named(cond).items()}

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["velocity"], {"t": t.numpy(), "x": x.numpy(), **told})[0])

    def sample(x: Tensor, grid: list[float]) -> Tensor:
        for t, until in zip(grid, grid[1:], strict=False):
            x = x + (until - t) * velocity(torch.full((len(x),), t), x)
        return x

    return compare(flow, cond, velocity, sample, flow.path.interval)


def _metadata(flow: Flow, facts: Facts) -> dict[str, str]:
    """What is needed to sample beside the velocity, as text."""
    net = inner_network(flow.field)
    low, high = flow.path.interval
    told: dict[str, Any] = {
        "event_shape": list(flow.event_shape),
        "interval": [low, high],
        "classes": getattr(net, "classes", 0),
        "class_names": list(facts.classes),
    }
    if getattr(net, "null", None) is not None:
        told["null"] = net.null
    if facts.codec is not None:
        told["columns"] = [{key: c[key] for key in ("name", "mean", "std", "span")} for c in facts.codec["columns"]]
    text = {"flowmatch": flowmatch.__version__, "path": repr(flow.path), "source": repr(flow.source)}
    return text | {key: json.dumps(value) for key, value in told.items()}


def _inputs(flow: Flow, cond: Any) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Type and shape without the batch of each input, by name."""
    every = {"t": torch.zeros(1), "x": torch.zeros(1, *flow.event_shape), **_named(cond)}
    kinds = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}
    return {
        name: (kinds.get(value.dtype, str(value.dtype)[6:]), tuple(value.shape[1:])) for name, value in every.items()
    }


@contextmanager
def _target(target: Path, overwrite: bool) -> Iterator[Path]:
    """A file to write, which takes its place if all goes well: ``model.onnx`` of a folder, or the file itself."""
    if target.suffix != ".onnx":
        with fresh_folder(target, overwrite) as folder:
            yield folder / NAME
        return
    if target.exists() and not (overwrite and target.is_file()):
        raise InputError(f"{target} exists already; give another name or --overwrite")
    if not target.parent.is_dir():
        raise InputError(f"no folder {target.parent} to write {target.name} into; make it first")
    draft = target.with_name(f".{target.stem}.{os.getpid()}.onnx")
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter tells of its own workings; whether it worked is seen by comparing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_installed() -> None:
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError:
        raise ImportError(
            'export to ONNX needs onnx, onnxscript and onnxruntime: pip install "flowmatch[onnx]"'
        ) from None
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        raise ImportError(f"export to ONNX needs torch 2.6 or newer, this is {torch.__version__}")
