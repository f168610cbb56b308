"""The animation is a GIF of one frame a state, whose dots move from noise to data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowmatch import plot
from flowmatch.errors import InputError


def moving(dim: int = 2, steps: int = 6) -> torch.Tensor:
    start = torch.randn(40, dim, generator=torch.Generator().manual_seed(0))
    return torch.stack([start + 5 * k / steps * start.sign() for k in range(steps)])


def test_one_frame_a_state_at_the_rate_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "flow.gif"
    assert plot.animate(moving(), target, fps=10, hold=1.0) == target
    with Image.open(target) as gif:
        assert gif.n_frames == 6
        assert gif.info["loop"] == 0
        waits = []
        for k in range(6):
            gif.seek(k)
            waits.append(gif.info["duration"])
        first, last = (_ink(gif, k) for k in (0, 5))
    assert waits == [100] * 5 + [1100]
    assert last > first + 20  # the dots have left the middle


def _ink(gif: Image.Image, frame: int) -> float:
    """Mean distance of coloured pixels from the centre of the page."""
    gif.seek(frame)
    pixels = np.asarray(gif.convert("RGB"), dtype=float)
    rows, cols = np.nonzero(pixels.min(2) < 200)
    inner = (rows > 40) & (rows < pixels.shape[0] - 40) & (cols > 40)
    return float(np.hypot(rows[inner] - pixels.shape[0] / 2, cols[inner] - pixels.shape[1] / 2).mean())


def test_same_states_same_bytes_and_any_dimension_from_two(tmp_path: Path) -> None:
    files = [plot.animate(moving(5, 3), tmp_path / name) for name in ("a.gif", "b.gif")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bad_input_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written as a \.gif file, got flow\.mp4"):
        plot.animate(moving(), tmp_path / "flow.mp4")
    with pytest.raises(ValueError, match="fps must be positive"):
        plot.animate(moving(), tmp_path / "flow.gif", fps=0)
    with pytest.raises(ValueError, match="two dimensions or more"):
        plot.animate(moving(1), tmp_path / "flow.gif")
    assert list(tmp_path.iterdir()) == []


def test_the_room_never_loads_pyplot() -> None:
    code = (
        "import sys, torch; from flowmatch import plot; plot.samples(torch.rand(9, 2)).savefig(sys.argv[1]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, "/dev/null"], check=True)
