r"""The scaling iteration under every entropic coupling, balanced or not.

For a cost :math:`C`, masses ``a`` and ``b``, a regularisation :math:`\varepsilon` and a price :math:`\tau` for missing
them, the plan that minimises

.. math:: \langle P, C \rangle + \varepsilon\, \mathrm{KL}(P | a b^T)
          + \tau\, \mathrm{KL}(P 1 | a) + \tau\, \mathrm{KL}(P^T 1 | b)

is :math:`P_{ij} = a_i b_j e^{(f_i + g_j - C_{ij})/\varepsilon}`. Setting the derivative by :math:`f` to zero gives

.. math:: f_i = -\frac{\tau}{\tau + \varepsilon}\, \varepsilon \log \sum_j b_j e^{(g_j - C_{ij})/\varepsilon},
          \qquad (P 1)_i = a_i e^{-f_i/\tau},

and the same for :math:`g`; with :math:`\tau = \infty` the factor is 1 and the masses are kept. The two are solved in
turn. Four things make it fast and keep it exact:

1. **Absorption.** The plan at the present potentials is a matrix whose entries cannot overflow. Further changes
   :math:`u, v` of the potentials act on it through two matrix-vector products, with no exponential. Before they grow
   out of the range of the type they are added to the logarithm of the plan. That logarithm is kept, and never made anew
   as :math:`f + g - C`: where the plan has mass it is small, and that would be the difference of large numbers.
2. **Annealing.** :math:`\varepsilon` comes down from the range of the cost by factors of 8; each stage starts from the
   potentials of the last.
3. **Over-relaxation.** Near the solution the error falls by a constant factor :math:`\lambda` per iteration. Once
   that factor is seen to be steady, steps are lengthened by :math:`2/(1 + \sqrt{1 - \lambda})`, the best factor for
   the linearised iteration; if the error then grows, the plain iteration is taken up again.
4. **Shift.** With a finite :math:`\tau` the masses alone tell :math:`f + s, g - s` from :math:`f, g`, and the iteration
   is slow to find :math:`s`: 45000 iterations at :math:`\tau = 1000` mean costs, 30 once the best :math:`s` is put in.
5. Where a row or a column of the matrix vanishes all the same, one iteration is done by log-sum-exp.

Sources: Cuturi, Sinkhorn distances, 2013; Chizat, Peyre, Schmitzer, Vialard, Scaling algorithms for unbalanced optimal
transport problems, 2018 (the factor, absorption); Thibault, Chizat, Dossal, Papadakis, Overrelaxed Sinkhorn-Knopp
algorithm, 2021, and Lehmann, von Renesse, Sambale, Uschmajew, A note on overrelaxation in the Sinkhorn algorithm, 2022;
Sejourne, Vialard, Peyre, Faster unbalanced optimal transport: translation invariant Sinkhorn and 1-D Frank-Wolfe, 2022.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Scaled", "scale"]

CHECK = 5  # iterations between two looks at the error
ANNEAL = 8.0
STAGE_ERROR = 0.3  # at which a stage of the annealing hands on; 0.1 and 1 take as long
STEADY = 0.15  # how far two successive rates may differ, as a part of 1 - rate, to be taken for the asymptotic one
LONGEST = 1.99  # 1.97 needs 1.4 times, 1.997 needs 1.1 times the iterations (sum of 18 problems of 256 points)


class Scaled(NamedTuple):
    """Potentials in units of the regularisation, with the masses in them: ``log_plan = f + g - cost / reg``."""

    f: Tensor
    g: Tensor
    log_plan: Tensor
    error: Tensor
    iterations: int


class _Range(NamedTuple):
    """How far exponents may go: entries below ``cut`` are dropped, changes above ``room`` are absorbed."""

    cut: float
    room: float

    def left(self, u: Tensor, v: Tensor) -> bool:
        """Whether changes ``u`` and ``v`` have grown so far that they have to be absorbed."""
        return float(u.amax() + v.amax()) > self.room or float(torch.minimum(u.amin(), v.amin())) < -self.room


def _range(dtype: torch.dtype) -> _Range:
    # A dropped entry carries at most exp(cut + room) of a mass; denormals would slow the products by ten.
    return _Range(-60.0, 25.0) if dtype == torch.float32 else _Range(-500.0, 200.0)


def scale(
    cost: Tensor,
    reg: Tensor,
    log_a: Tensor,
    log_b: Tensor,
    tol: float,
    max_iterations: int,
    price: float = math.inf,
) -> Scaled:
    """Solve a batch of problems together; the caller looks at ``error``, which is above ``tol`` if it did not converge.

    Args:
        cost: ``(B, n, m)``, finite.
        reg: ``(B,)``, positive.
        log_a: ``(B, n)``.
        log_b: ``(B, m)``.
        tol: sum over both sides of the absolute errors of the masses, per unit of mass.
        max_iterations: over all stages.
        price: of missing the masses, in units of the cost; infinite for a balanced plan.
    """
    extent = float(((cost.amax((1, 2)) - cost.amin((1, 2))) / reg).max())
    stages = math.ceil(math.log(max(1.0, extent), ANNEAL))
    run = _Run(cost, reg * ANNEAL**stages, log_a, log_b, price, max_iterations)
    for _ in range(stages):
        run.solve(STAGE_ERROR)
        run.anneal()
    error = run.solve(tol)
    return Scaled(run.f, run.g, run.log_plan, error, run.iterations)


class _Run:
    """The state of the iteration; potentials are in units of the present regularisation."""

    def __init__(
        self, cost: Tensor, reg: Tensor, log_a: Tensor, log_b: Tensor, price: float, max_iterations: int
    ) -> None:
        self.log_a, self.log_b = log_a, log_b
        self.f, self.g = log_a, log_b
        self.log_plan = (cost / -reg[:, None, None]).add_(log_a[:, :, None]).add_(log_b[:, None, :])
        self.kernel = torch.empty_like(cost)  # written over and over: fresh pages cost as much as the exponential
        self.looseness, self.balanced = reg[:, None] / price, math.isinf(price)
        self.iterations, self.max_iterations = 0, max_iterations
        self.range = _range(cost.dtype)

    def anneal(self) -> None:
        """Go to the next regularisation; the potentials stay as they are in units of the cost."""
        more = ANNEAL - 1
        self.f, self.g = ANNEAL * self.f - more * self.log_a, ANNEAL * self.g - more * self.log_b
        self.log_plan.mul_(ANNEAL).sub_(more * self.log_a[:, :, None]).sub_(more * self.log_b[:, None, :])
        self.looseness = self.looseness / ANNEAL

    def absorb(self, u: Tensor | None = None, v: Tensor | None = None) -> None:
        """Add changes of the potentials to them and to the plan."""
        if u is not None:
            self.f = self.f + u
            self.log_plan.add_(u[:, :, None])
        if v is not None:
            self.g = self.g + v
            self.log_plan.add_(v[:, None, :])

    def row_change(self, row: Tensor) -> Tensor:
        """Change of ``f`` that makes the rows right, where ``row`` are their log-masses without it."""
        return (self.log_a - row - self.looseness * (self.f - self.log_a)) / (1 + self.looseness)

    def column_change(self, column: Tensor) -> Tensor:
        return (self.log_b - column - self.looseness * (self.g - self.log_b)) / (1 + self.looseness)

    def solve(self, goal: float) -> Tensor:
        """Iterate until the error is at most ``goal``, or no iterations are left; return the error, ``(B,)``."""
        self.absorb(u=-self.log_plan.amax(2) + self.log_a)  # no row vanishes, and the iteration starts from g alone
        rate = _Rate()
        while True:
            torch.exp(self.log_plan, out=self.kernel)
            torch.threshold_(self.kernel, math.exp(self.range.cut), 0.0)
            u, v = torch.zeros_like(self.f), torch.zeros_like(self.g)
            # The error that counts is that of the plan as it is stored, rounding and all.
            error = self.error(u, v, self.kernel.sum(2).log(), self.kernel.sum(1).log())
            worst = float(error.max())
            # Not a number: an unbalanced plan has lost all its mass, and no more iterations will find it.
            if worst <= goal or math.isnan(worst) or self.iterations >= self.max_iterations:
                return error
            if not self.round(u, v, goal, rate):
                self.absorb(u=self.row_change(self.log_plan.logsumexp(2)))
                self.absorb(v=self.column_change(self.log_plan.logsumexp(1)))
                rate = _Rate()

    def round(self, u: Tensor, v: Tensor, goal: float, rate: _Rate) -> bool:
        """Iterate on one kernel as long as it holds, and absorb; False, with nothing done, if it broke down."""
        row = _log_product(self.kernel, v)
        while True:
            for _ in range(CHECK):
                u = torch.lerp(u, self.row_change(row), rate.omega)
                column = _log_product(self.kernel.mT, u)
                v = torch.lerp(v, self.column_change(column), rate.omega)
                row = _log_product(self.kernel, v)
            self.iterations += CHECK
            if not self.balanced:
                shift = self.shift(u, v)
                u, v, row, column = u + shift, v - shift, row - shift, column + shift
            column = column if rate.omega == 1 else _log_product(self.kernel.mT, u)
            worst = float(self.error(u, v, u + row, v + column).max())
            if not math.isfinite(worst):
                return False
            rate.note(worst)
            if worst <= goal or self.iterations >= self.max_iterations or self.range.left(u, v):
                self.absorb(u, v)
                return True

    def wanted(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Log-masses that the potentials ask for: ``a exp(-f / price)`` and ``b exp(-g / price)``."""
        rows = self.log_a - self.looseness * (self.f + u - self.log_a)
        return rows, self.log_b - self.looseness * (self.g + v - self.log_b)

    def shift(self, u: Tensor, v: Tensor) -> Tensor:
        """What to move from ``g`` to ``f``: the plan stays, and the masses asked for on the two sides agree."""
        rows, columns = self.wanted(u, v)
        return (rows.logsumexp(1, keepdim=True) - columns.logsumexp(1, keepdim=True)) / (2 * self.looseness)

    def error(self, u: Tensor, v: Tensor, log_rows: Tensor, log_columns: Tensor) -> Tensor:
        """Distance of the masses of the plan from those asked for, per unit of mass, ``(B,)``."""
        rows, columns = log_rows.exp(), log_columns.exp()
        wanted_rows, wanted_columns = (x.exp() for x in self.wanted(u, v))
        return ((rows - wanted_rows).abs().sum(1) + (columns - wanted_columns).abs().sum(1)) / rows.sum(1)


class _Rate:
    """Over-relaxation from the rate at which the error is seen to fall."""

    def __init__(self) -> None:
        self.omega, self.errors = 1.0, [math.inf]

    def note(self, error: float) -> None:
        """Take one more error, and lengthen or shorten the step by it."""
        self.errors.append(error)
        if self.omega > 1 and error > 10 * self.errors[0]:
            self.omega, self.errors = 1.0, [error]
        elif len(self.errors) > 2:
            new, old = self.errors[-1] / self.errors[-2], self.errors[-2] / self.errors[-3]
            rate = new ** (1 / CHECK)
            if abs(new - old) < STEADY * (1 - new) and rate > self.omega - 1:
                # Young 1954: the error that falls by q when relaxed falls by (q + omega - 1)^2 / (q omega^2) when not.
                plain = (rate + self.omega - 1) ** 2 / (rate * self.omega**2)
                omega = min(LONGEST, 2 / (1 + math.sqrt(max(0.0, 1 - plain))))
                if omega > self.omega:
                    self.omega, self.errors = omega, [error]


def _log_product(kernel: Tensor, log_v: Tensor) -> Tensor:
    return (kernel @ log_v.exp()[:, :, None])[:, :, 0].log()
