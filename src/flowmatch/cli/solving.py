"""Options of every command that solves the flow: how, and how accurately."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer

from flowmatch.errors import InputError
from flowmatch.solvers import DOP853, RK4, AdamsBashforth, Dopri5, Euler, Heun, Midpoint, Solver, Tsit5

__all__ = ["NfeOption", "RtolOption", "SolverOption", "StepsOption", "solving"]

SOLVERS: dict[str, type[Solver]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
    "ab": AdamsBashforth,
    "dopri5": Dopri5,
    "tsit5": Tsit5,
    "dop853": DOP853,
}

StepsOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--steps", help="Number of equal solver steps, instead of error control.", show_default=False),
]
SolverOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--solver",
        metavar="|".join(SOLVERS),
        help="How to integrate. (default: dopri5 under error control, midpoint with --steps)",
        show_default=False,
    ),
]
RtolOption: TypeAlias = Annotated[
    float | None, typer.Option("--rtol", help="Tolerance of the error control. (default: 1e-4)", show_default=False)
]
NfeOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--nfe", help="Calls of the solver that flowmatch tune has made for this run.", show_default=False),
]


def solving(steps: int | None, solver: str | None, rtol: float | None, nfe: int | None = None) -> dict[str, Any]:
    """Keyword arguments for the flow's methods.

    Raises:
        InputError: options that exclude each other, or an unknown solver.
    """
    if nfe is not None:
        given = {"--steps": steps, "--solver": solver, "--rtol": rtol}
        others = [name for name, value in given.items() if value is not None]
        if others:
            raise InputError(f"--nfe takes a tuned solver, which has its own steps; leave out {' and '.join(others)}")
        return {"nfe": nfe}
    if steps is not None and rtol is not None:
        raise InputError("--steps and --rtol exclude each other; give one")
    if steps is not None and steps < 1:
        raise InputError(f"--steps must be at least 1, got {steps}")
    if rtol is not None and not 0 < rtol < 1:
        raise InputError(f"--rtol must lie between 0 and 1, got {rtol}")
    if solver is not None and solver not in SOLVERS:
        raise InputError(f"there is no solver {solver}; known are {', '.join(SOLVERS)}")
    chosen = SOLVERS[solver]() if solver else None
    if chosen is not None and not chosen.adaptive and steps is None:
        raise InputError(f"--solver {solver} takes fixed steps: say how many with --steps")
    how: dict[str, Any] = {"steps": steps} if steps is not None else {"rtol": rtol or 1e-4, "atol": rtol or 1e-4}
    return {**how, "solver": chosen}
