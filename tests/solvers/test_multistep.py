"""Methods with a memory: weights of any grid, order, calls, starts, and the frames of affine paths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import BarycentricInterpolator, lagrange

import flowmatch as fm
from flowmatch.solvers.grids import path_grid
from flowmatch.solvers.multistep import AdamsBashforth, integrate_basis
from flowmatch.solvers.path_adams import PathAdams
from tests.problems import PROBLEMS, SCHEDULES, Problem, gaussian_world, matrix_problem, mixture_world, seeded
from tests.solvers.test_fixed import Counter

ORDERS = [2, 3, 4]
UNEVEN = torch.tensor([0.0, 0.05, 0.2, 0.27, 0.5, 0.55, 0.8, 1.0], dtype=torch.float64)


def _bent(steps):
    """A smooth grid whose neighbouring steps differ at every fineness."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return (u + 0.5 * u * u) / 1.5 + 0.03 * torch.sin(6 * math.pi * u)


def _slope(error, counts):
    errors = [error(n) for n in counts]
    assert min(errors) > 1e-13
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "weights"),
    [(2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12]), (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24])],
)
def test_equal_steps_have_the_classical_weights(order, weights):
    """Hairer, Norsett, Wanner, section III.1, Eq. 1.5'."""
    ours = integrate_basis([-float(j) for j in range(order)], [1 / (k + 1) for k in range(order)])
    np.testing.assert_allclose(ours, weights, rtol=1e-14)


@given(st.lists(st.floats(0.2, 3.0), min_size=1, max_size=3))
def test_weights_are_the_integrals_of_the_interpolating_polynomial(gaps):
    nodes = [0.0, *itertools.accumulate(-gap for gap in gaps)]
    ours = integrate_basis(nodes, [1 / (k + 1) for k in range(len(nodes))])
    for j in range(len(nodes)):
        basis = lagrange(nodes, [float(i == j) for i in range(len(nodes))]).integ()
        assert ours[j] == pytest.approx(basis(1.0) - basis(0.0), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("order", ORDERS)
def test_a_step_integrates_the_polynomial_through_the_last_velocities(order):
    """On an uneven grid, step by step: the velocities of an equation that knows time alone, by SciPy's polynomial."""
    rate = lambda t: np.cos(5 * t)  # noqa: E731
    solution = fm.solve(
        fm.ODE(lambda t, x: torch.cos(5 * t)[:, None].expand_as(x)),
        torch.zeros(1, 1, dtype=torch.float64),
        AdamsBashforth(order),
        grid=UNEVEN,
        save=True,
    )
    moves, times = solution.trajectory[:, 0, 0].diff().numpy(), UNEVEN.numpy()
    points, weights = np.polynomial.legendre.leggauss(8)
    for n in range(order + 1, len(moves)):
        nodes = times[n - order + 1 : n + 1]
        polynomial = BarycentricInterpolator(nodes, rate(nodes))
        h = times[n + 1] - times[n]
        expected = h / 2 * (weights * polynomial(times[n] + h / 2 * (points + 1))).sum()
        assert moves[n] == pytest.approx(expected, rel=1e-10)


# --- Adams-Bashforth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("even", [True, False])
def test_the_error_falls_with_the_order(order, direction, even):
    problem = matrix_problem()
    span = problem.span[::direction]

    def error(steps):
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64) if even else _bent(steps)
        grid = grid if direction > 0 else grid.flip(0)
        end = fm.solve(fm.ODE(problem.field), problem.exact(span[0]), AdamsBashforth(order), grid=grid).x
        return (end - problem.exact(span[1])).abs().max().item()

    assert abs(_slope(error, [120, 170, 240]) - order) < 0.2


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_holds_where_the_field_depends_on_time(order):
    start = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    problem = Problem(lambda t, x: torch.cos(t)[:, None] * x, lambda t: start * math.exp(math.sin(t)), (0.0, 1.0))

    def error(steps):
        end = fm.solve(fm.ODE(problem.field), start, AdamsBashforth(order), steps=steps).x
        return (end - problem.exact(1.0)).abs().max().item()

    assert abs(_slope(error, [80, 113, 160, 226]) - order) < 0.2


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_known_problems_are_solved(order, name, dtype):
    problem = PROBLEMS[name]()
    start, end = problem.span
    x = fm.solve(
        fm.ODE(problem.field), problem.exact(start).to(dtype), AdamsBashforth(order), steps=400, span=(start, end)
    ).x
    truth = problem.exact(end)
    scale = truth.abs().max() + problem.start.abs().max()
    assert x.dtype == dtype
    limit = 30 * ((end - start) / 400) ** order + (1e-4 if dtype == torch.float32 else 1e-9)
    assert (x.double() - truth).abs().max() < limit * scale


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_one_call_a_step_and_two_more_to_start_order_four(order, steps):
    field = Counter(lambda t, x: -x)
    solution = fm.solve(fm.ODE(field), torch.ones(3, 2), AdamsBashforth(order), steps=steps)
    assert solution.nfe == field.calls == steps + 2 * (order == 4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("budget", [0, 1, 2, 3, 6, 100])
def test_a_budget_is_never_overdrawn(order, budget):
    x = torch.ones(2, 1, dtype=torch.float64)
    whole = fm.solve(fm.ODE(lambda t, x: x), x, AdamsBashforth(order), steps=10, save=True)
    part = fm.solve(fm.ODE(lambda t, x: x), x, AdamsBashforth(order), steps=10, save=True, max_nfe=budget)
    start = 2 * (order == 4)
    done = min(10, max(0, budget - start))
    assert part.nfe == (done + start if done else 0)
    assert part.status == ("finished" if done == 10 else "max_nfe")
    assert torch.equal(part.trajectory, whole.trajectory[: done + 1])


@pytest.mark.parametrize("order", ORDERS)
def test_the_field_is_asked_inside_the_span_only(order):
    for span in ((0.0, 1.0), (1.0, 0.0), (0.25, 1 - 1e-5)):
        field = Counter(lambda t, x: -x)
        fm.solve(fm.ODE(field), torch.ones(1, 1, dtype=torch.float64), AdamsBashforth(order), steps=9, span=span)
        times = torch.cat(field.times)
        assert times.min() >= min(span)
        assert times.max() <= max(span)


@pytest.mark.parametrize("shape", [(4, 4), (4, 3, 4, 4), (1, 2), (5,), (0, 2)])
def test_every_shape_and_every_sample_by_itself(shape):
    x = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    field = lambda t, x: x * (0.5 + t.reshape(-1, *(1,) * (x.ndim - 1)))  # noqa: E731
    whole = fm.solve(fm.ODE(field), x, AdamsBashforth(3), steps=50).x
    torch.testing.assert_close(whole, x * torch.e, rtol=1e-3, atol=0)
    for b in range(shape[0]):
        alone = fm.solve(fm.ODE(field), x[b : b + 1], AdamsBashforth(3), steps=50).x
        torch.testing.assert_close(alone[0], whole[b], rtol=1e-13, atol=0)


def test_small_steps_do_not_round_away_in_half_precision():
    x = fm.solve(fm.ODE(lambda t, x: x), torch.ones(2, 3, dtype=torch.bfloat16), AdamsBashforth(2), steps=1000).x
    assert x.dtype == torch.bfloat16
    assert (x.float() - torch.e).abs().max() < 0.05


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_through_a_solve_are_those_of_finite_differences(order):
    def run(x, rate):
        field = lambda t, x: torch.sin(rate * x) + t[:, None] * rate  # noqa: E731
        return fm.solve(fm.ODE(field), x, AdamsBashforth(order), steps=5).x

    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, torch.tensor(1.3, dtype=torch.float64, requires_grad=True)))


@pytest.mark.parametrize("order", [0, 1, 5, 2.5, "2"])
def test_orders_that_do_not_exist_are_refused(order):
    with pytest.raises(ValueError, match="order must be 2, 3 or 4, got"):
        AdamsBashforth(order)


def test_error_control_and_steps_of_each_sample_are_refused():
    with pytest.raises(ValueError, match="AdamsBashforth has no error estimate"):
        fm.solve(fm.ODE(lambda t, x: x), torch.ones(1, 1), AdamsBashforth(), rtol=1e-3)
    with pytest.raises(TypeError, match="takes one step for the whole batch"):
        AdamsBashforth().step(fm.ODE(lambda t, x: x), torch.zeros(2), torch.ones(2), torch.ones(2, 1), None)


# --- the frames of affine paths -----------------------------------------------------------------------------


def _kinds(field, path):
    """The same field as a network of each kind."""
    convert = lambda kind: lambda t, x: path.convert(field.posterior_mean(t, x), t, x, "target", kind)  # noqa: E731
    return {"velocity": field, "target": field.posterior_mean, "noise": convert("noise"), "score": convert("score")}


def _start(path, n=3):
    x = torch.randn(n, 2, generator=seeded(), dtype=torch.float64)
    return x * path.source_std


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_turn_is_exact_for_normal_data_of_the_spread(name, spread):
    """Centred normal data do not move in the frame of the quarter turn, so one step of any length is exact."""
    path = fm.AffinePath(SCHEDULES[name])
    field = fm.GaussianField(torch.zeros(2, dtype=torch.float64), std=spread, path=path)
    x = _start(path)
    for n in (1, 2, 5):
        end = fm.solve(fm.ODE(field), x, PathAdams(path.schedule, 3, spread), steps=n, span=path.interval).x
        # A start at which the velocity is blind is read a thousandth of the step further on.
        limit = 1e-6 if name.startswith(("polynomial", "own")) else 1e-9
        torch.testing.assert_close(end, field.transport(x, *path.interval), rtol=limit, atol=limit)


@pytest.mark.parametrize("frame", ["angle", "straight"])
@pytest.mark.parametrize("name", ["vp", "cosine", "polynomial-1.5", "ve-mild", "sub-vp", "own"])
def test_every_affine_path_is_solved_as_the_straight_one(name, frame):
    """The same mixture on two paths, at the same signal-to-noise ratios: the results differ by the scale alone."""
    path, straight = fm.AffinePath(SCHEDULES[name]), fm.AffinePath(fm.Linear())
    grid = path_grid(7, path.schedule, 1.5)
    grid = grid[1:-1]
    other = straight.schedule.inverse_log_snr(path.schedule.log_snr(grid))

    def scale(schedule, t):
        return (schedule.alpha(t) + schedule.sigma(t)).item()

    y = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    ends = []
    for p, g in ((path, grid), (straight, other)):
        solver = PathAdams(p.schedule, 3, 1.5, frame)
        x = fm.solve(fm.ODE(mixture_world(p)), y * scale(p.schedule, g[0]), solver, grid=g).x
        ends.append(x / scale(p.schedule, g[-1]))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-8)


def test_on_the_straight_path_it_is_adams_bashforth():
    field, x = mixture_world(), _start(fm.AffinePath())
    ours = fm.solve(fm.ODE(field), x, PathAdams(fm.Linear(), 2, frame="straight", correct=False), grid=UNEVEN).x
    torch.testing.assert_close(ours, fm.solve(fm.ODE(field), x, AdamsBashforth(2), grid=UNEVEN).x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("frame", ["angle", "straight"])
@pytest.mark.parametrize("kind", ["target", "noise", "score"])
@pytest.mark.parametrize("name", ["linear-min", "vp", "ve-mild"])
def test_networks_of_all_kinds_give_one_result(kind, name, frame):
    path = fm.AffinePath(SCHEDULES[name])
    field = mixture_world(path)
    low, high = path.interval
    start, x = max(low, 0.02), _start(path)
    net = _kinds(field, path)
    solve = lambda k: (  # noqa: E731
        fm.solve(fm.ODE(net[k]), x, PathAdams(path.schedule, 3, 1.5, frame, kind=k), steps=9, span=(start, high)).x
    )
    torch.testing.assert_close(solve(kind), solve("velocity"), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("frame", ["angle", "straight"])
@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["linear", "cosine", "vp-mild"])
def test_frames_keep_the_order(name, order, correct, frame):
    path = fm.AffinePath(SCHEDULES[name])
    field, x = gaussian_world(path), _start(path)

    def error(steps):
        solver = PathAdams(path.schedule, order, 0.7, frame, correct)
        grid = path_grid(steps, path.schedule, 0.7, span=(0.0, 0.95))
        return (fm.solve(fm.ODE(field), x, solver, grid=grid).x - field.transport(x, 0.0, 0.95)).abs().max().item()

    slope = _slope(error, [60, 85, 120])
    assert order - 0.2 < slope < order + (1.3 if correct else 0.5)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_spreads_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="spread must be a positive number"):
        PathAdams(fm.Linear(), spread=bad)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schedule": fm.AffinePath()}, TypeError, "of an affine path it is path.schedule"),
        ({"order": 4}, ValueError, "order must be 1, 2 or 3, got 4"),
        ({"frame": "circle"}, ValueError, "frame must be one of angle, straight, got 'circle'"),
        ({"kind": "eps"}, ValueError, "kind must be one of velocity, target, noise, score, got 'eps'"),
    ],
)
def test_choices_that_do_not_exist_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        PathAdams(**{"schedule": fm.Linear(), **arguments})


def test_a_solver_tells_what_made_it():
    solver = PathAdams(fm.Cosine(), 2, 0.5, "straight", correct=False, kind="target")
    again = PathAdams(**solver.config())
    assert again.config() == solver.config()
    assert repr(solver) == (
        "PathAdams(schedule=Cosine(), order=2, spread=0.5, frame='straight', correct=False, kind='target')"
    )
