"""flowmatch: flow matching for generative modelling, on PyTorch alone."""

from flowmatch import nn
from flowmatch.couplings import Independent
from flowmatch.errors import InputError
from flowmatch.fields import EmpiricalField, GaussianField, MixtureField
from flowmatch.flow import Flow, GivenFlow
from flowmatch.likelihood import Exact, Hutchinson, Likelihood, divergence, log_likelihood
from flowmatch.objectives import Draw, FlowMatching, Loss
from flowmatch.paths import AffinePath, FunctionPath, GaussianPath, Path, PathSample
from flowmatch.schedules import Cosine, Linear, Polynomial, Schedule, VarianceExploding, VariancePreserving
from flowmatch.solvers import ODE, RK4, Dopri5, Euler, Heun, Midpoint, Solution, SolveError, Solver, solve
from flowmatch.sources import Normal
from flowmatch.times import Stratified, Uniform

__version__ = "0.1.0"

__all__ = [
    "ODE",
    "RK4",
    "AffinePath",
    "Cosine",
    "Dopri5",
    "Draw",
    "EmpiricalField",
    "Euler",
    "Exact",
    "Flow",
    "FlowMatching",
    "FunctionPath",
    "GaussianField",
    "GaussianPath",
    "GivenFlow",
    "Heun",
    "Hutchinson",
    "Independent",
    "InputError",
    "Likelihood",
    "Linear",
    "Loss",
    "Midpoint",
    "MixtureField",
    "Normal",
    "Path",
    "PathSample",
    "Polynomial",
    "Schedule",
    "Solution",
    "SolveError",
    "Solver",
    "Stratified",
    "Uniform",
    "VarianceExploding",
    "VariancePreserving",
    "divergence",
    "log_likelihood",
    "nn",
    "solve",
]
