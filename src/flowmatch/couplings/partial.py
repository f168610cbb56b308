r"""The exact partial coupling: join only as many pairs as asked for, the cheapest set of them.

Where source and data come from two experiments, some points have no partner, and a coupling that must use them all
drags every pair along. Here ``k`` pairs are joined and the other points left out,

.. math:: \min_{S} \sum_{(i, j) \in S} |x_0^{(i)} - x_1^{(j)}|^2
    \quad \text{over the matchings } S \text{ of } k \text{ pairs.}

This is an assignment problem of ``N + M - k`` rows. To the ``N`` source rows are added ``M - k`` idle ones and to the
``M`` columns ``N - k`` idle ones; who is joined to an idle partner is left out, at no cost. An idle row never meets an
idle column, since that costs more than all the rest, so exactly ``k`` true pairs remain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowmatch.couplings.assignment import assign
from flowmatch.couplings.cost import check_clouds, squared_distances
from flowmatch.typing import Cond

__all__ = ["PartialOT"]


@dataclass(frozen=True)
class PartialOT:
    r"""Join the cheapest set of pairs that makes up a given fraction of the smaller batch.

    With ``N`` source and ``M`` data points, :math:`k = \mathrm{round}(m \min(N, M))` pairs are joined, at least one.
    The points left out are those far from the other batch, so the law of the points joined is *not* the law of the
    batch: that is the purpose, and the price. With ``fraction=1`` and ``N = M`` this is
    :class:`~flowmatch.couplings.exact.ExactOT`.

    Args:
        fraction: the fraction ``m`` of the smaller batch that is joined, in ``(0, 1]``.

    Raises:
        ValueError: a fraction outside ``(0, 1]``.

    Source:
        Chapel, Alaya, Gasso, Partial optimal transport with applications on positive-unlabeled learning, 2020,
        section 3.1, of which this is the case of equal weights.

    Example:
        >>> PartialOT(2 / 3)(torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[-8.0], [0.1], [1.1]]))
        (tensor([0, 1]), tensor([1, 2]))
    """

    fraction: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fraction) and 0 < self.fraction <= 1):
            raise ValueError(f"fraction must lie in (0, 1], got {self.fraction}; 1 joins the whole smaller batch")

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Index tensors ``(i, j)`` of shape ``(k,)``, ``i`` in order; the two batches may differ in size.

        Raises:
            TypeError: integer tensors or two different types.
            ValueError: two event shapes or devices, a NaN or an infinity.
            ImportError: numba is not installed.
        """
        check_clouds(x0, x1)
        cost = squared_distances(x0, x1).cpu().numpy()
        rows, columns = cost.shape
        smaller = min(rows, columns)
        if smaller == 0:
            none = torch.empty(0, dtype=torch.long, device=x1.device)
            return none, none
        pairs = max(1, round(self.fraction * smaller))
        padded = np.zeros((rows + columns - pairs,) * 2, cost.dtype)
        padded[:rows, :columns] = cost
        # Dearer than any exchange that would avoid it: one idle pair apart frees one true pair.
        padded[rows:, columns:] = 1 + 2 * cost.max()
        partner = assign(padded)[0][:rows]
        i = np.flatnonzero(partner < columns)
        return torch.from_numpy(i).to(x1.device), torch.from_numpy(partner[i]).to(x1.device)
