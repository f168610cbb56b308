"""Plots: pictures of data, samples, fields and trajectories. Every function returns a matplotlib ``Figure``.

They draw on figures of their own and never touch pyplot, so they work without a display, in a thread and in a
notebook alike. Save one with ``figure.savefig("picture.png")``.
"""

from __future__ import annotations

from importlib.util import find_spec

for _name, _package in (("matplotlib", "matplotlib"), ("PIL", "pillow")):
    if find_spec(_name) is None:
        raise ImportError(
            f'flowmatch.plot needs {_package}, which is not installed; run: pip install "flowmatch[images]"'
        )

from flowmatch.plot.animation import animate
from flowmatch.plot.flows import density, field, trajectories
from flowmatch.plot.images import image_grid
from flowmatch.plot.points import pairs, samples
from flowmatch.plot.training import loss_curve

__all__ = ["animate", "density", "field", "image_grid", "loss_curve", "pairs", "samples", "trajectories"]
