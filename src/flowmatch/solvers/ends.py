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

from flowmatch.solvers.base import ODE, FieldError, Solution
from flowmatch.tensors import time_dtype

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
        inside = [t for t in equation.singular if low < t < high]
        if inside:
            raise ValueError(f"the equation is singular at t = {inside[0]:g}, inside the solve: solve up to there")
        self.first, self.last = times[0] in equation.singular, times[-1] in equation.singular
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
        if self.last and solution.status == "finished":
            x = self._euler(x, self.times[-1], self.outer[-1] - self.times[-1])
            reached = torch.full_like(reached, self.outer[-1])
        if trajectory is not None:
            states, clock = list(trajectory), t.tolist()
            first, last = (t.new_tensor(self.times[end]).item() for end in (0, -1))
            for place, (end, inner, state) in enumerate([(0, first, self.x), (-1, last, x)]):
                if states and (self.last if place else self.first) and clock[end] == inner:
                    states[end], clock[end] = state, self.outer[end]
            trajectory, t = torch.stack(states) if states else trajectory, t.new_tensor(clock)
        spent = self.first + (self.last and solution.status == "finished")
        return replace(
            solution,
            t=t,
            x=x,
            trajectory=trajectory,
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

    def _euler(self, x: Tensor, t: float, h: float) -> Tensor:
        """One step of length ``h`` with the velocity at ``t``."""
        kind = time_dtype(x.dtype)
        time = torch.full(x.shape[:1], t, dtype=kind, device=x.device)
        try:
            return (x.to(kind) + h * self.equation(time, x).to(kind)).to(x.dtype)
        except (ValueError, RuntimeError) as error:
            nothing = torch.zeros(len(x), dtype=torch.long)
            partial = Solution(time[:1], x, None, 1, nothing + 1, nothing, nothing, time, "failed")
            raise FieldError.at(t, error, partial) from error
