r"""Tuning: from a frozen field to a solver of ``n`` calls that is made for it.

1. Every general method that can spend ``n`` calls is run on a few trajectories, on many grids. With the schedule of an
   affine path these include the exponential and the Adams methods in its frames.
2. Of a pool of starts those are solved exactly on which the best of these methods differ
   (:mod:`flowmatch.solvers.starts`).
3. The best methods are written as rows of :class:`~flowmatch.solvers.BNS`; eight of them are fitted for a few steps to
   a part of the trajectories, and the one that gets furthest wins.
4. As many starts again are taken where this solver differs from the best general method of ``2 n`` calls: its own
   blind spots. A quarter of all that is known is held out, and to the rest the solver is fitted to the end
   (:mod:`flowmatch.solvers.fit`).

Source: Shaul et al., Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models, 2024,
https://arxiv.org/abs/2403.01329, for fitting from a general solver.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flowmatch.randomness import randperm
from flowmatch.solvers.bespoke import BNS
from flowmatch.solvers.fit import Fit, Trajectories
from flowmatch.solvers.general import General, PathSchedule, contenders, general_solvers, ranked
from flowmatch.solvers.learned import Learned
from flowmatch.solvers.starts import Pool, solved
from flowmatch.typing import Cond, Field

__all__ = ["Fitted", "Measured", "tune"]

#: Starts of the pool for one that is chosen; trajectories that rank the general methods; methods that are looked at
#: again on the chosen ones; how many of them start a race of fits and are left after each lap; steps of a lap.
POOL, PILOT, FINALISTS, RIVALS, TASTE = 16, 48, 24, (8, 3, 1), 6

Draw: TypeAlias = Callable[[int], tuple[Tensor, Cond]]
Progress: TypeAlias = Callable[[float, str], Any]


@dataclass(frozen=True)
class Measured:
    """Errors of a solver at the end of the trajectories that were held out.

    Attributes:
        name: which solver.
        error: root mean square, which rare starts between two modes may rule.
        median: root of the median square error of a sample.
    """

    name: str
    error: float
    median: float


@dataclass(frozen=True)
class Fitted:
    """What tuning measured.

    Attributes:
        tuned: the solver.
        start: what the fit must not fall behind: the best general method, or the solver that was given.
        general: the best general method by number of calls, ``nfe`` and twice as many.
        history: root mean square error on the trajectories of the fit, step by step.
    """

    tuned: Measured
    start: Measured
    general: dict[int, Measured]
    history: tuple[float, ...]


@torch.no_grad()
def tune(
    field: Field,
    draw: Draw,
    nfe: int,
    *,
    span: tuple[float, float] = (0.0, 1.0),
    schedule: PathSchedule | None = None,
    solver: Learned | None = None,
    trajectories: int = 512,
    steps: int = 40,
    generator: torch.Generator | None = None,
    rows: int | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Fit a solver of ``nfe`` calls to a field.

    Args:
        field: velocity ``(t, x)`` or ``(t, x, cond)``, frozen.
        draw: ``n -> (x0, cond)``, starts of the source with their conditions or ``None``.
        nfe: number of field calls.
        span: first and last time.
        schedule: schedule of the path, where it is affine.
        solver: what to fit, such as a :class:`LearnedGrid`; by default a :class:`BNS` that starts from the best of the
            general methods.
        trajectories: number of trajectories, a quarter of which is held out.
        steps: Levenberg-Marquardt steps at most.
        generator: randomness of the choice of starts; ``draw`` has its own.
        rows: trajectories solved at a time, to bound the memory.
        progress: told the share that is done and what is being done.

    Returns:
        The solver; its ``fitted`` says what was measured. A ``solver`` given is not changed.

    Raises:
        TypeError: starts in half precision, in which a field is too rough to be measured.
        ValueError: a number out of range, or a ``solver`` of other calls or another span.
        SolveError: the field cannot be solved under tight error control.

    Example:
        >>> from flowmatch.randomness import randn
        >>> g = torch.Generator().manual_seed(0)
        >>> draw = lambda n: (randn((n, 1), g, dtype=torch.float64), None)
        >>> solver = tune(lambda t, x: torch.sin(2 * x), draw, 4, trajectories=64, steps=10, generator=g)
        >>> solver.fitted.tuned.error < solver.fitted.general[8].error  # half the calls
        True
    """
    _check(nfe, span, solver, trajectories, steps)
    tell: Progress = progress or (lambda done, what: None)
    tell(0.0, "comparing general solvers")
    pilot = solved(field, *draw(PILOT), span)
    unit = max(float(pilot.x1.double().std()), 1e-6)
    once = contenders(general_solvers(nfe, span, schedule, unit), field, pilot, rows)
    names = {method.name for method in once[:FINALISTS]}
    both = [method for method in general_solvers(2 * nfe, span, schedule, unit) if method.name in names]
    twice = [method for _, method in ranked(both, field, pilot, rows, by_log=True)]
    tell(0.05, "choosing starts")
    pool = Pool(field, *draw(POOL * trajectories), span, generator, rows)
    known = pool.add([(method.solver, method.grid) for method in once[:4]], trajectories // 2)
    tell(0.1, "trying starts of the fit")
    lap = min(steps, TASTE)
    if solver is None:
        rough = _raced(once, field, known, rows, lap)
    else:
        rough = _fitted(copy.deepcopy(solver), field, known, rows, lap)
    tell(0.3, "choosing more starts")
    blind = [(method.solver, method.grid) for method in twice[:1]] + [(rough, rough.grid)]
    train, held = _parted(pool.add(blind, trajectories - trajectories // 2), generator)
    if solver is None:
        safest = ranked(once[:FINALISTS], field, held, rows)[0][1]
        anchor = BNS.like(safest.solver, safest.grid).vector()
    else:
        anchor = solver.vector()
    found = Fit(rough, field, train, held, rows, anchor)
    found.run(steps, lambda: tell(0.4 + 0.5 * len(found.history) / (steps + 1), _state(found)))
    tell(0.95, "measuring")
    made = found.finish()
    general = {n: ranked(few[:FINALISTS], field, held, rows)[0][1] for n, few in ((nfe, once), (2 * nfe, twice))}
    made.fitted = Fitted(
        _measured("tuned", held.errors(field, made, made.grid, found.rows), held),
        _measured("start", found.met[0][1], held),
        {n: _measured(m.name, held.errors(field, m.solver, m.grid, rows), held) for n, m in general.items()},
        tuple(found.history),
    )
    tell(1.0, "done")
    return made


def _measured(name: str, errors: Tensor, held: Trajectories) -> Measured:
    return Measured(name, held.root_mean_square(errors), held.median(errors))


def _state(found: Fit) -> str:
    return f"fitting: error {found.history[-1]:.2e}"


def _check(nfe: int, span: tuple[float, float], solver: Learned | None, trajectories: int, steps: int) -> None:
    for name, value, least in (("nfe", nfe, 1), ("trajectories", trajectories, 8), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
    if solver is None:
        return
    if not isinstance(solver, Learned):
        raise TypeError(f"solver must be a learned one, such as LearnedGrid(Midpoint(), grid), got {solver!r}")
    if solver.nfe != nfe or solver.span != tuple(span):
        raise ValueError(
            f"the solver to fit must make nfe = {nfe} calls over {tuple(span)}, got {solver.nfe} over {solver.span}"
        )


def _parted(known: Trajectories, generator: torch.Generator | None) -> tuple[Trajectories, Trajectories]:
    """Trajectories of the fit and those held out."""
    order = randperm(len(known.x0), generator, known.x0.device)
    quarter = len(order) // 4
    train, held = known.take(order[quarter:]), known.take(order[:quarter])
    return train.normalised(), held.normalised()


def _raced(methods: Sequence[General], field: Field, known: Trajectories, rows: int | None, lap: int) -> Learned:
    """The general method that gets furthest by the first steps of a fit, as a BNS solver."""
    # Fits from different starts end in different valleys, and the start's own error does not tell which is deep.
    few = known.take(torch.arange(max(1, len(known.x0) // 2), device=known.x0.device)).normalised()
    lists = [ranked(methods[:FINALISTS], field, known, rows, by_log)[: RIVALS[0] // 2] for by_log in (False, True)]
    entered = {method.name: method for found in lists for _, method in found}
    rivals = [Fit(BNS.like(m.solver, m.grid), field, few, few, rows) for m in entered.values()]
    for left in RIVALS[1:]:
        for rival in rivals:
            rival.run(lap)
        rivals = sorted(rivals, key=lambda rival: rival.loss)[:left]
    rivals[0].solver.assign(rivals[0].point)
    return rivals[0].solver


def _fitted(solver: Learned, field: Field, known: Trajectories, rows: int | None, lap: int) -> Learned:
    """The solver after the first steps of a fit."""
    fit = Fit(solver, field, known, known, rows)
    fit.run(lap)
    solver.assign(fit.point)
    return solver
