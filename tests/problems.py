"""Exact worlds: paths, schedules, laws and equations whose truth is known without training anything.

The lists are what the contract tests run over. Each contract file has a test that fails when the package
grows a public class that is in no list.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm
from flowmatch import solvers

# --- schedules and paths ------------------------------------------------------------------------------------


class Quadratic(fm.Schedule):
    """A schedule of the user's own, with its two functions alone."""

    def alpha(self, t):
        return t**2 * (3 - 2 * t)

    def sigma(self, t):
        return 0.99 * (1 - t) ** 2 + 0.01


SCHEDULES: dict[str, fm.Schedule] = {
    "linear": fm.Linear(),
    "linear-min": fm.Linear(sigma_min=0.1),
    "cosine": fm.Cosine(),
    "polynomial": fm.Polynomial(power=2.0),
    "polynomial-1.5": fm.Polynomial(power=1.5),
    "vp": fm.VariancePreserving(),
    "vp-mild": fm.VariancePreserving(beta_min=0.5, beta_max=12.0),
    "sub-vp": fm.SubVariancePreserving(),
    "ve": fm.VarianceExploding(),
    "ve-mild": fm.VarianceExploding(sigma_min=0.1, sigma_max=4.0),
    "diffusion-cosine": fm.DiffusionCosine(),
    "learned": fm.Learned(3, sigma_min=0.02, weights=[[0.3, -1.0, 0.5], [-0.2, 0.1, 1.5]]).requires_grad_(False),
    "own": Quadratic(),
}


@dataclass(frozen=True)
class PathCase:
    """A path with what it is at both ends, as weights ``(of x0, of x1)``; tensors or numbers."""

    path: fm.Path
    start: tuple[Any, Any] = (1.0, 0.0)
    end: Callable[[Tensor, Tensor], Tensor] = lambda x0, x1: x1
    exact_in_half: bool = True


def _own_std(t: Tensor, x1: Tensor) -> Tensor:
    """Depends on the data point and differs per dimension; 1 at the source and below 0.1 at the data."""
    return 1 - t * (1 - 0.1 * torch.sigmoid(x1))


def _bulge(t: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    return (1 - t) * x0 + t * x1 + torch.sin(torch.pi * t) ** 2 * torch.tanh(x0 * x1)


def _vp_log_noise(beta_min: float, beta_max: float) -> float:
    return beta_min + 0.5 * (beta_max - beta_min)


def _vp_start(beta_min: float, beta_max: float) -> tuple[float, float]:
    noise = _vp_log_noise(beta_min, beta_max)
    return math.sqrt(1 - math.exp(-noise)), math.exp(-noise / 2)


PATHS: dict[str, PathCase] = {
    "linear": PathCase(fm.AffinePath(fm.Linear())),
    "linear-min": PathCase(fm.AffinePath(fm.Linear(sigma_min=0.1)), end=lambda x0, x1: x1 + 0.1 * x0),
    "cosine": PathCase(fm.AffinePath(fm.Cosine())),
    "polynomial": PathCase(fm.AffinePath(fm.Polynomial(power=2.0))),
    "polynomial-1.5": PathCase(fm.AffinePath(fm.Polynomial(power=1.5))),
    # The stated deviations: a diffusion ends at the data but only nearly starts at the source ...
    "vp": PathCase(fm.AffinePath(fm.VariancePreserving()), start=_vp_start(0.1, 20.0)),
    "vp-mild": PathCase(fm.AffinePath(fm.VariancePreserving(0.5, 12.0)), start=_vp_start(0.5, 12.0)),
    # ... or starts at the data with noise of its own scale on it.
    "ve": PathCase(fm.AffinePath(fm.VarianceExploding()), start=(50.0, 1.0), end=lambda x0, x1: x1 + 0.01 * x0),
    "ve-mild": PathCase(
        fm.AffinePath(fm.VarianceExploding(0.1, 4.0)), start=(4.0, 1.0), end=lambda x0, x1: x1 + 0.1 * x0
    ),
    "sub-vp": PathCase(fm.AffinePath(fm.SubVariancePreserving()), start=(1 - math.exp(-10.05), math.exp(-5.025))),
    "diffusion-cosine": PathCase(fm.AffinePath(fm.DiffusionCosine())),
    "learned": PathCase(fm.AffinePath(SCHEDULES["learned"]), end=lambda x0, x1: x1 + 0.02 * x0),
    "own-schedule": PathCase(fm.AffinePath(Quadratic()), end=lambda x0, x1: x1 + 0.01 * x0),
    "gaussian": PathCase(
        fm.GaussianPath(mean=lambda t, x1: t * x1, std=lambda t, x1: 1 - 0.9 * t), end=lambda x0, x1: x1 + 0.1 * x0
    ),
    "gaussian-own-std": PathCase(
        fm.GaussianPath(mean=lambda t, x1: torch.sin(t * torch.pi / 2) * x1, std=_own_std),
        end=lambda x0, x1: x1 + 0.1 * torch.sigmoid(x1) * x0,
        exact_in_half=False,  # its std is a function of a half-precision x1, computed there
    ),
    "function": PathCase(fm.FunctionPath(lambda t, x0, x1: (1 - t) * x0 + t * x1)),
    "function-bulge": PathCase(fm.FunctionPath(_bulge), exact_in_half=False),
}

#: Paths with noise of their own, which vanishes at both ends.
NOISY_PATHS: dict[str, fm.InterpolantPath] = {
    "bridge": fm.BrownianBridge(sigma=0.7),
    "interpolant": fm.InterpolantPath(),
    "interpolant-own": fm.InterpolantPath(gamma=lambda t: 2 * t * (1 - t), schedule=fm.Cosine()),
}

GAUSSIAN_PATHS = {name: case for name, case in PATHS.items() if isinstance(case.path, fm.AffinePath | fm.GaussianPath)}

# --- laws ---------------------------------------------------------------------------------------------------


def gaussian_world(path: fm.AffinePath | None = None) -> fm.GaussianField:
    """Two-dimensional normal data with a tilted covariance, float64."""
    mean = torch.tensor([0.7, -0.4], dtype=torch.float64)
    cov = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
    return fm.GaussianField(mean, cov=cov, path=path)


def mixture_world(path: fm.AffinePath | None = None) -> fm.MixtureField:
    """Three tilted, unequal components in two dimensions, float64."""
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.5]], dtype=torch.float64)
    cov = torch.tensor(
        [[[0.20, 0.05], [0.05, 0.10]], [[0.15, -0.10], [-0.10, 0.30]], [[0.1, 0.0], [0.0, 0.1]]], dtype=torch.float64
    )
    return fm.MixtureField(means, cov=cov, weights=torch.tensor([0.5, 0.3, 0.2]), path=path)


def line_world(path: fm.AffinePath | None = None) -> fm.MixtureField:
    """Two components on a line, for quadrature and bins."""
    means = torch.tensor([[-1.0], [1.5]], dtype=torch.float64)
    return fm.MixtureField(means, std=torch.tensor([0.3, 0.6]), weights=torch.tensor([0.4, 0.6]), path=path)


# --- equations with a known solution ------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """An initial value problem on ``span`` with its exact solution; states are ``(B, *event)``."""

    field: Callable[..., Tensor]
    exact: Callable[[float], Tensor]
    span: tuple[float, float]

    @property
    def start(self) -> Tensor:
        return self.exact(self.span[0])


def _column(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def matrix_problem() -> Problem:
    """``x' = A x`` with a matrix that does not commute with its transpose: growth, decay and rotation."""
    a = torch.tensor([[-0.5, 2.0, 0.0], [-1.0, 0.3, 1.5], [0.4, 0.0, -0.8]], dtype=torch.float64)
    start = torch.tensor([[1.0, -0.5, 0.25], [0.3, 1.0, -2.0]], dtype=torch.float64)
    return Problem(lambda t, x: x @ a.T.to(x), lambda t: start @ torch.linalg.matrix_exp(a * t).T, (0.0, 1.0))


def constant_problem() -> Problem:
    """``y' = a + (y - (a t + b))^5``: exact on the line, and any error on it grows."""
    a, b = 0.2, 3.0
    return Problem(
        lambda t, x: a + (x - (a * _column(t, x) + b)) ** 5,
        lambda t: torch.full((2, 1), a * t + b, dtype=torch.float64),
        (1.0, 8.0),
    )


def sine_problem() -> Problem:
    """``y' = 2 y / t + t^4 sin 2t - t^2 + 4 t^3``."""

    def exact(t: float) -> Tensor:
        value = -0.5 * t**4 * math.cos(2 * t) + 0.5 * t**3 * math.sin(2 * t) + 0.25 * t**2 * math.cos(2 * t)
        return torch.full((2, 1), value - t**3 + 2 * t**4 + (math.pi - 0.25) * t**2, dtype=torch.float64)

    def field(t: Tensor, x: Tensor) -> Tensor:
        s = _column(t, x)
        return 2 * x / s + s**4 * torch.sin(2 * s) - s**2 + 4 * s**3

    return Problem(field, exact, (1.0, 8.0))


def skew_problem() -> Problem:
    """Ten dimensions turning under a skew-symmetric matrix, from the vector of ones at ``t = 0``."""
    raw = torch.rand(10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.2 - 0.1
    a = raw - raw.T
    ones = torch.ones(2, 10, dtype=torch.float64)
    return Problem(lambda t, x: x @ a.T.to(x), lambda t: ones @ torch.linalg.matrix_exp(a * t).T, (1.0, 8.0))


def decay_problem() -> Problem:
    """``y' = -0.1 y``."""
    return Problem(
        lambda t, x: -0.1 * x, lambda t: torch.full((2, 1), math.exp(-0.1 * t), dtype=torch.float64), (1.0, 8.0)
    )


#: The first is ours; the other four are those of torchdiffeq's own test suite.
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "matrix": matrix_problem,
    "constant": constant_problem,
    "sine": sine_problem,
    "skew": skew_problem,
    "decay": decay_problem,
}

#: The Runge-Kutta methods; those with a memory are under contract in tests/solvers/test_multistep.py.
SOLVERS: dict[str, solvers.RungeKutta] = {
    "euler": solvers.Euler(),
    "midpoint": solvers.Midpoint(),
    "heun": solvers.Heun(),
    "ralston": solvers.Ralston(),
    "kutta3": solvers.Kutta3(),
    "rk4": solvers.RK4(),
    "bs32": solvers.BS32(),
    "dopri5": solvers.Dopri5(),
    "tsit5": solvers.Tsit5(),
    "dop853": solvers.DOP853(),
}

# --- helpers of the laws ------------------------------------------------------------------------------------


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for every draw of a test."""
    return torch.Generator().manual_seed(seed)


def pair(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A source and a data batch of one shape."""
    generator = seeded(seed)
    x0 = torch.randn(shape, generator=generator, dtype=torch.float64)
    x1 = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5
    return x0.to(dtype), x1.to(dtype)


def random_mlp(dim: int, seed: int = 0, scale: float = 1.0, **options: Any) -> fm.nn.MLP:
    """An MLP field with random weights in every layer, in float64; its own initial field is zero."""
    net = fm.nn.MLP(dim, **{"hidden": 16, "depth": 2, **options}).double()
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan = parameter.shape[-1] if parameter.ndim > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(scale * noise / math.sqrt(fan))
    return net


def z_scores(values: Tensor) -> Tensor:
    """Mean over the first dimension in units of its own standard error."""
    return values.mean(0) / (values.std(0) / math.sqrt(values.shape[0]))


def public_subclasses(room: Any, base: type) -> set[type]:
    """Concrete classes of a room's public names that derive from ``base``."""
    named = (getattr(room, name) for name in room.__all__)
    return {
        c for c in named if isinstance(c, type) and issubclass(c, base) and not getattr(c, "__abstractmethods__", None)
    }
