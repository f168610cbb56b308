"""State of the optimiser and of the random generators as named tensors, and back.

PyTorch numbers the optimiser's state by the order of the parameters, so that a reordered model would load another
weight's moments without a word. Here it goes by the parameter's name, as a whole: a sharded state is gathered, so that
it can be read by another number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowmatch.train.checkpoint import check_fit
from flowmatch.train.data import mix
from flowmatch.train.shards import fill, gathered, is_sharded, shard_like

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["load_model", "load_optimizer", "load_rng", "model_tensors", "optimizer_tensors", "rng_tensors", "seed_rng"]

_RANK = 4  # purpose of a seed, see data.py: the generators of a process that starts or joins a run

_SCALAR = torch.zeros(())  # shape and type of AdamW's counter of steps


def model_tensors(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; wholes, so that all processes call it for a sharded model.

    Args:
        model: the model.
        keep: whether this process needs them.

    Raises:
        TypeError: the model keeps something else in its state, which could be saved by pickle alone.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"the state of the model must be tensors, got {type(value).__name__} under {name}")
    return gathered(state, keep)


def load_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`model_tensors` gave."""
    if any(is_sharded(weight) for weight in model.parameters()):
        fill(model.state_dict(), tensors)
    else:
        model.load_state_dict(tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str], keep: bool = True) -> dict[str, Tensor]:
    """State of ``optimizer``, whose parameters are called ``names``, as ``{"weight.exp_avg": ...}``; wholes."""
    states: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return gathered({f"{names[i]}.{slot}": value for i, slots in states.items() for slot, value in slots.items()}, keep)


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor], where: Path
) -> None:
    """Put back what :func:`optimizer_tensors` gave.

    Raises:
        InputError: names, shapes or types differ from those of the parameters.
    """
    parameters = dict(
        zip(names, (weight for group in optimizer.param_groups for weight in group["params"]), strict=True)
    )
    # A parameter that never had a gradient has no state.
    seen = {name: like for name, like in parameters.items() if f"{name}.step" in tensors}
    slots = ("step", "exp_avg", "exp_avg_sq")
    expected = {f"{name}.{slot}": _SCALAR if slot == "step" else seen[name] for name in seen for slot in slots}
    check_fit(tensors, expected, "optimiser", where)
    state: dict[int, dict[str, Any]] = {
        i: {slot: shard_like(tensors[f"{name}.{slot}"], expected[f"{name}.{slot}"]) for slot in slots}
        for i, name in enumerate(names)
        if name in seen
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def rng_tensors(accelerator: Accelerator) -> dict[str, Tensor]:
    """States of PyTorch's global generators, which dropout uses, one row a process; call it on all of them."""
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return {name: accelerator.gather(state[None].to(accelerator.device)) for name, state in states.items()}


def seed_rng(accelerator: Accelerator, seed: int, step: int) -> None:
    """Seed this process's global generators by the run, the step and its number, so that no two share their masks."""
    start = mix(seed, _RANK, step, accelerator.process_index)
    torch.set_rng_state(torch.Generator().manual_seed(start).get_state())
    if accelerator.device.type == "cuda":
        state = torch.Generator(accelerator.device).manual_seed(start).get_state()
        torch.cuda.set_rng_state(state, accelerator.device)


def load_rng(accelerator: Accelerator, tensors: Mapping[str, Tensor], seed: int, step: int) -> None:
    """Put back this process's states; one that was not there before is seeded by the run, the step and its number."""
    rank = accelerator.process_index
    seed_rng(accelerator, seed, step)
    if rank >= len(tensors["cpu"]):
        return
    # Cloned, because torch reads a state as if it lay at the aligned start of its memory: a row of a larger tensor,
    # which is a view, ends the process with a segmentation fault (torch 2.13).
    torch.set_rng_state(tensors["cpu"][rank].clone())
    if accelerator.device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"][rank].clone(), accelerator.device)
