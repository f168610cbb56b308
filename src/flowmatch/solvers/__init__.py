"""Solvers: how an equation is integrated. They know no path and no network."""

from flowmatch.solvers.base import ODE, FieldError, Progress, Solution, SolveError, Solver, Step
from flowmatch.solvers.bespoke import BNS, ScaleTime
from flowmatch.solvers.controllers import Controller
from flowmatch.solvers.drive import solve
from flowmatch.solvers.embedded import BS32, DOP853, Dopri5, Tsit5
from flowmatch.solvers.exponential import DEIS, DPMSolver, Exponential, UniPC
from flowmatch.solvers.exponential_sde import AffineSDE, ExponentialSDE
from flowmatch.solvers.grids import cosine_grid, edm_grid, log_snr_grid, path_grid, shifted_grid, uniform_grid
from flowmatch.solvers.learned import Learned, LearnedGrid
from flowmatch.solvers.multistep import AdamsBashforth, Multistep
from flowmatch.solvers.path_adams import PathAdams
from flowmatch.solvers.runge_kutta import RK4, Euler, Heun, Kutta3, Midpoint, Ralston, RungeKutta
from flowmatch.solvers.sde import SDE, EulerMaruyama, StochasticHeun
from flowmatch.solvers.tableau import Tableau
from flowmatch.solvers.tuning import Fitted, Measured, tune

__all__ = [
    "BNS",
    "BS32",
    "DEIS",
    "DOP853",
    "ODE",
    "RK4",
    "SDE",
    "AdamsBashforth",
    "AffineSDE",
    "Controller",
    "DPMSolver",
    "Dopri5",
    "Euler",
    "EulerMaruyama",
    "Exponential",
    "ExponentialSDE",
    "FieldError",
    "Fitted",
    "Heun",
    "Kutta3",
    "Learned",
    "LearnedGrid",
    "Measured",
    "Midpoint",
    "Multistep",
    "PathAdams",
    "Progress",
    "Ralston",
    "RungeKutta",
    "ScaleTime",
    "Solution",
    "SolveError",
    "Solver",
    "Step",
    "StochasticHeun",
    "Tableau",
    "Tsit5",
    "UniPC",
    "cosine_grid",
    "edm_grid",
    "log_snr_grid",
    "path_grid",
    "shifted_grid",
    "solve",
    "tune",
    "uniform_grid",
]
