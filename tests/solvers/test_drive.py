"""What the driver does beside stepping: states in between, singular ends, callbacks, checkpoints, failing fields."""

from __future__ import annotations

import pytest
import torch
from scipy import integrate, special

import flowmatch as fm
from flowmatch.likelihood import log_likelihood
from flowmatch.solvers import BS32, DOP853, Controller, Dopri5, FieldError, Tsit5
from tests.problems import PROBLEMS, gaussian_world, random_mlp, seeded
from tests.solvers.test_fixed import Counter

PAIRS = {"bs32": BS32(), "dopri5": Dopri5(), "tsit5": Tsit5(), "dop853": DOP853()}


def _x(rows=7, dim=2):
    return torch.randn(rows, dim, generator=seeded(), dtype=torch.float64)


# States in between


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", PAIRS.values(), ids=PAIRS)
def test_states_in_between_are_those_of_the_flow(solver, reverse):
    field, x = gaussian_world(), _x()
    span = (1.0, 0.0) if reverse else (0.0, 1.0)
    times = torch.linspace(*span, 23, dtype=torch.float64)
    solution = fm.solve(fm.ODE(field), x, solver, rtol=1e-8, atol=1e-8, span=span, save=times)
    assert torch.equal(solution.t, times)
    for t, state in zip(times.tolist(), solution.trajectory, strict=True):
        torch.testing.assert_close(state, field.transport(x, span[0], t), rtol=0, atol=2e-6)
    assert torch.equal(solution.trajectory[0], x)
    torch.testing.assert_close(solution.trajectory[-1], solution.x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", [BS32(), Dopri5(), Tsit5()])
def test_states_in_between_cost_no_call_and_change_nothing(solver):
    field, x = gaussian_world(), _x()
    bare = fm.solve(fm.ODE(field), x, solver, rtol=1e-5)
    asked = fm.solve(fm.ODE(field), x, solver, rtol=1e-5, save=torch.linspace(0.1, 0.9, 50))
    assert asked.nfe == bare.nfe
    assert torch.equal(asked.x, bare.x)
    assert asked.trajectory.shape == (50, 7, 2)


@pytest.mark.parametrize(("solver", "theirs"), [(BS32(), "RK23"), (Dopri5(), "RK45")])
def test_within_a_step_the_state_is_that_of_scipy(solver, theirs):
    problem = PROBLEMS["sine"]()
    start, end = problem.span
    t, h = start + 0.1 * (end - start), 0.2 * (end - start)
    x = problem.exact(t)

    def rhs(time, y):
        return problem.field(torch.tensor([time], dtype=torch.float64), torch.from_numpy(y)[None]).numpy()[0]

    method = getattr(integrate, theirs)(rhs, t, x[0].numpy(), t + h, first_step=h, max_step=h, rtol=1e3, atol=1e3)
    method.step()
    time, step = torch.tensor([t], dtype=torch.float64), torch.tensor([h], dtype=torch.float64)
    ode = fm.ODE(problem.field)
    ours = solver.step(ode, time, step, x[:1], solver.init(ode, time, x[:1]))
    shares = torch.tensor([0.1, 0.37, 0.9], dtype=torch.float64)
    states = ours.dense(shares, torch.zeros(3, dtype=torch.long))
    truth = torch.from_numpy(method.dense_output()((t + shares * h).numpy()).T)
    torch.testing.assert_close(states, truth, rtol=1e-12, atol=1e-12)


def test_states_in_between_carry_gradients():
    x = _x().requires_grad_(True)
    times = [0.25, 0.5]
    states = fm.solve(fm.ODE(lambda t, x: -x), x, rtol=1e-9, save=times).trajectory
    (slope,) = torch.autograd.grad(states[1].sum(), x)
    torch.testing.assert_close(slope, torch.full_like(x, torch.tensor(-0.5).exp().item()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", PAIRS.values(), ids=PAIRS)
def test_no_times_that_were_not_passed_are_returned(solver):
    def uneven(t, x):
        return -x * torch.where(x[:, :1].abs() > 20, 60.0, 1.0)

    x = torch.tensor([[0.5], [400.0]], dtype=torch.float64)
    solution = fm.solve(fm.ODE(uneven), x, solver, rtol=1e-6, save=[0.0, 0.01, 0.4, 1.0], max_nfe=60)
    assert solution.status == "max_nfe"
    assert len(solution.trajectory) == len(solution.t) < 4
    assert (solution.t <= solution.reached.min()).all()


def test_float32_times_are_the_ones_asked_for():
    times = torch.linspace(0, 1, 11)  # 0.7 is rounded down in float32
    solution = fm.solve(fm.ODE(lambda t, x: x), torch.ones(3, 1), rtol=1e-4, save=times)
    assert torch.equal(solution.t, times)
    torch.testing.assert_close(solution.trajectory[:, 0, 0], times.exp(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(0, 2), (1, 3), (3,), (2, 1, 2, 2)])
def test_states_in_between_of_every_shape(shape):
    solution = fm.solve(fm.ODE(lambda t, x: x), torch.ones(shape), rtol=1e-4, save=[0.0, 0.3, 1.0])
    assert solution.trajectory.shape == (3, *shape)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rtol": 1e-3, "save": [0.5, 0.2]}, "in the order of the solve"),
        ({"rtol": 1e-3, "save": []}, "in the order of the solve"),
        ({"rtol": 1e-3, "save": [0.5, 1.2]}, r"must lie within \[0, 1\], got 0.5 to 1.2"),
        ({"rtol": 1e-3, "save": [0.1, 0.9], "span": (1.0, 0.0)}, "in the order of the solve"),
        ({"steps": 4, "save": [0.5]}, "on a grid, put the times into it"),
        ({"steps": 4, "controller": Controller()}, "controller= .* error control"),
    ],
)
def test_times_that_make_no_sense_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        fm.solve(fm.ODE(lambda t, x: x), torch.ones(1, 1), **how)


def test_gradients_of_states_in_between_survive_a_step_that_overflowed_and_was_rejected():
    rate = torch.tensor(50.0, requires_grad=True)
    ode = fm.ODE(lambda t, x: -rate * x.abs() ** 40 * torch.sign(x) * (t[:, None] > 0.3))
    x = torch.tensor([[1.0], [0.7], [1.02]])
    whole = fm.solve(ode, x, rtol=1e-4, save=True)
    asked = fm.solve(ode, x, rtol=1e-4, save=[0.0, 0.2, 0.5, 1.0])
    assert asked.rejected.max() > 5
    slopes = [torch.autograd.grad(states.sum(), rate)[0] for states in (whole.trajectory[-1], asked.trajectory[-1])]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-8)
    again = fm.solve(ode, x, rtol=1e-4, save=[0.0, 0.2, 0.5, 1.0]).trajectory
    assert torch.isfinite(torch.autograd.grad(again.sum(), rate)[0])


def test_times_beside_a_start_that_float32_rounds():
    x = torch.ones(3, 2)
    for span in ((0.1, 1.0), (0.7, 0.1)):
        times = torch.linspace(*span, 4)
        solution = fm.solve(fm.ODE(lambda t, x: x), x, rtol=1e-4, span=span, save=times)
        torch.testing.assert_close(solution.trajectory[:, 0, 0], (times - span[0]).exp(), rtol=1e-3, atol=0)


# Singular ends


def _towards(target):
    """Straight lines to a point: constant along a trajectory, 0/0 at t = 1."""

    def field(t, x):
        if bool((t == 1).any()):
            raise AssertionError("the singular end was evaluated")
        return (target - x) / (1 - t)[:, None]

    return field


HOWS = [{"steps": 8, "solver": s} for s in (fm.Euler(), fm.Heun(), fm.RK4(), Dopri5())]
HOWS += [{"rtol": 1e-4, "solver": s} for s in PAIRS.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{type(how['solver']).__name__}-{'rtol' in how}")
def test_a_singular_end_is_reached_and_never_evaluated(how, dtype):
    target, x = torch.tensor([3.0, -1.0], dtype=dtype), _x().to(dtype)
    solution = fm.solve(fm.ODE(_towards(target), singular=(1.0,)), x, save=True, **how)
    torch.testing.assert_close(solution.x, target.expand(7, 2), rtol=1e-4, atol=1e-4)
    assert solution.t[-1] == 1
    assert (solution.reached == 1).all()
    assert torch.equal(solution.trajectory[-1], solution.x)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{type(how['solver']).__name__}-{'rtol' in how}")
def test_a_singular_start_is_left_and_never_evaluated(how):
    """dx/dt = sin(t) / t, whose integral is the sine integral."""
    calls = Counter(lambda t, x: (t.sin() / t)[:, None] + 0 * x)
    x = torch.zeros(3, 1, dtype=torch.float64)
    solution = fm.solve(fm.ODE(calls, singular=(0.0, 5.0)), x, **how)
    slack = 0.02 if isinstance(how["solver"], fm.Euler) else 1e-3
    torch.testing.assert_close(solution.x, torch.full_like(x, special.sici(1.0)[0]), rtol=0, atol=slack)
    assert torch.cat(calls.times).min() > 0
    assert solution.nfe == calls.calls


def test_the_sliver_is_of_second_order():
    """On a curved trajectory the error of the sliver is its width squared, 1e-10, times a curvature of about one."""
    field = Counter(lambda t, x: torch.cos(t)[:, None] + 0 * x)
    x = torch.zeros(1, 1, dtype=torch.float64)
    solution = fm.solve(fm.ODE(field, singular=(1.0,)), x, DOP853(), rtol=1e-13, atol=1e-13)
    error = (solution.x - torch.tensor(1.0, dtype=torch.float64).sin()).abs().item()
    assert 1e-11 < error < 1e-10


def test_singular_times_that_cannot_be_kept_apart_are_refused():
    x = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"singular at t = 0.5, inside the solve"):
        fm.solve(fm.ODE(lambda t, x: x, singular=(0.5,)), x, steps=2)
    with pytest.raises(ValueError, match="must be longer than 0.001"):
        fm.solve(fm.ODE(lambda t, x: x, singular=(1.0,)), x, grid=torch.tensor([0.0, 0.9995, 1.0]))
    with pytest.raises(ValueError, match="between a singular end and its neighbour"):
        fm.solve(fm.ODE(lambda t, x: x, singular=(1.0,)), x, rtol=1e-3, save=[0.9999])
    saved = fm.solve(fm.ODE(lambda t, x: x, singular=(1.0,)), x, rtol=1e-5, save=[0.5, 1.0])
    assert saved.t.tolist() == [0.5, 1.0]
    assert torch.equal(saved.trajectory[-1], saved.x)


@pytest.mark.parametrize("how", [{"steps": 2}, {"rtol": 1e-3}])
def test_a_singular_end_whose_neighbour_is_not_finite_is_told(how):
    x = torch.ones(3, 2)
    for end, broken in ((1.0, lambda t, x: x / (t[:, None] < 0.998)), (0.0, lambda t, x: x / (t[:, None] > 0.002))):
        with pytest.raises(fm.SolveError, match="beside the singular end, is not finite|step size vanished"):
            fm.solve(fm.ODE(broken, singular=(end,)), x, solver=fm.Midpoint() if "steps" in how else None, **how)


def test_the_clock_of_a_solve_with_singular_ends_shows_the_ends():
    x = torch.ones(3, 2)
    solution = fm.solve(fm.ODE(lambda t, x: x, singular=(0.0, 1.0)), x, steps=2)
    assert solution.t.tolist() == [0.0, 0.5, 1.0]


def test_a_singular_time_is_met_by_a_float32_grid():
    times = []

    def field(t, x):
        times.append(t.max().item())
        return x

    for end in (0.3, 0.7):
        fm.solve(fm.ODE(field, singular=(end,)), torch.ones(1, 1), fm.Heun(), grid=torch.tensor([0.0, 0.1, end]))
        assert max(times) < end - 1e-4
    with pytest.raises(ValueError, match="noise takes no singular times"):
        fm.solve(fm.SDE(lambda t, x: -x, diffusion=1.0, singular=(1.0,)), torch.ones(1, 1), fm.EulerMaruyama(), steps=4)


# Callbacks


@pytest.mark.parametrize("how", [{"steps": 5}, {"rtol": 1e-6}])
def test_a_callback_sees_every_step_and_may_stop(how):
    seen = []
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    whole = fm.solve(fm.ODE(lambda t, x: -x * x), x, callback=lambda p: seen.append(p), **how)
    assert whole.status == "finished"
    assert seen[-1].nfe == whole.nfe
    assert all(p.t.shape == p.rows.shape == p.x.shape[:1] for p in seen)
    assert sorted({row for p in seen for row in p.rows.tolist()}) == [0, 1]
    stopped = fm.solve(fm.ODE(lambda t, x: -x * x), x, callback=lambda p: bool(p.t.min() > 0.3), **how)
    assert stopped.status == "stopped"
    assert 0.3 < stopped.reached.min() < 1
    assert stopped.nfe < whole.nfe
    torch.testing.assert_close(stopped.x, x / (1 + x * stopped.reached[:, None]), rtol=0.2, atol=0)
    with pytest.raises(fm.SolveError, match="the callback stopped the solve"):
        stopped.whole()


def test_a_callback_that_stops_at_the_end_stops_nothing():
    solution = fm.solve(
        fm.ODE(lambda t, x: x), torch.ones(3, 2), rtol=1e-4, save=True, callback=lambda p: bool((p.t >= 1).all())
    )
    assert solution.status == "finished"
    assert solution.t.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("how", [{"steps": 4}, {"rtol": 1e-3}])
def test_an_error_of_the_callback_is_its_own(how):
    def fails(progress):
        raise ValueError("my own")

    with pytest.raises(ValueError, match="^my own$"):
        fm.solve(fm.ODE(lambda t, x: x), torch.ones(1, 1), callback=fails, **how)


# Checkpoints


@pytest.mark.parametrize("how", [{"steps": 5, "solver": fm.RK4()}, {"rtol": 1e-5}, {"rtol": 1e-5, "save": [0.3, 0.9]}])
def test_gradients_by_checkpoints_are_those_of_the_whole_graph(how):
    net, x = random_mlp(3), torch.randn(4, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    parts = [x, *net.parameters()]
    gradients = []
    for checkpoint in (False, True):
        solution = fm.solve(fm.ODE(net), x, checkpoint=checkpoint, **how)
        state = solution.x if solution.trajectory is None else solution.trajectory
        gradients.append(torch.autograd.grad(state.square().sum(), parts))
    for whole, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, whole, rtol=1e-12, atol=1e-12)


def test_gradients_by_checkpoints_are_those_of_finite_differences():
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def end(rate):
        return fm.solve(fm.ODE(lambda t, x: rate * x * x), torch.ones(2, 1).double(), rtol=1e-9, checkpoint=True).x

    assert torch.autograd.gradcheck(end, rate)


def test_a_likelihood_can_be_trained_by_checkpoints():
    """A forward derivative inside a step that is computed twice."""
    net, x = random_mlp(2), _x()
    gradients = []
    for checkpoint in (False, True):
        value = log_likelihood(net, x, fm.Normal(), steps=3, checkpoint=checkpoint).log_prob.sum()
        gradients.append(torch.autograd.grad(value, list(net.parameters())))
    for whole, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, whole, rtol=1e-12, atol=1e-12)


def _kept(checkpoint):
    """Number of tensors that a solve of 20 steps keeps for its backward pass, apart from those it can make again."""
    kept = []

    def keep(value):
        kept.append(value)
        return value

    x = torch.ones(3, 2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        fm.solve(fm.ODE(lambda t, x: torch.tanh(x) ** 2), x, fm.RK4(), steps=20, checkpoint=checkpoint)
    return len(kept)


def test_checkpoints_keep_nothing_of_the_inside_of_a_step():
    assert _kept(checkpoint=False) >= 20 * 4 * 2
    assert _kept(checkpoint=True) <= 20 * 2  # the state, and torch's own mark


# Failing fields


def _breaks_after(limit, how):
    def field(t, x):
        if bool((t > limit).any()):
            return how(x)
        return torch.ones_like(x)

    return field


def _raise(x):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


BROKEN = {
    "shape": (lambda x: x[:, :1], r"the field returned shape \(2, 1\) for x of shape \(2, 3\)"),
    "kind": (lambda x: 3.0, "the field returned float"),
    "device": (lambda x: x.to("meta"), "the field returned a tensor on meta for x on cpu"),
    "error": (_raise, "mat1 and mat2"),
}


@pytest.mark.parametrize("how", [{"steps": 10, "save": True}, {"rtol": 1e-3, "save": [0.0, 0.2, 0.4, 1.0]}])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_field_that_fails_on_the_way_is_told_with_the_time_and_what_there_is(kind, how):
    broken, message = BROKEN[kind]
    x = torch.zeros(2, 3)
    with pytest.raises(FieldError, match=rf"the solve had come to t = 0\.\d+: .*{message}") as caught:
        fm.solve(fm.ODE(_breaks_after(0.5, broken)), x, controller=None, **how)
    solution = caught.value.solution
    assert solution.status == "failed"
    assert (solution.reached > 0).all()
    assert (solution.reached <= 0.5).all()
    torch.testing.assert_close(solution.x, solution.reached[:, None].expand(2, 3), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(solution.trajectory[:, 0, 0], solution.t, rtol=1e-5, atol=1e-6)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("how", [{"steps": 10}, {"rtol": 1e-3}])
def test_a_field_that_fails_at_once_is_told_too(how):
    with pytest.raises(FieldError, match=r"the solve had come to t = 0: the field returned float") as caught:
        fm.solve(fm.ODE(lambda t, x: 3.0), torch.zeros(2, 3), **how)
    assert torch.equal(caught.value.solution.x, torch.zeros(2, 3))


# Controllers


@pytest.mark.parametrize(
    "controller",
    [Controller(1.0, 0.0), Controller(0.3, 0.4), Controller(0.2, 0.3, 0.05), Controller(most=2.0, safety=0.8)],
)
def test_every_controller_keeps_to_the_tolerance(controller):
    for name in PROBLEMS:
        problem = PROBLEMS[name]()
        solution = fm.solve(fm.ODE(problem.field), problem.start, rtol=1e-7, span=problem.span, controller=controller)
        truth = problem.exact(problem.span[1])
        assert (solution.x - truth).abs().max() < 1e-4 * max(1.0, truth.abs().max().item())


def test_no_step_grows_by_more_than_the_controller_allows():
    times = []
    fm.solve(
        fm.ODE(lambda t, x: 0.01 * x),
        torch.ones(1, 1, dtype=torch.float64),
        rtol=1e-9,
        controller=Controller(most=1.5),
        callback=lambda p: times.append(p.t.item()),
    )
    steps = torch.tensor([0.0, *times]).diff()
    assert ((steps[1:-1] / steps[:-2]) <= 1.5 + 1e-6).all()


@pytest.mark.parametrize(
    "bad", [{"integral": 0.0}, {"safety": 1.0}, {"least": 1.0}, {"most": 1.0}, {"most": float("nan")}]
)
def test_controllers_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="need finite gains"):
        Controller(**bad)


def test_a_learned_solver_needs_no_grid():
    solver = fm.BNS.like(fm.Midpoint(), fm.uniform_grid(3))
    x = torch.ones(2, 1, dtype=torch.float64)
    ode = fm.ODE(lambda t, x: x)
    torch.testing.assert_close(
        fm.solve(ode, x, solver).x, fm.solve(ode, x, fm.Midpoint(), steps=3).x, rtol=1e-12, atol=0
    )
