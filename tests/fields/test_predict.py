"""Predicts: any kind of network output is the same velocity field, for solvers, likelihoods and training."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from tests.problems import SCHEDULES, gaussian_world, mixture_world, pair, random_mlp, seeded

KINDS = ("velocity", "target", "noise", "score")
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def _network(world, kind):
    """The perfect network of a kind: the world's own mean of it."""

    def net(t, x, *cond):
        path = world.path
        if kind == "velocity":
            return world(t, x)
        if kind == "score":
            return world.score(t, x)
        target = world.posterior_mean(t, x)
        if kind == "target":
            return target
        time = t[:, None]
        return (x - path.schedule.alpha(time) * target) / path.schedule.sigma(time)

    return net


@EACH_KIND
@pytest.mark.parametrize("name", ["linear-min", "vp", "ve-mild", "sub-vp", "cosine"])
def test_every_kind_is_the_velocity(kind, name):
    world = mixture_world(fm.AffinePath(SCHEDULES[name]))
    field = fm.Predicts(_network(world, kind), world.path, kind)
    t, x = torch.linspace(0.01, 0.99, 40, dtype=torch.float64), pair(40, 2)[0]
    torch.testing.assert_close(field(t, x), world(t, x), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(field(0.5, x), world(0.5, x), rtol=1e-9, atol=1e-9)


@EACH_KIND
@pytest.mark.parametrize("solver", [fm.Euler(), fm.Heun(), fm.RK4()])
def test_every_solver_takes_every_kind_over_the_whole_interval(kind, solver):
    """The paths start without signal and end without noise: the ends are evaluated, and nothing is lost there."""
    mean = torch.tensor([0.7, -0.4], dtype=torch.float64)
    world = fm.GaussianField(mean, std=0.8)

    def net(t, x):
        alpha, sigma = t[:, None], 1 - t[:, None]
        variance = 0.64 * alpha**2 + sigma**2
        offset = x - alpha * mean
        return {
            "velocity": world(t, x),
            "target": mean + 0.64 * alpha / variance * offset,
            "noise": sigma / variance * offset,
            "score": -offset / variance,
        }[kind]

    start = pair(20, 2)[0]
    native = fm.solve(fm.ODE(world), start, solver=solver, steps=20).x
    exact = fm.Predicts(net, world.path, kind, data_mean=mean, margin=0.0)
    found = fm.solve(fm.ODE(exact), start, solver=solver, steps=20).x
    torch.testing.assert_close(found, native, rtol=1e-8, atol=1e-8)
    # What the margin costs, of the order of its square for a fine solver.
    safe = fm.Predicts(net, world.path, kind, data_mean=mean)
    found = fm.solve(fm.ODE(safe), start, solver=solver, steps=20).x
    torch.testing.assert_close(found, native, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("schedule", [fm.Linear(), fm.Cosine(), fm.VariancePreserving(), fm.SubVariancePreserving()])
@pytest.mark.parametrize("kind", KINDS)
def test_an_imperfect_network_neither_stalls_nor_is_made_worse(kind, schedule):
    """A network that is off by a hundredth everywhere: the adaptive solver comes through, and stays that near."""
    path = fm.AffinePath(schedule)
    world = fm.GaussianField(torch.zeros(2, dtype=torch.float64), std=0.8, path=path)

    def net(t, x):
        variance = (0.64 * path.schedule.alpha(t) ** 2 + path.schedule.sigma(t) ** 2)[:, None]
        alpha, sigma = path.schedule.alpha(t)[:, None], path.schedule.sigma(t)[:, None]
        exact = {
            "velocity": world(t, x),
            "target": 0.64 * alpha / variance * x,
            "noise": sigma / variance * x,
            "score": -x / variance,
        }[kind]
        return exact + 0.01 * torch.sin(20 * x) * (1 if kind != "velocity" else 0)

    start = pair(20, 2)[0]
    spans = {"span": path.interval, "rtol": 1e-4, "atol": 1e-4}
    solution = fm.solve(fm.ODE(fm.Predicts(net, path, kind)), start, solver=fm.Dopri5(), max_nfe=3000, **spans)
    assert solution.nfe < 3000
    assert (solution.x - world.transport(start, *path.interval)).abs().max() < 0.15


@EACH_KIND
@pytest.mark.parametrize("to", KINDS)
def test_a_prediction_is_told_as_any_kind(kind, to):
    world = mixture_world(fm.AffinePath(fm.Linear(0.1)))
    t, x = torch.linspace(0.05, 0.95, 30, dtype=torch.float64), pair(30, 2)[0]
    found = fm.Predicts(_network(world, kind), world.path, kind).predict(t, x, to=to)
    torch.testing.assert_close(found, _network(world, to)(t, x), rtol=1e-7, atol=1e-7)


def test_the_mean_of_the_data_is_what_is_known_without_signal():
    field = fm.Predicts(lambda t, x: x, fm.AffinePath(), "noise", torch.tensor([0.5, -1.0]))
    assert torch.equal(field.predict(0.0, torch.ones(1, 2), to="target"), torch.tensor([[0.5, -1.0]]))


def test_a_time_beyond_a_diffusion_s_interval_is_refused_for_a_velocity():
    field = fm.Predicts(lambda t, x: x, fm.AffinePath(fm.VariancePreserving()), "velocity")
    with pytest.raises(ValueError, match=r"t must lie in \[0.0, 0.99999\]"):
        field(1.0, torch.zeros(1, 2))


@pytest.mark.parametrize("t", [0.0, 0.6, 0.9995, 1.0])
@EACH_KIND
def test_the_divergence_of_an_mlp_stays_in_closed_form_and_equals_the_general_one(kind, t):
    net, path = random_mlp(3), fm.AffinePath(fm.Cosine())
    field, x = fm.Predicts(net, path, kind), pair(7, 3)[0]
    closed = fm.divergence(field, t, x)
    general = fm.divergence(lambda t, x: field(t, x), t, x)
    torch.testing.assert_close(closed, general, rtol=1e-9, atol=1e-9)
    assert field.value_and_divergence is not None


def test_without_a_closed_divergence_the_general_one_is_taken():
    field = fm.Predicts(lambda t, x: x.sin(), fm.AffinePath(), "target")
    assert field.value_and_divergence is None
    x = pair(5, 2)[0]
    slope = (x.cos() - 1) / 0.5  # v = (f(x) - x) / (1 - t)
    torch.testing.assert_close(fm.divergence(field, 0.5, x), slope.sum(1))


def test_likelihood_through_a_noise_network_is_the_exact_one():
    world = gaussian_world(fm.AffinePath(fm.Linear(0.05)))
    field = fm.Predicts(_network(world, "noise"), world.path, "noise", torch.tensor([0.7, -0.4]), margin=0.0)
    x = world.sample(10, seeded()).double()
    found = fm.log_likelihood(field, x, fm.Normal(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_prob, world.log_prob(1.0, x), rtol=1e-5, atol=1e-5)


def test_conditions_and_weights_are_passed_on():
    net = fm.nn.MLP(dim=2, classes=3)
    field = fm.Predicts(net, fm.AffinePath(), "noise")
    assert set(field.state_dict()) == {f"net.{name}" for name in net.state_dict()} | {"data_mean"}
    x = torch.zeros(4, 2)
    assert field(0.5, x, torch.tensor([0, 1, 2, 0])).shape == (4, 2)
    assert fm.Flow(field, fm.AffinePath(), (2,)).sample(3, cond=torch.tensor([0, 1, 2]), steps=2).shape == (3, 2)


def test_a_margin_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"margin must lie in \[0, 0.5\), got 0.5"):
        fm.Predicts(fm.nn.MLP(2), fm.AffinePath(), "noise", margin=0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, fm.AffinePath(), "noise"), TypeError, "net must be a module or function"),
        ((fm.nn.MLP(2), fm.FunctionPath(lambda t, x0, x1: x1), "noise"), TypeError, "flowmatch AffinePath"),
        ((fm.nn.MLP(2), fm.AffinePath(), "eps"), ValueError, "kind must be one of .* got 'eps'"),
    ],
)
def test_wrong_parts_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fm.Predicts(*arguments)


def test_a_network_of_another_shape_is_named():
    field = fm.Predicts(lambda t, x: x[:, :1], fm.AffinePath(), "target")
    with pytest.raises(ValueError, match=r"network returned shape \(3, 1\) for x of shape \(3, 2\); a target has"):
        field(0.5, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="network returned tuple for x"):
        fm.Predicts(lambda t, x: (x, x), fm.AffinePath(), "target")(0.5, torch.zeros(3, 2))
