"""Solvers: how an equation is integrated. They know no path and no network."""

from flowmatch.solvers.base import ODE, Solution, SolveError, Solver, Step
from flowmatch.solvers.drive import solve
from flowmatch.solvers.runge_kutta import RK4, Dopri5, Euler, Heun, Midpoint, RungeKutta
from flowmatch.solvers.tableau import Tableau

__all__ = [
    "ODE",
    "RK4",
    "Dopri5",
    "Euler",
    "Heun",
    "Midpoint",
    "RungeKutta",
    "Solution",
    "SolveError",
    "Solver",
    "Step",
    "Tableau",
    "solve",
]
