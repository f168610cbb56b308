"""What all pictures share: colours, clean axes, and points as arrays.

Two colours mean two things everywhere: orange is data, blue is what a flow made. They are taken from the palette of
Okabe and Ito, which people with any colour vision can tell apart; fields of values use perceptually even maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DATA", "INK", "MUTED", "SAMPLES", "Extent", "Points", "axes_grid", "clean", "plane", "points", "view"]

DATA = "#D55E00"
SAMPLES = "#0072B2"

# Columns with units of their own, say age and income, may have ranges a thousand times apart.
_STRIP = 4.0

INK = "#26292e"
MUTED = "#7a808a"

Points: TypeAlias = "Tensor | NDArray[Any]"
"""Rows of numbers ``(N, D)``."""

Extent: TypeAlias = "tuple[float, float, float, float]"
"""Part of the plane: left, right, bottom, top."""

Grid: TypeAlias = "NDArray[Any]"


def points(x: Points, name: str = "x", dim: int | None = None) -> NDArray[np.float64]:
    """Rows as a float64 array ``(N, D)``, flattened over the event; raises for NaN, infinity or no rows.

    Raises:
        ValueError: nothing to draw, another width than ``dim``, or entries that are NaN or infinite.
    """
    array = np.asarray(x.detach().cpu().double() if isinstance(x, Tensor) else x, dtype=np.float64)
    if array.ndim < 2 or len(array) == 0 or (dim is not None and array[0].size != dim):
        want = "(N, D)" if dim is None else f"(N, {dim})"
        raise ValueError(f"{name} must have shape {want} with at least one row, got {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array.reshape(len(array), -1))).any(1).sum())
        raise ValueError(f"{name} has {bad} rows with NaN or infinite entries; drop them and say so in the title")
    return array.reshape(len(array), -1)


def view(*clouds: NDArray[np.float64], margin: float = 0.08, tail: float = 0.005) -> Extent:
    """A window on the plane that holds all but the tails of the first cloud, the reference.

    Far outliers of a bad sample must not shrink the picture to a dot. A reference of few rows does not know its own
    tails, so there all clouds count.
    """
    reference = clouds[0] if len(clouds) == 1 or len(clouds[0]) >= 200 else np.concatenate(clouds)
    low, high = np.quantile(reference, tail, axis=0), np.quantile(reference, 1 - tail, axis=0)
    pad = np.maximum((high - low) * margin, 1e-9 + 1e-6 * np.abs(high))
    low, high = low - pad, high + pad
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def axes_grid(rows: int, cols: int, width: float, height: float, **options: Any) -> tuple[Figure, Grid]:
    """A figure of ``rows`` by ``cols`` axes, ``width`` by ``height`` inches each."""
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)
    figure = Figure(figsize=(cols * width, rows * height), dpi=130, layout=layout, facecolor="white")
    return figure, np.asarray(figure.subplots(rows, cols, squeeze=False, **options))


def clean(ax: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Thin axes, small ticks and a title on the left."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
        ax.spines[side].set_linewidth(0.8)
    ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=8, width=0.8, length=3)
    if title:
        ax.set_title(title, fontsize=10, color=INK, loc="left")
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)


def plane(ax: Axes, extent: Extent, title: str = "", names: Sequence[str] | None = None) -> None:
    """Axes of a plane, with equal units both ways, or in a square box if that would make a strip of it."""
    clean(ax, title, *(names or ("", "")))
    ax.set_xlim(extent[0], extent[1])
    ax.set_ylim(extent[2], extent[3])
    ratio = (extent[1] - extent[0]) / (extent[3] - extent[2])
    if 1 / _STRIP < ratio < _STRIP:
        ax.set_aspect("equal", adjustable="box")
    else:
        ax.set_aspect("auto")
        ax.set_box_aspect(1)
    ax.locator_params(nbins=5)


def dot_size(n: int) -> float:
    """Area of a dot, in square points, that keeps ``n`` of them apart on a panel of three inches."""
    return float(np.clip(6000 / max(n, 1), 1.5, 14))


def fixed(seed: int = 0) -> np.random.Generator:
    """Randomness of the picture alone, such as which rows are shown: the same in every call."""
    return np.random.default_rng(seed)


def as_tensor(x: NDArray[np.float64]) -> Tensor:
    """Points of a picture as a float32 tensor, for a field or a density to look at."""
    return torch.from_numpy(np.ascontiguousarray(x)).float()
