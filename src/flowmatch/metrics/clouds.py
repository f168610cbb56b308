"""What every distance between two samples needs first: two clean matrices of one width.

Metrics take what the user has, a tensor or an array, with any event shape, and give back a plain
float. They work in float32 at least, on the device of the first sample, and keep no graph.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmatch.randomness import randperm
from flowmatch.tensors import check_finite, time_dtype

__all__ = ["Cloud", "clouds", "subset"]

Cloud: TypeAlias = "Tensor | NDArray[Any]"
"""A sample of shape ``(N, *event)``."""


def clouds(x: Cloud, y: Cloud, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two samples as matrices ``(N, D)`` and ``(M, D)`` of one type and device.

    Args:
        x: first sample, ``(N, *event)``.
        y: second sample, ``(M, *event)``.
        least: fewest rows that the metric can use.

    Raises:
        ValueError: two event shapes, too few rows, or entries that are NaN or infinite.
    """
    first, second = (torch.as_tensor(v).detach() for v in (x, y))
    for name, v in (("x", first), ("y", second)):
        if v.ndim == 0 or v.shape[0] < least:
            raise ValueError(f"{name} must have at least {least} rows, got shape {tuple(v.shape)}")
        check_finite(v, name)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"x and y must have rows of one shape, got {tuple(first.shape[1:])} and {tuple(second.shape[1:])}"
        )
    dtype = time_dtype(torch.promote_types(first.dtype, second.dtype))
    return _matrix(first, dtype, first.device), _matrix(second, dtype, first.device)


def _matrix(v: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return v.to(device=device, dtype=dtype).reshape(v.shape[0], -1)


def subset(x: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """At most ``rows`` rows of ``x``, drawn without replacement; all of them, untouched, if they are few."""
    if x.shape[0] <= rows:
        return x
    return x[randperm(x.shape[0], generator, x.device)[:rows]]
