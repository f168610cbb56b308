r"""Error control: every sample of the batch takes steps of its own.

A step with local error estimate ``e`` is accepted when

.. math:: \| e / (\mathrm{atol} + \mathrm{rtol} \max(|x|, |x_{new}|)) \| \le 1,

and a :class:`~flowmatch.solvers.Controller` makes the next step from the sizes of the last errors. Norm, decision and
step are per sample, so a sample's result does not depend on its batch mates; samples that have arrived leave the
batch, so no call is spent on them. A step below a few roundings of ``t`` would not move the clock: the solve then
stops and says where.

**Times in between.** A pair may come with a polynomial through its own stages, :math:`x(t + \theta h) = x + h \sum_i
b_i(\theta) k_i`, of nearly the order of the step and without a call. Times asked for are read from the step that
passes them, sample by sample.

**Overhead.** A step is a few calls of a network, and on a small one some forty tensor operations beside them are a
third of the bill. So the decisions of an attempt are read by the host at once, and what concerns single samples is
done only in attempts where a sample was refused or arrived.

Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations, volume I, 1993, sections II.4 and II.6, and
volume II, 1996, section IV.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowmatch.solvers.base import ODE, FieldError, Progress, Solution, SolveError, Solver, Step
from flowmatch.solvers.between import Between
from flowmatch.solvers.controllers import Controller
from flowmatch.tensors import check_finite, expand_time, take, time_dtype

__all__ = ["Adaptive", "CountedCalls", "rms"]


def rms(error: Tensor) -> Tensor:
    """Root mean square over the event, ``(B, *event) -> (B,)``: the size of a scaled error."""
    flat = error.flatten(1) if error.ndim > 1 else error[:, None]
    size: Tensor = torch.linalg.vector_norm(flat, dim=1) / max(flat.shape[1], 1) ** 0.5
    return size


class CountedCalls:
    """An equation whose field calls are counted; the field sees states of ``dtype``, the solver gets its own type back.

    So a state may be kept in float32 while the network works in bfloat16.
    """

    def __init__(self, equation: ODE, dtype: torch.dtype) -> None:
        self.count = 0

        def counted(t: Tensor, x: Tensor, *cond: Any) -> Tensor:
            self.count += 1
            value = equation.field(t, x.to(dtype), *cond)
            # What is no tensor is refused, with a message, by the equation.
            return value.to(x.dtype) if isinstance(value, Tensor) else value

        self.equation = replace(equation, field=counted)


@dataclass
class _Lane:
    """The samples still on their way: where they are in the batch and all that they carry."""

    index: Tensor
    t: Tensor
    h: Tensor
    x: Tensor
    state: Any
    errors: tuple[Tensor, Tensor]  # sizes of the last two accepted errors
    accepted: Tensor

    def take(self, keep: Tensor) -> _Lane:
        rows = keep.nonzero().flatten()
        return _Lane(*(take(part, rows) for part in vars(self).values()))


class _Attempt(NamedTuple):
    """The lane after an attempt, who arrived, and what the host has to know of it."""

    lane: _Lane
    there: Tensor
    stuck: Tensor
    some_there: bool
    some_stuck: bool


class Adaptive:
    """Error control with a step of its own for every sample."""

    def __init__(
        self,
        equation: ODE,
        solver: Solver,
        times: list[float],
        tolerances: tuple[float, float],
        x: Tensor,
        *,
        controller: Controller,
        step: Callable[..., Step],
        max_nfe: int | None,
        callback: Callable[[Progress], Any] | None,
    ) -> None:
        self.calls = CountedCalls(equation, x.dtype)
        self.solver, self.times, self.max_nfe, self.step, self.callback = solver, times, max_nfe, step, callback
        self.rtol, self.atol = tolerances
        self.controller, self.weights = controller, controller.weights(solver.order)
        self.norm = equation.norm or rms
        self.start, self.kind = x, time_dtype(x.dtype)
        self.sign = 1.0 if times[-1] > times[0] else -1.0
        self.least = 8 * torch.finfo(self.kind).eps * max(1.0, abs(times[0]), abs(times[-1]))
        self.spent, self.accepted, self.rejected = (
            torch.zeros(x.shape[0], dtype=torch.long, device=x.device) for _ in range(3)
        )
        self.status = "finished"

    def run(self, save: bool | list[float]) -> Solution:
        """Solve; ``save`` asks for the states at the times of the grid, or at times in between."""
        self.save, self.done = save is True, 0
        lane = self._start(self.start.to(self.kind))
        self.states = [lane.x]
        self.between = Between(save, self.times[0], self.sign, lane.x) if isinstance(save, list) else None
        for target in self.times[1:]:
            lane = self._travel(lane, target)
            if bool((lane.t != target).any()):
                break
            self.done += 1
            if self.save:
                self.states.append(lane.x)
            if self.status != "finished":
                break
        if self.done == len(self.times) - 1:
            self.status = "finished"  # a callback that says stop at the end stops nothing
        return self._solution(lane, self.status)

    def _solution(self, lane: _Lane, status: str) -> Solution:
        kind = self.start.dtype
        times = self.times[: self.done + 1]
        trajectory = torch.stack(self.states) if self.save else None
        if self.between is not None:
            times, trajectory = self.between.collect(lane.t)
        return Solution(
            t=torch.tensor(times, dtype=self.kind, device=lane.x.device),
            x=lane.x.to(kind),
            trajectory=None if trajectory is None else trajectory.to(kind),
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
        nothing = _Lane(torch.arange(size, device=x.device), time, time, x, None, (time, time), self.accepted)
        try:
            state = self.solver.init(equation, time, x)
            with torch.no_grad():
                slope = state if isinstance(state, Tensor) else equation(time, x)
                scale = self._scale(x.abs())
                d0, d1 = self.norm(x / scale), self.norm(slope / scale)
                span = abs(self.times[-1] - t)
                h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1).clamp(max=span)
                trial = x + expand_time(self.sign * h0, x) * slope
                bend = equation(time + self.sign * h0, trial)
                d2 = self.norm((bend - slope) / scale) / h0
                steepest = torch.maximum(d1, d2)
                h1 = torch.where(
                    steepest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / self.solver.order)
                )
                h = torch.minimum(100 * h0, h1)
        except (ValueError, RuntimeError) as error:
            self.states, self.between = [x], None
            raise FieldError.at(t, error, self._solution(nothing, "failed")) from error
        self.spent += self.calls.count
        # A start that is not finite is told as such by the first step, not by a step size of nan.
        h = torch.where(torch.isfinite(h), h, torch.full_like(h, span)).clamp(min(self.least, span), span)
        one = torch.ones_like(time)
        return replace(nothing, h=h.to(self.kind), state=state, errors=(one, one))

    def _travel(self, lane: _Lane, target: float) -> _Lane:
        """Bring every sample to ``target``; those that arrive leave the lane and wait."""
        arrived: list[_Lane] = []  # stays empty for an empty batch only
        equation = self.calls.equation.take(lane.index) if lane.index.shape[0] else self.calls.equation
        lane, tries = replace(lane, accepted=torch.zeros_like(lane.index)), 0
        while lane.index.shape[0]:
            if self.max_nfe is not None and self.calls.count + self.solver.evaluations > self.max_nfe:
                self.status = "max_nfe"
            if self.status != "finished":
                self._settle(lane, tries)
                arrived.append(lane)
                break
            try:
                lane, there, stuck, some_there, some_stuck = self._attempt(equation, lane, target)
            except (ValueError, RuntimeError) as error:
                self._settle(lane, tries)
                partial = self._solution(_merge([*arrived, lane]), "failed")
                raise FieldError.at(float((self.sign * lane.t).min()) * self.sign, error, partial) from error
            tries += 1
            if some_stuck:
                self._settle(lane, tries)
                self._fail(stuck, lane, arrived)
            if self.callback is not None and self.callback(Progress(lane.index, lane.t, lane.x, self.calls.count)):
                self.status = "stopped"
            if some_there:
                home = lane.take(there)
                self._settle(home, tries)
                arrived.append(home)
                lane = lane.take(~there)
                equation = self.calls.equation.take(lane.index)
        return _merge(arrived) if arrived else lane

    def _settle(self, lane: _Lane, tries: int) -> None:
        """Book the attempts of samples that leave the lane; all of them took part in all attempts."""
        self.spent[lane.index] += tries * self.solver.evaluations
        self.accepted[lane.index] += lane.accepted
        self.rejected[lane.index] += tries - lane.accepted

    def _attempt(self, equation: ODE, lane: _Lane, target: float) -> _Attempt:
        """One step of every sample on its way, kept where its error is within the tolerance."""
        remaining = target - lane.t
        # A sliver left at the end would cost a whole step: stretch by up to 1 % to swallow it.
        ends = lane.h * 1.01 >= remaining * self.sign
        h = torch.where(ends, remaining, self.sign * lane.h)
        new, state, error, dense = self.step(self.solver, equation, lane.t, h, lane.x, lane.state)
        assert error is not None
        with torch.no_grad():
            size = self.norm(error / self._scale(torch.maximum(lane.x.abs(), new.abs()))).to(self.kind)
            good = size <= 1  # a nan is not
            there = good & ends
            floor = size.clamp(min=1e-10)
            factor = self._factor(floor, lane.errors)
            next_h = h.abs() * factor
            stuck = ~there & (next_h < self.least)
            # One look for all decisions: on an accelerator each would wait for the queue.
            flags = torch.stack([good.all(), there.any(), stuck.any(), torch.isfinite(size).all()])
            all_good, some_there, some_stuck, all_finite = flags.tolist()
            if not all_good:
                next_h = torch.where(good, next_h, h.abs() * factor.clamp(max=1.0))
                stuck = ~there & (next_h < self.least)
                some_stuck = bool(stuck.any())
            if some_there:
                # A step cut short by the target says little about the natural one: never shrink because of it, and
                # keep its error out of the memory.
                next_h = torch.where(there, torch.maximum(next_h, lane.h), next_h)
        rows = None
        if torch.is_grad_enabled() and not all_finite:
            new, state, dense, rows = self._again(equation, lane, h, good)
        time, errors = lane.t + h, (floor.clamp(min=1e-4), lane.errors[0])
        if some_there:
            time = torch.where(there, torch.full_like(time, target), time)
            errors = (_choose(there, lane.errors[0], errors[0]), _choose(there, lane.errors[1], errors[1]))
        if self.between is not None:
            self.between.read(lane.index, lane.t, time, good, dense, rows)
        if not all_good:
            time = torch.where(good, time, lane.t)
            new = _choose(good, new, lane.x)
            state = _choose(good, state, lane.state) if isinstance(state, Tensor) else state
            errors = (_choose(good, errors[0], lane.errors[0]), _choose(good, errors[1], lane.errors[1]))
        lane = _Lane(lane.index, time, next_h, new, state, errors, lane.accepted + good)
        return _Attempt(lane, there, stuck, some_there, some_stuck)

    def _factor(self, size: Tensor, errors: tuple[Tensor, Tensor]) -> Tensor:
        """How much longer the next step is; the shortest where the size is not finite."""
        control = self.controller
        factor = control.safety * size ** -self.weights[0]
        for weight, last in zip(self.weights[1:], errors, strict=True):
            if weight:
                factor = factor * last**-weight
        return factor.nan_to_num(nan=control.least).clamp(control.least, control.most)

    def _again(self, equation: ODE, lane: _Lane, h: Tensor, good: Tensor) -> tuple[Tensor, Any, Any, Tensor]:
        """The step of the good samples alone: in a backward pass an overflow of the others would make 0 x inf = nan.

        Also their dense output, and which rows of the lane it is of.
        """
        rows = good.nonzero().flatten()
        new, state, dense, part = lane.x, lane.state, None, lane.take(good)
        if rows.shape[0]:
            step = self.step(self.solver, equation.take(rows), part.t, h[rows], part.x, part.state)
            dense = step.dense
            self.spent[part.index] += self.solver.evaluations
            new = new.index_copy(0, rows, step.x)
            state = state.index_copy(0, rows, step.state) if isinstance(state, Tensor) else step.state
        return new, state, dense, rows

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
        return (self.rtol * size + self.atol).clamp_(min=torch.finfo(size.dtype).tiny)


def _choose(good: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(expand_time(good, new), new, old)


def _merge(lanes: list[_Lane]) -> _Lane:
    """Put the samples back in the order of the batch."""
    whole = _Lane(*(_join(list(part)) for part in zip(*(vars(lane).values() for lane in lanes), strict=True)))
    order = whole.index.argsort()
    return _Lane(*(take(part, order) for part in vars(whole).values()))


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
