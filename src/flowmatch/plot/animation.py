"""Noise turning into data, as an animated GIF."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from flowmatch.errors import InputError
from flowmatch.plot.canvas import INK, SAMPLES, Points, axes_grid, dot_size, plane, view
from flowmatch.plot.flows import leading_plane, states

__all__ = ["animate"]


def animate(
    trajectory: Points, path: str | Path, fps: float = 20.0, times: Points | None = None, hold: float = 1.5
) -> Path:
    """Write an animated GIF of points moving from noise to data.

    Args:
        trajectory: states ``(T, B, D)``, one frame each; above two dimensions their two leading principal components
            are shown, as in :func:`trajectories`.
        path: the file, ending in ``.gif``.
        fps: frames a second; players cap it at 50.
        times: times of the states ``(T,)``, shown above the picture; by default equal steps from 0 to 1.
        hold: seconds for which the last frame stays.

    Returns:
        The file written.

    Raises:
        InputError: a name that does not end in ``.gif``.
        ValueError: a shape that is no trajectory of two dimensions or more, or a rate that is not positive.
    """
    target = Path(path)
    if target.suffix.lower() != ".gif":
        raise InputError(f"an animation is written as a .gif file, got {target.name}")
    if not fps > 0 or hold < 0:
        raise ValueError(f"fps must be positive and hold at least 0, got fps={fps}, hold={hold}")
    moving, t = states(trajectory, times)
    if moving.shape[2] < 2:
        raise ValueError("an animation needs two dimensions or more; draw one dimension with trajectories()")
    planar, names = leading_plane(moving)
    frames = _frames(planar, t, names)
    wait = max(20, round(1000 / fps))
    durations = [wait] * (len(frames) - 1) + [wait + round(1000 * hold)]
    # Written at once, so that a full disc or a wrong folder leaves no half file behind a good name.
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)
    target.write_bytes(buffer.getvalue())
    return target


def _frames(planar: np.ndarray, t: np.ndarray, names: tuple[str, str]) -> list[Image.Image]:
    figure, grid = axes_grid(1, 1, 4.2, 4.4)
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    ax = grid[0, 0]
    window = view(np.concatenate([planar[0], planar[-1]]), tail=0.002)
    grey, blue = np.array(to_rgb("#8d939d")), np.array(to_rgb(SAMPLES))
    dots = ax.scatter(*planar[0].T, s=dot_size(planar.shape[1]), linewidths=0, alpha=0.75)
    frames = []
    for state, when in zip(planar, t, strict=True):
        part = (when - t[0]) / ((t[-1] - t[0]) or 1.0)
        dots.set_offsets(state)
        dots.set_color([tuple(grey + (blue - grey) * part)])
        plane(ax, window, f"t = {when:.2f}", names)
        ax.title.set_color(INK)
        canvas.draw()  # type: ignore[no-untyped-call]
        # The layout found for the first frame stays, or the axes would tremble as the title changes.
        figure.set_layout_engine("none")
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        picture = Image.fromarray(pixels[..., :3].copy())
        frames.append(picture.quantize(colors=64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    return frames
