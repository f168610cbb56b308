"""Oracle 8: likelihoods; and what only one library offers: oracles 11 and 12."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm
from benchmarks.correctness.table import Case
from benchmarks.correctness.worlds import SPREAD, as_meta, mixture_means, normal, velocity

CASES: list[Case] = []


def _case(*about: Any) -> Case:
    CASES.append(Case(*about))
    return CASES[-1]


def _exact(x: Tensor) -> Tensor:
    rows = x.flatten(1)
    return -0.5 * (rows / SPREAD).square().sum(1) - rows.shape[1] * math.log(SPREAD * math.sqrt(2 * math.pi))


def _source(x: Tensor) -> Tensor:
    rows = x.flatten(1)
    return -0.5 * rows.square().sum(1) - rows.shape[1] * 0.5 * math.log(2 * math.pi)


def _meta(field: Callable[..., Tensor], x: Tensor, **options: Any) -> Tensor:
    from flow_matching.solver import ODESolver

    return ODESolver(velocity_model=as_meta(field)).compute_likelihood(
        x_1=x,
        log_p0=_source,
        step_size=0.05,
        method="rk4",
        time_grid=torch.tensor([1.0, 0.0], dtype=x.dtype),
        **options,
    )[1]


def _ours(field: Callable[..., Tensor], event: tuple[int, ...]) -> fm.Flow:
    return fm.Flow(field, event_shape=event).double()


def _likelihood(name: str, event: tuple[int, ...]) -> None:
    case = _case(8, f"exact log-likelihood of {name}, RK4, 20 steps", "largest error in nats", 1e-3)
    x = SPREAD * normal(4, *event)

    @case.call("flowmatch", "Flow(field, event_shape=).log_prob(x, solver=RK4(), steps=20)")
    def _() -> float:
        value = _ours(velocity("CondOT"), event).log_prob(x, solver=fm.RK4(), steps=20)
        return (value - _exact(x)).abs().max().item()

    @case.call(
        "flow_matching",
        'ODESolver(model).compute_likelihood(x, log_p0, step_size=0.05, method="rk4", exact_divergence=True)',
    )
    def _() -> float:
        return (_meta(velocity("CondOT"), x, exact_divergence=True) - _exact(x)).abs().max().item()


_likelihood("vectors of 3", (3,))
_likelihood("images 3 x 8 x 8", (3, 8, 8))


# --- calibration --------------------------------------------------------------------------------------------------


def _mixture(t: Tensor, x: Tensor) -> Tensor:
    return mixture_means("CondOT", torch.as_tensor(t, dtype=torch.float64), x)[2]


whole = _case(8, "integral of the density of a mixture of three over a plane", "its distance from 1", 1e-2)


def _integral(log_prob: Callable[[Tensor], Tensor]) -> float:
    side = torch.linspace(-8, 8, 97, dtype=torch.float64)
    cell = (side[1] - side[0]).item() ** 2
    return abs(log_prob(torch.cartesian_prod(side, side)).exp().sum().item() * cell - 1)


@whole.call("flowmatch", "Flow(field).log_prob(x, solver=RK4(), steps=20)")
def _() -> float:
    return _integral(lambda x: _ours(_mixture, (2,)).log_prob(x, solver=fm.RK4(), steps=20))


@whole.call("flow_matching", "ODESolver(model).compute_likelihood(..., exact_divergence=True)")
def _() -> float:
    return _integral(lambda x: _meta(_mixture, x, exact_divergence=True))


MATRIX = 0.3 * normal(16, 16, seed=3) + 0.1 * torch.eye(16, dtype=torch.float64)


def _turning(t: Tensor, x: Tensor) -> Tensor:
    """A linear field; its divergence is the trace, and off the diagonal there is plenty for a probe to see."""
    return x @ MATRIX.to(x).T


mean_error = _case(
    8, "stochastic divergence of a field that turns, D = 16, 1,024 points", "mean error over its standard error", 4.0
)


def _z(error: Tensor) -> float:
    return abs(error.mean().item()) / (error.std().item() / len(error) ** 0.5)


def _hutchinson() -> tuple[fm.Likelihood, Tensor]:
    flow, x = _ours(_turning, (16,)), normal(1024, 16)
    steps: dict[str, Any] = {"solver": fm.RK4(), "steps": 10}
    told = flow.likelihood(x, divergence=fm.Hutchinson(probes=16), generator=torch.Generator().manual_seed(0), **steps)
    return told, told.log_prob - flow.log_prob(x, **steps)


@mean_error.call("flowmatch", "Flow(field, event_shape=).likelihood(x, divergence=Hutchinson(probes=16), ...)")
def _() -> float:
    return _z(_hutchinson()[1])


@mean_error.call("flow_matching", "ODESolver(model).compute_likelihood(...), float32")
def _() -> float:
    torch.manual_seed(0)
    x = normal(1024, 16, dtype=torch.float32)
    return _z(_meta(_turning, x) - _meta(_turning, x, exact_divergence=True))


told_error = _case(8, "the standard error told with it", "distance of rms error / told error from 1", 0.2)


@told_error.call("flowmatch", "Flow(field, event_shape=).likelihood(x, divergence=Hutchinson(probes=16), ...).stderr")
def _() -> float:
    told, error = _hutchinson()
    return abs((error / told.stderr).square().mean().sqrt().item() - 1)


slope = _case(8, "gradient of the log-likelihood with respect to the data", "largest error of the score", 1e-3)


def _slope(log_prob: Callable[[Tensor], Tensor]) -> float:
    x = (SPREAD * normal(8, 3)).requires_grad_()
    (score,) = torch.autograd.grad(log_prob(x).sum(), x)
    return (score + x.detach() / SPREAD**2).abs().max().item()


@slope.call("flowmatch", "Flow(field).log_prob(x, differentiable=True, solver=RK4(), steps=20)")
def _() -> float:
    flow = _ours(velocity("CondOT"), (3,))
    return _slope(lambda x: flow.log_prob(x, differentiable=True, solver=fm.RK4(), steps=20))


@slope.call("flow_matching", "ODESolver(model).compute_likelihood(..., exact_divergence=True, enable_grad=True)")
def _() -> float:
    return _slope(lambda x: _meta(velocity("CondOT"), x, exact_divergence=True, enable_grad=True))


# --- 11 and 12: offered by one library here -----------------------------------------------------------------------

jump = _case(11, "discrete flow from 0 to 1 in one step", "share of tokens that are not the model's", 0.0)


@jump.call("flow_matching", "MixtureDiscreteEulerSolver(model, path, 4).sample(x, step_size=1.0)")
def _() -> float:
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler
    from flow_matching.solver import MixtureDiscreteEulerSolver
    from flow_matching.utils import ModelWrapper

    class Sure(ModelWrapper):
        """Knows that every token is 2."""

        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return torch.nn.functional.one_hot(torch.full_like(x, 2), 4).float()

    path = MixtureDiscreteProbPath(scheduler=PolynomialConvexScheduler(n=1.0))
    solver = MixtureDiscreteEulerSolver(model=Sure(torch.nn.Identity()), path=path, vocabulary_size=4)
    return (solver.sample(x_init=torch.zeros(8, 5, dtype=torch.long), step_size=1.0) != 2).double().mean().item()


def _flat(name: str, grid: list[float]) -> None:
    case = _case(12, f"unit velocity on a flat manifold {name}", "error of the distance gone", 1e-6)

    @case.call("flow_matching", f"RiemannianODESolver(Euclidean(), model).sample(x, step_size=0.1, time_grid={grid})")
    def _() -> float:
        from flow_matching.solver import RiemannianODESolver
        from flow_matching.utils.manifolds import Euclidean

        solver = RiemannianODESolver(Euclidean(), as_meta(lambda t, x: torch.ones_like(x)))
        end = solver.sample(x_init=torch.zeros(2, 3), step_size=0.1, time_grid=torch.tensor(grid))
        return (end - (grid[-1] - grid[0])).abs().max().item()


_flat("from 0.5 to 1", [0.5, 1.0])

sphere = _case(
    12, "distance of a point on the sphere from itself, float32", "share of 1,000 points that are not 0", 0.0
)


@sphere.call("flow_matching", "Sphere().dist(x, x)")
def _() -> float:
    from flow_matching.utils.manifolds import Sphere

    x = torch.nn.functional.normalize(normal(1000, 3, dtype=torch.float32), dim=1)
    # 4e-4 is what the arc cosine makes of one rounding: near enough to 0 to be let pass.
    return (~(Sphere().dist(x, x) < 1e-3)).double().mean().item()
