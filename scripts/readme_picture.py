"""Make the picture of the README: ``.venv/bin/python scripts/readme_picture.py``.

A small network learns the pinwheel; then one solve of its flow is shown at five times. The glow is the
learned density at that time, computed by the flow itself; the points are samples on their way, each
with the last stretch of its trajectory. One to two minutes on two cores; the picture is a function of the seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

import flowmatch as fm
from flowmatch.data import toy
from flowmatch.train import TensorData, TrainConfig, Trainer

OUT = Path(__file__).resolve().parent.parent / "docs" / "assets" / "noise_to_data.png"
CARD, TEXT, POINT = "#0d1326", "#d5dbec", "#ffffff"
GLOW = LinearSegmentedColormap.from_list("glow", [CARD, "#1d2a66", "#4a3fae", "#b2469b", "#f2785c", "#ffd07a"])
TIMES = (0.0, 0.35, 0.6, 0.8, 1.0)
HALF = 4.1  # half the width of the window
CELLS = 150  # of the density, along one side


def train(steps: int, seed: int = 0) -> fm.Flow:
    """A flow on the pinwheel, with averaged weights."""
    data = toy("pinwheel").sample(200_000, generator=torch.Generator().manual_seed(seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = fm.nn.MLP(dim=2, hidden=96, depth=3)
    objective = fm.FlowMatching(fm.AffinePath(), times=fm.Stratified())
    config = TrainConfig(steps=steps, batch_size=512, learning_rate=3e-3, log_every=500, seed=seed)
    result = Trainer(net, objective, TensorData(data), config).fit()
    return fm.Flow(result.model, path=objective.path, event_shape=(2,))


def density(flow: fm.Flow, t: float) -> Tensor:
    """Learned density at time ``t`` on the window, rows from bottom to top."""
    axis = torch.linspace(-HALF, HALF, CELLS)
    points = torch.cartesian_prod(axis, axis)
    if t == 0:
        log_p = flow.source.log_prob(points)
    else:
        steps = max(4, round(16 * t))
        with torch.no_grad():
            found = fm.log_likelihood(flow.field, points, flow.source, solver=fm.RK4(), span=(t, 0.0), steps=steps)
        log_p = found.log_prob
    return log_p.exp().reshape(CELLS, CELLS).T


def draw(flow: fm.Flow, points: int = 240, seed: int = 5) -> Figure:
    """The card."""
    frames = 200
    solution = flow.trajectory(points, steps=frames, generator=torch.Generator().manual_seed(seed))
    states = solution.trajectory
    assert states is not None
    mpl.rcParams["font.family"] = "DejaVu Sans"
    figure = Figure(figsize=(12, 2.95), dpi=150)
    card = FancyBboxPatch((0.008, 0.03), 0.984, 0.94, boxstyle="round,pad=0,rounding_size=0.02", fc=CARD, ec="none")
    card.set(transform=figure.transFigure, mutation_aspect=12 / 2.95, zorder=-1)
    figure.add_artist(card)
    width = 0.188
    for column, t in enumerate(TIMES):
        axes = figure.add_axes((0.03 + column * width, 0.06, width, 0.82))
        axes.set(xlim=(-HALF, HALF), ylim=(-HALF, HALF), aspect="equal")
        axes.axis("off")
        glow = density(flow, t)
        # The square root lets the thin parts be seen beside the peaks; the faintest would show the window's edge.
        glow = (glow.sqrt() - 0.04 * glow.max().sqrt()).clamp(min=0)
        axes.imshow(glow, extent=(-HALF, HALF, -HALF, HALF), origin="lower", cmap=GLOW, interpolation="bicubic")
        now = round(t * frames)
        tails = states[max(0, now - 40) : now + 1]
        if len(tails) > 1:
            pieces = torch.stack([tails[:-1], tails[1:]], dim=2).flatten(0, 1)
            fade = torch.linspace(0.0, 0.75, len(tails) - 1).repeat_interleave(points)
            lines = LineCollection(pieces.numpy(), colors=POINT, linewidths=0.8, alpha=fade.numpy())
            axes.add_collection(lines)
        axes.scatter(*states[now].T, s=3.2, color=POINT, linewidths=0, zorder=3)
        label = {0.0: "t = 0: noise", 1.0: "t = 1: data"}.get(t, f"t = {t:g}")
        figure.text(0.03 + (column + 0.5) * width, 0.885, label, color=TEXT, ha="center", va="center", fontsize=11)
    return figure


def main() -> None:
    """Train, draw, save."""
    parser = argparse.ArgumentParser(description="Make the picture of the README.")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (default: docs/assets/noise_to_data.png)")
    parser.add_argument("--steps", type=int, default=4000, help="training steps (default: 4000)")
    options = parser.parse_args()
    flow = train(options.steps)
    figure = draw(flow)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, transparent=True, metadata={"Software": None})
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
