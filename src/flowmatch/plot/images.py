"""Grids of images, samples beside real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from flowmatch.plot.canvas import INK, Points, axes_grid

__all__ = ["image_grid"]


def image_grid(
    images: Points,
    real: Points | None = None,
    labels: Sequence[str] | None = None,
    columns: int = 10,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Images row by row on one sheet, and real ones on a second sheet beside it.

    Args:
        images: samples ``(N, H, W)``, or ``(N, H, W, 3)`` in colour.
        real: real images of the same shape, laid out alike.
        labels: names of the rows of the sheet, such as the class of each.
        columns: images in a row; a last row may be short.
        limits: values drawn black and white; by default the range of the real images, else of all. For colour images
            they become 0 and 1, and what lies beyond is cut off.

    Raises:
        ValueError: not images, two shapes, or labels that do not fit the rows.

    Example:
        >>> import torch
        >>> figure = image_grid(torch.rand(20, 8, 8), real=torch.rand(20, 8, 8), labels=["zero", "one"])
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['real', 'samples']
    """
    made = _images(images, "images")
    true = None if real is None else _images(real, "real")
    if true is not None and true.shape[1:] != made.shape[1:]:
        raise ValueError(f"images and real must have one shape, got {made.shape[1:]} and {true.shape[1:]}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(made))
    rows = -(-len(made) // columns)
    if labels is not None and len(labels) != rows:
        raise ValueError(f"labels must name the {rows} rows, got {len(labels)}")
    reference = made if true is None else true
    low, high = limits or (float(reference.min()), float(reference.max()))
    sheets = [("samples", made)] if true is None else [("real", true[: len(made)]), ("samples", made)]
    # One cell is half an inch wide, but a sheet of few small images is not drawn smaller than three inches.
    width = max(0.42 * columns, 3.0)
    height = width * rows * made.shape[1] / (columns * made.shape[2]) + 0.35
    figure, grid = axes_grid(1, len(sheets), width, min(height, 12.0))
    for ax, (what, pictures) in zip(grid[0], sheets, strict=True):
        _sheet(ax, pictures, columns, low, max(high, low + 1e-12))
        ax.set_title(what, fontsize=10, color=INK, loc="left")
        if labels is not None and ax is grid[0, 0]:
            _row_labels(ax, labels, made.shape[1] + 1)
    return figure


def _images(x: Points, name: str) -> NDArray[Any]:
    array = np.asarray(x.detach().cpu().float() if isinstance(x, Tensor) else x, dtype=np.float32)
    colour = array.ndim == 4 and array.shape[-1] == 3
    if not (array.ndim == 3 or colour) or 0 in array.shape:
        raise ValueError(f"{name} must have shape (N, H, W) or (N, H, W, 3), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite entries")
    return array


def _sheet(ax: Axes, pictures: NDArray[Any], columns: int, low: float, high: float) -> None:
    """Paste the images into one array with a blank line between them, and draw that."""
    n, h, w = pictures.shape[:3]
    rows = -(-n // columns)
    sheet = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, *pictures.shape[3:]), np.nan, dtype=np.float32)
    for k, picture in enumerate(pictures):
        top, left = (k // columns) * (h + 1), (k % columns) * (w + 1)
        sheet[top : top + h, left : left + w] = picture
    if sheet.ndim == 3:
        shown = np.nan_to_num((sheet - low) / (high - low), nan=1.0).clip(0, 1)
        ax.imshow(shown, interpolation="nearest")
    else:
        ax.imshow(np.ma.masked_invalid(sheet), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _row_labels(ax: Axes, labels: Sequence[str], pitch: int) -> None:
    ax.set_yticks([pitch * k + (pitch - 2) / 2 for k in range(len(labels))], [str(label) for label in labels])
    ax.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK, pad=3)
