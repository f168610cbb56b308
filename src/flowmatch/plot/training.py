"""The picture of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flowmatch.plot.canvas import DATA, INK, SAMPLES, axes_grid, clean

__all__ = ["loss_curve"]


def loss_curve(history: Sequence[Mapping[str, Any]], smooth: float = 0.02) -> Figure:
    """Training loss, its running mean, and the held-out loss, against the step.

    A flow matching loss does not go to zero: its floor is the spread of the velocities through one point, and what
    counts is how far it still falls, and whether the held-out loss falls with it.

    Args:
        history: rows with ``step`` and ``loss`` or ``heldout_loss`` or both; other rows and keys are passed over.
        smooth: width of the running mean, as a part of the rows.

    Raises:
        ValueError: no row has a loss.

    Example:
        >>> figure = loss_curve([{"step": k, "loss": 1 / k, "heldout_loss": 1.1 / k} for k in range(1, 50)])
        >>> [line.get_label() for line in figure.axes[0].lines][-2:]
        ['training, running mean', 'held-out']
    """
    steps, loss = _series(history, "loss")
    held_steps, held = _series(history, "heldout_loss")
    if not len(loss) and not len(held):
        raise ValueError("history has no row with a step and a loss or heldout_loss")
    figure, grid = axes_grid(1, 1, 6.4, 3.4)
    ax = grid[0, 0]
    clean(ax, "loss", "step")
    ax.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    ax.set_axisbelow(True)
    tops = []
    if len(loss):
        mean = _running_mean(loss, max(1, round(smooth * len(loss))))
        ax.plot(steps, loss, color=SAMPLES, alpha=0.25, linewidth=0.8, label="_every row")
        ax.plot(steps, mean, color=SAMPLES, linewidth=1.6, label="training, running mean")
        tops.append((loss, mean))
    if len(held):
        ax.plot(held_steps, held, color=DATA, linewidth=1.4, marker="o", markersize=3, label="held-out")
        tops.append((held, held))
    _limits(ax, tops)
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = [(row["step"], row[key]) for row in history if row.get(key) is not None and "step" in row]
    finite = [(step, value) for step, value in rows if math.isfinite(value)]
    table = np.asarray(sorted(finite), dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean over the last ``width`` values, over fewer at the start."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    mean: NDArray[np.float64] = (total[ends] - total[starts]) / (ends - starts)
    return mean


def _limits(ax: Any, parts: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    """Leave the first steep fall out of the picture: the part that tells is the long flat one."""
    low = min(float(np.quantile(raw, 0.005)) for raw, _ in parts)
    high = max(float(np.quantile(smoothed, 0.97)) for _, smoothed in parts)
    high = max(high, *(float(np.quantile(raw, 0.9)) for raw, _ in parts))
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    ax.set_ylim(low - pad, high + pad)
