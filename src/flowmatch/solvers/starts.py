r"""Which starts to solve exactly: a few of a pool, those where solvers differ.

Most of a mean square error comes from the few starts near a place where trajectories part. Of a pool of ``M`` starts,
each is taken with a probability that is half even and half proportional to the distance :math:`d_i` of two solvers'
ends,

.. math:: p_i = \min\Big(1, \; c \Big[ \frac{1}{2 M} + \frac{d_i}{2 \sum_k d_k} \Big]\Big) .

Drawn in several rounds, by different solvers, a start is among the known ones with the probability
:math:`\pi_i = 1 - \prod_r (1 - p_i^r)`. With weights :math:`1 / \pi_i`, sums over the known starts have the sums over
the pool as their mean, and the rare starts are among them.

Source: Horvitz and Thompson, A Generalization of Sampling Without Replacement From a Finite Universe, 1952.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmatch.randomness import rand
from flowmatch.solvers.base import ODE, Solver
from flowmatch.solvers.drive import solve
from flowmatch.solvers.embedded import DOP853, Dopri5
from flowmatch.solvers.fit import Trajectories
from flowmatch.tensors import check_event, mean_event, take
from flowmatch.typing import Cond, Field

__all__ = ["Pool", "solved"]


def solved(field: Field, x0: Tensor, cond: Cond, span: tuple[float, float]) -> Trajectories:
    """Trajectories of these starts with even weights, by error control far below what is to be told apart.

    Raises:
        TypeError: starts in half precision.
    """
    check_event(x0, "x0")
    if x0.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"tuning needs float32 or float64 to tell errors from rounding, got {x0.dtype}: tune flow.float(); the "
            "solver then serves every type"
        )
    method, tol = (DOP853(), 1e-9) if x0.dtype == torch.float64 else (Dopri5(), 1e-6)
    x1 = solve(ODE(field, cond), x0, method, rtol=tol, atol=tol, span=span).x
    return Trajectories(x0, x1, cond, torch.full((len(x0),), 1 / len(x0), dtype=torch.float64, device=x0.device))


class Pool:
    """Starts, some of which are known to their ends.

    Args:
        field: velocity of the equation.
        x0: starts ``(M, *event)``.
        cond: their conditions, or ``None``.
        span: first and last time.
        generator: randomness of the choice.
        rows: starts solved at a time.
    """

    def __init__(
        self,
        field: Field,
        x0: Tensor,
        cond: Cond,
        span: tuple[float, float],
        generator: torch.Generator | None,
        rows: int | None,
    ) -> None:
        self.field, self.x0, self.cond, self.span = field, x0, cond, span
        self.generator, self.rows = generator, rows
        self.x1 = torch.zeros_like(x0)
        self.unknown = torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        self.missed = torch.ones(len(x0), dtype=torch.float64, device=x0.device)

    def add(self, solvers: list[tuple[Solver, Tensor]], count: int) -> Trajectories:
        """Take about ``count`` starts where solvers on their grids differ from the first, and solve what is new.

        Args:
            solvers: at least two solvers with their grids.
            count: how many.

        Returns:
            All that is known, with its weights.
        """
        whole = Trajectories(self.x0, self.x1, self.cond, self.missed)
        ends = [whole.ends(self.field, solver, grid, self.rows) for solver, grid in solvers]
        apart = torch.stack([mean_event((end - ends[0]) ** 2).sqrt().double() for end in ends[1:]]).amax(0)
        chance = _chances(torch.where(apart.isfinite(), apart, torch.zeros_like(apart)), count)
        # Systematic: the running sum passes a whole number as often as starts are wanted.
        passed = (chance.cumsum(0) + rand((1,), self.generator, chance.device, torch.float64)).floor()
        hit = passed.diff(prepend=passed.new_zeros(1)) > 0
        fresh = (hit & self.unknown).nonzero().flatten()
        if len(fresh):
            self.x1[fresh] = solved(self.field, self.x0[fresh], take(self.cond, fresh), self.span).x1
        self.unknown &= ~hit
        self.missed = self.missed * (1 - chance)
        known = (~self.unknown).nonzero().flatten()
        weight = 1 / (1 - self.missed[known])
        return Trajectories(self.x0[known], self.x1[known], take(self.cond, known), weight).normalised()


def _chances(apart: Tensor, count: int) -> Tensor:
    """Probabilities that sum to ``count``, none above 1."""
    shares = apart / apart.sum() if bool(apart.sum() > 0) else torch.full_like(apart, 1 / len(apart))
    chance = count * (0.5 / len(apart) + 0.5 * shares)
    for _ in range(20):  # what is certain gives its surplus to the rest
        sure = chance >= 1
        if bool(sure.all()):
            break
        chance = torch.where(sure, torch.ones_like(chance), chance * (count - sure.sum()) / chance[~sure].sum())
    return chance.clamp(max=1.0)
