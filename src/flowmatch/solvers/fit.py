r"""Fitting a learned solver: least squares over whole trajectories, by Levenberg-Marquardt.

With starts :math:`x_0^i`, ends :math:`x_1^i` of the exact flow and the solver's own end :math:`\Phi_p(x_0^i)`, the loss
stands between the mean square error and the mean log of it, the peak signal-to-noise ratio:

.. math:: L(p) = \sum_i w_i \log(m_i + \kappa), \qquad m_i = \frac1D \| \Phi_p(x_0^i) - x_1^i \|^2,
    \qquad \kappa = 1000 \operatorname{median} m .

Samples far above the median, those near a place where trajectories part, then count by the log: a sample that ends in
the wrong mode is a jump, which no derivative sees, and would hold up a mean square alone.

**The method.** A solver has tens of parameters and thousands of residuals, so Gauss-Newton steps with Marquardt's
damping, :math:`(J^T W J + \lambda \operatorname{diag}) \delta = - J^T W r`, get further in tens of steps than gradient
steps in thousands: on eight modes at 8 calls, 24 of them (4 s) brought the median error from 4e-3 to 3e-4, 1500 steps
of Adam (17 s) nowhere. The columns of ``J`` are differences of two solves. A call that asks what the unchanged solver
asked is answered from memory, so a parameter costs only the calls behind it. No graph is kept: memory is that of
sampling, and the field need not be differentiable.

Source: Shaul et al., Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models, 2024,
for the loss; Marquardt, An Algorithm for Least-Squares Estimation of Nonlinear Parameters, 1963, for the method;
Holland and Welsch, Robust regression using iteratively reweighted least-squares, 1977, for the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowmatch.solvers.base import ODE, FieldError, SolveError, Solver
from flowmatch.solvers.drive import solve
from flowmatch.solvers.learned import Learned
from flowmatch.tensors import mean_event, take
from flowmatch.typing import Cond, Field

__all__ = ["Fit", "Trajectories"]

#: Square of the error, over its median, from which on a sample counts by its log alone: 32 medians of the error. Ten
#: medians gave up on rare starts near a boundary of modes; without a bound one of them held up the fit.
ROBUST = 1000.0


@dataclass(frozen=True)
class Trajectories:
    """Starts and ends of the exact flow.

    Attributes:
        x0: starts ``(N, *event)``.
        x1: ends ``(N, *event)``.
        cond: conditions, or ``None``.
        weight: share of each, ``(N,)``, float64, of sum 1.
    """

    x0: Tensor
    x1: Tensor
    cond: Cond
    weight: Tensor

    def split(self, rows: int | None) -> list[Trajectories]:
        """Parts of that many rows at most."""
        parts = torch.arange(len(self.x0), device=self.x0.device).split(rows or max(1, len(self.x0)))
        return [self.take(part) for part in parts]

    def take(self, index: Tensor) -> Trajectories:
        """Some of the rows."""
        return Trajectories(*(take(part, index) for part in vars(self).values()))

    def normalised(self) -> Trajectories:
        """The same with weights of sum 1."""
        return replace(self, weight=self.weight / self.weight.sum())

    def ends(self, field: Field, solver: Solver, grid: Tensor, rows: int | None) -> Tensor:
        """Where the solver ends, ``(N, *event)``; not finite where the solve fails."""
        return torch.cat([part.end(field, solver, grid) for part in self.split(rows)])

    def end(self, field: Field, solver: Solver, grid: Tensor) -> Tensor:
        """The same in one solve."""
        try:
            return solve(ODE(field, self.cond), self.x0, solver, grid=grid).x
        except FieldError:
            raise
        except SolveError as error:
            return error.solution.x

    def errors(self, field: Field, solver: Solver, grid: Tensor, rows: int | None) -> Tensor:
        """Mean square error of every sample, ``(N,)``; infinite where the solve fails."""
        errors = mean_event((self.ends(field, solver, grid, rows) - self.x1) ** 2).double()
        return torch.where(errors.isfinite(), errors, torch.full_like(errors, math.inf))

    def root_mean_square(self, errors: Tensor) -> float:
        """Root of the weighted mean of :meth:`errors`."""
        return math.sqrt(float(self.weight @ errors.to(self.weight)))

    def median(self, errors: Tensor) -> float:
        """Root of the weighted median of :meth:`errors`."""
        order = errors.argsort()
        half = torch.searchsorted(self.weight[order].cumsum(0), 0.5 * self.weight.sum())
        return math.sqrt(float(errors[order][half.clamp(max=len(order) - 1)]))


class _Memory:
    """A field that answers a call from memory when it is the call of the first solve again."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.known: list[tuple[Tensor, Tensor, Tensor]] = []
        self.learning, self.next = True, 0

    def again(self) -> _Memory:
        """Before every solve but the first."""
        self.learning, self.next = False, 0
        return self

    def __call__(self, t: Tensor, x: Tensor, *cond: Any) -> Tensor:
        if self.learning:
            self.known.append((t, x, self.field(t, x, *cond)))
            return self.known[-1][2]
        at, point, velocity = self.known[min(self.next, len(self.known) - 1)]
        self.next += 1
        return velocity if torch.equal(t, at) and torch.equal(x, point) else self.field(t, x, *cond)


class Fit:
    """Levenberg-Marquardt steps of one solver, which is changed in place.

    Args:
        solver: where to start from.
        field: velocity of the equation.
        train: trajectories to fit.
        held: trajectories to choose by.
        rows: trajectories solved at a time; by default so many that the Jacobian takes 128 MB.
        anchor: what the result must not fall behind on the held-out trajectories; the start by default.
    """

    def __init__(
        self,
        solver: Learned,
        field: Field,
        train: Trajectories,
        held: Trajectories,
        rows: int | None = None,
        anchor: Tensor | None = None,
    ) -> None:
        self.solver, self.field, self.train, self.held = solver, field, train, held
        self.point, self.damping = solver.vector(), 1e-2
        self.rows = rows or max(1, 2**24 // (len(self.point) * max(1, train.x0[:1].numel())))
        self.errors = self._errors(self.point)
        self.history = [train.root_mean_square(self.errors)]
        # Points that were met, with the errors of the held-out trajectories.
        self.met = [self._met(point) for point in (self.point if anchor is None else anchor, self.point)]

    @torch.no_grad()
    def run(self, steps: int, callback: Callable[[], Any] | None = None) -> None:
        """Make that many steps, or fewer if none leads further down.

        Args:
            steps: how many.
            callback: called after every step.
        """
        for _ in range(steps):
            if not self._step():
                break
            self.met.append(self._met(self.point))
            if callback is not None:
                callback()

    def finish(self) -> Learned:
        """The solver, with the best parameters that were met.

        It is the one with the least loss on the held-out trajectories; the anchor is among them, so by that measure the
        result is never worse.
        """
        kappa = _bound_of_log(torch.stack([errors for _, errors in self.met]).median(dim=1).values.min())
        losses = [float(self.held.weight @ (errors + kappa).log()) for _, errors in self.met]
        self.solver.assign(self.met[losses.index(min(losses))][0])
        return self.solver

    @property
    def loss(self) -> float:
        """The loss of the fit at the present point."""
        return self._loss(self.errors, self._kappa())

    def _kappa(self) -> float:
        return _bound_of_log(self.errors.median())

    def _loss(self, errors: Tensor, kappa: float) -> float:
        return float(self.train.weight @ (errors + kappa).log())

    def _errors(self, point: Tensor) -> Tensor:
        self.solver.assign(point)
        return self.train.errors(self.field, self.solver, self.solver.grid, self.rows)

    def _step(self) -> bool:
        """One step; whether it led down."""
        kappa = self._kappa()
        weight = self.train.weight / (self.errors + kappa)
        self.solver.assign(self.point)
        curvature, slope = _normal_equations(self.solver, self.field, self.train, weight / weight.sum(), self.rows)
        loss, diagonal = self._loss(self.errors, kappa), curvature.diag()
        diagonal = diagonal.clamp(min=max(1e-12 * float(diagonal.max()), 1e-300))
        while bool(curvature.isfinite().all()) and self.damping < 1e8:
            move = torch.linalg.solve(curvature + self.damping * torch.diag(diagonal), -slope)
            errors = self._errors(self.point + move)
            if self._loss(errors, kappa) < loss:
                self.point, self.errors = self.solver.vector(), errors
                self.damping = max(self.damping / 3, 1e-12)
                self.history.append(self.train.root_mean_square(errors))
                return True
            self.damping *= 4
        return False

    def _met(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """A point, and the errors of the held-out trajectories at it."""
        self.solver.assign(point)
        return point, self.held.errors(self.field, self.solver, self.solver.grid, self.rows)


def _bound_of_log(median: Tensor) -> float:
    """The loss's kappa. A solver that meets the field to rounding leaves no median, and a log needs more than zero."""
    return max(ROBUST * float(median), 1e-300)


def _normal_equations(
    solver: Learned, field: Field, train: Trajectories, weight: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Weighted ``J^T J`` and ``J^T r``, part by part."""
    point, scales = solver.vector(), solver.scales()
    nudges = scales * math.sqrt(torch.finfo(train.x0.dtype).eps)
    curvature, slope = point.new_zeros(len(point), len(point)), torch.zeros_like(point)
    for part, share in zip(train.split(rows), weight.split(rows), strict=True):
        memory = _Memory(field)
        residual = part.end(memory, solver, solver.grid) - part.x1
        columns = []
        for k in range(len(point)):
            trial = point.clone()
            trial[k] += nudges[k]
            solver.assign(trial)
            change = float(solver.vector()[k] - point[k])
            if change <= 0:  # at the end of what is allowed: look the other way
                trial[k] = point[k] - nudges[k]
                solver.assign(trial)
                change = float(solver.vector()[k] - point[k])
            moved = part.end(memory.again(), solver, solver.grid) - part.x1
            columns.append((moved - residual).flatten().double() / (change or math.inf))
        solver.assign(point)
        jacobian = torch.stack(columns)  # (P, rows * D)
        shares = (share / math.prod(part.x0.shape[1:])).repeat_interleave(math.prod(part.x0.shape[1:]))
        weighted = jacobian * shares.to(jacobian)
        curvature += (weighted @ jacobian.T).to(curvature)
        slope += (weighted @ residual.flatten().double()).to(slope)
    return curvature, slope
