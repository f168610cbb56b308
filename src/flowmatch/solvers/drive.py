r"""The one driver: a solver on a grid, or under error control.

On a fixed grid a solve is ``n`` steps of the solver: no decision, and no look from the host at the device
until the end. Error control, with a step of its own for every sample, is in
:mod:`flowmatch.solvers.adaptive`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor

from flowmatch.solvers.adaptive import Adaptive, CountedCalls
from flowmatch.solvers.base import ODE, FieldError, Progress, Solution, SolveError, Solver, Step
from flowmatch.solvers.controllers import Controller
from flowmatch.solvers.embedded import Dopri5
from flowmatch.solvers.ends import Ends
from flowmatch.solvers.runge_kutta import Midpoint
from flowmatch.solvers.sde import Stochastic
from flowmatch.tensors import check_event, check_finite, time_dtype

__all__ = ["solve"]


def solve(
    equation: ODE,
    x: Tensor,
    solver: Solver | None = None,
    *,
    steps: int | None = None,
    grid: Tensor | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    save: bool | Tensor | Sequence[float] = False,
    max_nfe: int | None = None,
    generator: torch.Generator | None = None,
    controller: Controller | None = None,
    callback: Callable[[Progress], Any] | None = None,
    checkpoint: bool = False,
) -> Solution:
    r"""Integrate an equation from one time to another, in either direction.

    Give exactly one way to choose the steps: ``steps`` (equal ones over ``span``), ``grid`` (times of your
    own), or ``rtol`` and ``atol`` (error control). With tolerances a grid may be given as well: then
    it names the times that the solve must hit, for ``save=True``.

    The state is kept in float32 at least, since a small step would round away in half precision; the field sees it in
    the type of ``x``, and so comes the result. Gradients flow through the solve when gradients are enabled.

    Where the equation declares its first or last time singular, the field is not called there. Over a sliver of
    :math:`10^{-3}` of the span (float64: :math:`10^{-5}`) stands one Euler step with the velocity at the sliver's
    inner side; it costs one more call.

    Args:
        equation: what is integrated.
        x: state at the first time, ``(B, *event)``.
        solver: by default :class:`Dopri5` under tolerances and :class:`Midpoint` otherwise.
        steps: number of equal steps, at least 1.
        grid: monotone times ``(T,)``, ``T >= 2``; a decreasing grid integrates backwards. A learned solver has its own,
            which it takes where nothing is said.
        rtol: relative tolerance, positive.
        atol: absolute tolerance, not negative; by default equal to ``rtol``.
        span: first and last time when no grid is given.
        save: keep the states at all times of the grid; or, under tolerances, at the times given here. Those cost no
            steps where the solver has dense output, and are hit exactly where it has none.
        max_nfe: stop once this many field calls are spent and return what there is.
        generator: randomness of an equation with noise; an :class:`ODE` uses none.
        controller: how the steps follow from the errors, under tolerances.
        callback: told the :class:`Progress` after every step; it returns ``True`` to stop the solve.
        checkpoint: compute every step again in the backward pass instead of keeping its graph: the gradients of the
            whole graph, in the memory of the states and of one step.

    Returns:
        The :class:`Solution`.

    Raises:
        ValueError: no way or two ways to choose the steps, a grid that is not monotone, a tolerance that is not
            positive, tolerances for a solver without error estimate, a start that is not finite.
        SolveError: the state stopped being finite or the step size vanished; names the time and keeps the partial
            solution.
        FieldError: the field raised an error or returned another shape; both a SolveError and a ValueError.

    Example:
        >>> from flowmatch.solvers import RK4
        >>> solution = solve(ODE(lambda t, x: x), torch.ones(2, 1), RK4(), steps=10)
        >>> solution.nfe, solution.x[0]
        (40, tensor([2.7183]))
        >>> solve(ODE(lambda t, x: x), torch.ones(1, 1), rtol=1e-6, save=[0.0, 0.5]).trajectory.flatten()
        tensor([1.0000, 1.6487])
    """
    check_event(x)
    noisy = hasattr(equation, "generator")
    if noisy and generator is not None:
        equation = replace(cast(Any, equation), generator=generator)
    if noisy and checkpoint:
        raise ValueError("a second pass over a step would draw other noise: solve an equation with noise whole")
    if noisy and equation.singular:
        raise ValueError(
            "an equation with noise takes no singular times: end the span before them, or take fm.ExponentialSDE(), "
            "which does not ask at the end"
        )
    adaptive = rtol is not None or atol is not None
    if steps is None and grid is None and not adaptive:
        grid = getattr(solver, "grid", None)  # a learned solver has its own
    if (steps is not None) + (grid is not None or adaptive) != 1:
        given = {"steps": steps, "grid": grid, "rtol": rtol, "atol": atol}
        named = [name for name, value in given.items() if value is not None]
        raise ValueError(
            f"choose the steps in one way, got {' and '.join(named) if named else 'none'}: "
            "give steps=, or grid=, or rtol= and atol="
        )
    if not adaptive and (controller is not None or not isinstance(save, bool)):
        raise ValueError(
            "controller= and times as save= belong to error control: give rtol= and atol=; on a grid, put the times "
            "into it and save=True"
        )
    times, step = _times(steps, grid, span), _checkpointed if checkpoint and torch.is_grad_enabled() else _plain
    ends = Ends(equation, times, x)
    start, inner = ends.enter(x), ends.times
    budget = max_nfe if max_nfe is None else max_nfe - ends.calls
    if not adaptive:
        solver = Midpoint() if solver is None else solver
        return ends.leave(_fixed(equation, solver, inner, start, step, bool(save), budget, callback))
    solver = Dopri5() if solver is None else solver
    tolerances = _tolerances(solver, rtol, atol)
    wanted = None if isinstance(save, bool) else ends.wanted(save)
    hit = wanted if not solver.dense else None
    if hit is not None:
        inner = sorted({*inner, *hit}, reverse=inner[0] > inner[-1])
    driver = Adaptive(
        equation,
        solver,
        inner,
        tolerances,
        start,
        controller=Controller() if controller is None else controller,
        step=step,
        max_nfe=budget,
        callback=callback,
    )
    if hit is not None:
        return ends.leave(_only(driver.run(True), hit, inner))
    return ends.leave(driver.run(bool(save) if wanted is None else wanted))


def _plain(solver: Solver, *args: Any) -> Step:
    return solver.step(*args)


def _checkpointed(solver: Solver, *args: Any) -> Step:
    step: Step = torch.utils.checkpoint.checkpoint(solver.step, *args, use_reentrant=False)
    return step


def _only(solution: Solution, wanted: list[float], times: list[float]) -> Solution:
    """The states at the times that were asked for, of those that were hit."""
    assert solution.trajectory is not None
    rows = [row for row, t in enumerate(times[: len(solution.t)]) if t in wanted]
    return replace(solution, t=solution.t[rows], trajectory=solution.trajectory[rows])


def _times(steps: int | None, grid: Tensor | None, span: tuple[float, float]) -> list[float]:
    if grid is not None:
        grid = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
        if grid.ndim != 1 or grid.shape[0] < 2:
            raise ValueError(f"grid must have shape (T,) with T >= 2, got {tuple(grid.shape)}")
        gaps = grid.diff()
        if not (bool((gaps > 0).all()) or bool((gaps < 0).all())) or not bool(grid.isfinite().all()):
            raise ValueError("grid must hold finite times, strictly increasing or strictly decreasing")
        return list(grid.tolist())
    start, end = (float(v) for v in span)
    if not (start != end and abs(start) < float("inf") and abs(end) < float("inf")):
        raise ValueError(f"span must hold two different finite times, got {span}")
    if steps is not None and (not isinstance(steps, Integral) or steps < 1):
        raise ValueError(f"steps must be a whole number, at least 1, got {steps!r}")
    count = 1 if steps is None else int(steps)
    return [start + (end - start) * i / count for i in range(count)] + [end]


def _tolerances(solver: Solver, rtol: float | None, atol: float | None) -> tuple[float, float]:
    if not solver.adaptive:
        raise ValueError(
            f"{type(solver).__name__} has no error estimate and cannot take rtol or atol; give steps= or grid="
            + ("" if isinstance(solver, Stochastic) else ", or use Dopri5")
        )
    relative = 1e-5 if rtol is None else float(rtol)
    absolute = relative if atol is None else float(atol)
    if not (0 < relative < 1 and 0 <= absolute < float("inf")):
        raise ValueError(f"need 0 < rtol < 1 and atol >= 0, got rtol={rtol} and atol={atol}")
    return relative, absolute


def _fixed(
    equation: ODE,
    solver: Solver,
    times: list[float],
    x: Tensor,
    step: Callable[..., Step],
    save: bool,
    max_nfe: int | None,
    callback: Callable[[Progress], Any] | None,
) -> Solution:
    given, size, kind = x, x.shape[0], time_dtype(x.dtype)
    calls = CountedCalls(equation, x.dtype)
    x = x.to(kind)
    states, done, status = [x], 0, "finished"
    # On the device, without a look from the host: which step was the first to break each sample.
    broken = torch.full((size,), len(times), device=x.device)
    clock = torch.tensor(times, dtype=kind, device=x.device)
    everyone = torch.arange(size, device=x.device)

    def partial(status: str) -> Solution:
        return Solution(
            t=clock[: done + 1],
            x=x.to(given.dtype),
            trajectory=torch.stack(states).to(given.dtype) if save else None,
            nfe=calls.count,
            nfe_per_sample=torch.full((size,), calls.count),
            accepted=torch.full((size,), done),
            rejected=torch.zeros(size, dtype=torch.long),
            reached=clock[broken.clamp(max=done)],
            status=status,
        )

    @contextmanager
    def field_errors() -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError) as error:
            raise FieldError.at(times[done], error, partial("failed")) from error

    with field_errors():
        state = solver.init(calls.equation, times[0], x)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        if max_nfe is not None and calls.count + solver.calls(state) > max_nfe:
            status = "max_nfe"
            break
        with field_errors():
            x, state = step(solver, calls.equation, t, s - t, x, state)[:2]
        broken = torch.where(_finite(x), broken, broken.clamp(max=i))
        done = i + 1
        if save:
            states.append(x)
        if callback is not None and callback(Progress(everyone, clock[done].expand(size), x, calls.count)):
            status = "stopped" if done < len(times) - 1 else status
            break
    solution = partial(status)
    first = int(broken.min()) if size else len(times)
    if first < len(times):
        check_finite(given, "x")
        raise SolveError(
            f"the state is not finite after t = {times[first + 1]:g} (first step from t = {times[first]:g}) for "
            f"{int((broken < len(times)).sum())} of {size} samples: the field overflowed or is singular there; use "
            "more steps, stop before the singular end, or check the field",
            replace(solution, status="failed"),
        )
    return solution


def _finite(x: Tensor) -> Tensor:
    return torch.isfinite(x).reshape(x.shape[0], math.prod(x.shape[1:])).all(1)
