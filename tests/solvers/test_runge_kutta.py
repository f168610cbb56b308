"""Single steps against SciPy, error estimates that fall as they should, and the nodes of the pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import DOP853 as ScipyDOP853
from scipy.integrate import RK23, RK45

import flowmatch as fm
from flowmatch.solvers.embedded import BS32, DOP853, Dopri5, Tsit5
from flowmatch.solvers.runge_kutta import RK4, Euler, Heun, Kutta3, Midpoint, Ralston
from tests.problems import matrix_problem, mixture_world, seeded

PAIRS = {"bs32": BS32(), "dopri5": Dopri5(), "tsit5": Tsit5(), "dop853": DOP853()}
ALL = {
    "euler": Euler(),
    "midpoint": Midpoint(),
    "heun": Heun(),
    "ralston": Ralston(),
    "kutta3": Kutta3(),
    "rk4": RK4(),
    **PAIRS,
}
# order, calls a step, order in which the estimate of the local error falls with h
DECLARED = {
    "euler": (1, 1, None),
    "midpoint": (2, 2, None),
    "heun": (2, 2, None),
    "ralston": (2, 2, None),
    "kutta3": (3, 3, None),
    "rk4": (4, 4, None),
    "bs32": (3, 3, 3),
    "dopri5": (5, 6, 5),
    "tsit5": (5, 6, 5),
    "dop853": (8, 12, 8),
}


def _swing(t, x):
    """Not linear, not autonomous, coupled."""
    return torch.stack([x[:, 1] + torch.sin(3 * t), -torch.sin(x[:, 0]) * (1 + t)], dim=1)


def _step(solver, h, start=(0.7, -0.4), t=0.2):
    equation, x = fm.ODE(_swing), torch.tensor([start], dtype=torch.float64)
    return solver.step(equation, t, h, x, solver.init(equation, t, x))


@pytest.mark.parametrize("name", ALL)
def test_order_and_calls_are_as_declared(name):
    solver = ALL[name]
    assert (solver.order, solver.evaluations, DECLARED[name][2] is not None) == (*DECLARED[name][:2], solver.adaptive)
    assert solver.calls(None) == solver.evaluations


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("direction", [1, -1])
def test_the_error_falls_with_the_declared_order(name, direction):
    problem, solver = matrix_problem(), ALL[name]
    span = problem.span[::direction]
    counts = {8: [3, 4, 5, 6], 5: [8, 11, 16, 22], 4: [8, 11, 16, 22]}.get(solver.order, [40, 57, 80, 113])
    errors = [
        (fm.solve(fm.ODE(problem.field), problem.exact(span[0]), solver, steps=n, span=span).x - problem.exact(span[1]))
        .abs()
        .max()
        .item()
        for n in counts
    ]
    assert min(errors) > 1e-14
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - solver.order) < 0.3


@pytest.mark.parametrize(("name", "scipy_class"), [("bs32", RK23), ("dopri5", RK45), ("dop853", ScipyDOP853)])
@pytest.mark.parametrize("h", [0.3, -0.15])
def test_a_step_is_that_of_scipy(name, scipy_class, h):
    def rhs(t, y):
        return _swing(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y[None]))[0].numpy()

    theirs = scipy_class(rhs, 0.2, np.array([0.7, -0.4]), 0.2 + h, first_step=abs(h), rtol=1e3, atol=1e3)
    theirs.step()
    assert theirs.t == 0.2 + h
    np.testing.assert_allclose(_step(PAIRS[name], h).x[0].numpy(), theirs.y, rtol=1e-13)


@pytest.mark.parametrize("h", [0.3, 0.05])
def test_the_error_norm_of_dop853_is_that_of_scipy(h):
    """SciPy joins the two estimates in the norm; ours, joined in the vector, has the same norm when the scale is 1."""

    def rhs(t, y):
        return _swing(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y[None]))[0].numpy()

    theirs = ScipyDOP853(rhs, 0.2, np.array([0.7, -0.4]), 2.0, first_step=h, rtol=1e3, atol=1e3)
    theirs.step()
    expected = theirs._estimate_error_norm(theirs.K[:13], h, np.ones(2))
    error = _step(DOP853(), h).error
    assert error.square().mean().sqrt().item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("name", PAIRS)
def test_the_estimate_falls_with_the_order_of_the_lower_method(name):
    sizes = np.array([0.4, 0.3, 0.2, 0.15]) if name == "dop853" else np.array([0.1, 0.07, 0.05, 0.035])
    estimates = [_step(PAIRS[name], h).error.abs().max().item() for h in sizes]
    slope = np.polyfit(np.log(sizes), np.log(estimates), 1)[0]
    assert abs(slope - DECLARED[name][2]) < 0.45


def test_without_error_dop853_estimates_none():
    equation, x = fm.ODE(lambda t, x: torch.zeros_like(x)), torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(DOP853().step(equation, 0.0, 0.5, x, None).error, torch.zeros_like(x))


@pytest.mark.parametrize("name", ["bs32", "dopri5", "tsit5"])
def test_the_last_stage_is_the_first_of_the_next_step(name):
    solver = PAIRS[name]
    step = _step(solver, 0.1)
    again = fm.ODE(_swing)(torch.tensor([0.2 + 0.1], dtype=torch.float64), step.x)
    torch.testing.assert_close(step.state, again, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_nodes_lie_in_the_step_and_the_last_at_most_at_its_end(name):
    """A node a rounding past 1 would ask a field beyond t = 1."""
    nodes = ALL[name].tableau.c
    assert nodes[0] == 0
    assert all(0 <= c <= 1 for c in nodes)
    field = mixture_world()  # refuses times outside its interval
    x = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    fm.solve(fm.ODE(field), x, ALL[name], grid=torch.tensor([0.0, 0.1, 0.37, 0.91, 1.0]))


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_keeps_to_the_tolerance(name):
    field = mixture_world()
    x = torch.randn(8, 2, generator=seeded(), dtype=torch.float64)
    truth = fm.solve(fm.ODE(field), x, DOP853(), rtol=1e-12, atol=1e-12).x
    tol = 1e-5 if name == "bs32" else 1e-7
    solution = fm.solve(fm.ODE(field), x, PAIRS[name], rtol=tol, atol=tol)
    assert (solution.x - truth).square().mean().sqrt() < 20 * tol
    assert solution.accepted.min() > 0


def test_ralston_has_no_error_where_the_field_knows_time_alone():
    """Of order 3 for quadratures, which leaves one leading term of two; Heun and the midpoint rule have both."""
    leading = [
        abs(sum(b * c * c for b, c in zip(m.b, m.c, strict=True)) - 1 / 3)
        for m in (Ralston.tableau, Heun.tableau, Midpoint.tableau)
    ]
    assert leading[0] < 1e-15 < min(leading[1:])
