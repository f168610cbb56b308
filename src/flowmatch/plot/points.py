"""Pictures of points: samples beside data, and pairs of columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flowmatch.plot.canvas import (
    DATA,
    INK,
    SAMPLES,
    Extent,
    Points,
    axes_grid,
    clean,
    dot_size,
    fixed,
    plane,
    points,
    view,
)

__all__ = ["pairs", "samples"]

# Above so many points dots melt together, and a histogram shows more.
_DOTS = 8000
# Pairs of columns: more than six make cells too small to read; more dots than this hide each other.
_MOST_PAIRS = 6
_PAIR_DOTS = 1000


def samples(
    x: Points,
    data: Points | None = None,
    extent: Extent | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Samples in the plane, and data on the same axes beside them.

    Up to 8000 points are drawn as dots. If both have more, histograms are drawn; if one has, 8000 of it. What falls
    outside the window is counted in the title.

    Args:
        x: samples ``(N, 2)``.
        data: data ``(M, 2)``; without it there is one panel.
        extent: window ``(left, right, bottom, top)``; by default one that holds all but the tails of the data.
        names: names of the two axes.

    Raises:
        ValueError: not points of the plane, or entries that are NaN or infinite.

    Example:
        >>> import torch
        >>> square = torch.rand(100, 2)
        >>> figure = samples(square, square[:50])
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['data (50)', 'samples (100)']
    """
    made = points(x, "x", dim=2)
    real = None if data is None else points(data, "data", dim=2)
    window = extent or (view(made) if real is None else view(real, made))
    panels = [("samples", made, SAMPLES)] if real is None else [("data", real, DATA), ("samples", made, SAMPLES)]
    dots = min(len(cloud) for _, cloud, _ in panels) <= _DOTS
    figure, grid = axes_grid(1, len(panels), 4.2, 4.3)
    for ax, (what, cloud, colour) in zip(grid[0], panels, strict=True):
        shown = fixed().permutation(cloud)[:_DOTS] if dots and len(cloud) > _DOTS else cloud
        _cloud(ax, shown, colour if dots else None, window)
        count = f"{len(cloud):,}" if len(shown) == len(cloud) else f"{_DOTS:,} of {len(cloud):,}"
        plane(ax, window, f"{what} ({count}{_outside(shown, window)})", names)
    return figure


def _cloud(ax: Axes, cloud: NDArray[np.float64], colour: str | None, window: Extent) -> None:
    if colour is not None:
        ax.scatter(cloud[:, 0], cloud[:, 1], s=dot_size(len(cloud)), c=colour, alpha=0.6, linewidths=0, rasterized=True)
        return
    left, right, bottom, top = window
    bins = [np.linspace(left, right, 121), np.linspace(bottom, top, 121)]
    ax.hist2d(cloud[:, 0], cloud[:, 1], bins=bins, cmap="magma_r", cmin=1, rasterized=True)


def _outside(cloud: NDArray[np.float64], window: Extent) -> str:
    left, right, bottom, top = window
    x, y = cloud.T
    outside = int(((x < left) | (x > right) | (y < bottom) | (y > top)).sum())
    return f", {outside:,} outside the view" if outside else ""


def pairs(
    x: Points,
    data: Points | None = None,
    dims: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Pairs of columns, samples upon data, with the histogram of each column on the diagonal.

    Equal numbers of both are drawn, 1000 at most, in mixed order, so that neither covers the other.

    Args:
        x: samples ``(N, D)``.
        data: data ``(M, D)``.
        dims: columns to show, six at most; by default those with the largest variance.
        names: names of all ``D`` columns.

    Raises:
        ValueError: columns that do not exist or are too many, or shapes that do not fit.

    Example:
        >>> import torch
        >>> figure = pairs(torch.randn(100, 9), torch.randn(100, 9), dims=[0, 4, 8])
        >>> len([ax for ax in figure.axes if ax.get_visible()])
        6
    """
    made = points(x)
    real = None if data is None else points(data, "data", dim=made.shape[1])
    reference = made if real is None else real
    shown = _choose(reference, dims)
    labels = [f"x{d}" for d in range(made.shape[1])] if names is None else [str(name) for name in names]
    if len(labels) != made.shape[1]:
        raise ValueError(f"names must name all {made.shape[1]} columns, got {len(labels)}")
    size = 1.9 if len(shown) > 3 else 2.4
    figure, grid = axes_grid(len(shown), len(shown), size, size)
    windows = [view(reference[:, [d, d]], made[:, [d, d]])[:2] for d in shown]
    for i, row in enumerate(shown):
        for j, col in enumerate(shown):
            ax = grid[i, j]
            if j > i:
                ax.set_visible(False)
                continue
            clean(ax)
            ax.set_xlim(windows[j])
            if i == j:
                _histogram(ax, made[:, col], None if real is None else real[:, col], windows[j])
            else:
                _mixed(ax, made[:, [col, row]], None if real is None else real[:, [col, row]])
                ax.set_ylim(windows[i])
            _outer_labels(ax, i, j, len(shown), labels[row], labels[col])
    _legend(figure, grid, real is not None)
    return figure


def _choose(reference: NDArray[np.float64], dims: Sequence[int] | None) -> list[int]:
    width = reference.shape[1]
    if dims is None:
        return sorted(np.argsort(-reference.var(axis=0), kind="stable")[:_MOST_PAIRS].tolist())
    shown = [int(d) for d in dims]
    if not shown or len(shown) > _MOST_PAIRS or not all(0 <= d < width for d in shown):
        raise ValueError(f"dims must be 1 to {_MOST_PAIRS} columns out of 0..{width - 1}, got {shown}")
    return shown


def _histogram(
    ax: Axes, made: NDArray[np.float64], real: NDArray[np.float64] | None, window: tuple[float, float]
) -> None:
    fewest = len(made) if real is None else min(len(made), len(real))
    edges = np.linspace(*window, int(np.clip(np.sqrt(fewest), 8, 40)) + 1).tolist()
    if real is not None:
        ax.hist(real, edges, density=True, color=DATA, alpha=0.35, edgecolor="none")
        ax.hist(real, edges, density=True, color=DATA, histtype="step", linewidth=1.1)
    ax.hist(made, edges, density=True, color=SAMPLES, histtype="step", linewidth=1.4)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _mixed(ax: Axes, made: NDArray[np.float64], real: NDArray[np.float64] | None) -> None:
    rng = fixed()
    clouds = [(made, SAMPLES)] if real is None else [(real, DATA), (made, SAMPLES)]
    count = min(_PAIR_DOTS, *(len(cloud) for cloud, _ in clouds))
    dots = np.concatenate([rng.permutation(cloud)[:count] for cloud, _ in clouds])
    colours = np.repeat([colour for _, colour in clouds], count)
    order = rng.permutation(len(dots))
    size = dot_size(len(dots)) * 0.7
    dots = dots[order]
    ax.scatter(dots[:, 0], dots[:, 1], s=size, c=colours[order], alpha=0.55, linewidths=0, rasterized=True)


def _outer_labels(ax: Axes, i: int, j: int, last: int, row: str, col: str) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(3))
    if i == last - 1:
        ax.set_xlabel(_short(col), fontsize=9, color=INK)
    else:
        ax.tick_params(labelbottom=False)
    if i == j:
        return
    ax.yaxis.set_major_locator(MaxNLocator(3))
    if j == 0:
        ax.set_ylabel(_short(row), fontsize=9, color=INK)
    else:
        ax.tick_params(labelleft=False)


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def _legend(figure: Figure, grid: NDArray[np.object_], both: bool) -> None:
    def dot(colour: str, label: str) -> Line2D:
        return Line2D([], [], marker="o", linestyle="none", color=colour, markersize=5, label=label)

    handles = [dot(DATA, "data")] * both + [dot(SAMPLES, "samples")]
    if grid.shape[0] > 1:
        # The corner above the diagonal is empty.
        figure.legend(
            handles=handles, frameon=False, fontsize=10, labelcolor=INK, loc="upper right", bbox_to_anchor=(0.99, 0.99)
        )
    else:
        grid[0, 0].legend(handles=handles, frameon=False, fontsize=8, labelcolor=INK)
