r"""Equations, solvers and solutions: what is integrated, how, and what comes back.

A solver is a pure rule: from ``(t, x)`` and a step ``h`` to the next ``x``, with an error estimate if it
has one and a state if it keeps a memory. It knows no grid, no tolerance and no network; the
drivers in :mod:`flowmatch.solvers.drive` own those. So a fixed-step solve is a solver on a grid, an
adaptive solve is the same solver under a controller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowmatch.tensors import check_shaped, take, time_dtype
from flowmatch.typing import Cond, Field

__all__ = ["ODE", "FieldError", "Progress", "Solution", "SolveError", "Solver", "Step"]


@dataclass(frozen=True)
class ODE:
    r"""The equation :math:`dx/dt = v(t, x, c)`.

    Args:
        field: velocity ``(t, x) -> (B, *event)``, or ``(t, x, cond)`` when there is a condition.
        cond: condition of every sample, or ``None``.
        norm: size of a scaled error, ``(B, *event) -> (B,)``; the root mean square by default.
        singular: times at which the field is not defined, such as the end of a path without noise. Where a solve
            starts or ends at one, the field is asked a little inside instead; see :func:`flowmatch.solve`.

    Example:
        >>> ode = ODE(lambda t, x: -x)
        >>> ode(0.0, torch.ones(2, 1))
        tensor([[-1.],
                [-1.]])
    """

    field: Field
    cond: Cond = None
    norm: Callable[[Tensor], Tensor] | None = None
    singular: tuple[float, ...] = ()

    def __call__(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Velocity at ``(t, x)``; the field always sees ``t`` of shape ``(B,)``."""
        if not isinstance(t, Tensor):
            t = torch.full(x.shape[:1], t, dtype=time_dtype(x.dtype), device=x.device)
        velocity = self.field(t, x) if self.cond is None else self.field(t, x, self.cond)
        check_shaped(velocity, x, "field", "velocity")
        return velocity

    def take(self, index: Tensor) -> ODE:
        """The same equation for a part of the batch."""
        return self if self.cond is None else replace(self, cond=take(self.cond, index))


class Step(NamedTuple):
    """One step of a solver.

    Attributes:
        x: state after the step ``(B, *event)``.
        state: the solver's own memory for the next step.
        error: estimate of the local error ``(B, *event)``, or ``None``.
        dense: state at shares of the step in ``[0, 1]`` for some rows, ``(n,), (n,) -> (n, *event)``, or ``None``.
    """

    x: Tensor
    state: Any
    error: Tensor | None = None
    dense: Callable[[Tensor, Tensor], Tensor] | None = None


class Progress(NamedTuple):
    """What a callback is told after every step; if it returns ``True`` the solve stops there.

    Attributes:
        rows: places in the batch of the samples that are still on their way ``(b,)``.
        t: their times ``(b,)``.
        x: their states ``(b, *event)``.
        nfe: number of field calls so far.
    """

    rows: Tensor
    t: Tensor
    x: Tensor
    nfe: int


class Solver(ABC):
    """How an equation is integrated over one step.

    Attributes:
        order: global order, the slope of log error against log step.
        evaluations: field calls per step, the first step of a solve aside.
        adaptive: whether :meth:`step` estimates its error.
        dense: whether its steps tell the states in between.
    """

    order: int
    evaluations: int
    adaptive: bool = False
    dense: bool = False

    def init(self, equation: ODE, t: Tensor | float, x: Tensor) -> Any:
        """Memory at the start of a solve; every tensor in it has the leading dimension ``B``."""
        return None

    def calls(self, state: Any) -> int:
        """Field calls that the next step will make; more than usual where a method that remembers has to start."""
        return self.evaluations

    @abstractmethod
    def step(self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: Any) -> Step:
        """Go from ``t`` to ``t + h``; both are numbers, or tensors ``(B,)``. ``h`` may be negative."""


@dataclass(frozen=True)
class Solution:
    """What a solve returns.

    Attributes:
        t: times of the grid that were reached ``(T,)``, or those given as ``save``: all unless the solve stopped early.
        x: state at the last time ``(B, *event)``, or at ``reached`` if the solve stopped early.
        trajectory: states at these times ``(T, B, *event)`` if asked for by ``save``, else ``None``.
        nfe: number of field calls.
        nfe_per_sample: field evaluations spent on each sample ``(B,)``.
        accepted: steps accepted for each sample ``(B,)``.
        rejected: steps rejected for each sample ``(B,)``.
        reached: time that each sample has reached ``(B,)``; in a failed solve, the last at which it was finite.
        status: ``"finished"``, ``"max_nfe"`` if the budget ran out first, ``"stopped"`` if the callback said so, or
            ``"failed"`` inside a :class:`SolveError`.
    """

    t: Tensor
    x: Tensor
    trajectory: Tensor | None
    nfe: int
    nfe_per_sample: Tensor
    accepted: Tensor
    rejected: Tensor
    reached: Tensor
    status: str = "finished"

    def whole(self) -> Solution:
        """This solution if every sample arrived, else a :class:`SolveError`: for callers that want a state alone."""
        if self.status == "stopped":
            raise SolveError(
                "the callback stopped the solve before every sample had arrived: take what there is from solve()", self
            )
        if self.status != "finished":
            raise SolveError(
                f"max_nfe ran out after {self.nfe} field calls, before every sample had arrived: give more, loosen the "
                "tolerances, or take what there is from solve(), whose solution says how far each sample came",
                self,
            )
        return self


class SolveError(RuntimeError):
    """The solve cannot go on; ``solution`` holds what there was.

    Example:
        >>> from flowmatch.solvers import Euler, solve
        >>> solve(ODE(lambda t, x: x / 0), torch.ones(1, 1), solver=Euler(), steps=2)
        Traceback (most recent call last):
            ...
        flowmatch.solvers.base.SolveError: the state is not finite after t = 0.5 (first step from t = 0) for 1 of 1 ...
    """

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


class FieldError(SolveError, ValueError):
    """The field itself failed, or returned what is no velocity; ``solution`` holds what there was.

    Example:
        >>> from flowmatch.solvers import Euler, solve
        >>> solve(ODE(lambda t, x: 3.0), torch.ones(1, 2), solver=Euler(), steps=2)
        Traceback (most recent call last):
            ...
        flowmatch.solvers.base.FieldError: the solve had come to t = 0: the field returned float for x of ...
    """

    @classmethod
    def at(cls, t: float, error: Exception, solution: Solution) -> FieldError:
        """The error of a call, told with the time that the solve had reached."""
        return cls(f"the solve had come to t = {t:g}: {error}", solution)
