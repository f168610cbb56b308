r"""Entropic optimal transport: the plan that is cheap and still spread out, batched and on any device.

.. math:: \min_P \; \langle P, C \rangle + \varepsilon\, \mathrm{KL}(P | a b^T), \qquad P 1 = a, \quad P^T 1 = b

As :math:`\varepsilon \to 0` the plan tends to an optimal one, as :math:`\varepsilon \to \infty` to the independent
:math:`a b^T`. Between, at :math:`\varepsilon = 2 \sigma^2` for the cost :math:`|x_0 - x_1|^2`, it is the law of the two
ends of the Schroedinger bridge whose reference is a Brownian motion of variance :math:`\sigma^2` per unit of time,
since then :math:`e^{-C/\varepsilon}` is the heat kernel :math:`e^{-|x_0 - x_1|^2 / 2 \sigma^2}`.

What :math:`\varepsilon` means depends on the scale of the cost, so the coupling takes it relative to the mean cost. The
iteration, and why no exponential of it overflows or underflows to a uniform plan, is in
:mod:`flowmatch.couplings.scaling`.
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

__all__ = ["Sinkhorn", "sinkhorn"]


def sinkhorn(
    cost: Tensor,
    reg: float | Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    tol: float = 1e-3,
    max_iterations: int = 10_000,
) -> Plan:
    r"""Solve entropic optimal transport, :math:`\min_P \langle P, C \rangle + \varepsilon\, \mathrm{KL}(P | a b^T)`.

    Args:
        cost: ``(..., n, m)``, float32 or float64; leading dimensions are problems of their own, solved together.
        reg: the regularisation, a number or one for every problem ``(...)``, in units of the cost.
        a: masses of the rows ``(..., n)``, positive with sum 1; uniform by default.
        b: masses of the columns ``(..., m)``.
        tol: largest error of the masses, summed over rows and columns; 2e-3 means that 0.1 % of the mass is misplaced.
        max_iterations: over all stages of the annealing.

    Returns:
        The :class:`Plan`; nothing is differentiated through it.

    Raises:
        TypeError: a cost that is not float32 or float64.
        ValueError: wrong shapes, NaN or infinite costs, masses that are not positive or do not sum to 1, or a
            regularisation that is not positive or below what the type can resolve.
        RuntimeError: ``tol`` not reached within ``max_iterations``.

    Source:
        Cuturi, Sinkhorn distances: lightspeed computation of optimal transport, 2013, Algorithm 1.

    Example:
        >>> plan = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), reg=0.5)
        >>> plan.log_plan.exp()
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])
    """
    return solve(cost, reg, a, b, tol, max_iterations)


@dataclass(frozen=True)
class Sinkhorn:
    r"""Pair every row of ``x0`` with a row of ``x1`` drawn from its row of the entropic plan.

    The law of a pair is the plan, up to ``tol``. Every row of ``x0`` is used once; a row of ``x1`` is used once on
    average. The batches may have different sizes.

    Args:
        epsilon: regularisation relative to the mean cost of the batch; 0.005 if neither it nor ``reg`` is given, at
            which the cost is within 1 % of the exact one for 1024 points on a normal to eight Gaussians in 2 dimensions
            (0.8 %) and a mixture in 64 (0.5 %).
        reg: absolute regularisation instead; :math:`2 \sigma^2` for a Schroedinger bridge of noise :math:`\sigma`.
        tol: largest error of the masses, see :func:`sinkhorn`.
        max_iterations: over all stages of the annealing.

    Raises:
        ValueError: both of ``epsilon`` and ``reg``, or one that is not positive; on use, as :func:`sinkhorn`, or an
            ``x1`` without rows.
        RuntimeError: on use, ``tol`` not reached within ``max_iterations``.

    Source:
        Tong et al., Improving and generalizing flow-based generative models with minibatch optimal transport, 2024,
        section 3.3, https://arxiv.org/abs/2302.00482.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [5.0], [2.0]]), torch.tensor([[5.1], [2.1], [0.1]])
        >>> Sinkhorn()(x0, x1, generator=torch.Generator().manual_seed(0))
        (tensor([0, 1, 2]), tensor([2, 0, 1]))
    """

    epsilon: float | None = None
    reg: float | None = None
    tol: float = 1e-3
    max_iterations: int = 10_000

    def __post_init__(self) -> None:
        if self.epsilon is None and self.reg is None:
            object.__setattr__(self, "epsilon", 0.005)
        elif self.epsilon is not None and self.reg is not None:
            raise ValueError(
                f"give epsilon= (relative to the mean cost) or reg= (absolute), one of the two; got {self.epsilon} "
                f"and {self.reg}"
            )
        for name in ("epsilon", "reg", "tol"):
            check_positive(name, getattr(self, name))
        check_iterations(self.max_iterations)

    def plan(self, x0: Tensor, x1: Tensor) -> Plan:
        """The entropic plan of two batches, ``(N, *event)`` and ``(M, *event)``."""
        check_clouds(x0, x1)
        return self._plan(x0, x1)

    def _plan(self, x0: Tensor, x1: Tensor) -> Plan:
        cost = joining_costs(x0, x1)
        reg = self.reg if self.epsilon is None else relative(self.epsilon, cost)
        return sinkhorn(cost, reg or 0.0, tol=self.tol, max_iterations=self.max_iterations)

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Index tensors ``(i, j)`` of shape ``(N,)``, ``i = 0 ... N - 1``."""
        check_clouds(x0, x1)
        i = torch.arange(x0.shape[0], device=x0.device)
        if not x0.shape[0]:
            return i, i
        weights = self._plan(x0, x1).log_plan.softmax(1)
        level = rand((x0.shape[0], 1), generator, x0.device, torch.float64)
        return i, inverse_cumulative(weights, level)[:, 0]
