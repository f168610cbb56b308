"""The pictures of a report: drawn, written as PNG, and told in a caption."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmatch import plot
from flowmatch.metrics import sliced_wasserstein
from flowmatch.persist import write_atomically
from flowmatch.plot.canvas import view
from flowmatch.report.subject import Rows, Subject

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["draw_all"]

_PATHS = 200
_CELLS = 80
# A colour shows two digits of a density, and thousands of cells are solved for.
_COARSE = 1e-3
_MOST_ROWS = 10
_IN_ROW = 10


def draw_all(
    subject: Subject,
    made: Rows,
    heldout: Rows,
    train: Rows,
    folder: Path,
    history: Sequence[Mapping[str, Any]] | None,
    image_shape: tuple[int, int] | None,
    seed: int,
) -> list[dict[str, str]]:
    """Draw what suits the data; returns file, title and caption of each picture, in the order of the report."""
    drawn: list[tuple[str, str, str, Figure]] = []
    if image_shape is not None:
        drawn.append(_images(subject, made, heldout, train, image_shape, seed))
    elif subject.codec.dim == 2:
        drawn.append(_plane(subject, made, heldout))
        if not bool(subject.codec.step.any()) and subject.codec.cond_dim == 0:
            drawn.append(_density(subject, made, heldout))
    else:
        drawn.append(_pairs(subject, made, heldout))
    drawn.append(_trajectories(subject, heldout, seed))
    if history and any(row.get("loss") is not None or row.get("heldout_loss") is not None for row in history):
        caption = (
            "Every logged step, faint, and its running mean. A flow matching loss does not fall to zero: its floor is "
            "the spread of the velocities that meet in one point. Held-out loss that rises while training loss falls "
            "is overfitting."
        )
        drawn.append(("loss", "Training", caption, plot.loss_curve(history)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, _, figure in drawn:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.12)
        write_atomically(folder / f"{name}.png", buffer.getvalue())
    return [{"file": f"plots/{name}.png", "title": title, "caption": text} for name, title, text, _ in drawn]


def _numbers(frame: pd.DataFrame, names: Sequence[Any]) -> NDArray[np.float64]:
    """Columns of a decoded table as numbers, in the units of the data."""
    return np.stack([frame[name].to_numpy().astype(np.float64) for name in names], axis=1)


def _decoded(subject: Subject, rows: Rows) -> NDArray[np.float64]:
    names = [column.name for column in subject.codec.columns]
    return _numbers(subject.codec.decode(rows.x, rows.cond), names)


def _plane(subject: Subject, made: Rows, heldout: Rows) -> tuple[str, str, str, Figure]:
    names = [str(column.name) for column in subject.codec.columns]
    some = made.pick(torch.arange(min(len(made.x), max(len(heldout.x), 500))))
    figure = plot.samples(_decoded(subject, some), _decoded(subject, heldout), names=names)
    caption = "Held-out rows and samples on the same axes, in the units of the data."
    return "samples", "Samples beside data", caption, figure


def _pairs(subject: Subject, made: Rows, heldout: Rows) -> tuple[str, str, str, Figure]:
    dim = subject.codec.dim
    gaps = [sliced_wasserstein(made.x[:, d], heldout.x[:, d]) for d in range(dim)]
    worst = sorted(np.argsort(gaps, kind="stable")[::-1][:6].tolist())
    names = [str(column.name) for column in subject.codec.columns]
    figure = plot.pairs(_decoded(subject, made), _decoded(subject, heldout), dims=worst, names=names)
    caption = "Samples upon held-out rows in equal numbers, in the units of the data; histograms use all rows."
    if dim > 6:
        caption += f" Shown are the six of {dim} columns in which they differ most."
    return "pairs", "Samples upon data", caption, figure


def _images(
    subject: Subject, made: Rows, heldout: Rows, train: Rows, shape: tuple[int, int], seed: int
) -> tuple[str, str, str, Figure]:
    codec = subject.codec
    pixels = shape[0] * shape[1]
    names = [name for name in codec.order if codec.condition is None or name != codec.condition.name][:pixels]

    def pictures(rows: Rows) -> NDArray[np.float64]:
        return _numbers(codec.decode(rows.x, rows.cond), names).reshape(-1, *shape)

    if not codec.classes or heldout.cond is None or train.cond is None:
        count = min(_MOST_ROWS * _IN_ROW, len(made.x), len(heldout.x))
        figure = plot.image_grid(pictures(made.pick(torch.arange(count))), pictures(heldout.pick(torch.arange(count))))
        return "images", "Samples beside data", "Held-out images and samples, not chosen.", figure
    # Evenly spaced, if there are more classes than rows on a sheet.
    shown = np.unique(np.linspace(0, codec.classes - 1, min(codec.classes, _MOST_ROWS)).round().astype(int)).tolist()
    pool = Rows(torch.cat([heldout.x, train.x]), torch.cat([heldout.cond, train.cond]))
    where = [torch.nonzero(pool.cond == k).flatten() for k in shown]
    columns = max(1, min(_IN_ROW, *(len(index) for index in where)))
    real = pool.pick(torch.cat([index[:columns] for index in where]))
    asked = torch.tensor(shown).repeat_interleave(columns)
    fresh = subject.sample(len(asked), asked, seed + 1)
    levels = codec.condition.decode(torch.tensor(shown)) if codec.condition is not None else shown
    figure = plot.image_grid(pictures(fresh), pictures(real), labels=[str(v) for v in levels], columns=columns)
    text = "One class a row: real images, held-out ones first, and fresh samples of the same class. None was chosen."
    return "images", "Samples beside data", text, figure


def _trajectories(subject: Subject, heldout: Rows, seed: int) -> tuple[str, str, str, Figure]:
    count = _PATHS if heldout.cond is None else min(_PATHS, len(heldout.x))
    cond = None if heldout.cond is None else subject._home(heldout.cond[:count])
    how = dict(subject.how)
    if how.get("steps") is None:
        start, end = subject.flow.path.interval
        how.update(grid=torch.linspace(start, end, 41, dtype=torch.float64))
    solution = subject.flow.trajectory(count, cond, generator=torch.Generator().manual_seed(seed + 2), **how)
    assert solution.trajectory is not None
    figure = plot.trajectories(solution.trajectory, solution.t.cpu())
    caption = "Where the flow carries points of the source, in the standard units that the model sees."
    if subject.codec.dim > 2:
        caption += " The plane is that of the two leading principal components of the samples."
    return "trajectories", "From noise to samples", caption, figure


def _density(subject: Subject, made: Rows, heldout: Rows) -> tuple[str, str, str, Figure]:
    codec = subject.codec
    names = [column.name for column in codec.columns]
    loose = subject
    if subject.how.get("steps") is None:
        tolerance = max(_COARSE, subject.how["rtol"])
        loose = replace(subject, how={**subject.how, "rtol": tolerance, "atol": tolerance})
    template = codec.decode(heldout.x[:1], None if heldout.cond is None else heldout.cond[:1])

    def log_prob(points: Tensor) -> Tensor:
        frame = template.loc[template.index.repeat(len(points))].reset_index(drop=True)
        for d, name in enumerate(names):
            frame[name] = points[:, d].double().numpy()
        x, _ = codec.encode(frame)
        if heldout.cond is None:
            return loose.log_prob(Rows(x, None), 0)
        # Of all classes together, in the shares of the held-out rows.
        kinds, counts = heldout.cond.unique(return_counts=True)
        parts = [loose.log_prob(Rows(x, kind.expand(len(x))), 0) for kind in kinds]
        return torch.logsumexp(torch.stack(parts) + (counts / counts.sum()).log()[:, None], dim=0)

    real = _decoded(subject, heldout)
    dots = _decoded(subject, made.pick(torch.arange(min(len(made.x), 300))))
    cells = _CELLS if heldout.cond is None else _CELLS // 2
    figure = plot.density(
        log_prob, view(real, dots, margin=0.15), cells, samples=dots, title="", names=[str(name) for name in names]
    )
    caption = "Density of the flow in the units of the data, with some samples upon it."
    if heldout.cond is not None:
        caption += " All classes together."
    return "density", "Density", caption, figure
