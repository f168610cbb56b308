r"""Unbalanced transport: masses may be missed at a price, so that an outlier need not be joined to anything.

.. math:: \min_P \; \langle P, C \rangle + \varepsilon\, \mathrm{KL}(P | a b^T)
          + \tau\, \mathrm{KL}(P 1 | a) + \tau\, \mathrm{KL}(P^T 1 | b),
          \qquad \mathrm{KL}(p | q) = \sum p \log (p/q) - p + q

The potentials of the plan :math:`P_{ij} = a_i b_j e^{(f_i + g_j - C_{ij})/\varepsilon}` then say what a point keeps:
:math:`(P 1)_i = a_i e^{-f_i/\tau}`. A point far from everything has a large :math:`f_i`, and loses nearly all its mass
once its cost is well above :math:`\tau`; as :math:`\tau \to \infty` the plan tends to the balanced one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.couplings.cost import check_clouds
from flowmatch.couplings.plan import (
    Plan,
    check_iterations,
    check_positive,
    inverse_cumulative,
    joining_costs,
    relative,
    solve,
)
from flowmatch.randomness import rand
from flowmatch.typing import Cond

__all__ = ["UnbalancedOT", "unbalanced_sinkhorn"]


def unbalanced_sinkhorn(
    cost: Tensor,
    reg: float | Tensor,
    penalty: float,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    tol: float = 1e-3,
    max_iterations: int = 10_000,
) -> Plan:
    r"""Solve entropic transport whose masses are kept at a price only.

    .. math:: f_i = -\frac{\tau}{\tau + \varepsilon}\, \varepsilon \log \sum_j b_j e^{(g_j - C_{ij})/\varepsilon}

    and the same for :math:`g`, in turn. The potentials returned have the log-masses in them, as in
    :func:`~flowmatch.couplings.sinkhorn.sinkhorn`.

    Args:
        cost: ``(..., n, m)``, float32 or float64; leading dimensions are problems of their own, solved together.
        reg: the regularisation :math:`\varepsilon`, a number or one for every problem, in units of the cost.
        penalty: the price :math:`\tau` of missing a unit of mass, in units of the cost.
        a: masses of the rows ``(..., n)``, positive with sum 1; uniform by default.
        b: masses of the columns ``(..., m)``.
        tol: largest distance of the masses from :math:`a e^{-f/\tau}` and :math:`b e^{-g/\tau}`, per unit of mass.
        max_iterations: over all stages of the annealing.

    Raises:
        TypeError: a cost that is not float32 or float64.
        ValueError: wrong shapes or masses, NaN or infinite costs, ``reg`` or ``penalty`` not positive or too small.
        RuntimeError: ``tol`` not reached within ``max_iterations``.

    Source:
        Chizat, Peyre, Schmitzer, Vialard, Scaling algorithms for unbalanced optimal transport problems, 2018, Algorithm
        1 and Table 1, https://arxiv.org/abs/1607.05816.

    Example:
        >>> plan = unbalanced_sinkhorn(torch.tensor([[0.0, 1.0], [99.0, 99.0]]), reg=0.1, penalty=1.0)
        >>> plan.log_plan.exp().sum(1) > 0.01
        tensor([ True, False])
    """
    check_positive("penalty", penalty)
    return solve(cost, reg, a, b, tol, max_iterations, penalty)


@dataclass(frozen=True)
class UnbalancedOT:
    r"""Draw pairs from the normalised unbalanced plan: points that are far from everything are used less.

    As many pairs are drawn as ``x1`` has rows, one in each equal part of the mass; so a point that keeps its mass is
    used about once, and one that loses it hardly ever. **The data law changes**: a model trained on these pairs leaves
    outliers, and modes of too much mass, out. That is the purpose.

    Args:
        penalty: price :math:`\tau` of missing a unit of mass; a pair whose cost is well above it is given up.
        epsilon: regularisation.
        unit: what ``penalty`` and ``epsilon`` are measured in; the mean cost of the batch by default, 1 for absolute
            values.
        tol: see :func:`unbalanced_sinkhorn`.
        max_iterations: over all stages of the annealing.

    Raises:
        ValueError: a parameter that is not positive; on use, as :func:`unbalanced_sinkhorn`, or costs so far above
            ``penalty`` that no mass is left.
        RuntimeError: on use, ``tol`` not reached within ``max_iterations``.

    Source:
        Eyring et al., Unbalancedness in neural Monge maps improves unpaired domain translation, 2024,
        https://arxiv.org/abs/2311.15100.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [1.0], [100.0]]), torch.tensor([[0.1], [1.1], [0.9]])
        >>> i, j = UnbalancedOT(penalty=0.1)(x0, x1, generator=torch.Generator().manual_seed(0))
        >>> bool((i == 2).any())
        False
    """

    penalty: float = 1.0
    epsilon: float = 0.01
    unit: float | None = None
    tol: float = 1e-3
    max_iterations: int = 10_000

    def __post_init__(self) -> None:
        for name in ("penalty", "epsilon", "unit", "tol"):
            check_positive(name, getattr(self, name))
        check_iterations(self.max_iterations)

    def plan(self, x0: Tensor, x1: Tensor) -> Plan:
        """The unbalanced plan of two batches, ``(N, *event)`` and ``(M, *event)``."""
        check_clouds(x0, x1)
        return self._plan(x0, x1)

    def _plan(self, x0: Tensor, x1: Tensor) -> Plan:
        cost = joining_costs(x0, x1)
        unit = relative(1.0, cost) if self.unit is None else self.unit
        return unbalanced_sinkhorn(
            cost, self.epsilon * unit, self.penalty * unit, tol=self.tol, max_iterations=self.max_iterations
        )

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Index tensors ``(i, j)`` of shape ``(M,)``, ``M`` the rows of ``x1``."""
        check_clouds(x0, x1)
        n, m = x0.shape[0], x1.shape[0]
        if not m:
            i = torch.arange(0, device=x1.device)
            return i, i
        log_plan = self._plan(x0, x1).log_plan
        # One level in each of m equal parts of the mass: unbiased as independent levels are, with fewer repetitions.
        level = (torch.arange(m, device=x1.device) + rand((m,), generator, x1.device, torch.float64)) / m
        pick = inverse_cumulative((log_plan - log_plan.max()).exp().reshape(1, n * m), level[None])[0]
        return pick // m, pick % m
