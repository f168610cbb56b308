"""What every picture has to keep: all text inside the figure, and no text upon another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def check_look(figure: Figure) -> None:
    """Draw the figure and fail if a text leaves it or two texts overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page = figure.bbox
    boxes = []
    for text in texts(figure):
        box = text.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, f"{text.get_text()!r} leaves the figure: {box.extents} in {page.extents}"
        boxes.append((text.get_text(), box))
    assert boxes, "a picture without a word on it"
    for (a, first), (b, second) in combinations(boxes, 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert width <= 1 or height <= 1, f"{a!r} and {b!r} overlap by {width:.0f} x {height:.0f} pixels"


def texts(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for ax in figure.axes:
        if ax.get_visible():
            found += _of_axes(ax)
    return (text for text in found if text.get_visible() and text.get_text().strip())


def _of_axes(ax: Axes) -> Iterator[Text]:
    yield from (ax.title, ax._left_title, ax._right_title, ax.xaxis.label, ax.yaxis.label, *ax.texts)
    legend = ax.get_legend()
    yield from () if legend is None else legend.get_texts()
    for axis in (ax.xaxis, ax.yaxis):
        for tick in axis._update_ticks():  # the ticks inside the limits
            yield from (tick.label1, tick.label2)
