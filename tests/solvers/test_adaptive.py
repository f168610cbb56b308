"""Error control: accuracy by tolerance, every sample by itself, budgets, grids, and how it fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchdiffeq
from scipy import integrate

import flowmatch as fm
from tests.problems import PROBLEMS, gaussian_world, mixture_world, random_mlp, seeded
from tests.solvers.test_fixed import Counter

THRESHOLD = {"matrix": 3e-4, "constant": 3e-4, "sine": 3e-4, "skew": 2e-3, "decay": 3e-4}


def _solve(field, x, tol=1e-6, **options):
    return fm.solve(fm.ODE(field), x, fm.Dopri5(), rtol=tol, atol=tol, **options)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_known_problems_are_solved_both_ways(name, reverse, dtype):
    """The suite of torchdiffeq, at its own thresholds and at its default tolerances."""
    problem = PROBLEMS[name]()
    start, end = problem.span[::-1] if reverse else problem.span
    tol = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-7, "atol": 1e-9}
    solution = fm.solve(fm.ODE(problem.field), problem.exact(start).to(dtype), span=(start, end), **tol)
    truth = problem.exact(end)
    assert (solution.x.double() - truth).abs().max() < THRESHOLD[name] * max(1.0, truth.abs().max().item())
    assert solution.status == "finished"
    assert solution.x.dtype == dtype


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_agrees_with_torchdiffeq_and_costs_about_the_same(name):
    problem = PROBLEMS[name]()
    theirs = Counter(problem.field)
    times = torch.tensor(problem.span, dtype=torch.float64)
    reference = torchdiffeq.odeint(
        lambda t, x: theirs(t.expand(x.shape[0]), x), problem.start, times, method="dopri5", rtol=1e-8, atol=1e-8
    )[-1]
    ours = _solve(problem.field, problem.start, 1e-8, span=problem.span)
    torch.testing.assert_close(ours.x, reference, rtol=1e-5, atol=1e-5)
    # Ours keeps errors some three times smaller at one tolerance, for a few more steps.
    assert ours.nfe <= 1.3 * theirs.calls


def test_it_agrees_with_dop853_on_a_network():
    net = random_mlp(3)
    x = torch.randn(4, 3, generator=seeded(), dtype=torch.float64)

    def rhs(t, y):
        with torch.no_grad():
            return net(torch.full((4,), t, dtype=torch.float64), torch.from_numpy(y.reshape(4, 3))).numpy().ravel()

    truth = integrate.solve_ivp(rhs, (0, 1), x.numpy().ravel(), method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    with torch.no_grad():
        ours = _solve(net, x, 1e-8).x
    torch.testing.assert_close(ours, torch.from_numpy(truth.reshape(4, 3)), rtol=1e-6, atol=1e-6)


def test_the_error_is_proportional_to_the_tolerance():
    field = mixture_world()
    x = torch.randn(64, 2, generator=seeded(), dtype=torch.float64)
    truth = _solve(field, x, 1e-12).x
    tolerances = np.array([1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
    errors = np.array([(_solve(field, x, tol).x - truth).square().mean().sqrt().item() for tol in tolerances])
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.8 < slope < 1.2
    assert ((errors / tolerances < 100) & (errors / tolerances > 0.01)).all()


def _uneven(t, x):
    """Products and sums alone, so that the same numbers come out in any batch; a large start asks for small steps."""
    return x * (1 - x * x) + torch.stack([x[:, 1], -x[:, 0]], dim=1)


def test_a_sample_does_not_depend_on_its_batch_mates():
    x = torch.randn(6, 2, generator=seeded(), dtype=torch.float64).abs()
    x[3] = 40.0  # the outlier that would set everybody's step
    batch = _solve(_uneven, x, 1e-5)
    for b in range(6):
        alone = _solve(_uneven, x[b : b + 1], 1e-5)
        torch.testing.assert_close(alone.x[0], batch.x[b], rtol=1e-12, atol=1e-12)
        assert alone.accepted[0] == batch.accepted[b]
        assert alone.rejected[0] == batch.rejected[b]
        assert alone.nfe_per_sample[0] == batch.nfe_per_sample[b]
    order = torch.tensor([5, 2, 3, 0, 1, 4])
    torch.testing.assert_close(_solve(_uneven, x[order], 1e-5).x, batch.x[order], rtol=1e-12, atol=1e-12)


def test_samples_that_have_arrived_cost_nothing():
    x = torch.full((100, 2), 0.5, dtype=torch.float64)
    x[7] = 40.0
    field = Counter(_uneven)
    solution = _solve(field, x, 1e-6)
    assert solution.nfe == field.calls
    assert solution.nfe_per_sample.sum() == field.samples  # every evaluation is on somebody's account
    easy = solution.nfe_per_sample[torch.arange(100) != 7]
    assert easy.max() < solution.nfe_per_sample[7] / 3
    assert solution.nfe == solution.nfe_per_sample[7]
    expected = 6 * (solution.accepted + solution.rejected) + 2  # two calls choose the first step
    assert torch.equal(solution.nfe_per_sample, expected)


def test_conditions_follow_the_samples_that_are_left():
    rate = torch.tensor([0.1, 30.0, 1.0, 8.0], dtype=torch.float64)
    tree = {"rate": rate[:, None], "more": [rate.clone()]}

    def field(t, x, cond):
        assert torch.equal(cond["rate"][:, 0], cond["more"][0])
        return -cond["rate"] * x

    x = torch.ones(4, 1, dtype=torch.float64)
    solution = fm.solve(fm.ODE(field, tree), x, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(solution.x[:, 0], torch.exp(-rate), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.8), (1 - 1e-5, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_span_and_direction(span, dtype):
    field = gaussian_world()
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64).to(dtype)
    counter = Counter(field)
    tol = 1e-5 if dtype == torch.float32 else 1e-8
    solution = _solve(counter, x, tol, span=span)
    truth = field.transport(x, *span)
    torch.testing.assert_close(solution.x, truth, rtol=0, atol=100 * tol)
    times = torch.cat(counter.times)
    assert times.min() >= torch.tensor(min(span), dtype=dtype)  # never outside: fields refuse a time of -1e-17
    assert times.max() <= torch.tensor(max(span), dtype=dtype)
    assert torch.equal(solution.t, torch.tensor(span, dtype=dtype))


def test_a_grid_with_tolerances_names_the_times_to_hit():
    field = gaussian_world()
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    for grid in (torch.tensor([0.0, 0.03, 0.5, 0.51, 1.0]), torch.tensor([0.9, 0.4, 0.1])):
        solution = _solve(field, x, 1e-9, grid=grid, save=True)
        assert torch.equal(solution.t, grid.double())
        for t, state in zip(grid.tolist(), solution.trajectory, strict=True):
            truth = field.transport(x, grid[0].item(), t)
            torch.testing.assert_close(state, truth, rtol=0, atol=1e-7)
        assert torch.equal(solution.trajectory[-1], solution.x)


def test_a_step_cut_short_by_the_grid_does_not_make_the_next_one_short():
    field = gaussian_world()
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    free = _solve(field, x, 1e-6)
    cut = _solve(field, x, 1e-6, grid=torch.tensor([0.0, 0.5, 0.500001, 1.0]))
    assert cut.accepted.sum() <= free.accepted.sum() + 2 * 5  # one step more for each time that it has to hit


@pytest.mark.parametrize("budget", [0, 2, 8, 20, 50])
def test_a_budget_of_calls_gives_what_there_is(budget):
    x = torch.full((3, 2), 0.5, dtype=torch.float64)
    x[1] = 40.0
    grid = torch.tensor([0.0, 0.01, 0.5, 1.0])
    solution = _solve(_uneven, x, 1e-6, max_nfe=budget, grid=grid, save=True)
    assert solution.status == "max_nfe"
    assert solution.nfe <= max(budget, 2)  # the first step size costs two
    assert solution.x.shape == (3, 2)
    assert solution.trajectory.shape[0] == solution.t.shape[0] < 4
    assert (solution.reached < 1).any()
    for b in range(3):  # each sample is right at the time that it has reached
        if solution.reached[b] > 0:
            truth = _solve(_uneven, x[b : b + 1], 1e-10, span=(0.0, solution.reached[b].item())).x[0]
            torch.testing.assert_close(solution.x[b], truth, rtol=1e-3, atol=1e-3)
    with pytest.raises(fm.SolveError, match="max_nfe ran out"):
        solution.whole()


def test_a_budget_that_is_large_enough_changes_nothing():
    x = torch.ones(2, 1, dtype=torch.float64)
    free = _solve(lambda t, x: -x, x)
    assert torch.equal(_solve(lambda t, x: -x, x, max_nfe=free.nfe).x, free.x)


def _explode(t, x):
    """Runs into a pole at t = 1 / x0."""
    return x * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_that_vanishes_is_named_with_its_time_and_the_rest_is_kept(dtype):
    x = torch.tensor([[0.5], [2.0], [0.1], [4.0]], dtype=dtype)
    message = r"the step size vanished at t = 0.2[45][0-9]* for 1 of 4 samples: .*loosen rtol=1e-05.* or give steps="
    with pytest.raises(fm.SolveError, match=message) as caught:
        _solve(_explode, x, 1e-5, save=True)
    solution = caught.value.solution
    assert solution.status == "failed"
    assert solution.x.shape == x.shape
    assert solution.reached.shape == solution.accepted.shape == solution.nfe_per_sample.shape == (4,)
    assert solution.reached[3].item() == pytest.approx(0.25, abs=1e-3)
    assert (solution.reached[[0, 2]] > 0.2).all()  # each in its own place, arrived or on its way
    assert torch.isfinite(solution.x).all()
    exact = x / (1 - x * solution.reached[:, None])
    torch.testing.assert_close(solution.x[[0, 2]], exact[[0, 2]], rtol=1e-3, atol=0)
    assert solution.trajectory.shape == (1, 4, 1)


def test_samples_that_arrived_before_a_failure_are_part_of_what_is_kept():
    def field(t, x):
        return torch.where(x > 5, x * 0 + torch.where(t[:, None] > 0.9, torch.nan, 1.0), torch.ones_like(x))

    x = torch.tensor([[10.0], [0.0], [1.0]], dtype=torch.float64)
    with pytest.raises(fm.SolveError, match="step size vanished at t = 0.9") as caught:
        fm.solve(fm.ODE(field), x, rtol=1e-6, grid=torch.tensor([0.0, 0.5, 1.0]), save=True)
    solution = caught.value.solution
    assert solution.reached.tolist()[1:] == [1.0, 1.0]
    torch.testing.assert_close(solution.x[1:], x[1:] + 1)
    assert solution.t.tolist() == [0.0, 0.5]
    torch.testing.assert_close(solution.trajectory[1], x + 0.5)


@pytest.mark.parametrize("size", [1e3, 1e12, 1e20, 1e30])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_steep_field_never_stops_the_clock(size, start):
    """A first step rounded to zero would be accepted for ever."""
    field = Counter(lambda t, x: torch.full_like(x, size))
    solution = _solve(field, torch.full((1, 1), start), 1e-5, max_nfe=500)
    assert solution.status == "finished"
    assert solution.x.item() == pytest.approx(size, rel=1e-3)


def test_a_stiff_field_ends_too():
    solution = _solve(lambda t, x: -3e3 * (x - torch.cos(t)[:, None]), torch.zeros(1, 1, dtype=torch.float64), 1e-4)
    assert solution.x.item() == pytest.approx(np.cos(1.0), abs=1e-3)


@pytest.mark.parametrize("atol", [0.0, 1e-30])
def test_no_absolute_tolerance_and_a_component_that_stays_zero(atol):
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    solution = fm.solve(fm.ODE(lambda t, x: -x), x, rtol=1e-8, atol=atol)
    torch.testing.assert_close(solution.x, x * np.exp(-1.0), rtol=1e-7, atol=0)


def test_a_start_that_is_not_finite_is_told_as_such():
    x = torch.tensor([[0.0], [float("inf")]])
    with pytest.raises(ValueError, match="x has 1 entries that are NaN or infinite, the first in row 1"):
        _solve(lambda t, x: -x, x)


def test_a_field_that_is_never_finite_is_named():
    with pytest.raises(fm.SolveError, match="vanished at t = 0 for 2 of 2 samples: the field is not finite"):
        _solve(lambda t, x: x * torch.nan, torch.ones(2, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_kept_in_float32(dtype):
    x = torch.ones(2, 3, dtype=dtype)
    seen = set()

    def field(t, x):
        seen.add((t.dtype, x.dtype))
        return x

    solution = fm.solve(fm.ODE(field), x, rtol=1e-4, save=True)
    assert seen == {(torch.float32, dtype)}
    assert solution.x.dtype == solution.trajectory.dtype == dtype
    # A state kept in the half type would round away what the error control asks for, and cost hundreds of calls.
    assert solution.nfe <= 50
    error = solution.x.double() - np.e
    assert error.abs().max() <= torch.finfo(dtype).eps * np.e


@pytest.mark.parametrize("shape", [(0, 2), (0, 3, 4, 4), (0,)])
def test_an_empty_batch_arrives_at_once(shape):
    x = torch.zeros(shape)
    for save in (False, True):
        solution = _solve(lambda t, x: -x, x, save=save)
        assert solution.x.shape == shape
        assert solution.status == "finished"
        assert solution.t.tolist() == [0.0, 1.0]
        assert solution.trajectory is None or solution.trajectory.shape == (2, *shape)


@pytest.mark.parametrize(
    "tolerances",
    [
        {"rtol": 0.0},
        {"rtol": -1e-3},
        {"rtol": 1.0},
        {"rtol": float("nan")},
        {"rtol": 1e-3, "atol": -1.0},
        {"rtol": 1e-3, "atol": float("inf")},
        {"atol": float("nan")},
    ],
)
def test_tolerances_that_make_no_sense_are_refused(tolerances):
    with pytest.raises(ValueError, match="need 0 < rtol < 1 and atol >= 0, got rtol="):
        fm.solve(fm.ODE(lambda t, x: x), torch.ones(1, 1), **tolerances)


@pytest.mark.parametrize("field", [lambda t, x: x[:, :1], lambda t, x: x.sum(1)])
def test_a_field_of_wrong_shape_is_refused(field):
    with pytest.raises(ValueError, match="the field returned shape"):
        _solve(field, torch.zeros(3, 2))


def test_gradients_through_an_adaptive_solve_are_those_of_the_solution():
    """x' = rate x has d x(1) / d rate = x0 e^rate and d x(1) / d x0 = e^rate."""
    x = torch.tensor([[0.3], [-0.7], [5.0]], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    end = _solve(lambda t, x: rate * x, x, 1e-10).x
    by_x, by_rate = torch.autograd.grad(end.sum(), (x, rate))
    torch.testing.assert_close(by_x, torch.full_like(x, np.exp(1.3)), rtol=1e-8, atol=0)
    torch.testing.assert_close(by_rate, (x.sum() * np.exp(1.3)).detach(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("start", [[1.0], [1.0, 0.7, 1.02]])
def test_gradients_survive_a_step_that_overflowed_and_was_rejected(start):
    """The zero gradient of a rejected step times the infinite slope of its overflow would be nan."""

    def run(rate):
        field = lambda t, x: -rate * x.abs() ** 40 * torch.sign(x) * (t[:, None] > 0.3)  # noqa: E731
        return _solve(field, torch.tensor(start)[:, None], 1e-4)

    rate = torch.tensor(50.0, requires_grad=True)
    solution = run(rate)
    assert (solution.rejected > 0).any()
    gradient = torch.autograd.grad(solution.x.sum(), rate)[0]
    # x' = -r x^40 over 0.7 units of time: x^-39 grows by 39 * 0.7 r.
    x0 = np.array(start)
    exact = (-0.7 * (x0**-39 + 39 * 0.7 * 50.0) ** (-40 / 39)).sum()
    assert gradient.item() == pytest.approx(exact, rel=1e-2)


def test_gradients_of_a_network_through_an_adaptive_solve_are_those_of_finite_differences():
    net, x = random_mlp(2, scale=0.4, hidden=8, depth=1), torch.randn(3, 2, generator=seeded(), dtype=torch.float64)
    weight = net.outlet.weight

    def value():
        return _solve(net, x, 1e-9).x.square().sum()

    gradient = torch.autograd.grad(value(), weight)[0]
    for i, j in ((0, 0), (1, 5), (0, 7)):
        ends = []
        for h in (1e-4, -1e-4):
            with torch.no_grad():
                weight[i, j] += h
                ends.append(value().item())
                weight[i, j] -= h
        assert abs(gradient[i, j]) > 1e-2
        assert gradient[i, j].item() == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-6)


def test_an_own_norm_controls_the_steps():
    """Only the second column counts: the first may be as wrong as it likes, and costs nothing."""
    fast = lambda t, x: torch.stack([torch.cos(200 * t), -x[:, 1]], dim=1)  # noqa: E731
    x = torch.ones(1, 2, dtype=torch.float64)
    everything = fm.solve(fm.ODE(fast), x, rtol=1e-6)
    second = fm.solve(fm.ODE(fast, norm=lambda e: e[:, 1].abs()), x, rtol=1e-6)
    assert second.nfe < everything.nfe / 5
    assert second.x[0, 1].item() == pytest.approx(np.exp(-1), abs=1e-5)
