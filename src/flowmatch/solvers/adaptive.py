r"""Error control: every sample of the batch takes steps of its own.

A step with local error estimate ``e`` is accepted when

.. math:: \| e / (\mathrm{atol} + \mathrm{rtol} \max(|x|, |x_{new}|)) \| \le 1,

and the next step is :math:`h \cdot 0.9 \, \|e\|^{-0.17} \|e_{prev}\|^{0.04}`, kept within a factor of 0.2 to 10
(the PI controller of the original DOPRI5 code for order 5; for order ``p`` the exponents are
:math:`1/p - 0.03` and 0.04). Norm, decision and step are per sample, so a sample's result does
not depend on its batch mates; samples that have arrived leave the batch, so no call is spent on
them. A step below a few roundings of ``t`` would not move the clock: the solve then stops and says where.

Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations, volume I, 1993, section II.4, and
volume II, 1996, section IV.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmatch.solvers.base import ODE, Solution, SolveError, Solver
from flowmatch.tensors import check_finite, expand_time, mean_event, take, time_dtype

__all__ = ["Adaptive", "CountedCalls"]


class CountedCalls:
    """An equation whose field calls are counted; the field sees states of ``dtype``, the solver gets its own type back.

    So a state may be kept in float32 while the network works in bfloat16.
    """

    def __init__(self, equation: ODE, dtype: torch.dtype) -> None:
        self.count = 0

        def counted(t: Tensor, x: Tensor, *cond: Any) -> Tensor:
            self.count += 1
            return equation.field(t, x.to(dtype), *cond).to(x.dtype)

        self.equation = ODE(counted, equation.cond, equation.norm)


@dataclass
class _Lane:
    """The samples still on their way: where they are in the batch and all that they carry."""

    index: Tensor
    t: Tensor
    h: Tensor
    x: Tensor
    state: Any
    last_error: Tensor

    def take(self, keep: Tensor) -> _Lane:
        rows = keep.nonzero().flatten()
        return _Lane(*(take(part, rows) for part in vars(self).values()))


class Adaptive:
    """Error control with a step of its own for every sample."""

    def __init__(
        self,
        equation: ODE,
        solver: Solver,
        times: list[float],
        tolerances: tuple[float, float],
        max_nfe: int | None,
        x: Tensor,
    ) -> None:
        self.calls = CountedCalls(equation, x.dtype)
        self.solver, self.times, self.max_nfe = solver, times, max_nfe
        self.rtol, self.atol = tolerances
        self.norm = equation.norm or (lambda e: mean_event(e * e).sqrt())
        self.start, self.kind = x, time_dtype(x.dtype)
        self.least = 8 * torch.finfo(self.kind).eps * max(1.0, abs(times[0]), abs(times[-1]))
        self.spent, self.accepted, self.rejected = (
            torch.zeros(x.shape[0], dtype=torch.long, device=x.device) for _ in range(3)
        )

    def run(self, save: bool) -> Solution:
        self.save, self.done = save, 0
        lane = self._start(self.start.to(self.kind))
        self.states = [lane.x]
        for target in self.times[1:]:
            lane = self._travel(lane, target)
            if bool((lane.t != target).any()):
                break
            self.done += 1
            if save:
                self.states.append(lane.x)
        return self._solution(lane, "finished" if self.done == len(self.times) - 1 else "max_nfe")

    def _solution(self, lane: _Lane, status: str) -> Solution:
        kind = self.start.dtype
        return Solution(
            t=torch.tensor(self.times[: self.done + 1], dtype=self.kind, device=lane.x.device),
            x=lane.x.to(kind),
            trajectory=torch.stack(self.states).to(kind) if self.save else None,
            nfe=self.calls.count,
            nfe_per_sample=self.spent,
            accepted=self.accepted,
            rejected=self.rejected,
            reached=lane.t,
            status=status,
        )

    def _start(self, x: Tensor) -> _Lane:
        """First step size of every sample, by the size of the first and second derivative (Hairer II.4)."""
        size, equation, t = x.shape[0], self.calls.equation, self.times[0]
        time = torch.full((size,), t, dtype=self.kind, device=x.device)
        state = self.solver.init(equation, time, x)
        with torch.no_grad():
            slope = state if isinstance(state, Tensor) else equation(time, x)
            scale = self._scale(x.abs())
            d0, d1 = self.norm(x / scale), self.norm(slope / scale)
            span = abs(self.times[-1] - t)
            h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1).clamp(max=span)
            sign = 1.0 if self.times[-1] > t else -1.0
            trial = x + expand_time(sign * h0, x) * slope
            bend = equation(time + sign * h0, trial)
            d2 = self.norm((bend - slope) / scale) / h0
            steepest = torch.maximum(d1, d2)
            h1 = torch.where(
                steepest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / self.solver.order)
            )
            h = torch.minimum(100 * h0, h1)
        self.spent += self.calls.count
        # A start that is not finite is told as such by the first step, not by a step size of nan.
        h = torch.where(torch.isfinite(h), h, torch.full_like(h, span)).clamp(min(self.least, span), span)
        return _Lane(torch.arange(size, device=x.device), time, h.to(self.kind), x, state, torch.ones_like(time))

    def _travel(self, lane: _Lane, target: float) -> _Lane:
        """Bring every sample to ``target``; those that arrive leave the lane and wait."""
        arrived: list[_Lane] = []  # stays empty for an empty batch only
        equation = self.calls.equation.take(lane.index) if lane.index.shape[0] else self.calls.equation
        while lane.index.shape[0]:
            if self.max_nfe is not None and self.calls.count + self.solver.evaluations > self.max_nfe:
                arrived.append(lane)
                break
            lane, there = self._attempt(equation, lane, target)
            stuck = ~there & (lane.h < self.least)
            if bool(stuck.any()):
                self._fail(stuck, lane, arrived)
            if bool(there.any()):
                arrived.append(lane.take(there))
                lane = lane.take(~there)
                equation = self.calls.equation.take(lane.index)
        return _merge(arrived) if arrived else lane

    def _again(self, equation: ODE, lane: _Lane, h: Tensor, good: Tensor) -> tuple[Tensor, Any]:
        """The step of the good samples alone: in a backward pass an overflow of the others would make 0 x inf = nan."""
        rows = good.nonzero().flatten()
        new, state, part = lane.x, lane.state, lane.take(good)
        if rows.shape[0]:
            step = self.solver.step(equation.take(rows), part.t, h[rows], part.x, part.state)
            self.spent[part.index] += self.solver.evaluations
            new = new.index_copy(0, rows, step.x)
            state = state.index_copy(0, rows, step.state) if isinstance(state, Tensor) else step.state
        return new, state

    def _fail(self, stuck: Tensor, lane: _Lane, arrived: list[_Lane]) -> None:
        check_finite(self.start, "x")
        at, count = lane.t[stuck][0].item(), int(stuck.sum())
        raise SolveError(
            f"the step size vanished at t = {at:g} for {count} of {self.spent.shape[0]} samples: the field is "
            f"not finite, not smooth or singular near there; loosen rtol={self.rtol:g} and atol={self.atol:g}, "
            "use float64, stop before a singular end, or give steps=",
            self._solution(_merge([*arrived, lane]), "failed"),
        )

    def _scale(self, size: Tensor) -> Tensor:
        # With atol = 0 a component that is and stays zero has no error, not an error of 0/0.
        return (self.atol + self.rtol * size).clamp(min=torch.finfo(size.dtype).tiny)

    def _attempt(self, equation: ODE, lane: _Lane, target: float) -> tuple[_Lane, Tensor]:
        remaining = target - lane.t
        sign = 1.0 if self.times[-1] > self.times[0] else -1.0
        # A sliver left at the end would cost a whole step: stretch by up to 1 % to swallow it.
        ends = lane.h * 1.01 >= remaining.abs()
        h = torch.where(ends, remaining, sign * lane.h)
        new, state, error = self.solver.step(equation, lane.t, h, lane.x, lane.state)
        self.spent[lane.index] += self.solver.evaluations
        assert error is not None
        with torch.no_grad():
            scale = self._scale(torch.maximum(lane.x.abs(), new.abs()))
            size = self.norm(error / scale).to(self.kind)
            good = size <= 1  # a nan is not
            floor = size.clamp(min=1e-10)
            factor = 0.9 * floor ** -(1 / self.solver.order - 0.03) * lane.last_error**0.04
            factor = torch.where(torch.isfinite(size), factor, torch.full_like(factor, 0.2)).clamp(0.2, 10.0)
            factor = torch.where(good, factor, factor.clamp(max=1.0))
            # A step cut short by the target says little about the natural one: never shrink because of it.
            next_h = torch.where(good & ends, torch.maximum(h.abs() * factor, lane.h), h.abs() * factor)
        if torch.is_grad_enabled() and not bool(torch.isfinite(size).all()):
            new, state = self._again(equation, lane, h, good)
        self.accepted[lane.index] += good
        self.rejected[lane.index] += ~good
        lane = _Lane(
            index=lane.index,
            t=torch.where(good, torch.where(ends, torch.full_like(lane.t, target), lane.t + h), lane.t),
            h=next_h,
            x=_choose(good, new, lane.x),
            state=_choose(good, state, lane.state) if isinstance(state, Tensor) else state,
            last_error=torch.where(good, floor.clamp(min=1e-4), lane.last_error),
        )
        return lane, good & ends


def _choose(good: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(expand_time(good, new), new, old)


def _merge(lanes: list[_Lane]) -> _Lane:
    """Put the samples back in the order of the batch."""
    parts = zip(*(vars(lane).values() for lane in lanes), strict=True)
    whole = _Lane(*(torch.cat(part) if isinstance(part[0], Tensor) else part[0] for part in parts))
    order = whole.index.argsort()
    return _Lane(*(take(part, order) for part in vars(whole).values()))
