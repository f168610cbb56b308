"""Solvers: how an equation is integrated. They know no path and no network."""

from flowmatch.solvers.base import ODE, FieldError, Progress, Solution, SolveError, Solver, Step
from flowmatch.solvers.controllers import Controller
from flowmatch.solvers.drive import solve
from flowmatch.solvers.embedded import BS32, DOP853, Dopri5, Tsit5
from flowmatch.solvers.exponential import DEIS, DPMSolver, Exponential, UniPC
from flowmatch.solvers.grids import cosine_grid, edm_grid, log_snr_grid, path_grid, shifted_grid, uniform_grid
from flowmatch.solvers.multistep import AdamsBashforth, Multistep
from flowmatch.solvers.path_adams import PathAdams
from flowmatch.solvers.runge_kutta import RK4, Euler, Heun, Kutta3, Midpoint, Ralston, RungeKutta
from flowmatch.solvers.tableau import Tableau

__all__ = [
    "BS32",
    "DEIS",
    "DOP853",
    "ODE",
    "RK4",
    "AdamsBashforth",
    "Controller",
    "DPMSolver",
    "Dopri5",
    "Euler",
    "Exponential",
    "FieldError",
    "Heun",
    "Kutta3",
    "Midpoint",
    "Multistep",
    "PathAdams",
    "Progress",
    "Ralston",
    "RungeKutta",
    "Solution",
    "SolveError",
    "Solver",
    "Step",
    "Tableau",
    "Tsit5",
    "UniPC",
    "cosine_grid",
    "edm_grid",
    "log_snr_grid",
    "path_grid",
    "shifted_grid",
    "solve",
    "uniform_grid",
]
