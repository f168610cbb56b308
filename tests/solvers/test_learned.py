"""Learned solvers: general methods as rows of weights, laws kept by construction, fits, and refusals."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowmatch as fm
from flowmatch.solvers import (
    BNS,
    DEIS,
    DOP853,
    ODE,
    RK4,
    AdamsBashforth,
    Dopri5,
    Euler,
    FieldError,
    Heun,
    Kutta3,
    Learned,
    LearnedGrid,
    Midpoint,
    PathAdams,
    ScaleTime,
    Solver,
    Step,
    UniPC,
    cosine_grid,
    path_grid,
    solve,
    tune,
    uniform_grid,
)
from flowmatch.solvers.fit import Fit, Trajectories
from flowmatch.solvers.general import general_solvers
from flowmatch.solvers.learned import times_in_order
from flowmatch.solvers.starts import Pool
from tests.problems import public_subclasses, seeded
from tests.solvers.test_fixed import Counter

VP = fm.VariancePreserving()
METHODS: dict[str, tuple[Solver, torch.Tensor]] = {
    "euler": (Euler(), cosine_grid(5)),
    "midpoint": (Midpoint(), uniform_grid(4)),
    "heun": (Heun(), uniform_grid(3)),
    "kutta3": (Kutta3(), uniform_grid(2)),
    "rk4": (RK4(), cosine_grid(2)),
    "dopri5": (Dopri5(), uniform_grid(2)),
    "dop853": (DOP853(), uniform_grid(1)),
    "ab2": (AdamsBashforth(2), uniform_grid(6)),
    "ab3": (AdamsBashforth(3), cosine_grid(6)),
    "ab4": (AdamsBashforth(4), uniform_grid(6)),
    "path-adams": (PathAdams(fm.Linear(), 3, 2.0), path_grid(8, fm.Linear())),
    "path-adams-straight": (PathAdams(VP, 2, 0.5, "straight", False), path_grid(5, VP)),
    "unipc": (UniPC(VP, 3), path_grid(6, VP)),
    "deis": (DEIS(fm.Cosine(), 3), uniform_grid(6)),
    "backwards": (RK4(), uniform_grid(2).flip(0)),
}
EACH_METHOD = pytest.mark.parametrize(("solver", "grid"), METHODS.values(), ids=METHODS.keys())

#: One of every learned solver, moved away from where it starts, so that no law holds by accident.
LEARNED: dict[str, Learned] = {
    "bns": BNS.like(PathAdams(fm.Linear()), uniform_grid(5)),
    "bns-backwards": BNS.like(Midpoint(), uniform_grid(3).flip(0)),
    "grid": LearnedGrid(AdamsBashforth(2), uniform_grid(5)),
    "grid-backwards": LearnedGrid(Midpoint(), uniform_grid(3).flip(0)),
    "scale-time": ScaleTime(3),
    "scale-time-euler": ScaleTime(5, "euler", span=(1.0, 0.2)),
}
for _solver in LEARNED.values():
    _moves = torch.randn(len(_solver.vector()), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _solver.assign(_solver.vector() + 0.1 * _solver.scales() * _moves)
EACH = pytest.mark.parametrize("solver", LEARNED.values(), ids=LEARNED.keys())


def _bent(t, x):
    return torch.sin(2 * x) * (1 - 0.5 * t.reshape(-1, *(1,) * (x.ndim - 1)).to(x))


def _run(solver, x, field=_bent, **options):
    return solve(ODE(field), x, solver, grid=solver.grid, **options)


def _draw(seed=0, event=(1,), dtype=torch.float64):
    generator = seeded(seed)
    return lambda n: (torch.randn(n, *event, generator=generator, dtype=dtype), None)


def _truth(x, field=_bent, span=(0.0, 1.0)):
    return solve(ODE(field), x, DOP853(), rtol=1e-11, atol=1e-11, span=span).x


def _error(solver, x, field=_bent):
    return (_run(solver, x, field).x - _truth(x, field, solver.span)).square().mean().sqrt().item()


def test_the_list_is_complete():
    public = public_subclasses(fm.solvers, Learned)
    assert public == {type(solver) for solver in LEARNED.values()}


# --- general methods as rows of weights -----------------------------------------------------------------------------


@EACH_METHOD
def test_a_general_method_is_a_bns_solver(solver, grid):
    x = torch.randn(7, 3, generator=seeded(), dtype=torch.float64)
    general = solve(ODE(_bent), x, solver, grid=grid)
    rows = BNS.like(solver, grid)
    learned = _run(rows, x)
    torch.testing.assert_close(learned.x, general.x, rtol=1e-11, atol=1e-12)
    assert (learned.nfe, rows.nfe, rows.evaluations) == (general.nfe,) * 3


def test_the_rows_are_the_tableau_on_a_step():
    """RK4: Hairer, Norsett, Wanner, section II.1, Table 1.2."""
    rows = BNS.like(RK4(), uniform_grid(1)).config()
    assert rows["times"] == [0.0, 0.5, 0.5, 1.0]
    expected = [[1.0], [1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 0.0, 0.0, 1.0], [1.0, 1 / 6, 1 / 3, 1 / 3, 1 / 6]]
    for row, numbers in zip(rows["weights"], expected, strict=True):
        assert row == pytest.approx(numbers, abs=1e-15)


def test_a_method_that_is_not_linear_is_no_row():
    class Looks(Solver):
        order, evaluations = 1, 1

        def step(self, equation, t, h, x, state):
            return Step(x + h * equation(t, x + 1.0), None)

    with pytest.raises(ValueError, match="is not linear in the start and the velocities"):
        BNS.like(Looks(), uniform_grid(2))


@pytest.mark.parametrize(("method", "general"), [("euler", Euler()), ("midpoint", Midpoint())])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.25)])
def test_without_learning_scale_and_time_change_nothing(method, general, span):
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    learned = _run(ScaleTime(3, method, span), x)
    torch.testing.assert_close(learned.x, solve(ODE(_bent), x, general, steps=3, span=span).x)


def test_scale_and_time_solve_what_they_make_constant():
    """dx/dt = x is constant in the scale exp(-t): exact in one step, whatever the method."""
    for method in ("euler", "midpoint"):
        count = 1 if method == "euler" else 2
        scale = [-(i + 1) / count for i in range(count)]
        solver = ScaleTime(1, method, scale=scale, drift=[-1.0] * count)
        x = _run(solver, torch.ones(1, 1, dtype=torch.float64), lambda t, x: x).x
        assert x.item() == pytest.approx(math.e, rel=1e-14)


def test_a_learned_grid_is_its_method_on_its_grid():
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    solver = LearnedGrid(AdamsBashforth(4), cosine_grid(5))
    assert torch.equal(_run(solver, x).x, solve(ODE(_bent), x, AdamsBashforth(4), grid=cosine_grid(5)).x)
    solution = _run(solver, x, save=True)
    assert solution.trajectory.shape == (6, 5, 2)
    assert solution.nfe == solver.nfe == 7
    assert (solver.order, solver.evaluations) == (4, 1)


# --- laws of every learned solver -----------------------------------------------------------------------------------


@EACH
def test_calls_are_those_declared(solver):
    counter = Counter(_bent)
    solution = _run(solver, torch.ones(3, 2), counter)
    assert counter.calls == solution.nfe == solver.nfe
    assert solver.grid[[0, -1]].tolist() == list(solver.span)


@EACH
def test_calls_stay_inside_the_span(solver):
    low, high = sorted(solver.span)
    for seed in range(5):
        wild = copy.deepcopy(solver)
        wild.assign(wild.vector() + torch.randn(len(wild.vector()), generator=seeded(seed), dtype=torch.float64))

        def inside(t, x):
            assert bool(((t >= low) & (t <= high)).all())
            return 0 * x

        _run(wild, torch.ones(2, 1, dtype=torch.float64), inside)


@EACH
@pytest.mark.parametrize("event", [(), (3,), (2, 3, 3)])
def test_events_of_any_shape_and_batches_of_any_size(solver, event):
    x = torch.randn(3, *event, generator=seeded())
    together = _run(solver, x).x
    assert together.shape == x.shape
    torch.testing.assert_close(_run(solver, x[:1]).x, together[:1])
    assert _run(solver, x[:0]).x.shape == (0, *event)


@EACH
def test_linear_maps_that_the_field_commutes_with(solver):
    """Linear in the start and the velocities: a rotation of both rotates the end, and samples do not meet."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(), dtype=torch.float64))[0]
    radial = lambda t, x: x * (torch.sin(x.norm(dim=1, keepdim=True)) - t[:, None])  # noqa: E731
    x = torch.randn(6, 3, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(_run(solver, x @ turn, radial).x, _run(solver, x, radial).x @ turn)
    torch.testing.assert_close(_run(solver, x.flip(0), radial).x, _run(solver, x, radial).x.flip(0))


@EACH
def test_half_precision_states_are_kept_in_float32(solver):
    x = torch.randn(50, 4, generator=seeded()).bfloat16()
    field = lambda t, x: _bent(t, x.float()).to(x.dtype)  # noqa: E731
    half, full = _run(solver, x, field).x, _run(solver, x.float()).x
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.02, atol=0.04)


@EACH
def test_coefficients_stay_float64_wherever_the_solver_goes(solver):
    moved = copy.deepcopy(solver).to(torch.bfloat16).half().to("meta")
    assert torch.equal(moved.vector(), solver.vector())
    assert moved.vector().dtype == torch.float64


@EACH
def test_the_config_makes_the_solver_again(solver):
    again = type(solver)(**solver.config())
    x = torch.randn(4, 2, generator=seeded())
    assert torch.equal(again.vector(), solver.vector())
    assert torch.equal(_run(again, x).x, _run(solver, x).x)


@EACH
def test_a_condition_reaches_the_field(solver):
    field = lambda t, x, cond: cond * _bent(t, x)  # noqa: E731
    x, cond = torch.randn(2, 4, 1, generator=seeded())
    torch.testing.assert_close(
        solve(ODE(field, cond), x, solver, grid=solver.grid).x,
        torch.cat([_run(solver, x[i : i + 1], lambda t, x, i=i: cond[i] * _bent(t, x)).x for i in range(4)]),
    )


@pytest.mark.parametrize("name", ["bns", "bns-backwards", "scale-time", "scale-time-euler"])
def test_gradients_of_the_coefficients_are_those_of_differences(name):
    solver = LEARNED[name]
    live = copy.deepcopy(solver).requires_grad_()
    x = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    _run(live, x).x.square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in live.parameters()])
    point = solver.vector()
    for k in range(1, len(point), 3):
        sides = []
        for sign in (1, -1):
            nudged = point.clone()
            nudged[k] += sign * 1e-6
            live.assign(nudged)
            sides.append(_run(live, x).x.square().sum().item())
        assert gradient[k].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-6)
    assert not _run(solver, x).x.requires_grad


@given(st.lists(st.floats(-2.0, 3.0), min_size=1, max_size=9), st.booleans())
def test_times_are_brought_into_order(times, backwards):
    span = (1.0, -0.5) if backwards else (-0.5, 1.0)
    ordered = torch.tensor(times, dtype=torch.float64)
    times_in_order(ordered, span)
    gaps = torch.cat([torch.tensor(span[:1]), ordered, torch.tensor(span[1:])]).diff() / (span[1] - span[0])
    assert gaps.min().item() > 0.9e-4
    again = ordered.clone()
    times_in_order(again, span)
    torch.testing.assert_close(again, ordered, rtol=0, atol=1e-12)


@pytest.mark.parametrize("general", [Midpoint(), AdamsBashforth(3), RK4()])
def test_any_learned_grid_is_exact_for_constant_velocities(general):
    solver = LearnedGrid(general, uniform_grid(4))
    for seed in range(3):
        solver.assign(torch.rand(3, generator=seeded(seed), dtype=torch.float64))
        x = _run(solver, torch.zeros(1, 2, dtype=torch.float64), lambda t, x: torch.ones_like(x)).x
        torch.testing.assert_close(x, torch.ones_like(x))


# --- fits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned():
    return tune(_bent, _draw(), 4, trajectories=64, steps=12, generator=seeded())


def test_a_tuned_solver_beats_general_ones_of_twice_its_calls_on_fresh_starts(tuned):
    assert isinstance(tuned, BNS)
    assert tuned.nfe == 4
    x = torch.randn(500, 1, generator=seeded(7), dtype=torch.float64)
    truth = _truth(x)
    errors = {
        n: min(
            (solve(ODE(_bent), x, general.solver, grid=general.grid).x - truth).square().mean().sqrt().item()
            for general in general_solvers(n, (0.0, 1.0))
        )
        for n in (4, 8)
    }
    assert _error(tuned, x) < min(0.1 * errors[4], 0.7 * errors[8])
    fitted = tuned.fitted
    assert fitted.tuned.error < 0.1 * fitted.general[4].error
    assert fitted.tuned.error == pytest.approx(_error(tuned, x), rel=1.0)
    assert fitted.general[8].error == pytest.approx(errors[8], rel=1.0)
    assert len(fitted.history) == 13
    assert fitted.history[-1] < fitted.history[0]


def test_the_generator_decides(tuned):
    again = tune(_bent, _draw(), 4, trajectories=64, steps=12, generator=seeded())
    other = tune(_bent, _draw(1), 4, trajectories=64, steps=12, generator=seeded(1))
    assert torch.equal(again.vector(), tuned.vector())
    assert not torch.equal(other.vector(), tuned.vector())


@pytest.mark.parametrize(
    "solver",
    [LearnedGrid(AdamsBashforth(2), uniform_grid(5)), ScaleTime(3), ScaleTime(5, "euler")],
    ids=["grid", "midpoint", "euler"],
)
def test_every_kind_gains_from_being_tuned(solver):
    field = lambda t, x: torch.tanh(3 * x) * torch.exp(-3 * t)[:, None]  # noqa: E731
    before = solver.vector()
    made = tune(field, _draw(), solver.nfe, solver=solver, trajectories=64, steps=10, generator=seeded())
    assert type(made) is type(solver)
    assert torch.equal(solver.vector(), before)  # what was given is a start, and stays
    x = torch.randn(500, 1, generator=seeded(7), dtype=torch.float64)
    gain = _error(made, x, field) / _error(solver, x, field)
    assert gain < (0.8 if isinstance(solver, LearnedGrid) else 0.2)


def test_with_a_schedule_the_frames_of_its_path_are_tried():
    field = fm.MixtureField(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), std=0.5)
    made = tune(field, _draw(), 3, schedule=fm.Linear(), trajectories=64, steps=3, generator=seeded())
    assert any(name in made.fitted.general[6].name for name in ("PathAdams", "DPMSolver", "DEIS"))
    assert made.fitted.tuned.error < made.fitted.general[3].error


def _trajectories(n, seed, field=_bent):
    x = torch.randn(n, 1, generator=seeded(seed), dtype=torch.float64)
    return Trajectories(x, _truth(x, field), None, torch.full((n,), 1 / n, dtype=torch.float64))


def test_a_fit_never_ends_behind_its_start_on_what_was_held_out():
    """Fitted to ends that are not the field's it goes astray, and what was held out tells so."""
    train, held = _trajectories(32, 0), _trajectories(64, 1)
    train = replace(train, x1=train.x1 + 0.1)
    start = BNS.like(RK4(), uniform_grid(2))
    fit = Fit(copy.deepcopy(start), _bent, train, held)
    fit.run(15)
    assert fit.history[-1] < 0.8 * fit.history[0]
    fit.solver.assign(fit.point)
    gone = held.root_mean_square(held.errors(_bent, fit.solver, fit.solver.grid, None))
    kept = fit.finish()
    error = held.root_mean_square(held.errors(_bent, kept, kept.grid, None))
    assert error <= held.root_mean_square(held.errors(_bent, start, start.grid, None)) < gone


def test_weights_say_what_counts():
    """Trajectories of next to no weight, with wrong ends, change nothing."""
    good, held = _trajectories(32, 0), _trajectories(16, 1)
    wrong = replace(good, x1=good.x1 + 1.0, weight=1e-12 * good.weight)
    both = Trajectories(
        torch.cat([good.x0, wrong.x0]), torch.cat([good.x1, wrong.x1]), None, torch.cat([good.weight, wrong.weight])
    )
    points = []
    for train in (good, both):
        fit = Fit(BNS.like(Midpoint(), uniform_grid(1)), _bent, train, held)
        fit.run(8)
        points.append(fit.history[-1])
    assert points[1] == pytest.approx(points[0], rel=0.2)


def test_a_call_at_the_end_of_the_span_can_be_moved():
    start = BNS.like(Heun(), uniform_grid(1))
    assert start.times.tolist() == [0.0, 1.0]
    fit = Fit(start, _bent, _trajectories(32, 0), _trajectories(16, 1))
    fit.run(5)
    assert fit.point[1].item() < 0.99


def test_parts_of_the_batch_make_the_same_fit():
    whole, parts = (
        Fit(BNS.like(Midpoint(), uniform_grid(2)), _bent, _trajectories(40, 0), _trajectories(20, 1), rows)
        for rows in (None, 7)
    )
    whole.run(3)
    parts.run(3)
    torch.testing.assert_close(whole.point, parts.point, rtol=1e-3, atol=1e-4)


def test_a_call_is_not_made_twice_for_a_parameter_behind_it():
    counter = Counter(_bent)
    fit = Fit(BNS.like(Euler(), uniform_grid(3)), counter, _trajectories(8, 0), _trajectories(8, 1))
    before = counter.calls
    fit.run(1)
    # A base solve of 3 calls; row i has i + 1 weights and a time, each with the 3 - i calls behind it; the last row
    # has none. Then a trial of the step and the held-out trajectories.
    jacobian = 3 + sum((i + 2) * (3 - i) for i in range(3))
    trials = counter.calls - before - jacobian
    assert trials % 3 == 0
    assert trials <= 3 * 4


def test_a_field_that_is_solved_exactly_stays_solved():
    solver = tune(lambda t, x: torch.ones_like(x), _draw(), 2, trajectories=16, steps=3, generator=seeded())
    x = torch.randn(20, 1, generator=seeded(3), dtype=torch.float64)
    torch.testing.assert_close(_run(solver, x, lambda t, x: torch.ones_like(x)).x, x + 1, rtol=1e-8, atol=1e-8)


def test_float32_and_conditions_and_progress():
    generator, told = seeded(), []
    labels = torch.tensor([0.5, 1.0, 1.5])

    def draw(n):
        return torch.randn(n, 2, generator=generator), labels[torch.randint(3, (n,), generator=generator)]

    field = lambda t, x, cond: _bent(t, x) * cond[:, None]  # noqa: E731
    solver = tune(
        field, draw, 4, trajectories=64, steps=6, generator=seeded(), progress=lambda done, what: told.append(done)
    )
    assert solver.fitted.tuned.error < 0.5 * solver.fitted.start.error
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


@pytest.mark.slow
def test_eight_calls_err_no_more_than_the_best_general_sixteen_on_a_mixture():
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = 5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    field = fm.MixtureField(means, std=math.sqrt(0.1))
    made = tune(field, _draw(0, (2,)), 8, schedule=fm.Linear(), trajectories=256, steps=25, generator=seeded())
    assert made.fitted.tuned.median < 0.5 * made.fitted.general[16].median


# --- which starts are solved ----------------------------------------------------------------------------------------


def _pool(seed, count=40):
    """Starts known after two rounds, by solvers that differ on one half and then on the other, and their numbers."""
    x0 = torch.linspace(-2, 2, 400, dtype=torch.float64)[:, None]
    pool = Pool(lambda t, x, cond: _bent(t, x), x0, torch.arange(400), (0.0, 1.0), seeded(seed), None)

    class Apart(Euler):
        def step(self, equation, t, h, x, state):
            return Step(x + x.clamp(min=0) ** 3, None)

    class Below(Euler):
        def step(self, equation, t, h, x, state):
            return Step(x + x.clamp(min=-1, max=0), None)

    class Same(Euler):
        def step(self, equation, t, h, x, state):
            return Step(x, None)

    same, apart, below = ((solver, uniform_grid(1)) for solver in (Same(), Apart(), Below()))
    pool.add([same, apart], count)
    return x0, pool.add([same, below], count // 2)


def test_starts_are_taken_where_solvers_differ_with_weights_that_undo_it():
    means = []
    for seed in range(40):
        x0, known = _pool(seed)
        assert 40 <= len(known.x0) <= 60
        assert known.weight.sum().item() == pytest.approx(1.0)
        assert torch.equal(x0[known.cond], known.x0)
        torch.testing.assert_close(known.x1, _truth(known.x0), rtol=1e-7, atol=1e-7)
        means.append((known.weight @ known.x0[:, 0]).item())
        share = (known.x0 > 1).double().mean().item()
        assert share > 0.32  # a quarter of the pool
    mean, spread = torch.tensor(means).mean().item(), torch.tensor(means).std().item() / math.sqrt(40)
    assert abs(mean) < 4 * spread < 0.1


def test_starts_that_are_certain_are_all_there_and_count_least():
    x0, known = _pool(0, count=200)
    certain = known.x0 > 1.7
    assert certain.sum() == (x0 > 1.7).sum()
    least = known.weight[certain[:, 0]]
    torch.testing.assert_close(least, known.weight.min().expand_as(least))
    assert known.weight.max() > 1.5 * known.weight.min()


# --- refusals -------------------------------------------------------------------------------------------------------


@EACH
def test_other_steps_and_directions_are_refused(solver):
    x = torch.ones(2, 1)
    for options in ({"steps": 7}, {"grid": solver.grid.flip(0)}, {"grid": solver.grid * 0.5}):
        with pytest.raises(FieldError, match=r"was learned for the way from .* solve with grid=solver.grid"):
            solve(ODE(_bent), x, solver, **options)
    with pytest.raises(ValueError, match="has no error estimate"):
        solve(ODE(_bent), x, solver, rtol=1e-3)
    with pytest.raises(ValueError, match="was learned for the way from"):
        solver.along((solver.span[1], solver.span[0]))
    with pytest.raises(TypeError, match="takes one step for the whole batch"):
        solver.step(ODE(_bent), torch.zeros(2), 1.0, x, None)


def test_a_budget_below_the_calls_leaves_the_start():
    solver, x = LEARNED["bns"], torch.ones(2, 1)
    solution = _run(solver, x, max_nfe=solver.nfe - 1)
    assert (solution.status, solution.nfe) == ("max_nfe", 0)
    assert torch.equal(solution.x, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BNS([], [[1.0]]), "rows of 1 to 1 weights"),
        (lambda: BNS([0.0], [[1.0], [1.0]]), "1 times go with rows of 1 to 2 weights"),
        (lambda: BNS([1.5], [[1.0], [1.0, 1.0]]), r"times must lie in \[0, 1\]"),
        (lambda: BNS([0.0], [[1.0], [1.0, math.inf]]), "the weights must be finite"),
        (lambda: BNS([0.0], [[1.0], [1.0, 1.0]], span=(0.0, 0.0)), "span must hold two different finite times"),
        (lambda: ScaleTime(0), "steps must be a whole number, at least 1"),
        (lambda: ScaleTime(2, "heun"), "method must be euler or midpoint"),
        (lambda: ScaleTime(2, pace=[0.0]), "pace must hold 4 finite numbers"),
        (lambda: ScaleTime(1, times=[1.5]), "times must lie inside"),
        (lambda: LearnedGrid(Midpoint(), [0.0, 0.5, 0.5]), "strictly increasing or strictly decreasing"),
        (lambda: LearnedGrid(Midpoint(), [0.0]), "at least two finite times"),
    ],
)
def test_wrong_coefficients_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_learned_grid_of_a_learned_solver_is_refused():
    with pytest.raises(TypeError, match="solver must be a general one"):
        LearnedGrid(ScaleTime(2), uniform_grid(2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nfe": 0}, ValueError, "nfe must be a whole number, at least 1"),
        ({"nfe": 2.0}, ValueError, "nfe must be a whole number, at least 1"),
        ({"trajectories": 4}, ValueError, "trajectories must be a whole number, at least 8"),
        ({"steps": 0}, ValueError, "steps must be a whole number, at least 1"),
        ({"solver": ScaleTime(4)}, ValueError, "must make nfe = 2 calls over .*, got 8 over"),
        ({"solver": Midpoint()}, TypeError, "solver must be a learned one"),
        ({"draw": _draw(dtype=torch.bfloat16)}, TypeError, "tuning needs float32 or float64"),
    ],
)
def test_what_cannot_be_tuned_is_refused(options, error, message):
    arguments = {"draw": _draw(), "nfe": 2, **options}
    with pytest.raises(error, match=message):
        tune(_bent, **arguments)


def test_an_error_of_the_field_is_told_and_not_counted_as_a_bad_solver():
    def picky(t, x):
        if len(x) > 100:
            raise ValueError("too many rows for me")
        return _bent(t, x)

    with pytest.raises(FieldError, match="too many rows for me"):
        tune(picky, _draw(), 2, trajectories=16, generator=seeded())
