"""Contract of solvers on a fixed grid: order, number of calls, direction, what is kept, and how they fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import flowmatch as fm
from flowmatch import solvers
from tests.problems import PROBLEMS, SOLVERS, Problem, gaussian_world, matrix_problem, public_subclasses, seeded

EACH = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
#: Steps between the first terms of the error's series and the rounding, by order; 40 to 320 for low ones.
COUNTS = {4: [10, 14, 20, 28], 5: [20, 28, 40, 56], 8: [3, 4, 5, 6]}
EXPECTED_CALLS = {
    "euler": (1, 0),
    "midpoint": (2, 0),
    "heun": (2, 0),
    "ralston": (2, 0),
    "kutta3": (3, 0),
    "rk4": (4, 0),
    "bs32": (3, 1),
    "dopri5": (6, 1),
    "tsit5": (6, 1),
    "dop853": (12, 0),
}


class Counter:
    """A field that counts its calls and the samples in them."""

    def __init__(self, field):
        self.field, self.calls, self.samples, self.times = field, 0, 0, []

    def __call__(self, t, x, *cond):
        assert t.shape == x.shape[:1]
        self.calls += 1
        self.samples += x.shape[0]
        self.times.append(t)
        return self.field(t, x, *cond)


def _slope(problem, solver, counts):
    errors = []
    for steps in counts:
        solution = fm.solve(fm.ODE(problem.field), problem.start, solver, steps=steps, span=problem.span)
        errors.append((solution.x - problem.exact(problem.span[1])).abs().max().item())
    assert min(errors) > 1e-13
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def test_every_public_solver_is_under_contract():
    assert public_subclasses(solvers, solvers.RungeKutta) - {solvers.RungeKutta} == {type(s) for s in SOLVERS.values()}
    assert set(EXPECTED_CALLS) == set(SOLVERS)


@EACH
@pytest.mark.parametrize("direction", ["forwards", "backwards"])
def test_the_error_falls_with_the_declared_order(solver, direction):
    problem = matrix_problem()
    if direction == "backwards":
        problem = type(problem)(problem.field, problem.exact, problem.span[::-1])
    assert abs(_slope(problem, solver, COUNTS.get(solver.order, [40, 80, 160, 320])) - solver.order) < 0.2


@EACH
def test_the_order_holds_where_the_field_depends_on_time(solver):
    """A wrong node c would go unseen by an autonomous equation."""
    start = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    problem = Problem(lambda t, x: t.exp()[:, None] * x, lambda t: start * math.exp(math.exp(t) - 1), (0.0, 1.0))
    counts = [4, 5, 6, 8] if solver.order == 8 else COUNTS.get(solver.order, [40, 80, 160, 320])
    assert abs(_slope(problem, solver, counts) - solver.order) < 0.2


@EACH
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_known_problems_are_solved_both_ways(solver, name, reverse, dtype):
    problem = PROBLEMS[name]()
    start, end = problem.span[::-1] if reverse else problem.span
    x = fm.solve(fm.ODE(problem.field), problem.exact(start).to(dtype), solver, steps=400, span=(start, end)).x
    assert x.dtype == dtype
    truth = problem.exact(end)
    scale = truth.abs().max() + problem.start.abs().max()
    step = abs(end - start) / 400
    limit = 30 * step**solver.order + (1e-4 if dtype == torch.float32 else 1e-9)
    assert (x.double() - truth).abs().max() < limit * scale


@EACH
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_calls_are_exactly_as_declared(solver, steps):
    field = Counter(lambda t, x: -x)
    solution = fm.solve(fm.ODE(field), torch.ones(3, 2), solver, steps=steps)
    name = next(name for name, s in SOLVERS.items() if s is solver)
    per_step, first = EXPECTED_CALLS[name]
    assert solver.evaluations == per_step
    assert solution.nfe == field.calls == per_step * steps + first
    assert solution.nfe_per_sample.tolist() == [field.calls] * 3
    assert solution.accepted.tolist() == [steps] * 3
    assert solution.rejected.tolist() == [0] * 3
    assert solution.reached.tolist() == [1.0] * 3
    assert solution.status == "finished"
    assert solution.trajectory is None


@EACH
def test_the_field_is_asked_inside_the_interval_only(solver):
    for span in ((0.0, 1.0), (1.0, 0.0), (0.25, 1 - 1e-5), (1 - 1e-5, 0.1)):
        field = Counter(lambda t, x: -x)
        fm.solve(fm.ODE(field), torch.ones(1, 1, dtype=torch.float64), solver, steps=9, span=span)
        times = torch.cat(field.times)
        assert times.min() >= min(span) - 1e-15
        assert times.max() <= max(span) + 1e-15


@EACH
@pytest.mark.parametrize("shape", [(4, 4), (4, 3, 4, 4), (1, 2), (5,), (0, 2), (0, 3, 4, 4)])
def test_every_shape_and_every_sample_by_itself(solver, shape):
    x = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    field = lambda t, x: x * (0.5 + t.reshape(-1, *(1,) * (x.ndim - 1)))  # noqa: E731
    solution = fm.solve(fm.ODE(field), x, solver, steps=50, save=True)
    assert solution.x.shape == shape
    assert solution.trajectory.shape == (51, *shape)
    torch.testing.assert_close(solution.x, x * torch.e, rtol=0.03, atol=0)
    for b in range(shape[0]):
        alone = fm.solve(fm.ODE(field), x[b : b + 1], solver, steps=50).x
        torch.testing.assert_close(alone[0], solution.x[b], rtol=1e-13, atol=0)


@EACH
def test_a_grid_is_followed_and_its_states_are_kept(solver):
    field = gaussian_world()
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    grid = torch.tensor([0.0, 0.1, 0.15, 0.5, 0.8, 1.0])
    solution = fm.solve(fm.ODE(field), x, solver, grid=grid, save=True)
    torch.testing.assert_close(solution.t, grid.double(), rtol=0, atol=0)
    assert torch.equal(solution.trajectory[0], x)
    assert torch.equal(solution.trajectory[-1], solution.x)
    parts = x
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        parts = fm.solve(fm.ODE(field), parts, solver, steps=1, span=(t, s)).x
    torch.testing.assert_close(parts, solution.x, rtol=1e-13, atol=1e-13)
    equal = fm.solve(fm.ODE(field), x, solver, grid=torch.linspace(0, 1, 6, dtype=torch.float64)).x
    torch.testing.assert_close(equal, fm.solve(fm.ODE(field), x, solver, steps=5).x, rtol=1e-12, atol=1e-12)


@EACH
def test_there_and_back(solver):
    field = gaussian_world()
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    there = fm.solve(fm.ODE(field), x, solver, steps=50).x
    back = fm.solve(fm.ODE(field), there, solver, steps=50, span=(1.0, 0.0)).x
    limit = 20 * 50.0**-solver.order
    torch.testing.assert_close(back, x, rtol=0, atol=limit)
    torch.testing.assert_close(there, field.transport(x, 0.0, 1.0), rtol=0, atol=limit)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_do_not_round_away_in_half_precision(solver, dtype):
    seen = set()

    def field(t, x):
        seen.add((t.dtype, x.dtype))
        return x

    solution = fm.solve(fm.ODE(field), torch.ones(2, 3, dtype=dtype), solver, steps=1000, save=True)
    assert solution.x.dtype == solution.trajectory.dtype == dtype
    assert seen == {(torch.float32, dtype)}  # the network keeps its own type
    # Each step is below half a unit of the last place: kept in the half type, x would not move at all.
    assert solution.x.float().sub(torch.e).abs().max() < 0.01 + 2 * torch.finfo(dtype).eps * torch.e


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_field_of_another_type_does_not_change_the_state(solver, dtype):
    for other in (torch.bfloat16, torch.float32, torch.float64):
        x = fm.solve(fm.ODE(lambda t, x: x.to(other)), torch.ones(1, 1, dtype=dtype), solver, steps=2).x  # noqa: B023
        assert x.dtype == dtype


@EACH
def test_a_condition_is_handed_to_the_field(solver):
    rate = {"rate": torch.tensor([[1.0], [-1.0]])}
    x = fm.solve(fm.ODE(lambda t, x, c: c["rate"] * x, rate), torch.ones(2, 1), solver, steps=100).x
    torch.testing.assert_close(x, torch.exp(rate["rate"]), rtol=0.02, atol=0)


@EACH
def test_gradients_through_a_solve_are_those_of_finite_differences(solver):
    def run(x, rate):
        field = lambda t, x: torch.sin(rate * x) + t[:, None] * rate  # noqa: E731
        return fm.solve(fm.ODE(field), x, solver, steps=5).x

    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, rate))


@EACH
@pytest.mark.parametrize("budget", [0, 1, 6, 7, 13, 1000])
def test_a_budget_of_calls_gives_what_there_is(solver, budget):
    x = torch.ones(2, 1, dtype=torch.float64)
    whole = fm.solve(fm.ODE(lambda t, x: x), x, solver, steps=10, save=True)
    part = fm.solve(fm.ODE(lambda t, x: x), x, solver, steps=10, save=True, max_nfe=budget)
    first = solver.tableau.first_same_as_last
    done = min(10, max(0, (budget - first) // solver.evaluations))
    assert part.status == ("finished" if done == 10 else "max_nfe")
    assert part.nfe == done * solver.evaluations + first
    assert part.t.tolist() == whole.t[: done + 1].tolist()
    assert torch.equal(part.trajectory, whole.trajectory[: done + 1])
    assert torch.equal(part.x, whole.trajectory[done])
    assert part.reached.tolist() == [whole.t[done].item()] * 2
    assert part.accepted.tolist() == [done] * 2
    if done < 10:
        with pytest.raises(fm.SolveError, match=rf"max_nfe ran out after {part.nfe} field calls") as caught:
            part.whole()
        assert caught.value.solution is part


@EACH
def test_a_field_that_breaks_is_named_with_its_time_and_the_rest_is_kept(solver):
    def field(t, x):
        return torch.where((t[:, None] > 0.5) & (x > 10), torch.nan, 1 + 0 * x)

    x = torch.tensor([[0.0], [20.0], [1.0]], dtype=torch.float64)
    ahead = len(solver.tableau.b) > 1  # Euler alone does not look beyond t = 0.5 in the step from there
    last, after = (0.5, 0.6) if ahead else (0.6, 0.7)
    message = rf"not finite after t = {after} \(first step from t = {last}\) for 1 of 3 samples: the field overflowed"
    with pytest.raises(fm.SolveError, match=message) as caught:
        fm.solve(fm.ODE(field), x, solver, steps=10, save=True)
    solution = caught.value.solution
    assert solution.status == "failed"
    assert solution.reached.tolist()[::2] == [1.0, 1.0]
    assert solution.reached[1].item() == pytest.approx(last)
    torch.testing.assert_close(solution.x[[0, 2]], x[[0, 2]] + 1)
    kept = solution.trajectory[solution.t <= last + 1e-9]
    assert torch.isfinite(kept).all()
    torch.testing.assert_close(kept[-1, 1, 0].item(), 20 + last)


@EACH
def test_a_start_that_is_not_finite_is_told_as_such(solver):
    x = torch.tensor([[0.0], [float("nan")]])
    with pytest.raises(ValueError, match="x has 1 entries that are NaN or infinite, the first in row 1"):
        fm.solve(fm.ODE(lambda t, x: -x), x, solver, steps=3)


@EACH
@pytest.mark.parametrize("field", [lambda t, x: x[:, :1], lambda t, x: x.sum(1), lambda t, x: t])
def test_a_field_of_wrong_shape_is_refused(solver, field):
    with pytest.raises(
        ValueError, match=r"the field returned shape .* for x of shape \(3, 2\); a velocity has the shape"
    ):
        fm.solve(fm.ODE(field), torch.zeros(3, 2), solver, steps=2)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, r"choose the steps in one way, got none: give steps=, or grid=, or rtol= and atol="),
        ({"steps": 3, "grid": torch.tensor([0.0, 1.0])}, "one way, got steps and grid"),
        ({"steps": 3, "rtol": 1e-3}, "one way, got steps and rtol"),
        ({"steps": 3, "grid": torch.tensor([0.0, 1.0]), "atol": 1e-3}, "got steps and grid and atol"),
        ({"steps": 0}, "steps must be a whole number, at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number, at least 1, got 2.5"),
        ({"grid": torch.tensor([0.0])}, r"grid must have shape \(T,\) with T >= 2, got \(1,\)"),
        ({"grid": torch.zeros(2, 2)}, r"grid must have shape \(T,\)"),
        ({"grid": torch.tensor([0.0, 0.5, 0.5, 1.0])}, "strictly increasing or strictly decreasing"),
        ({"grid": torch.tensor([0.0, 0.7, 0.5, 1.0])}, "strictly increasing or strictly decreasing"),
        ({"grid": torch.tensor([0.0, float("nan")])}, "grid must hold finite times"),
        ({"grid": torch.tensor([0.0, float("inf")])}, "grid must hold finite times"),
        ({"steps": 2, "span": (0.5, 0.5)}, r"span must hold two different finite times, got \(0.5, 0.5\)"),
        ({"steps": 2, "span": (0.0, float("inf"))}, "two different finite times"),
        (
            {"rtol": 1e-3},
            "Euler has no error estimate and cannot take rtol or atol; give steps= or grid=, or use Dopri5",
        ),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        fm.solve(fm.ODE(lambda t, x: x), torch.ones(1, 1), fm.Euler(), **how)


@pytest.mark.parametrize(
    ("x", "error"), [(torch.ones(2, dtype=torch.long), TypeError), (torch.tensor(1.0), ValueError), ([1.0], TypeError)]
)
def test_states_that_cannot_be_solved_are_refused(x, error):
    with pytest.raises(error, match="x must"):
        fm.solve(fm.ODE(lambda t, x: x), x, steps=1)


def test_defaults_are_the_midpoint_rule_and_dormand_prince():
    ode, x = fm.ODE(lambda t, x: x), torch.ones(1, 1)
    assert torch.equal(fm.solve(ode, x, steps=3).x, fm.solve(ode, x, fm.Midpoint(), steps=3).x)
    assert torch.equal(fm.solve(ode, x, rtol=1e-3).x, fm.solve(ode, x, fm.Dopri5(), rtol=1e-3, atol=1e-3).x)


def test_numpy_numbers_and_lists_will_do():
    ode, x = fm.ODE(lambda t, x: x), torch.ones(1, 1)
    assert torch.equal(fm.solve(ode, x, steps=np.int64(3)).x, fm.solve(ode, x, steps=3).x)
    assert torch.equal(fm.solve(ode, x, grid=[0.0, 0.5, 1.0]).x, fm.solve(ode, x, steps=2).x)
