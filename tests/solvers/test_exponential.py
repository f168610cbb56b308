"""Exponential integrators: what is exact, the order, both ends, networks of all kinds, and the papers' own formulas."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import flowmatch as fm
from flowmatch.solvers.embedded import DOP853
from flowmatch.solvers.exponential import DEIS, DPMSolver, Exponential, UniPC, _decaying, _rational
from flowmatch.solvers.grids import log_snr_grid
from tests.problems import SCHEDULES, gaussian_world, mixture_world, seeded
from tests.solvers.test_fixed import Counter
from tests.solvers.test_multistep import _kinds, _slope, _start

NAMED = {
    "dpm1": lambda s, k="velocity": DPMSolver(s, 1, k),
    "dpm2": lambda s, k="velocity": DPMSolver(s, 2, k),
    "dpm3": lambda s, k="velocity": DPMSolver(s, 3, k),
    "unipc2": lambda s, k="velocity": UniPC(s, 2, k),
    "unipc3": lambda s, k="velocity": UniPC(s, 3, k),
    "unipc2-bh1": lambda s, k="velocity": UniPC(s, 2, k, "bh1"),
    "deis2": lambda s, k="velocity": DEIS(s, 2, k),
    "deis3": lambda s, k="velocity": DEIS(s, 3, k),
    "deis3-log": lambda s, k="velocity": DEIS(s, 3, k, "log_snr"),
    "target3-straight": lambda s, k="velocity": Exponential(s, 3, k, clock="straight"),
}
EACH = pytest.mark.parametrize("make", NAMED.values(), ids=NAMED.keys())
SOME = ["linear", "linear-min", "cosine", "vp", "ve-mild", "sub-vp", "diffusion-cosine", "own"]
EVERY = pytest.mark.parametrize("name", SCHEDULES)
TIMES = torch.tensor([0.05, 0.1, 0.27, 0.4, 0.75, 0.9], dtype=torch.float64)


@functools.cache
def _truth(name, world, start, end):
    path = fm.AffinePath(SCHEDULES[name])
    return fm.solve(fm.ODE(world(path)), _start(path), DOP853(), rtol=1e-10, atol=1e-11, span=(start, end)).x


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [-3.0, -0.99, -1e-6, 1e-9, 1e-3, 0.5, 0.999, 1.001, 4.0, 60.0])
def test_moments_of_the_log_clock_are_the_integrals(h):
    for k, ours in enumerate(_decaying(h, 3)):
        assert ours == pytest.approx(quad(lambda v: h * v**k * math.exp(-h * (1 - v)), 0, 1)[0], rel=1e-9)  # noqa: B023


@pytest.mark.parametrize("z", [-4.0, -0.31, -0.29, 1e-9, 1e-3, 0.29, 0.31, 0.9, 0.999])
def test_moments_of_the_straight_clock_are_the_integrals(z):
    for k, ours in enumerate(_rational(z, 1 - z, 3)):
        expected = z * (1 - z) * quad(lambda v: v**k / (1 - z * v) ** 2, 0, 1, epsabs=1e-12)[0]  # noqa: B023
        assert ours == pytest.approx(expected, rel=1e-8)


def test_at_the_end_the_whole_weight_lies_there():
    assert _rational(1.0, 0.0, 3) == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(_rational(1 - 1e-12, 1e-12, 3), [1, 1, 1], rtol=1e-9)


# --- what is exact ------------------------------------------------------------------------------------------


@EACH
@EVERY
def test_a_target_that_does_not_change_is_reached_by_any_steps(make, name):
    """One data point: the target is that point, and all is exact whatever the grid, up to both ends."""
    path = fm.AffinePath(SCHEDULES[name])
    point = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    x0 = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    low, high = path.interval
    start = path.position(low, x0, point.expand(4, 2))
    for grid in (torch.tensor([low, high]), torch.tensor([low, 0.02, 0.5, 0.6, high])):
        x = fm.solve(
            fm.ODE(lambda t, x: point.expand_as(x)), start, make(path.schedule, "target"), grid=grid.double()
        ).x
        end = grid.double()[-1].item()
        torch.testing.assert_close(x, path.position(end, x0, point.expand(4, 2)), rtol=1e-10, atol=1e-10)


@EACH
@pytest.mark.parametrize("name", SOME)
def test_a_noise_that_does_not_change_is_followed_backwards(make, name):
    path = fm.AffinePath(SCHEDULES[name])
    x0, x1 = torch.randn(2, 4, 2, generator=seeded(), dtype=torch.float64)
    high = path.interval[1]
    grid = torch.tensor([high, 0.6, 0.3, 0.02], dtype=torch.float64)
    start = path.position(grid[0].item(), x0, x1)
    x = fm.solve(fm.ODE(lambda t, x: x0), start, make(path.schedule, "noise"), grid=grid).x
    torch.testing.assert_close(x, path.position(grid[-1].item(), x0, x1), rtol=1e-8, atol=1e-8)


# --- the papers' formulas -----------------------------------------------------------------------------------


def _by_the_book(method, field, path, x, times):
    """Methods as the papers print them, step by step, in their letters: h, r, the targets D, alpha and sigma."""
    schedule = path.schedule
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    lam = 0.5 * schedule.log_snr(times)
    targets = []
    for i in range(len(times) - 1):
        targets.append(field.posterior_mean(times[i].item(), x))
        h = lam[i + 1] - lam[i]
        first = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * torch.expm1(-h) * targets[-1]
        if i == 0 or method == "ddim":
            x = first
        else:
            r = (lam[i] - lam[i - 1]) / h
            size = torch.expm1(-h) if method == "dpm2" else -h
            x = first - 0.5 * alpha[i + 1] * size * (targets[-1] - targets[-2]) / r
    return x


@pytest.mark.parametrize("name", ["linear", "vp", "cosine"])
@pytest.mark.parametrize(
    ("method", "solver"),
    [("ddim", lambda s: DPMSolver(s, 1)), ("dpm2", lambda s: DPMSolver(s, 2)), ("bh1", None)],
)
def test_the_papers_formulas_are_kept_where_the_ratio_is_finite(name, method, solver):
    """Lu et al. 2022, Algorithm 2: x = (sigma_s / sigma_t) x - alpha_s (e^-h - 1) (D_i + (D_i - D_{i-1}) / 2r)."""
    path = fm.AffinePath(SCHEDULES[name])
    field, x = mixture_world(path), _start(path)
    make = solver or (lambda s: Exponential(s, 2, first="bh1"))
    ours = fm.solve(fm.ODE(field), x, make(path.schedule), grid=TIMES).x
    torch.testing.assert_close(ours, _by_the_book(method, field, path, x, TIMES), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "vp"])
def test_a_corrected_step_is_that_of_unipc(name):
    """Zhao et al. 2023, UniC-1 with bh2: the base step from the last state, plus half of D_1 - D_0 over the step."""
    path = fm.AffinePath(SCHEDULES[name])
    field, x, schedule = mixture_world(path), _start(path), path.schedule
    alpha, sigma, lam = schedule.alpha(TIMES), schedule.sigma(TIMES), 0.5 * schedule.log_snr(TIMES)
    d0 = field.posterior_mean(TIMES[0].item(), x)
    grow = [-alpha[i + 1] * torch.expm1(lam[i] - lam[i + 1]) for i in range(2)]
    base = sigma[1] / sigma[0] * x + grow[0] * d0
    d1 = field.posterior_mean(TIMES[1].item(), base)
    corrected = base + 0.5 * grow[0] * (d1 - d0)
    r = (lam[1] - lam[0]) / (lam[2] - lam[1])
    expected = sigma[2] / sigma[1] * corrected + grow[1] * (d1 + 0.5 * (d1 - d0) / r)
    ours = fm.solve(fm.ODE(field), x, UniPC(schedule, 2), grid=TIMES[:3]).x
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


# --- order --------------------------------------------------------------------------------------------------

EXPECTED = {
    "dpm1": (1, 1),
    "dpm2": (2, 2),
    "dpm3": (3, 3),
    "unipc2": (2, 3),
    "unipc3": (3, 4),
    "unipc2-bh1": (2, 3),
    "deis2": (2, 2),
    "deis3": (3, 3),
    "deis3-log": (3, 3),
    "target3-straight": (3, 3),
}


@pytest.mark.parametrize("method", NAMED)
@pytest.mark.parametrize(
    ("name", "world"), [("linear", mixture_world), ("cosine", gaussian_world), ("vp", gaussian_world)]
)
def test_the_error_falls_with_the_order(method, name, world):
    """Between two log-ratios, in steps even in it; a corrector may add up to one order."""
    path = fm.AffinePath(SCHEDULES[name])
    field, schedule, x = world(path), path.schedule, _start(path)
    truth = _truth(name, world, *schedule.inverse_log_snr(torch.tensor([-2.0, 2.0], dtype=torch.float64)).tolist())

    def error(steps):
        grid = schedule.inverse_log_snr(torch.linspace(-2, 2, steps + 1, dtype=torch.float64))
        return (fm.solve(fm.ODE(field), x, NAMED[method](schedule), grid=grid).x - truth).abs().max().item()

    low, high = EXPECTED[method]
    assert NAMED[method](schedule).order == low
    slope = _slope(error, [40, 57, 80] if low < 3 else [60, 85, 120])
    assert low - 0.25 < slope < high + 0.6


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_straight_clock_keeps_a_good_order_up_to_both_ends(name):
    """In equal steps from pure noise to pure data; in the log clock no method is of more than order 2 there."""
    path = fm.AffinePath(SCHEDULES[name])
    field, x = gaussian_world(path), _start(path)
    truth = field.transport(x, 0.0, 1.0)

    def error(steps):
        solver = NAMED["target3-straight"](path.schedule)
        return (fm.solve(fm.ODE(field), x, solver, steps=steps).x - truth).abs().max().item()

    assert _slope(error, [80, 113, 160]) > 2.3


# --- the ends -----------------------------------------------------------------------------------------------


@EACH
@EVERY
def test_the_end_is_reached_and_never_asked_for(make, name):
    path = fm.AffinePath(SCHEDULES[name])
    low, high = path.interval
    field = Counter(mixture_world(path))
    x = _start(path).float()
    solution = fm.solve(fm.ODE(field), x, make(path.schedule), steps=12, span=(low, high), save=True)
    assert solution.nfe == field.calls == 12
    assert torch.isfinite(solution.trajectory).all()
    times = torch.cat(field.times)
    assert times.min() >= low
    assert times.max() < high
    if make(path.schedule).form == "target":  # noises blow up in steps as long as these, as the papers say
        assert (solution.x.double() - _truth(name, mixture_world, low, high)).abs().max() < 1.2


@EACH
@pytest.mark.parametrize("kind", ["target", "noise", "score"])
@pytest.mark.parametrize("name", ["linear", "vp"])
def test_networks_of_all_kinds_give_one_result(make, kind, name):
    """Each from where its prediction is defined, to the data itself, which is past the interval of the velocity."""
    path = fm.AffinePath(SCHEDULES[name])
    net, x = _kinds(mixture_world(path), path), _start(path)
    grid = torch.tensor([0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    solve = lambda k: fm.solve(fm.ODE(net[k]), x, make(path.schedule, k), grid=grid).x  # noqa: E731
    torch.testing.assert_close(solve(kind), solve("velocity"), rtol=1e-7, atol=1e-7)


@EACH
@pytest.mark.parametrize("kind", ["velocity", "target", "noise"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_it_runs_both_ways_from_the_very_ends(make, kind, name):
    """At one of the ends each prediction but the velocity is blind, and is then read a little inside."""
    path = fm.AffinePath(SCHEDULES[name])
    field = gaussian_world(path)
    net, x = _kinds(field, path)[kind], _start(path)
    for span in ((0.0, 1.0), (1.0, 0.0)):
        end = fm.solve(fm.ODE(net), x, make(path.schedule, kind), steps=60, span=span).x
        torch.testing.assert_close(end, field.transport(x, *span), rtol=0, atol=0.1)


def test_a_path_that_stands_still_at_the_start_is_read_a_little_further_on():
    path = fm.AffinePath(fm.Polynomial(2.0))
    field, x = gaussian_world(path), _start(path)
    asked = Counter(field)
    end = fm.solve(fm.ODE(asked), x, DPMSolver(path.schedule, 2), steps=40).x
    assert asked.times[0][0].item() == pytest.approx(1e-3 / 40)
    torch.testing.assert_close(end, field.transport(x, 0.0, 1.0), rtol=0, atol=0.05)


@EACH
def test_single_precision_costs_single_precision(make):
    path = fm.AffinePath(fm.Linear())
    field, x = mixture_world(path), _start(path)
    grid = torch.cat([torch.zeros(1), log_snr_grid(30, fm.Linear(), (-8.0, 12.0))[1:-1].float(), torch.ones(1)])
    single = fm.solve(fm.ODE(field), x.float(), make(path.schedule), grid=grid).x
    double = fm.solve(fm.ODE(field), x, make(path.schedule), grid=grid).x
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_gradients_through_a_solve_are_those_of_finite_differences():
    def run(x, rate):
        field = lambda t, x: torch.sin(rate * x) + t[:, None] * rate  # noqa: E731
        return fm.solve(fm.ODE(field), x, UniPC(fm.Linear()), steps=5).x

    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, torch.tensor(1.3, dtype=torch.float64, requires_grad=True)))


def test_any_velocity_will_do_so_likelihoods_do_too():
    """In its frame the method is one for any equation, the log-determinant included."""
    field = gaussian_world()
    flow = fm.Flow(field, path=fm.AffinePath(), event_shape=(2,))
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    ours = flow.log_prob(x, steps=100, solver=DEIS(fm.Linear(), 3))
    torch.testing.assert_close(ours, field.log_prob(1.0, x), rtol=0, atol=5e-3)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DPMSolver(fm.AffinePath()), TypeError, "of an affine path it is path.schedule"),
        (lambda: DPMSolver(fm.Linear(), 4), ValueError, "order must be 1, 2 or 3, got 4"),
        (lambda: UniPC(fm.Linear(), 1), ValueError, "order must be 2 or 3, got 1"),
        (lambda: UniPC(fm.Linear(), first="bh3"), ValueError, "first must be one of exact, bh1, bh2, got 'bh3'"),
        (lambda: DEIS(fm.Linear(), clock="t"), ValueError, "clock must be one of log_snr, straight, got 't'"),
        (lambda: Exponential(fm.Linear(), form="x"), ValueError, "form must be one of target, noise, got 'x'"),
        (lambda: DPMSolver(fm.Linear(), kind="eps"), ValueError, "kind must be one of velocity, target, noise, score"),
    ],
)
def test_choices_that_do_not_exist_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@EACH
def test_a_solver_tells_what_made_it(make):
    solver = make(fm.Cosine(), "target")
    again = type(solver)(**solver.config())
    assert vars(again) == vars(solver)
    assert repr(again) == repr(solver)
    assert repr(solver).startswith(f"{type(solver).__name__}(schedule=Cosine(), ")
