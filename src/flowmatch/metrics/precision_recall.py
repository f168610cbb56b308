r"""Precision and recall of samples: how many are like the data, how much of the data they reach.

A set of points stands for the region covered by balls around its points, each as large as the distance to the
``k``-th nearest other point of the set. *Precision* is the share of samples inside the region of the data, *recall*
the share of data inside the region of the samples. One outlier makes one large ball, so both can be too high:
*density* counts in how many balls of the data a sample lies, and *coverage* asks of each ball of the data whether any
sample is in it, which leaves the samples' own outliers without effect.

Sources: Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019, Eq. 1 to 3;
Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, 2020, Eq. 4 and 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.metrics.clouds import Cloud, clouds

__all__ = ["PrecisionRecall", "precision_recall"]

_CHUNK = 1024  # rows of the distance matrix formed at a time
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a squared distance, in units of the largest squared norm


class PrecisionRecall(NamedTuple):
    """How samples and data overlap.

    Attributes:
        precision: share of samples that lie in the region of the data.
        recall: share of data that lie in the region of the samples.
        density: mean number of balls of the data that a sample lies in, divided by ``k``.
        coverage: share of balls of the data that hold a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(x: Cloud, y: Cloud, k: int = 3) -> PrecisionRecall:
    r"""Improved precision and recall, density and coverage of samples ``y`` against data ``x``.

    With :math:`B(x_i)` the closed ball around a row with the radius of its ``k``-th nearest other row,

    .. math:: P = \frac1M \sum_j 1\Big[ y_j \in \bigcup_i B(x_i) \Big], \quad
        R = \frac1N \sum_i 1\Big[ x_i \in \bigcup_j B(y_j) \Big], \quad
        D = \frac{1}{kM} \sum_{ij} 1[y_j \in B(x_i)], \quad
        C = \frac1N \sum_i 1\Big[ \exists j: y_j \in B(x_i) \Big]

    Range: precision, recall and coverage from 0 to 1; density from 0, and above 1 where the samples crowd into the
    dense part of the data. No unit.

    Floor: equal laws do not give 1. Density is then 1 on average, and coverage
    :math:`1 - \prod_{i=1}^{k} \frac{N - i}{N + M - i}`, about :math:`1 - 2^{-k}` for equal sizes: ``0.875`` for
    ``k = 3``. Precision and recall depend on the dimension: for two standard normals with 1000 rows each and
    ``k = 3`` both are about ``0.98`` at ``D = 2`` and ``0.62`` at ``D = 64`` (measured).

    Args:
        x: data, ``(N, *event)``, more than ``k`` rows.
        y: samples, ``(M, *event)``, more than ``k`` rows.
        k: which neighbour gives the radius, at least 1. Values of two ``k``, or of two numbers of rows, cannot be
            compared.

    Raises:
        ValueError: ``k < 1``, too few rows, or samples that cannot be compared.

    Source:
        Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019, Eq. 1 to 3;
        Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, 2020, Eq. 4 and 5.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> precision_recall(x, x[:2].repeat(2, 1), k=1)
        PrecisionRecall(precision=1.0, recall=0.5, density=2.5, coverage=0.75)
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    a, b = ((v.cpu() if v.device.type == "mps" else v).double() for v in clouds(x, y, least=k + 1))
    centre = a.mean(0)
    a, b = a - centre, b - centre
    of_x, of_y = _squared_radii(a, k), _squared_radii(b, k)
    # A row on the rim of a ball is inside, whichever way its distance was rounded.
    slack = _ROUNDING * float(torch.cat([a, b]).square().sum(1).max())
    balls = 0  # pairs of a sample and a ball of the data that it is in
    precise = torch.zeros(b.shape[0], dtype=torch.bool, device=b.device)
    recalled = covered = 0
    for part, radius in zip(a.split(_CHUNK), of_x.split(_CHUNK), strict=True):
        square = _squares(part, b)
        inside = square <= radius[:, None] + slack
        balls += int(inside.sum())
        precise |= inside.any(0)
        covered += int(inside.any(1).sum())
        recalled += int((square <= of_y + slack).any(1).sum())
    n, m = a.shape[0], b.shape[0]
    return PrecisionRecall(float(precise.sum()) / m, recalled / n, balls / (k * m), covered / n)


def _squared_radii(a: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its ``k``-th nearest other row."""
    parts = []
    for start, part in enumerate(a.split(_CHUNK)):
        square = _squares(part, a)
        # A row is no neighbour of its own; its copies are.
        row = torch.arange(part.shape[0], device=a.device)
        square[row, start * _CHUNK + row] = torch.inf
        parts.append(square.kthvalue(k, dim=1).values)
    return torch.cat(parts)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    # One matrix product in double: differences one by one take ten times as long.
    return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2).clamp_(min=0)
