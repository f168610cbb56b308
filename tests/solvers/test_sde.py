"""Solvers of equations with noise: closed-form laws, orders on common noise, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import flowmatch as fm
from flowmatch.fields.stochastic import MarginalSDE
from flowmatch.solvers.exponential_sde import ExponentialSDE
from flowmatch.solvers.sde import SDE, EulerMaruyama, StochasticHeun
from tests.problems import gaussian_world, pair, random_mlp, seeded

STOCHASTIC = [EulerMaruyama(), StochasticHeun(), ExponentialSDE(), ExponentialSDE(order=2)]
EACH = pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)


@dataclass(frozen=True)
class Scripted(SDE):
    """Its noise is given."""

    draws: Iterator[torch.Tensor] | None = None

    def noise(self, x):
        return next(self.draws)


@dataclass(frozen=True)
class ScriptedMarginal(MarginalSDE):
    """Its noise is given."""

    draws: Iterator[torch.Tensor] | None = None

    def noise(self, x):
        return next(self.draws)


def exact_law(equation, solver, start_std, start_mean=0.0, **steps):
    """Mean and variance of a linear equation's numerical solution, without a single random draw.

    The end is linear in the start and in each draw: put a unit into one of them a row.
    """
    count = steps["steps"] if "steps" in steps else len(steps["grid"]) - 1
    x = torch.full((count + 2, 1), start_mean, dtype=torch.float64)
    x[1] += start_std
    draws = iter(torch.eye(count + 2, dtype=torch.float64)[:, 2:, None].unbind(1))
    end = fm.solve(replace(equation, draws=draws), x, solver, **steps).x
    return end[0, 0].item(), (end[1:] - end[0]).square().sum().item()


def slope(error, coarse, fine):
    """Order that the errors at two numbers of steps show."""
    return math.log(error(coarse) / error(fine)) / math.log(fine / coarse)


# --- laws in closed form ------------------------------------------------------------------------------------


def test_an_ornstein_uhlenbeck_process_has_its_law():
    theta, g, x0, n = 1.5, 0.8, 2.0, 20_000
    equation = SDE(lambda t, x: -theta * x, diffusion=g)
    start = torch.full((n, 1), x0, dtype=torch.float64)
    mean, variance = x0 * math.exp(-theta), g**2 / (2 * theta) * (1 - math.exp(-2 * theta))
    x = fm.solve(equation, start, StochasticHeun(), steps=50, generator=seeded(1)).x[:, 0]
    assert abs(x.mean() - mean) < 3 * math.sqrt(variance / n)
    assert abs(x.var() - variance) < 3 * variance * math.sqrt(2 / n)
    assert abs(((x - mean) ** 4).mean() - 3 * variance**2) < 3 * variance**2 * math.sqrt(96 / n)


def test_time_that_runs_backwards_forgets_towards_the_start():
    """The drift is one for positive time: on a decreasing grid ``+x`` pulls to the origin."""
    equation = Scripted(lambda t, x: 2.0 * x, diffusion=1.0, backward=True)
    mean, variance = exact_law(equation, StochasticHeun(), 3.0, steps=400, span=(5.0, 0.0))
    assert mean == 0
    assert variance == pytest.approx(1 / 4, rel=1e-3)


def _growing(t):
    return 0.5 + t


def _world(lam=1.3):
    """Variance at 1 of ``dX = -lam X dt + (1/2 + t) dW`` from a unit one, by the integral of its kernel."""
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    kernel = torch.exp(-2 * lam * (1 - t)) * _growing(t) ** 2
    return Scripted(lambda t, x: -lam * x, diffusion=_growing), math.exp(-2 * lam) + torch.trapezoid(kernel, t).item()


@pytest.mark.parametrize(("solver", "order"), [(EulerMaruyama(), 1), (StochasticHeun(), 2)], ids=repr)
def test_weak_order_of_the_variance(solver, order):
    equation, variance = _world()
    shown = slope(lambda n: abs(exact_law(equation, solver, 1.0, steps=n)[1] - variance), 40, 80)
    assert shown == pytest.approx(order, abs=0.1)
    assert order == solver.order


@pytest.mark.parametrize("diffusion", ["constant", "sigma", "linear", "matched"])
@pytest.mark.parametrize(("order", "spread"), [(1, 0.0), (1, 0.5), (2, 0.0), (2, 0.5), (2, 2.0)])
def test_weak_order_of_the_exponential_step(order, spread, diffusion):
    """Normal data, spread out by another width than the solver believes, to a time with noise left."""
    path = fm.AffinePath(fm.Cosine())
    field = fm.GaussianField(torch.tensor([0.7], dtype=torch.float64), std=1.2, path=path)
    equation, solver = ScriptedMarginal(field, path=path, diffusion=diffusion), ExponentialSDE(order, spread)
    span = (0.2, 0.8)
    (alpha, sigma), (alpha_end, sigma_end) = equation.signal(span[0]), equation.signal(span[1])
    start, end = math.hypot(1.2 * alpha, sigma), math.hypot(1.2 * alpha_end, sigma_end)

    def error(n):
        return abs(exact_law(equation, solver, start, steps=n, span=span)[1] - end**2)

    assert slope(error, 24, 48) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("solver", [EulerMaruyama(), StochasticHeun()], ids=repr)
def test_strong_order_on_common_noise(solver):
    n, finest = 200, 1024
    noise = torch.randn(finest, n, 1, generator=seeded(2), dtype=torch.float64)
    start = torch.randn(n, 1, generator=seeded(3), dtype=torch.float64)

    def run(steps, method):
        group = noise.reshape(steps, finest // steps, n, 1).sum(1) / math.sqrt(finest // steps)
        equation = Scripted(lambda t, x: torch.sin(3 * x) - x, diffusion=0.7, draws=iter(group.unbind(0)))
        return fm.solve(equation, start, method, steps=steps).x

    truth = run(finest, StochasticHeun())
    assert slope(lambda steps: (run(steps, solver) - truth).abs().mean().item(), 16, 64) == pytest.approx(1, abs=0.15)


# --- without noise, and what every equation has --------------------------------------------------------------


def test_without_noise_the_solvers_are_those_of_the_flow():
    field, path = gaussian_world(), fm.AffinePath()
    x = pair(7, 2)[0]
    still = SDE(field, diffusion=0.0)
    for ours, theirs in ((EulerMaruyama(), fm.Euler()), (StochasticHeun(), fm.Heun())):
        for equation in (still, MarginalSDE(field, path=path, rate=0.0)):
            found = fm.solve(equation, x, ours, steps=9).x
            torch.testing.assert_close(found, fm.solve(fm.ODE(field), x, theirs, steps=9).x, rtol=1e-14, atol=1e-14)
    for name in ("sigma", "constant", "matched"):
        found = fm.solve(MarginalSDE(field, path=path, diffusion=name, rate=0.0), x, ExponentialSDE(), steps=9).x
        torch.testing.assert_close(found, fm.solve(fm.ODE(field), x, fm.DPMSolver(path.schedule, 1), steps=9).x)


def _equation(field=None, cond=None, **options):
    return MarginalSDE(gaussian_world() if field is None else field, cond, path=fm.AffinePath(), **options)


@EACH
def test_one_seed_is_one_sample_and_another_is_another(solver):
    x = pair(5, 2)[0]
    one, same, other = (fm.solve(_equation(), x, solver, steps=4, generator=seeded(s)).x for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one != other).all()


@EACH
@pytest.mark.parametrize("size", [0, 1, 2])
def test_any_batch_any_event_any_type(solver, size):
    net = random_mlp(3).float()
    field = lambda t, x: net(t, x.flatten(1).to(torch.float32)).reshape(x.shape).to(x.dtype)  # noqa: E731
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.randn(size, 3, 1, generator=seeded(1)).to(dtype)
        found = fm.solve(_equation(field), x, solver, steps=3, generator=seeded(2))
        assert found.x.shape == x.shape
        assert found.x.dtype == dtype
        assert found.x.isfinite().all()
        # The last step of order 2 ends where there is no noise and nothing to ask for.
        assert found.nfe == 3 * solver.evaluations - (solver == ExponentialSDE(2))


@EACH
def test_half_precision_follows_single(solver):
    x = torch.randn(64, 2, generator=seeded(1)).bfloat16()
    field = fm.GaussianField(torch.tensor([0.5, -0.5]), std=0.7)
    half, single = (
        fm.solve(_equation(field), start, solver, steps=8, generator=seeded(2)).x for start in (x, x.float())
    )
    torch.testing.assert_close(half.float(), single, rtol=0.05, atol=0.1)


@EACH
def test_conditions_reach_the_field_and_are_taken_with_the_rows(solver):
    field: Any = lambda t, x, c: c[:, None] - x  # noqa: E731
    cond = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    x = torch.zeros(3, 1, dtype=torch.float64)
    equation = _equation(field, cond, diffusion="linear")
    whole = fm.solve(equation, x, solver, steps=4, generator=seeded(1)).x
    assert (whole.diff(dim=0) > 0.05).any()
    part = equation.take(torch.tensor([2]))
    assert torch.equal(part.cond, torch.tensor([2.0], dtype=torch.float64))
    torch.testing.assert_close(part.drift(0.5, x[2:]), equation.drift(0.5, x)[2:])


def test_gradients_flow_to_the_field():
    net = random_mlp(2)
    x = fm.solve(_equation(net), pair(4, 2)[0], ExponentialSDE(order=2), steps=3, generator=seeded(1)).x
    x.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# --- refusals -----------------------------------------------------------------------------------------------

OU = SDE(lambda t, x: -x, diffusion=1.0)
ONES = torch.ones(2, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fm.solve(OU, ONES, steps=2), TypeError, "SDE has noise.*give solver=fm.EulerMaruyama"),
        (lambda: fm.solve(OU, ONES, fm.RK4(), steps=2), TypeError, "a solver of ODEs would leave out"),
        (lambda: fm.solve(OU, ONES, rtol=1e-3), TypeError, "a solver of ODEs would leave out"),
        (lambda: fm.solve(_equation(), ONES, fm.DPMSolver(fm.Linear()), steps=2), TypeError, "MarginalSDE has noise"),
        (
            lambda: fm.solve(fm.ODE(lambda t, x: x), ONES, EulerMaruyama(), steps=2),
            TypeError,
            "solves equations with noise, got ODE",
        ),
        (lambda: fm.solve(OU, ONES, EulerMaruyama(), rtol=1e-3), ValueError, "EulerMaruyama has no error estimate"),
        (lambda: fm.solve(OU, ONES, ExponentialSDE(), steps=2), TypeError, "on an affine path, such as fm.MarginalSDE"),
        (
            lambda: fm.solve(OU, ONES, EulerMaruyama(), steps=2, span=(1.0, 0.0)),
            ValueError,
            "runs on increasing times.*make it with backward=True",
        ),
        (
            lambda: fm.solve(replace(OU, backward=True), ONES, StochasticHeun(), steps=2),
            ValueError,
            "runs on decreasing times.*make it with backward=False",
        ),
        (lambda: SDE(lambda t, x: x, diffusion=-1.0), ValueError, "diffusion must be a finite number, not negative"),
        (lambda: SDE(lambda t, x: x, diffusion="sigma"), TypeError, r"a number or a function g\(t\), got 'sigma'"),
        (
            lambda: fm.solve(replace(OU, diffusion=lambda t: t - 1), ONES, EulerMaruyama(), steps=2),
            ValueError,
            r"the noise must be finite and not negative, got g = -1 at t = 0",
        ),
        (
            lambda: fm.solve(replace(OU, diffusion=lambda t: t[:, None]), ONES, EulerMaruyama(), steps=2),
            ValueError,
            r"diffusion must return a tensor of the shape of t, \(2,\), got shape \(2, 1\)",
        ),
        (
            lambda: fm.solve(replace(OU, diffusion=lambda t: 1.0), ONES, EulerMaruyama(), steps=2),
            ValueError,
            "diffusion must return a tensor .* got float",
        ),
        (
            lambda: fm.solve(SDE(lambda t, x: x[:1], diffusion=1.0), ONES, EulerMaruyama(), steps=2),
            ValueError,
            r"the field returned shape \(1, 1\)",
        ),
        (lambda: ExponentialSDE(3), ValueError, "order must be 1 or 2, got 3"),
        (lambda: ExponentialSDE(spread=-1.0), ValueError, "spread must be a finite number, not negative"),
        (
            lambda: ExponentialSDE().step(_equation(), torch.zeros(2), torch.ones(2), ONES, None),
            TypeError,
            "one step for the whole batch",
        ),
    ],
)
def test_wrong_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
