r"""Multistep methods: one call a step, the rest is remembered.

The integral of what is known at the last nodes :math:`c_n, c_{n-1}, \ldots` is that of the polynomial through them.
With the Lagrange basis :math:`\ell_j` of the nodes and a measure :math:`d\mu` over the step,

.. math:: y_{n+1} = y_n + (c_{n+1} - c_n) \dot y_n + \sum_{j < n} W_j (F_j - F_n), \qquad
    W_j = \int_{c_n}^{c_{n+1}} \ell_j \, d\mu .

Adams-Bashforth takes :math:`y = x`, :math:`F = \dot x` and :math:`d\mu = dt`; the exponential integrators of
:mod:`flowmatch.solvers.exponential` take other frames. The weights are those of the actual grid, so steps need not be
equal.

**The start.** With ``k`` nodes a step has the local error :math:`O(h^{k+1})`, and a method of order ``p`` can bear
:math:`O(h^p)` in its first steps. A step that falls short by one is taken again, in thought, once the next call is
there: the polynomial then has a node at the end of the step, and the step gains an order for nothing
(Heun's method, with the second call shared). The one step that falls short by two, the first of order 4, is a
Runge-Kutta step of order 3. A corrector does the same at every step.

Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 1993, sections III.1 and III.5.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from flowmatch.solvers.base import ODE, Solver, Step
from flowmatch.solvers.runge_kutta import Kutta3

__all__ = ["AdamsBashforth", "Multistep", "adams_weights", "integrate_basis"]


def integrate_basis(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    r"""Integrals of the Lagrange polynomials of the nodes, from the integrals of the powers.

    .. math:: \int \ell_j \, d\mu = \sum_k \ell_{jk} \int u^k \, d\mu

    Args:
        nodes: where the polynomials are 0 or 1; all different.
        moments: integrals of ``u^0, u^1, ...``, one a node.

    Example:
        >>> integrate_basis([0.0, -1.0], [1.0, 0.5])  # two-step Adams-Bashforth
        [1.5, -0.5]
    """
    weights = []
    for j, own in enumerate(nodes):
        powers = [1.0]
        for i, other in enumerate(nodes):
            if i != j:  # times (u - other) / (own - other)
                shifted = [0.0, *powers]
                powers = [(up - other * low) / (own - other) for up, low in zip(shifted, [*powers, 0.0], strict=True)]
        weights.append(sum(p * m for p, m in zip(powers, moments, strict=True)))
    return weights


def adams_weights(start: float, end: float, others: Sequence[float]) -> tuple[float, list[float]]:
    """Length of a step in a frame's own time, and the weights of the other nodes: those of Adams on any grid."""
    length = end - start
    nodes = [0.0, *((other - start) / length for other in others)]
    return length, integrate_basis(nodes, [length / (k + 1) for k in range(len(nodes))])[1:]


class Known(NamedTuple):
    """What one call has told: where, the state there, its rate and what is interpolated."""

    t: Any
    y: Tensor
    rate: Tensor
    value: Tensor


class Multistep(Solver):
    """A solver that remembers; subclasses give the frame and the weights.

    Attributes:
        reach: number of nodes of the predictor.
        correct: whether every step is corrected, and not only those of the start.
    """

    evaluations = 1
    reach: int
    correct: bool = False

    def calls(self, state: tuple[Known, ...] | None) -> int:
        return 3 if self._short(state) else 1

    def step(
        self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: tuple[Known, ...] | None
    ) -> Step:
        if isinstance(t, Tensor) or isinstance(h, Tensor):
            raise TypeError(f"{type(self).__name__} takes one step for the whole batch: t and h must be numbers")
        past = state or ()
        here = self._ask(equation, t, h, x)
        again = self.correct or len(past) < self.reach - 1
        if past and again and not (self.reach == 4 and len(past) == 1):  # the last was a Runge-Kutta step
            here = self._rebase(here, self._move(past[0], here.t, (here, *past[1 : self.reach])))
        if self._short(state):
            return Step(Kutta3().step(equation, t, h, x, here.rate).x, (here,))
        y = self._move(here, self._place(t + h), past[: self.reach - 1])
        return Step(self._leave(t + h, y), (here, *past[: self.reach]))

    def _short(self, state: tuple[Known, ...] | None) -> bool:
        """Whether a step would fall short of the order even when corrected."""
        return self.reach == 4 and state is None

    def _move(self, start: Known, end: Any, others: Sequence[Known]) -> Tensor:
        """From ``start`` to ``end`` with the polynomial through ``start`` and ``others``."""
        length, weights = self._weights(start.t, end, [other.t for other in others])
        y = start.y + length * start.rate
        for weight, other in zip(weights, others, strict=True):
            y = y + weight * (other.value - start.value)
        return y

    def _ask(self, equation: ODE, t: float, h: float, x: Tensor) -> Known:
        """Call the field."""
        rate = equation(t, x)
        return Known(t, x, rate, rate)

    def _rebase(self, known: Known, y: Tensor) -> Known:
        """The same call, seen from a corrected state."""
        return known._replace(y=y)

    def _place(self, t: float) -> Any:
        """A time as a place in the solver's frame."""
        return t

    def _leave(self, t: float, y: Tensor) -> Tensor:
        """The state in the solver's frame as one of the equation."""
        return y

    @abstractmethod
    def _weights(self, start: Any, end: Any, others: Sequence[Any]) -> tuple[float, list[float]]:
        """Length of the step, and the weight of each other node's difference from the first."""


@dataclass(frozen=True)
class AdamsBashforth(Multistep):
    r"""Adams-Bashforth of order 2, 3 or 4 on any grid: one call a step.

    .. math:: x_{n+1} = x_n + \int_{t_n}^{t_{n+1}} P(t) \, dt

    with the polynomial ``P`` through the last ``order`` velocities. Order 4 starts with one step of three calls.

    Args:
        order: 2, 3 or 4.

    Raises:
        ValueError: another order.

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 1993, section III.5, for unequal steps.

    Example:
        >>> import torch
        >>> from flowmatch.solvers import ODE, solve
        >>> solution = solve(ODE(lambda t, x: x), torch.ones(1, 1), solver=AdamsBashforth(3), steps=30)
        >>> solution.nfe, bool((solution.x - torch.e).abs() < 1e-3)
        (30, True)
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (2, 3, 4):
            raise ValueError(f"order must be 2, 3 or 4, got {self.order!r}; order 1 is Euler()")

    @property
    def reach(self) -> int:  # type: ignore[override]
        """Number of velocities in the polynomial."""
        return self.order

    def _weights(self, start: float, end: float, others: Sequence[float]) -> tuple[float, list[float]]:
        return adams_weights(start, end, others)
