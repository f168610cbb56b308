r"""Bespoke solvers: non-stationary ones, and Runge-Kutta methods in a learned scale and time.

**Non-stationary.** Call number ``i`` is made at a time :math:`t_i` and at a state that is any combination of the start
and of the velocities known by then; the end is one more such combination:

.. math:: x_i = a_i x_0 + \sum_{j<i} b_{ij} u_j, \qquad u_i = v(t_i, x_i), \qquad i = 0, \ldots, n .

Every explicit Runge-Kutta, multistep or exponential method on a fixed grid is of this form, and so is the same method
in any scale and time of the path. :meth:`BNS.like` reads the coefficients off: the method is run with unit vectors in
the place of the start and of the velocities, and what it asks for, and ends with, are the rows.

Nothing but linearity is kept by construction: a solver that is not fitted has the order and the exactness of the
method it was read off; fitting trades these for less error on the field at hand. The states in between are arguments
of calls and no points of the trajectory, so a solve is one step from the first time to the last.

**Scale and time.** With :math:`\bar x(r) = s(r) \, x(t(r))` the equation becomes

.. math:: \frac{d \bar x}{dr} = \frac{\dot s}{s} \bar x + \dot t \, s \, v\Big(t, \frac{\bar x}{s}\Big),

which Euler or the midpoint rule solves in even steps of :math:`r`. Learned are the values of ``t``, ``s`` and of both
derivatives where the method reads them. With :math:`s = 1` and even times it is the method itself.

Source: Shaul et al., Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models, 2024,
https://arxiv.org/abs/2403.01329; Shaul et al., Bespoke Solvers for Generative Flow Models, 2023,
https://arxiv.org/abs/2310.19075.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from flowmatch.solvers.base import ODE, Solver, Step
from flowmatch.solvers.drive import solve
from flowmatch.solvers.learned import Learned, ask, frozen, times_in_order

__all__ = ["BNS", "ScaleTime"]

Method: TypeAlias = Literal["euler", "midpoint"]


class BNS(Learned):
    """Bespoke non-stationary solver: free times and free weights.

    Args:
        times: times of the calls ``(n,)``, inside the span.
        weights: ``n + 1`` rows; row ``i`` holds ``a_i`` and the ``b_ij`` of the ``i`` calls before it.
        span: first and last time.

    Raises:
        ValueError: rows of the wrong length, numbers that are not finite, times outside the span.

    Example:
        >>> from flowmatch.solvers import Midpoint, solve, uniform_grid
        >>> solver = BNS.like(Midpoint(), uniform_grid(4))
        >>> solver.nfe, solver.times.tolist()[:3]
        (8, [0.0, 0.125, 0.25])
        >>> solve(ODE(lambda t, x: x), torch.ones(1, 1), solver, grid=solver.grid).x
        tensor([[2.6949]])
    """

    def __init__(
        self, times: Sequence[float], weights: Sequence[Sequence[float]], span: Sequence[float] = (0.0, 1.0)
    ) -> None:
        super().__init__(span)
        self.nfe = self.evaluations = len(times)
        if not self.nfe or [len(row) for row in weights] != list(range(1, self.nfe + 2)):
            raise ValueError(
                f"{self.nfe} times go with rows of 1 to {self.nfe + 1} weights, got {[len(row) for row in weights]}"
            )
        low, high = sorted(self.span)
        if not all(low <= t <= high for t in times):
            raise ValueError(f"times must lie in [{low:g}, {high:g}], got {list(times)}")
        flat = torch.tensor([w for row in weights for w in row], dtype=torch.float64)
        if not bool(flat.isfinite().all()):
            raise ValueError("the weights must be finite")
        self.times = frozen(torch.tensor(list(times), dtype=torch.float64))
        self.weights = frozen(flat)

    @classmethod
    def like(cls, solver: Solver, grid: Tensor) -> BNS:
        """The same method on the same grid, as rows of weights.

        Args:
            solver: any solver for fixed steps.
            grid: its times, ``(T,)``.

        Raises:
            ValueError: a method that is not linear in the velocities.
        """
        spans = torch.as_tensor(grid, dtype=torch.float64).tolist()
        asked: list[tuple[float, Tensor]] = []

        def unit(t: Tensor, x: Tensor) -> Tensor:
            asked.append((t[0].item(), x[0].clone()))
            velocity = torch.zeros_like(x)
            velocity[0, len(asked) % x.shape[1]] = 1.0
            return velocity

        with torch.no_grad():
            count = solve(ODE(unit), torch.zeros(1, 1, dtype=torch.float64), solver, grid=grid).nfe
            asked.clear()
            start = torch.zeros(1, count + 1, dtype=torch.float64)
            start[0, 0] = 1.0
            end = solve(ODE(unit), start, solver, grid=grid).x[0]
            rows = [row[: i + 1].tolist() for i, row in enumerate([*(x for _, x in asked), end])]
            low, high = min(spans[0], spans[-1]), max(spans[0], spans[-1])
            made = cls([min(max(t, low), high) for t, _ in asked], rows, (spans[0], spans[-1]))
            bent = ODE(lambda t, x: torch.sin(x + t[:, None]))
            ends = [solve(bent, start.T, method, grid=times).x for method, times in ((made, made.grid), (solver, grid))]
        if not torch.allclose(ends[0], ends[1], rtol=1e-6, atol=1e-6):
            raise ValueError(f"{solver!r} is not linear in the start and the velocities, so it has no such rows")
        return made

    def config(self) -> dict[str, Any]:
        rows = [row.tolist() for row in self.weights.detach().split(list(range(1, self.nfe + 2)))]
        return {"times": self.times.detach().tolist(), "weights": rows, "span": list(self.span)}

    def scales(self) -> Tensor:
        step = abs(self.span[1] - self.span[0]) / self.nfe
        rows = [[1.0] + [step] * i for i in range(self.nfe + 1)]
        return torch.tensor([step] * self.nfe + sum(rows, []), dtype=torch.float64)

    def step(self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: Any) -> Step:
        self._place(t, h)
        times, weights = self._numbers(self.times), self._numbers(self.weights)
        known, used = [x], 0
        for i in range(self.nfe + 1):
            row, used = weights[used : used + i + 1], used + i + 1
            place = row[0] * x
            for weight, velocity in zip(row[1:], known[1:], strict=True):
                place = place + weight * velocity
            if i < self.nfe:
                known.append(ask(equation, times[i], place))
        return Step(place, None)

    def _allow(self) -> None:
        self.times.data.clamp_(*sorted(self.span))


class ScaleTime(Learned):
    """Bespoke scale-time solver: Euler or midpoint steps in a learned scale and time.

    Args:
        steps: number of steps.
        method: ``"euler"`` (one call a step) or ``"midpoint"`` (two).
        span: first and last time.
        times: inner times, one at every call but the first, in order; even ones by default.
        pace: log of the derivative of time at the calls, as a share of the span; 0 by default.
        scale: log of the scale after every call; 0 by default.
        drift: derivative of the log of the scale at the calls; 0 by default.

    Raises:
        ValueError: an unknown method, ``steps`` below 1, lists of the wrong length, times out of order.

    Example:
        >>> from flowmatch.solvers import Midpoint, solve
        >>> solver, ode, x = ScaleTime(3), ODE(lambda t, x: x), torch.ones(1, 1)
        >>> solve(ode, x, solver, grid=solver.grid).x, solve(ode, x, Midpoint(), steps=3).x
        (tensor([[2.6792]]), tensor([[2.6792]]))
    """

    times: nn.Parameter
    pace: nn.Parameter
    scale: nn.Parameter
    drift: nn.Parameter

    def __init__(
        self,
        steps: int,
        method: Method = "midpoint",
        span: Sequence[float] = (0.0, 1.0),
        times: Sequence[float] | None = None,
        pace: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        drift: Sequence[float] | None = None,
    ) -> None:
        super().__init__(span)
        if method not in get_args(Method):
            raise ValueError(f"method must be euler or midpoint, got {method!r}")
        if isinstance(steps, bool) or int(steps) != steps or steps < 1:
            raise ValueError(f"steps must be a whole number, at least 1, got {steps!r}")
        self.steps, self.method = int(steps), method
        self.evaluations = 1 if method == "euler" else 2
        self.nfe = count = self.steps * self.evaluations
        even = [self.span[0] + (self.span[1] - self.span[0]) * i / count for i in range(1, count)]
        given = {"times": even if times is None else times}
        given |= {
            name: [0.0] * count if p is None else p for name, p in (("pace", pace), ("scale", scale), ("drift", drift))
        }
        for name, value in given.items():
            vector = torch.tensor(list(value), dtype=torch.float64)
            if len(vector) != count - (name == "times") or not bool(vector.isfinite().all()):
                raise ValueError(f"{name} must hold {count - (name == 'times')} finite numbers, got {list(value)}")
            self.register_parameter(name, frozen(vector))
        if not bool((self._knots().diff() * (self.span[1] - self.span[0]) > 0).all()):
            raise ValueError(f"times must lie inside {self.span} and in its order, got {list(given['times'])}")

    @property
    def grid(self) -> Tensor:
        return self._knots().detach()[:: self.evaluations]

    def config(self) -> dict[str, Any]:
        parts = {name: parameter.detach().tolist() for name, parameter in self.named_parameters()}
        return {"steps": self.steps, "method": self.method, "span": list(self.span), **parts}

    def scales(self) -> Tensor:
        times = torch.full((self.nfe - 1,), abs(self.span[1] - self.span[0]) / self.nfe, dtype=torch.float64)
        return torch.cat([times, torch.ones(3 * self.nfe, dtype=torch.float64)])

    def step(self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: Any) -> Step:
        first = self._place(t, h) * self.evaluations
        times = self._numbers(self._knots())
        paces = self._numbers(self.pace.exp() * (self.span[1] - self.span[0]))
        scales = self._numbers(torch.cat([self.scale.new_zeros(1), self.scale]).exp())
        drifts = self._numbers(self.drift)
        start, place, reach = x, x, 1.0 / self.steps
        for k in range(first, first + self.evaluations):
            # Half a step to the midpoint, then the whole step with the rate found there.
            part = reach / 2 if self.evaluations == 2 and k == first else reach
            rate = drifts[k] * place + paces[k] * ask(equation, times[k], place)
            place = (scales[first] * start + part * scales[k] * rate) / scales[k + 1]
        return Step(place, None)

    def _knots(self) -> Tensor:
        start, end = (self.times.new_tensor([t]) for t in self.span)
        return torch.cat([start, self.times, end])

    def _allow(self) -> None:
        times_in_order(self.times.data, self.span)
