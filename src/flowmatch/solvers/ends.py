r"""Singular ends: the field is not called at a time where it is not defined.

On a path without noise at the data's end, formulas such as :math:`(\hat x_1 - x) / (1 - t)` are 0/0 there, though the
velocity along a trajectory stays bounded. Between the end ``s`` and an inner time ``r`` near it stands one Euler step
with the velocity at ``r``,

.. math:: x_s = x_r + (s - r) v(r, x_r), \qquad x_r = x_s + (r - s) v(r, x_s) ,

whose error is :math:`O((s - r)^2)`. The sliver must not be thinner than rounding allows: near the end the velocity is a
difference divided by :math:`s - r`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowmatch.solvers.base import ODE, FieldError, Solution, SolveError
from flowmatch.tensors import can_look, check_finite, time_dtype

__all__ = ["Ends"]


class Ends:
    """The two ends of a solve, and what stands for the steps at those that are singular.

    Args:
        equation: what is integrated; its ``singular`` names the times.
        times: times of the solve.
        x: state at the first.

    Raises:
        ValueError: a singular time inside the span, or a solve that is shorter than the slivers.
    """

    def __init__(self, equation: ODE, times: list[float], x: Tensor) -> None:
        self.equation, self.outer, self.x = equation, times, x
        low, high = min(times[0], times[-1]), max(times[0], times[-1])
        # A grid in float32 has its ends off by a rounding.
        near = 1e-6 * (high - low)
        inside = [t for t in equation.singular if low + near < t < high - near]
        if inside:
            raise ValueError(f"the equation is singular at t = {inside[0]:g}, inside the solve: solve up to there")
        self.first, self.last = (any(abs(end - t) <= near for t in equation.singular) for end in (times[0], times[-1]))
        self.calls = int(self.first) + int(self.last)
        width = (times[-1] - times[0]) * (1e-5 if x.dtype == torch.float64 else 1e-3)
        inner = list(times)
        if self.first:
            inner[0] += width
        if self.last:
            inner[-1] -= width
        if any((b - a) * width <= 0 for a, b in zip(inner[:-1], inner[1:], strict=True)):
            raise ValueError(
                f"the steps at a singular end must be longer than {abs(width):g}, got {[times[0], times[1]]} and "
                f"{[times[-2], times[-1]]}"
            )
        self.times = inner

    def enter(self, x: Tensor) -> Tensor:
        """State at the first inner time."""
        return self._euler(x, self.times[0], self.times[0] - self.outer[0]) if self.first else x

    def leave(self, solution: Solution) -> Solution:
        """The solution, its ends those that were asked for."""
        if not self.calls:
            return solution
        t, trajectory, x, reached = solution.t, solution.trajectory, solution.x, solution.reached
        there = self.last and solution.status == "finished"
        if there:
            x = self._euler(x, self.times[-1], self.outer[-1] - self.times[-1], solution)
            reached = torch.full_like(reached, self.outer[-1])
        clock = t.tolist()
        states = None if trajectory is None else list(trajectory)
        inner = t.new_tensor([self.times[0], self.times[-1]]).tolist()
        for place, moved, end, state in ((0, self.first, self.outer[0], self.x), (-1, there, self.outer[-1], x)):
            if moved and clock and clock[place] == inner[place]:
                clock[place] = end
                if states is not None:
                    states[place] = state
        spent = int(self.first) + int(there)
        return replace(
            solution,
            t=t.new_tensor(clock),
            x=x,
            trajectory=torch.stack(states) if states else trajectory,
            reached=reached,
            nfe=solution.nfe + spent,
            nfe_per_sample=solution.nfe_per_sample + spent,
        )

    def wanted(self, times: Tensor | Sequence[float]) -> list[float]:
        """Times between the ends to read the solution at, checked; an end that is singular stands at its inner side.

        Raises:
            ValueError: times outside the span, in a sliver, or not in the order of the solve.
        """
        asked = torch.as_tensor(times, dtype=torch.float64, device="cpu").tolist()
        start, end = self.outer[0], self.outer[-1]
        sign = 1.0 if end > start else -1.0
        order = [sign * t for t in asked] if isinstance(asked, list) else []
        if not order or order != sorted(set(order)):
            raise ValueError(f"save must be True, False or times in the order of the solve, got {times}")
        if sign * asked[0] < sign * start or sign * asked[-1] > sign * end:
            raise ValueError(
                f"the times to save must lie within [{start:g}, {end:g}], got {asked[0]:g} to {asked[-1]:g}"
            )
        moved = [self.times[0] if t == start else self.times[-1] if t == end else t for t in asked]
        if any(not sign * self.times[0] <= sign * t <= sign * self.times[-1] for t in moved):
            raise ValueError(
                f"between a singular end and its neighbour there are no states: save within [{self.times[0]:g}, "
                f"{self.times[-1]:g}], or at the ends"
            )
        return moved

    def _euler(self, x: Tensor, t: float, h: float, solution: Solution | None = None) -> Tensor:
        """One step of length ``h`` with the velocity at ``t``."""
        kind = time_dtype(x.dtype)
        time = torch.full(x.shape[:1], t, dtype=kind, device=x.device)
        if solution is None:
            nothing = torch.zeros(len(x), dtype=torch.long)
            start = torch.full_like(time, self.outer[0])
            solution = Solution(start[:1], x, None, 1, nothing + 1, nothing, nothing, start, "failed")
        try:
            new = (x.to(kind) + h * self.equation(time, x).to(kind)).to(x.dtype)
        except (ValueError, RuntimeError) as error:
            raise FieldError.at(t, error, replace(solution, status="failed")) from error
        if can_look(new) and not bool(torch.isfinite(new).all()):
            check_finite(x, "x")
            raise SolveError(
                f"the velocity at t = {t:g}, beside the singular end, is not finite: stop before it or check the field",
                replace(solution, status="failed"),
            )
        return new
