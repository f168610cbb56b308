r"""Learned solvers: methods whose coefficients are fitted to one field.

A general method spends its calls alike on every field. A solver for one frozen field can choose the times of its calls
and the weights of what they return so that, over the starts of that field, the end comes out right. Such a solver has
a span, a direction and a number of calls of its own: :attr:`Learned.grid` is what :func:`~flowmatch.solve` is given.

The coefficients are float64 numbers on the host, whatever the type and device of the states: they are scalars of the
method, and rounding them to the type of a network would undo the fit.

**What is kept by construction.** Each solver here is linear in the start and in the velocities, so it commutes with
every linear map of the states that the field commutes with, and no sample depends on its batch mates. On top of that a
:class:`LearnedGrid` keeps all that its method has on any grid: its order, and exactness for constant velocities.

Source: Shaul et al., Bespoke Solvers for Generative Flow Models, 2023, https://arxiv.org/abs/2310.19075.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.solvers.base import ODE, Solver, Step

__all__ = ["Learned", "LearnedGrid", "ask", "frozen", "times_in_order", "tuned_for"]

#: Least distance of two times of a learned grid, as a share of the span.
CLOSEST = 1e-4


class Learned(Solver, nn.Module):
    """A solver with parameters, which keep no graph unless ``requires_grad_()`` asks for it.

    Attributes:
        span: first and last time; the solver goes from the one to the other and nowhere else.
        nfe: field calls of a whole solve.
        fitted: what :func:`~flowmatch.solvers.tune` measured, or ``None``; it is not saved.
    """

    #: A fixed set of coefficients has one step length, so there is no slope to speak of.
    order = 0
    span: tuple[float, float]
    nfe: int
    fitted: Any = None

    def __init__(self, span: Sequence[float]) -> None:
        nn.Module.__init__(self)
        ends = tuple(float(t) for t in span)
        if len(ends) != 2 or ends[0] == ends[1] or not all(map(math.isfinite, ends)):
            raise ValueError(f"span must hold two different finite times, got {span}")
        self.span = ends[0], ends[1]

    @property
    def grid(self) -> Tensor:
        """Times for ``solve(grid=)``."""
        return torch.tensor(self.span, dtype=torch.float64)

    def along(self, span: tuple[float, float]) -> Tensor:
        """The grid, for a solve over ``span``.

        Raises:
            ValueError: another span, or the other direction.
        """
        if max(abs(a - b) for a, b in zip(span, self.span, strict=True)) > 1e-6 * abs(self.span[1] - self.span[0]):
            raise ValueError(
                f"this {type(self).__name__} was learned for the way from {self.span[0]:g} to {self.span[1]:g}, not "
                f"from {span[0]:g} to {span[1]:g}: give steps= or rtol= and a general solver"
            )
        return self.grid

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this solver again, coefficients included."""

    @abstractmethod
    def scales(self) -> Tensor:
        """Size of a change that matters, for every entry of :meth:`vector`."""

    def vector(self) -> Tensor:
        """All parameters as one vector."""
        return torch.cat([p.detach().flatten() for p in self.parameters()])

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        """Take the parameters from a vector, each brought to the nearest value that is allowed."""
        parts = vector.split([p.numel() for p in self.parameters()])
        for parameter, part in zip(self.parameters(), parts, strict=True):
            parameter.copy_(part.view_as(parameter))
        self._allow()

    def _allow(self) -> None:
        """Bring the parameters to where they are allowed to be."""

    def _place(self, t: Tensor | float, h: Tensor | float) -> int:
        """Which of the solver's own steps goes from ``t`` to ``t + h``."""
        if isinstance(t, Tensor) or isinstance(h, Tensor):
            raise TypeError(f"{type(self).__name__} takes one step for the whole batch: t and h must be numbers")
        times = self.grid.tolist()
        slack = 1e-6 * abs(times[-1] - times[0])
        for i, (start, end) in enumerate(zip(times[:-1], times[1:], strict=True)):
            if abs(start - t) <= slack and abs(end - t - h) <= slack:
                return i
        raise ValueError(
            f"this {type(self).__name__} was learned for the way from {times[0]:g} to {times[-1]:g} in {self.nfe} "
            f"calls and has no step from {t:g} to {t + h:g}: solve with grid=solver.grid, or take a general solver "
            "for another direction, span or number of steps"
        )

    def _numbers(self, parameter: Tensor) -> Any:
        """Entries of a vector: plain numbers, or tensors where somebody wants their gradients."""
        if parameter.requires_grad and torch.is_grad_enabled():
            return parameter.unbind()
        return parameter.tolist()

    # Host scalars in float64: a flow that moves to another type or device leaves them as they are.
    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Learned:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}(nfe={self.nfe}, span={self.span})"


def frozen(values: Tensor) -> nn.Parameter:
    """A parameter that keeps no graph until somebody asks for its gradient."""
    with torch.inference_mode(False):  # it may be changed later, outside
        return nn.Parameter(values.clone(), requires_grad=False)


def tuned_for(tuned: dict[int, Learned], nfe: Any, others: list[str]) -> Learned:
    """The solver that was tuned to ``nfe`` calls.

    Raises:
        ValueError: none was, or other ways to choose the steps are given as well.
    """
    if others:
        raise ValueError(f"nfe= names a tuned solver, which has steps of its own; leave out {' and '.join(others)}")
    if nfe not in tuned:
        there = f"there are solvers for {', '.join(map(str, sorted(tuned)))}" if tuned else "no solver is tuned"
        raise ValueError(
            f"this flow has no solver tuned to nfe = {nfe} calls ({there}): make one with flow.tune({nfe})"
        )
    return tuned[nfe]


def ask(equation: ODE, t: Any, x: Tensor) -> Tensor:
    """Velocity at a time that is a number, or a tensor ``()`` whose gradients are wanted."""
    if isinstance(t, Tensor):
        t = t.to(x).expand(x.shape[:1])
    return equation(t, x)


def times_in_order(times: Tensor, span: tuple[float, float]) -> None:
    """Bring inner times into the order of the span, in place, no two of them and no end nearer than a sliver."""
    start, width = span[0], span[1] - span[0]
    shares = ((times - start) / width).sort().values
    count = len(shares)
    room = torch.arange(1, count + 1, dtype=shares.dtype) * CLOSEST
    low = (shares - room).clamp(min=0.0).cummax(0).values if count else shares
    times.copy_(start + width * torch.minimum(low + room, 1 - room.flip(0)))


class LearnedGrid(Learned):
    """Any solver for fixed steps, on times that are learned.

    Args:
        solver: the method, such as ``Midpoint()``.
        grid: times to start from, increasing or decreasing; the ends stay.

    Raises:
        TypeError: no solver, or one with parameters of its own.
        ValueError: a grid that is not monotone.

    Example:
        >>> from flowmatch.solvers import Midpoint, solve, uniform_grid
        >>> solver = LearnedGrid(Midpoint(), uniform_grid(4))
        >>> solver.nfe, solve(ODE(lambda t, x: t[:, None] * 2), torch.zeros(1, 1), solver, grid=solver.grid).x
        (8, tensor([[1.]]))
    """

    def __init__(self, solver: Solver, grid: Tensor | Sequence[float]) -> None:
        times = torch.as_tensor(grid, dtype=torch.float64, device="cpu").detach().clone()
        if times.ndim != 1 or len(times) < 2 or not bool(times.isfinite().all()):
            raise ValueError(f"grid must hold at least two finite times, got {grid}")
        if not isinstance(solver, Solver) or isinstance(solver, nn.Module):
            raise TypeError(f"solver must be a general one such as Midpoint(), got {solver!r}")
        super().__init__((float(times[0]), float(times[-1])))
        if not bool((times.diff() * (self.span[1] - self.span[0]) > 0).all()):
            raise ValueError("grid must be strictly increasing or strictly decreasing")
        self.solver, self.order, self.evaluations = solver, solver.order, solver.evaluations
        self.inner = frozen(times[1:-1])
        self.nfe = self._count(len(times) - 1)

    @property
    def grid(self) -> Tensor:
        start, end = (self.inner.new_tensor([t]) for t in self.span)
        return torch.cat([start, self.inner.detach(), end])

    def config(self) -> dict[str, Any]:
        return {"solver": self.solver, "grid": self.grid.tolist()}

    def scales(self) -> Tensor:
        return torch.full_like(self.inner, abs(self.span[1] - self.span[0]) / (len(self.inner) + 1))

    def init(self, equation: ODE, t: Tensor | float, x: Tensor) -> Any:
        return self.solver.init(equation, t, x)

    def calls(self, state: Any) -> int:
        return self.solver.calls(state)

    def step(self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: Any) -> Step:
        self._place(t, h)
        step = self.solver.step(equation, t, h, x, state)
        return Step(step.x, step.state)

    def _allow(self) -> None:
        times_in_order(self.inner.data, self.span)

    def _count(self, steps: int) -> int:
        """Field calls of that many steps, the start included."""
        calls = 0

        def field(t: Tensor, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return torch.zeros_like(x)

        equation, x = ODE(field), torch.zeros(1, 1, dtype=torch.float64)
        state = self.solver.init(equation, self.span[0], x)
        times = self.grid.tolist()
        for t, s in zip(times[:-1], times[1:], strict=True):
            x, state = self.solver.step(equation, t, s - t, x, state)[:2]
        return calls
