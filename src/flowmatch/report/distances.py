r"""Distances of samples to held-out rows, each beside its floor.

Two finite samples of one law are never at distance 0, so a distance alone says nothing. The floor is the same distance
between the held-out rows and *training rows*, real ones, of the same number. A flow as good as the data itself reaches
its floor; one can do no better except by chance.

Under a condition the samples follow the condition of the held-out rows, so the training rows are chosen to have the
same or the nearest condition. Otherwise the floor would hold the chance by which two sets differ in their conditions,
which the samples are spared.

Held-out sets may be small, so both are repeated, with other samples and other training rows, and the spread over
the repeats is given too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowmatch.metrics import c2st, sliced_wasserstein
from flowmatch.report.subject import Progress, Rows, features

__all__ = ["distances", "plan"]

# Repeats even the noise of small sets out; beyond these the spread is known well enough.
_REPEATS = 10
_C2ST_REPEATS = 3
_FOLDS = 5
# A classifier of 10 D units for 784 columns has 60 million weights; this many units tell as well there.
_WIDEST = 128


def plan(train: int, heldout: int, samples: int) -> tuple[int, int]:
    """Rows in each comparison, and how often it is repeated.

    Example:
        >>> plan(train=135, heldout=15, samples=2000)
        (15, 10)
        >>> plan(train=9000, heldout=1000, samples=2000)
        (1000, 2)
    """
    rows = min(train, heldout, samples)
    return rows, max(1, min(_REPEATS, samples // rows))


def distances(
    train: Rows, heldout: Rows, made: Sequence[Rows], held: Sequence[Tensor], classes: int, seed: int, tick: Progress
) -> dict[str, Any]:
    """Sliced Wasserstein distance and C2ST, of samples and of training rows to held-out rows.

    Args:
        train: training rows.
        heldout: held-out rows.
        made: one batch of samples for each repeat, drawn under the condition of the held-out rows of that repeat.
        held: index of these held-out rows.
        classes: number of classes of the condition, if it has classes.
        seed: seed of the choice of training rows.
        tick: told how far it is.

    Returns:
        Two entries, each with ``value``, ``spread``, ``floor``, ``floor_spread``, ``rows`` and ``repeats``.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(held[0])
    # Room to find like conditions in, without forming a matrix of all training rows.
    room = 4 * rows + 1000
    width = features(heldout, classes).shape[1]
    units, folds = min(10 * width, _WIDEST), min(_FOLDS, rows)
    real, ours, theirs = [], [], []
    for batch, index in zip(made, held, strict=True):
        target = heldout.pick(index)
        some = train.pick(torch.randperm(len(train.x), generator=generator)[:room])
        real.append(features(target, classes))
        ours.append(features(batch, classes))
        theirs.append(features(some.pick(_like(target, some, classes)), classes))

    def repeated(
        metric: Callable[[Tensor, Tensor, int], float], times: int, share: tuple[float, float]
    ) -> dict[str, Any]:
        values: dict[str, list[float]] = {"value": [], "floor": []}
        for k in range(times):
            for name, other in (("value", ours[k]), ("floor", theirs[k])):
                values[name].append(metric(real[k], other, k))
            tick(share[0] + share[1] * (k + 1) / times, "comparing samples with held-out rows")
        found: dict[str, Any] = {"rows": rows, "repeats": times}
        for name, spread in (("value", "spread"), ("floor", "floor_spread")):
            found[name] = math.fsum(values[name]) / times
            found[spread] = float(torch.tensor(values[name]).std()) if times > 1 else None
        return found

    sliced = repeated(lambda x, y, _: sliced_wasserstein(x, y), len(made), (0.0, 0.2))
    result: dict[str, Any] = {"sliced_wasserstein": {**sliced, "projections": 256}, "c2st": None}
    if folds >= 2:
        repeats = min(_C2ST_REPEATS, len(made))
        found = repeated(lambda x, y, k: c2st(x, y, folds=folds, seed=seed + k, width=units), repeats, (0.2, 0.8))
        # The chance of guessing right on so many independent rows; repeats share the held-out rows.
        result["c2st"] = {**found, "chance_stderr": 1 / math.sqrt(8 * rows), "folds": folds, "width": units}
    return result


def _like(target: Rows, some: Rows, classes: int) -> Tensor:
    """Index of one row of ``some`` for each of ``target``, none twice, of like condition; ``some`` is in random order."""
    if target.cond is None:
        return torch.arange(len(target.x))
    width = target.x.shape[1]
    far = torch.cdist(features(target, classes)[:, width:], features(some, classes)[:, width:])
    picked = []
    for row in far:
        row[picked] = math.inf
        picked.append(int(row.argmin()))
    return torch.tensor(picked)
