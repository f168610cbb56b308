"""Drawing images in parts: what previews, samples and evaluations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flowmatch.flow import Flow
from flowmatch.recipes.images import ImageConfig, painted
from flowmatch.tensors import take

__all__ = ["draw", "on_device", "part_of"]


def draw(
    config: ImageConfig,
    flow: Flow,
    count: int,
    cond: Any,
    how: dict[str, Any],
    *,
    batch: int,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    tick: Callable[[float], Any] | None = None,
) -> Tensor:
    """Samples ``(count, C, H, W)`` on the CPU, as they are used: what is known of an image stays as it was.

    Args:
        config: the run's job.
        flow: the flow.
        count: how many.
        cond: condition of every sample, or ``None``.
        how: how to solve.
        batch: samples solved at a time.
        generator: draws the starts.
        noise: starts to take instead.
        tick: told the share that is done.
    """
    parts = []
    for rows in torch.arange(count).split(batch):
        told = on_device(part_of(cond, rows), flow.home.device)
        if noise is None:
            made = flow.sample(len(rows), told, generator=generator, **how)
        else:
            made = flow.decode(noise[rows].to(flow.home), told, **how)
        parts.append(painted(config, made, told).float().cpu())
        if tick is not None:
            tick((int(rows[-1]) + 1) / count)
    return torch.cat(parts)


def part_of(cond: Any, rows: Tensor) -> Any:
    """Rows of a condition; ``None`` of none."""
    return None if cond is None else take(cond, rows)


def on_device(cond: Any, device: torch.device) -> Any:
    """A condition where the network is; ``None`` stays, which a tree would take for a leaf."""
    return None if cond is None else pytree.tree_map(lambda leaf: leaf.to(device), cond)
