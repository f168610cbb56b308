"""Our general solvers, each on grids that suit it; nothing is fitted to the world, so the same rows run everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

import flowmatch as fm
from flowmatch.solvers import DEIS, AdamsBashforth, DPMSolver, PathAdams, UniPC
from flowmatch.solvers.grids import path_grid, uniform_grid
from flowmatch.solvers.runge_kutta import RK4, Euler, Heun, Kutta3, Midpoint, Ralston

__all__ = ["Run", "ours"]

SPREADS = (0.5, 1.0, 2.0)
TRAINED = (0.5, "straight", (1.25, 1.25))

Run = Callable[[Any, Tensor, int], Tensor]


def ours() -> Iterator[tuple[str, int, Run]]:
    """Name, calls a step and a way to solve, for every general solver on its grids."""
    for method in (Euler, Midpoint, Heun, Ralston, Kutta3, RK4):
        yield method.__name__, method.evaluations, _run(lambda s, m=method: m(), _even, method.evaluations)
    for order in (2, 3, 4):
        yield f"AdamsBashforth({order})", 1, _run(lambda s, o=order: AdamsBashforth(o), _even, 1)
    grids: list[Any] = [(spread, frame, (1.0, 1.0)) for spread in SPREADS for frame in ("angle", "straight")]
    for spread, frame, crowd in [*grids, TRAINED, (1.0, "straight", (1.25, 1.5))]:

        def grid(
            steps: int, schedule: fm.Schedule, spread: float = spread, frame: Any = frame, crowd: Any = crowd
        ) -> Tensor:
            return path_grid(steps, schedule, spread, frame, crowd=crowd)

        on = f"on path_grid({spread:g}, {frame}{'' if crowd == (1.0, 1.0) else f', crowd {crowd}'})"
        for method in (Midpoint, Ralston):
            yield f"{method.__name__} {on}", 2, _run(lambda s, m=method: m(), grid, 2)
        for order in (2, 3):
            yield f"DPMSolver({order}) {on}", 1, _run(lambda s, o=order: DPMSolver(s, o), grid, 1)
            yield f"UniPC({order}) {on}", 1, _run(lambda s, o=order: UniPC(s, o), grid, 1)
            yield f"DEIS({order}) {on}", 1, _run(lambda s, o=order: DEIS(s, o), grid, 1)
            for unit in SPREADS:
                for own in ("angle", "straight"):
                    name = f"PathAdams({order}, {unit:g}, {own}) {on}"
                    make = lambda s, o=order, u=unit, f=own: PathAdams(s, o, u, f)  # noqa: E731
                    yield name, 1, _run(make, grid, 1)


def _run(make: Callable[[Any], fm.Solver], grid: Callable[[int, Any], Tensor], calls: int) -> Run:
    def solve(field: Any, x: Tensor, n: int) -> Tensor:
        schedule, solver = field.path.schedule, make(field.path.schedule)
        steps = n // calls - 2 * (isinstance(solver, AdamsBashforth) and solver.order == 4)
        return fm.solve(fm.ODE(field), x, solver, grid=grid(steps, schedule), max_nfe=n).whole().x

    return solve


def _even(steps: int, schedule: fm.Schedule) -> Tensor:
    return uniform_grid(steps, schedule.interval)
