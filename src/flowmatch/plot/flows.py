"""Pictures of a flow itself: the paths of points, the field that moves them, the density it ends in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from flowmatch.plot.canvas import (
    INK,
    MUTED,
    SAMPLES,
    Extent,
    Points,
    as_tensor,
    axes_grid,
    clean,
    dot_size,
    plane,
    points,
    view,
)

__all__ = ["density", "field", "trajectories"]

# From the grey of noise to the blue of samples.
TIME: Colormap = LinearSegmentedColormap.from_list("time", ["#c9ccd1", "#8fb8d6", SAMPLES, "#00375a"])
# Without the pale yellow end of viridis, which cannot be seen on white.
SPEED: Colormap = LinearSegmentedColormap.from_list("speed", colormaps["viridis"](np.linspace(0.82, 0.0, 64)))
_CHUNK = 4096


def states(trajectory: Points, times: Points | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A trajectory as an array ``(T, B, D)`` and its times ``(T,)``; equal steps from 0 to 1 if none are given."""
    path = np.asarray(trajectory.detach().cpu().double() if isinstance(trajectory, Tensor) else trajectory, float)
    if path.ndim < 3 or path.shape[0] < 2 or path.shape[1] < 1:
        raise ValueError(f"trajectory must have shape (T, B, *event) with T >= 2, got {path.shape}")
    if not np.isfinite(path).all():
        raise ValueError("trajectory has NaN or infinite entries")
    t = np.linspace(0, 1, len(path)) if times is None else np.asarray(times, dtype=np.float64)
    if t.shape != (len(path),):
        raise ValueError(f"times must have shape ({len(path)},), one a state, got {t.shape}")
    return path.reshape(*path.shape[:2], -1), t


def leading_plane(path: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """States ``(T, B, D)`` in the plane of the two leading principal components of the last state."""
    if path.shape[2] == 2:
        return path, ("", "")
    last = path[-1]
    centre = last.mean(axis=0)
    _, _, axes = np.linalg.svd(last - centre, full_matrices=len(last) < 2)
    share = (last - centre).var(axis=0).sum()
    planar = (path - centre) @ axes[:2].T
    percent = 100 * planar[-1].var(axis=0) / max(share, 1e-300)
    return planar, (f"first component ({percent[0]:.0f} %)", f"second component ({percent[1]:.0f} %)")


def trajectories(trajectory: Points, times: Points | None = None, lines: int = 150) -> Figure:
    """Paths of points from noise (grey) to samples (blue), coloured by time.

    One dimension is drawn against time. Above two, the plane is that of the two leading principal components of the
    samples, and the axes say how much of their variance each holds.

    Args:
        trajectory: states ``(T, B, *event)``, from ``flow.trajectory(...)``.
        times: their times ``(T,)``; by default equal steps from 0 to 1.
        lines: number of paths drawn; the end points of all are.

    Raises:
        ValueError: a shape that is no trajectory, or entries that are NaN or infinite.

    Example:
        >>> start = torch.randn(1, 50, 2)
        >>> figure = trajectories(torch.cat([start, start + 1, start + 3]))
        >>> figure.axes[0].get_aspect()
        1.0
    """
    path, t = states(trajectory, times)
    figure, grid = axes_grid(1, 1, 5.0, 4.6)
    ax = grid[0, 0]
    if path.shape[2] == 1:
        moved = np.concatenate([np.broadcast_to(t[:, None, None], path.shape), path], axis=2)
        clean(ax, "from noise to samples", "time t", "x")
        ax.set_xlim(t[0], t[-1])
        ax.set_ylim(path.min(), path.max())
    else:
        moved, names = leading_plane(path)
        plane(ax, view(moved.reshape(-1, 2), tail=0.001), "from noise to samples", names)
    drawn = moved[:, :lines]
    pieces = np.stack([drawn[:-1], drawn[1:]], axis=2)  # (T - 1, B, 2 ends, 2)
    colour = np.repeat((t[:-1] + t[1:]) / 2, drawn.shape[1])
    scale = Normalize(t[0], t[-1])
    segments = LineCollection(list(pieces.reshape(-1, 2, 2)), cmap=TIME, norm=scale, linewidths=0.7, alpha=0.8)
    segments.set_array(colour)
    segments.set_rasterized(True)
    ax.add_collection(segments)
    size = dot_size(path.shape[1]) * 0.5
    ax.scatter(*moved[0].T, s=size, color="#a4a9b1", linewidths=0, zorder=2)
    ax.scatter(*moved[-1].T, s=size, color=SAMPLES, linewidths=0, zorder=3)
    _bar(figure, ax, scale, TIME, "time t")
    return figure


def field(
    field_fn: Callable[[Tensor, Tensor], Tensor],
    t: float | Sequence[float],
    extent: Extent,
    arrows: int = 22,
) -> Figure:
    """Arrows of a velocity field in the plane, one panel a time, coloured by speed.

    Args:
        field_fn: velocity ``(t, x) -> (B, 2)``, called with ``t`` of shape ``(B,)`` and ``x`` of shape ``(B, 2)``.
        t: a time, or a list of times.
        extent: window ``(left, right, bottom, top)``.
        arrows: number of arrows along each side.

    Raises:
        ValueError: no time, or a field that does not return ``(B, 2)``.

    Example:
        >>> figure = field(lambda t, x: -x, [0.0, 0.5], extent=(-1, 1, -1, 1))
        >>> [ax.get_title(loc="left") for ax in figure.axes[:2]]
        ['t = 0', 't = 0.5']
    """
    times = [float(t)] if isinstance(t, int | float) else [float(v) for v in t]
    if not times:
        raise ValueError("field needs at least one time")
    places = _lattice(extent, arrows)
    x = as_tensor(places)
    with torch.no_grad():
        arrays = [points(field_fn(torch.full((len(x),), v), x), "the field", dim=2) for v in times]
    # One length and one colour scale for all panels, and a few arrows near a singular end must not shrink the rest.
    speeds = [np.linalg.norm(v, axis=1) for v in arrays]
    fast = max(float(np.quantile(np.concatenate(speeds), 0.98)), 1e-12)
    step = (extent[1] - extent[0]) / arrows
    figure, grid = axes_grid(1, len(times), 3.6, 3.8)
    scale = Normalize(0, fast)
    for ax, v, speed, when in zip(grid[0], arrays, speeds, times, strict=True):
        # Short arrows grow with the root of the speed, so that slow regions still show their direction.
        length = step * 0.95 * np.sqrt(np.minimum(speed / fast, 1.0))
        arrow = v * (length / np.maximum(speed, 1e-12))[:, None]
        look = {"width": 0.005, "headwidth": 3.5, "headlength": 4.0, "minlength": 0.3}
        ax.quiver(*places.T, *arrow.T, speed, cmap=SPEED, norm=scale, angles="xy", scale_units="xy", scale=1, **look)
        plane(ax, extent, f"t = {when:.3g}")
    _bar(figure, list(grid[0]), scale, SPEED, "speed")
    return figure


def density(
    log_prob_fn: Callable[[Tensor], Tensor],
    extent: Extent,
    cells: int = 120,
    samples: Points | None = None,
    title: str = "density",
    names: Sequence[str] | None = None,
) -> Figure:
    """Heat map of a density in the plane, and points upon it.

    Args:
        log_prob_fn: log-density in nats ``(B, 2) -> (B,)``, called on 4096 points at a time.
        extent: window ``(left, right, bottom, top)``.
        cells: number of cells along each side.
        samples: points drawn upon the map.
        title: title of the picture.
        names: names of the two axes.

    Raises:
        ValueError: log-densities of a wrong shape, or NaN.

    Example:
        >>> figure = density(lambda x: -x.square().sum(1), extent=(-2, 2, -2, 2), cells=20)
        >>> figure.axes[0].images[0].get_array().shape
        (20, 20)
    """
    places = as_tensor(_lattice(extent, cells))
    with torch.no_grad():
        values = torch.cat([log_prob_fn(part).reshape(len(part)) for part in places.split(_CHUNK)])
    if values.isnan().any():
        raise ValueError(f"the log-density is NaN at {int(values.isnan().sum())} of {len(values)} points")
    heat = values.double().exp().cpu().numpy().reshape(cells, cells)
    figure, grid = axes_grid(1, 1, 5.0, 4.4)
    ax = grid[0, 0]
    # A thin ridge may be far above the rest; the colours end where a two-thousandth of the cells begins.
    scale = Normalize(0, float(np.quantile(heat, 0.9995)) or 1.0)
    ax.imshow(heat, extent=extent, origin="lower", cmap="magma", norm=scale, interpolation="bilinear", aspect="auto")
    if samples is not None:
        cloud = points(samples, "samples", dim=2)
        ax.scatter(*cloud.T, s=dot_size(len(cloud)) * 0.4, color="white", alpha=0.5, linewidths=0)
    plane(ax, extent, title, names)
    _bar(figure, ax, scale, "magma", "density")
    return figure


def _lattice(extent: Extent, count: int) -> NDArray[np.float64]:
    """Centres ``(count^2, 2)`` of square cells, row by row from the bottom."""
    left, right, bottom, top = extent
    if not (left < right and bottom < top) or count < 1:
        raise ValueError(f"extent must be (left, right, bottom, top) with left < right and bottom < top, got {extent}")
    middle = (np.arange(count) + 0.5) / count
    x, y = np.meshgrid(left + (right - left) * middle, bottom + (top - bottom) * middle)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _bar(figure: Figure, ax: Axes | list[Axes], scale: Normalize, colours: Colormap | str, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=ax, shrink=0.8, aspect=28, pad=0.02)
    bar.locator = MaxNLocator(5)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=8, length=2)
    bar.outline.set_visible(False)
