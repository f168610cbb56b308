"""How far an export is from the flow: its velocities and its samples, on inputs drawn from a fixed seed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmatch.flow import Flow
from flowmatch.nn import MLP
from flowmatch.nn.images import ImageNetwork
from flowmatch.randomness import rand, randint, randn
from flowmatch.solvers import Euler

__all__ = ["Exported", "compare", "example_condition", "inner_network", "single_precision"]

#: Share of the largest number by which an export may differ from the flow: rounding is a hundredth of it.
TOLERANCE = 1e-3

ROWS, STEPS = 3, 4


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the flow.

    Attributes:
        path: the folder or file.
        velocity: largest difference of a velocity, on random inputs.
        sample: largest difference of a sample after four Euler steps from the same noise.
    """

    path: Path
    velocity: float
    sample: float


def inner_network(field: Any) -> Any:
    """The network inside wrappers of fields, such as guidance."""
    while not isinstance(field, ImageNetwork | MLP):
        inner = getattr(field, "field", None) or getattr(field, "net", None)
        if inner is None:
            break
        field = inner
    return field


def example_condition(field: Any, count: int, generator: torch.Generator) -> Any:
    """A condition that a field over a network of ours takes, drawn at random; ``None`` for one without."""
    net = inner_network(field)
    if isinstance(net, MLP):
        if net.classes:
            return randint(net.classes, (count,), generator)
        return randn((count, net.cond_dim), generator) if net.cond_dim else None
    if not isinstance(net, ImageNetwork):
        return None
    _, height, width = net.shape
    drawn = {
        "image": randn((count, max(1, net.image), height, width), generator),
        "mask": rand((count, 1, height, width), generator) < 0.5,
        "noise": rand((count,), generator),
        "label": randint(net.classes + 1, (count,), generator),
    }
    used = {"image": net.image, "mask": net.mask, "noise": net.noise, "label": net.classes}
    told = {name: value for name, value in drawn.items() if used[name]}
    return (told if net.image else told["label"]) if told else None


def single_precision(flow: Flow) -> Flow:
    """A copy of the flow in float32, for use."""
    with warnings.catch_warnings():
        # A copy of guidance copies the form of its null, for which torch has an opinion on how to ask.
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(flow).cpu().float().eval()


@torch.no_grad()
def compare(
    flow: Flow,
    cond: Any,
    velocity: Callable[[Tensor, Tensor], Tensor],
    sample: Callable[[Tensor, list[float]], Tensor],
    span: tuple[float, float],
    field: Any = None,
) -> tuple[float, float]:
    """Largest differences of the velocity, and of samples after four Euler steps.

    Args:
        flow: the flow, in single precision.
        cond: conditions of three rows.
        velocity: the export's, ``(t, x) -> (B, *event)``.
        sample: the export's steps along a grid, ``(x0, grid) -> (B, *event)``.
        span: where the steps begin and end.
        field: what ``velocity`` is an export of, if not the flow's whole field.

    Raises:
        RuntimeError: they are not rounding.
    """
    generator = torch.Generator().manual_seed(0)
    low, high = span
    t, x = low + (high - low) * rand((ROWS,), generator), flow.start(ROWS, generator)
    told = () if cond is None else (cond,)
    ours, theirs = (flow.field if field is None else field)(t, x, *told), velocity(t, x)
    grid = [low + (high - low) * step / STEPS for step in range(STEPS + 1)]
    made = flow.decode(x, cond, solver=Euler(), grid=torch.tensor(grid, dtype=torch.float64))
    found = []
    for what, right, wrong in (("velocities", ours, theirs), ("samples", made, sample(x, grid))):
        difference = float((right - wrong).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(right.abs().max())):
            raise RuntimeError(
                f"the export is not the flow: its {what} differ by {difference:.2g}; nothing was written"
            )
        found.append(difference)
    return found[0], found[1]
