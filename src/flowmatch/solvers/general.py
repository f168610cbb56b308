"""The general methods that can spend a number of calls, and which of them is best on a field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from flowmatch.solvers.affine import AffineSchedule
from flowmatch.solvers.base import Solver
from flowmatch.solvers.exponential import DEIS, DPMSolver
from flowmatch.solvers.fit import Trajectories
from flowmatch.solvers.grids import Ratio, cosine_grid, path_grid, uniform_grid
from flowmatch.solvers.multistep import AdamsBashforth
from flowmatch.solvers.path_adams import Frame, PathAdams
from flowmatch.solvers.runge_kutta import RK4, Euler, Heun, Kutta3, Midpoint
from flowmatch.typing import Field

__all__ = ["General", "PathSchedule", "contenders", "general_solvers", "ranked"]

#: Units of the frames and grids, in standard deviations of the data: clusters are narrower than the whole.
UNITS = (0.25, 0.5, 1.0, 2.0)
#: Families of which all members are tried.
FAMILIES = 16


class PathSchedule(AffineSchedule, Ratio, Protocol):
    """What the methods and the grids together need of a schedule."""


@dataclass(frozen=True)
class General:
    """A general method on a grid.

    Attributes:
        name: method and grid, for a reader.
        family: what it has in common with those that differ in order or correction alone.
        solver: the method.
        grid: its times.
    """

    name: str
    family: str
    solver: Solver
    grid: Tensor


def general_solvers(
    nfe: int, span: tuple[float, float], schedule: PathSchedule | None = None, unit: float = 1.0
) -> Iterator[General]:
    """Every general method that spends exactly ``nfe`` calls, on every grid that suits it.

    Args:
        nfe: number of calls.
        span: first and last time.
        schedule: schedule of the path, where it is affine.
        unit: standard deviation of the data.

    Example:
        >>> [general.name for general in general_solvers(2, (0.0, 1.0))][:3]
        ['Euler on even', 'Midpoint on even', 'Heun on even']
    """
    methods: list[tuple[str, str, Solver]] = [
        (type(m).__name__, type(m).__name__, m) for m in (Euler(), Midpoint(), Heun(), Kutta3(), RK4())
    ]
    methods += [("AdamsBashforth", f"AdamsBashforth({order})", AdamsBashforth(order)) for order in (3, 2, 4)]
    grids: dict[str, Callable[[int], Tensor]] = {
        "even": lambda steps: uniform_grid(steps, span),
        "cosine": lambda steps: cosine_grid(steps, span),
    }
    if schedule is not None:
        methods += _affine_methods(schedule, unit)
        grids |= dict(_affine_grids(schedule, unit, span))
    for place, grid in grids.items():
        for family, name, method in methods:
            start = 2 if method == AdamsBashforth(4) else 0  # calls beyond one a step
            steps, rest = divmod(nfe - start, method.evaluations)
            if rest or steps < 1:
                continue
            times = grid(steps)
            # A frame may squeeze times together that are different only beyond the digits of a number.
            if bool((times.diff() * (span[1] - span[0]) > 0).all()):
                yield General(f"{name} on {place}", f"{family} on {place}", method, times)


def _affine_methods(schedule: PathSchedule, unit: float) -> Iterator[tuple[str, str, Solver]]:
    for order in (2, 3):
        yield "DPMSolver", f"DPMSolver({order})", DPMSolver(schedule, order)
        yield "DEIS", f"DEIS({order})", DEIS(schedule, order)
        for c in UNITS:
            for again in (True, False):
                mark = ", correct" if again else ""
                for frame in get_args(Frame):
                    shown = f"{unit * c:.3g}, {frame}"
                    method = PathAdams(schedule, order, unit * c, frame, again)
                    yield f"PathAdams({shown})", f"PathAdams({order}, {shown}{mark})", method


def _affine_grids(
    schedule: PathSchedule, unit: float, span: tuple[float, float]
) -> Iterator[tuple[str, Callable[[int], Tensor]]]:
    for c in UNITS:
        for name, frame in (("turn", "angle"), ("line", "straight")):
            yield f"{name} {unit * c:.3g}", lambda n, c=c, f=frame: path_grid(n, schedule, unit * c, f, span)  # type: ignore[misc]


def contenders(generals: Iterable[General], field: Field, known: Trajectories, rows: int | None) -> list[General]:
    """The methods by their mean log error, which few trajectories tell better than a mean square; the best first.

    One of each family is tried, and of the best families the rest.
    """
    families: dict[str, list[General]] = {}
    for general in generals:
        families.setdefault(general.family, []).append(general)
    tried = ranked([family[0] for family in families.values()], field, known, rows, by_log=True)
    best = [general for _, general in tried[:FAMILIES]]
    kin = [general for one in best for general in families[one.family][1:]]
    return [general for _, general in ranked([*best, *kin], field, known, rows, by_log=True)]


def ranked(
    generals: Sequence[General], field: Field, known: Trajectories, rows: int | None, by_log: bool = False
) -> list[tuple[float, General]]:
    """Methods and their root mean square errors on trajectories, the best first.

    Args:
        generals: the methods.
        field: velocity of the equation.
        known: trajectories.
        rows: trajectories solved at a time.
        by_log: rank by the mean log error instead, which few trajectories tell better.
    """
    found = []
    for general in generals:
        errors = known.errors(field, general.solver, general.grid, rows)
        level = float(known.weight @ errors.clamp(min=torch.finfo(errors.dtype).tiny).log())
        error = known.root_mean_square(errors)
        found.append((level if by_log else error, error, general))
    found.sort(key=lambda one: one[0])
    return [(error, general) for _, error, general in found]
