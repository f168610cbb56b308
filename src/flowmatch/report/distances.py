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
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowmatch.metrics import c2st, sliced_wasserstein
from flowmatch.report.subject import Progress, Rows, features

__all__ = ["Draws", "distances", "plan"]

# Four repeats at least show the spread, if there are samples enough; more even the noise of small sets out.
_LEAST_REPEATS, _MOST_REPEATS = 4, 10
_C2ST_REPEATS = 3
_FOLDS = 5
# A classifier of 10 D units for 784 columns has 60 million weights; this many units tell as well there.
_WIDEST = 128


class Draws(NamedTuple):
    """Which held-out rows each batch of samples is compared with.

    Attributes:
        rows: held-out rows of each batch, all of one length.
        together: so many batches in a row share no held-out row, and can be taken as one.
    """

    rows: list[Tensor]
    together: int


def plan(train: int, heldout: int, samples: int, generator: torch.Generator) -> Draws:
    """Choose the held-out rows of each batch, with not many more than ``samples`` rows in all.

    Example:
        >>> draws = plan(train=135, heldout=15, samples=2000, generator=torch.Generator())
        >>> len(draws.rows), len(draws.rows[0]), draws.together
        (10, 15, 1)
        >>> draws = plan(train=9000, heldout=1000, samples=2000, generator=torch.Generator())
        >>> len(draws.rows), len(draws.rows[0]), draws.together
        (4, 500, 2)
    """
    rows = max(1, min(train, heldout, samples // _LEAST_REPEATS))
    batches = max(1, min(_MOST_REPEATS, samples // rows))
    in_cycle = heldout // rows
    index: list[Tensor] = []
    while len(index) < batches:
        order = torch.randperm(heldout, generator=generator)
        index += order[: in_cycle * rows].split(rows)
    return Draws(index[:batches], max(1, min(in_cycle, train // rows, batches)))


def distances(
    train: Rows, heldout: Rows, made: Rows, draws: Draws, classes: int, seed: int, tick: Progress
) -> dict[str, Any]:
    """Sliced Wasserstein distance and C2ST, of samples and of training rows to held-out rows.

    The sliced Wasserstein distance is taken batch by batch, to have a spread. A classifier learns more from more rows,
    so the C2ST takes as many batches as one as there are held-out rows for.

    Args:
        train: training rows.
        heldout: held-out rows.
        made: samples of all batches, drawn under the condition of their held-out rows.
        draws: these held-out rows.
        classes: number of classes of the condition, if it has classes.
        seed: seed of the choice of training rows.
        tick: told how far it is.

    Returns:
        Two entries, each with ``value``, ``spread``, ``floor``, ``floor_spread``, ``rows`` and ``repeats``.
    """
    generator = torch.Generator().manual_seed(seed)

    def repeated(
        metric: Callable[[Tensor, Tensor, int], float], together: int, most: int, share: tuple[float, float]
    ) -> dict[str, Any]:
        size = together * len(draws.rows[0])
        groups = [g for g in torch.cat(draws.rows).split(size) if len(g) == size][:most]
        values: dict[str, list[float]] = {"value": [], "floor": []}
        for k, index in enumerate(groups):
            target = heldout.pick(index)
            # Room to find like conditions in, without forming a matrix of all training rows.
            some = train.pick(torch.randperm(len(train.x), generator=generator)[: 4 * size + 1000])
            ours, theirs = made.pick(torch.arange(k * size, (k + 1) * size)), some.pick(_like(target, some, classes))
            for name, other in (("value", ours), ("floor", theirs)):
                values[name].append(metric(features(target, classes), features(other, classes), k))
            tick(share[0] + share[1] * (k + 1) / len(groups), "comparing samples with held-out rows")
        found: dict[str, Any] = {"rows": size, "repeats": len(groups)}
        for name, spread in (("value", "spread"), ("floor", "floor_spread")):
            found[name] = math.fsum(values[name]) / len(groups)
            found[spread] = float(torch.tensor(values[name]).std()) if len(groups) > 1 else None
        return found

    sliced = repeated(lambda x, y, _: sliced_wasserstein(x, y), 1, _MOST_REPEATS, (0.0, 0.2))
    result: dict[str, Any] = {"sliced_wasserstein": {**sliced, "projections": 256}, "c2st": None}
    rows = draws.together * len(draws.rows[0])
    units, folds = min(10 * features(heldout, classes).shape[1], _WIDEST), min(_FOLDS, rows)
    if folds >= 2:
        found = repeated(
            lambda x, y, k: c2st(x, y, folds=folds, seed=seed + k, width=units),
            draws.together,
            _C2ST_REPEATS,
            (0.2, 0.8),
        )
        # The chance of guessing right on so many independent rows; repeats share the held-out rows.
        result["c2st"] = {**found, "chance_stderr": 1 / math.sqrt(8 * rows), "folds": folds, "width": units}
    return result


def _like(target: Rows, some: Rows, classes: int) -> Tensor:
    """Index of a row of ``some``, which is in random order, of like condition for each of ``target``; none twice."""
    if target.cond is None:
        return torch.arange(len(target.x))
    width = target.x.shape[1]
    far = torch.cdist(features(target, classes)[:, width:], features(some, classes)[:, width:])
    picked: list[int] = []
    for row in far:
        row[picked] = math.inf
        picked.append(int(row.argmin()))
    return torch.tensor(picked)
