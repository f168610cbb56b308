r"""Explicit Runge-Kutta methods: one stepping rule, a tableau each.

.. math:: k_i = v\Big(t + c_i h,\; x + h \sum_{j<i} a_{ij} k_j\Big), \qquad x_{new} = x + h \sum_i b_i k_i

Where the last stage is the first of the next step (Dormand-Prince), it is kept as state and costs nothing.
A new method is a tableau and a class of three lines; the tableau proves its own order. Pairs with an error estimate
are in :mod:`flowmatch.solvers.embedded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch.solvers.base import ODE, Solver, Step
from flowmatch.solvers.tableau import Tableau
from flowmatch.tensors import expand_time

__all__ = ["RK4", "Euler", "Heun", "Kutta3", "Midpoint", "Ralston", "RungeKutta"]


class RungeKutta(Solver):
    """Explicit Runge-Kutta method; subclasses give ``tableau``."""

    tableau: ClassVar[Tableau]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.order = cls.tableau.order
        cls.adaptive = bool(cls.tableau.error)
        cls.dense = bool(cls.tableau.dense)
        cls.evaluations = len(cls.tableau.b) - cls.tableau.first_same_as_last

    def init(self, equation: ODE, t: Tensor | float, x: Tensor) -> Tensor | None:
        return equation(t, x) if self.tableau.first_same_as_last else None

    def step(self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: Tensor | None) -> Step:
        table = self.tableau
        stages: list[Tensor] = [equation(t, x) if state is None else state]
        times = _times(t, h, table.c)
        new = x
        for row, time in zip(table.a[1:], times[1:], strict=True):
            new = advance(x, h, row, stages)
            stages.append(equation(time, new))
        if not table.first_same_as_last:
            new = advance(x, h, table.b, stages)
        error = self._error(equation, h, x, stages) if table.error else None
        dense = partial(_within, table.dense, h, x, stages) if table.dense and isinstance(h, Tensor) else None
        return Step(new, stages[-1] if table.first_same_as_last else None, error, dense)

    def _error(self, equation: ODE, h: Tensor | float, x: Tensor, stages: list[Tensor]) -> Tensor:
        """Estimate of the local error: the difference of the two methods of the pair."""
        return advance(torch.zeros_like(x), h, self.tableau.error, stages)


def advance(x: Tensor, h: Tensor | float, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """``x + h sum_i weights_i stages_i``, with one step for the batch or one a sample."""
    if not isinstance(h, Tensor):
        for weight, stage in zip(weights, stages, strict=True):
            if weight:
                x = torch.add(x, stage, alpha=h * weight)
        return x
    used = [(weight, stage) for weight, stage in zip(weights, stages, strict=True) if weight]
    if not used:
        return x
    if len(used) == 1:
        slope = used[0][0] * used[0][1]
    else:
        # One product instead of an operation a stage: on a small network these are a good part of a step.
        stack = torch.stack([stage for _, stage in used])
        row = _row(tuple(weight for weight, _ in used), stack.dtype, stack.device)
        slope = (row @ stack.flatten(1)).reshape(stack.shape[1:])
    return torch.addcmul(x, expand_time(h, x), slope).to(x.dtype)


def _times(t: Tensor | float, h: Tensor | float, nodes: tuple[float, ...]) -> Sequence[Tensor | float]:
    if not isinstance(t, Tensor) or not isinstance(h, Tensor):
        return [t + c * h for c in nodes]
    return torch.addcmul(t, _row(nodes, h.dtype, h.device)[:, None], h).unbind()


def _within(
    table: tuple[tuple[float, ...], ...], h: Tensor, x: Tensor, stages: list[Tensor], share: Tensor, rows: Tensor
) -> Tensor:
    """State at shares ``(n,)`` of the steps of some rows ``(n,)``."""
    slope: Tensor | None = None
    for polynomial, stage in zip(table, stages, strict=True):
        if any(polynomial):
            weight = torch.zeros_like(share)
            for coefficient in reversed(polynomial):
                weight = (weight + coefficient) * share
            part = expand_time(weight * h[rows], x[rows]) * stage[rows]
            slope = part if slope is None else slope + part
    assert slope is not None
    return (x[rows] + slope).to(x.dtype)


@lru_cache
def _row(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of a tableau as a tensor, made once: a copy to an accelerator at every stage would wait for it."""
    with torch.inference_mode(False):  # kept beyond this solve, which may be the one without gradients
        return torch.tensor(weights, dtype=dtype, device=device)


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method: order 1, one call a step.

    Example:
        >>> from flowmatch.solvers import ODE, solve
        >>> solve(ODE(lambda t, x: x), torch.ones(1, 1), solver=Euler(), steps=2).x
        tensor([[2.2500]])
    """

    tableau = Tableau(a=((),), b=(1.0,), order=1)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The midpoint rule: order 2, two calls a step; it never evaluates the end of the step."""

    tableau = Tableau(a=((), (1 / 2,)), b=(0.0, 1.0), order=2)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (trapezoid): order 2, two calls a step."""

    tableau = Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), order=2)


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Ralston's method: of all of order 2 with two calls a step, the one with the least bound on its error.

    Source:
        Ralston, Runge-Kutta methods with minimum error bounds, 1962.
    """

    tableau = Tableau(a=((), (2 / 3,)), b=(1 / 4, 3 / 4), order=2)


@dataclass(frozen=True)
class Kutta3(RungeKutta):
    """Kutta's method of order 3: three calls a step, Simpson's rule where the field knows time alone.

    Source:
        Kutta, Beitrag zur naeherungsweisen Integration totaler Differentialgleichungen, 1901.
    """

    tableau = Tableau(a=((), (1 / 2,), (-1.0, 2.0)), b=(1 / 6, 2 / 3, 1 / 6), order=3)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical Runge-Kutta method: order 4, four calls a step."""

    tableau = Tableau(
        a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        order=4,
    )
