"""Score and flow matching: the two means, and the Schroedinger bridge of two normal laws in closed form."""

from __future__ import annotations

import math

import pytest
import torch

import flowmatch as fm
from flowmatch.solvers.sde import EulerMaruyama
from tests.problems import pair, random_mlp, seeded, z_scores


def _gaussian_bridge(a, b, sigma):
    """Covariance of the entropic plan between N(0, a^2) and N(0, b^2) for the bridge of scale sigma.

    Bojilov and Galichon 2016; Janati et al. 2020, Theorem 1, in one dimension:
    c = sqrt(a^2 b^2 + sigma^4 / 4) - sigma^2 / 2.
    """
    return math.sqrt(a**2 * b**2 + sigma**4 / 4) - sigma**2 / 2


def test_the_entropic_plan_is_the_one_of_the_bridge():
    n, a, b, sigma = 2000, 1.0, 2.0, 1.0
    x0 = a * torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    x1 = b * torch.randn(n, 1, generator=seeded(2), dtype=torch.float64)
    objective = fm.ScoreAndFlow.schroedinger(sigma)
    assert objective.coupling == fm.Sinkhorn(reg=2 * sigma**2)
    assert objective.path.sigma == sigma
    i, j = objective.coupling(x0, x1, generator=seeded(3))
    covariance = (x0[i] * x1[j]).mean().item()
    assert covariance == pytest.approx(_gaussian_bridge(a, b, sigma), abs=0.12)
    assert abs(covariance - a * b) > 0.25  # the plan without entropy, at which it would be a comonotone map


class Linear(torch.nn.Module):
    """The two means of a normal bridge are linear in x at each time: the model holds their exact slopes."""

    def __init__(self, a, b, sigma):
        super().__init__()
        self.a, self.b, self.sigma, self.c = a, b, sigma, _gaussian_bridge(a, b, sigma)

    def variance(self, t):
        bridge = self.sigma**2 * t * (1 - t)
        return (1 - t) ** 2 * self.a**2 + t**2 * self.b**2 + 2 * t * (1 - t) * self.c + bridge

    def forward(self, t, x):
        t = t.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
        drift = ((1 - t) * (self.c - self.a**2) + t * (self.b**2 - self.c)) / self.variance(t)
        noise = self.sigma * (t * (1 - t)).sqrt() / self.variance(t)
        return drift * x, noise * x


def test_the_mean_gradient_vanishes_at_the_exact_means():
    a, b, sigma, n = 1.0, 2.0, 1.0, 40_000
    model = Linear(a, b, sigma)
    # Pairs from the exact plan, a normal law.
    x0 = a * torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    rest = math.sqrt(b**2 - model.c**2 / a**2) * torch.randn(n, 1, generator=seeded(2), dtype=torch.float64)
    x1 = model.c / a**2 * x0 + rest
    objective = fm.ScoreAndFlow(fm.BrownianBridge(sigma))
    theta = torch.zeros(n, 4, dtype=torch.float64, requires_grad=True)

    def wrong(t, x, shift=0.0):
        drift, noise = model(t, x)
        basis = torch.stack([x, t[:, None] * x.tanh()], dim=1)
        extra = torch.einsum("bk,bkd->bd", theta[:, :2] + shift, basis)
        return drift + extra, noise + torch.einsum("bk,bkd->bd", theta[:, 2:] + shift, basis)

    objective(wrong, x1, x0, generator=seeded(3)).values.sum().backward()
    assert z_scores(theta.grad).abs().max() < 5
    theta.grad = None
    objective(lambda t, x: wrong(t, x, 0.1), x1, x0, generator=seeded(3)).values.sum().backward()
    assert z_scores(theta.grad).abs().min() > 5


def test_the_fields_of_the_bridge_are_those_of_its_marginals():
    model = Linear(1.0, 2.0, 0.8)
    bridge, x = fm.Bridge(model, fm.BrownianBridge(0.8)), pair(9, 1)[0]
    h = 1e-6
    for t in (0.1, 0.5, 0.9):
        variance = model.variance(t)
        rate = (model.variance(t + h) - model.variance(t - h)) / (2 * h)
        torch.testing.assert_close(bridge.score(t, x), -x / variance, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(bridge(t, x), 0.5 * rate / variance * x, rtol=1e-6, atol=1e-9)
        forward, backward = (bridge.drift(t, x, scale=0.8, backward=flag) for flag in (False, True))
        torch.testing.assert_close(0.5 * (forward + backward), bridge(t, x))
        torch.testing.assert_close(forward - backward, 0.64 * bridge.score(t, x))


def test_the_flow_and_the_process_both_end_at_the_data():
    a, b, sigma = 1.0, 2.0, 0.8
    path = fm.BrownianBridge(sigma)
    bridge, n = fm.Bridge(Linear(a, b, sigma), path), 20_000
    start = a * torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    flow = fm.solve(fm.ODE(bridge), start, solver=fm.RK4(), steps=50, span=path.interval).x
    assert flow.std().item() == pytest.approx(b, rel=0.02)
    forward, backward = bridge.sde(scale=sigma), bridge.sde(scale=sigma, backward=True)
    x = fm.solve(forward, start, EulerMaruyama(), steps=200, span=path.interval, generator=seeded(2)).x
    assert x.std().item() == pytest.approx(b, rel=0.03)
    # The process ties its ends as the entropic plan does, the flow as a map.
    assert (start * x).mean().item() == pytest.approx(_gaussian_bridge(a, b, sigma), abs=0.06)
    assert (start * flow).mean().item() == pytest.approx(a * b, abs=0.06)
    # And back: the same marginals, the ends tied alike.
    back = fm.solve(backward, x, EulerMaruyama(), steps=200, span=path.interval[::-1], generator=seeded(3)).x
    assert back.std().item() == pytest.approx(a, rel=0.03)
    assert (back * x).mean().item() == pytest.approx(_gaussian_bridge(a, b, sigma), abs=0.06)


def test_any_noise_on_the_bridge_has_its_marginals():
    path, n = fm.BrownianBridge(0.8), 20_000
    bridge, model = fm.Bridge(Linear(1.0, 2.0, 0.8), path), Linear(1.0, 2.0, 0.8)
    start, span = torch.randn(n, 1, generator=seeded(1), dtype=torch.float64), (1e-3, 0.6)
    for scale in (0.3, 1.5):
        x = fm.solve(bridge.sde(scale=scale), start, EulerMaruyama(), steps=400, span=span, generator=seeded(2)).x
        assert abs(x.var() - model.variance(0.6)) < 3 * model.variance(0.6) * math.sqrt(2 / n)


def test_the_process_takes_conditions_and_refuses_the_ends():
    bridge = fm.Bridge(lambda t, x, c: (c[:, None] - x, 0 * x), fm.InterpolantPath())
    cond, x = torch.tensor([1.0, -1.0]), torch.zeros(2, 1)
    end = fm.solve(bridge.sde(cond, scale=0.01), x, EulerMaruyama(), steps=20, span=(1e-3, 0.9)).x
    assert (end[:, 0] * cond > 0.3).all()
    with pytest.raises(ValueError, match="has no noise at t = .*stay inside"):
        fm.solve(bridge.sde(cond, scale=0.01), x, EulerMaruyama(), steps=20)
    with pytest.raises(ValueError, match="not negative"):
        bridge.sde(scale=-1.0)


def test_a_small_network_learns_the_bridge():
    a, b, sigma = 1.0, 2.0, 1.0
    objective, exact = fm.ScoreAndFlow.schroedinger(sigma), Linear(a, b, sigma)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = fm.nn.Pair(fm.nn.MLP(1, hidden=32, depth=1), fm.nn.MLP(1, hidden=32, depth=1))
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=5e-3), seeded(4)
    for _ in range(400):
        x1 = b * torch.randn(128, 1, generator=generator)
        optimizer.zero_grad()
        objective(model, x1, generator=generator).mean().backward()
        optimizer.step()
    x, t = torch.linspace(-2, 2, 21)[:, None], torch.full((21,), 0.5)
    for found, truth in zip(model(t, x), exact(t, x), strict=True):
        assert (found - truth).abs().mean() < 0.2


def test_the_loss_is_the_weighted_sum_of_the_two_errors_and_conditions_are_passed_on():
    torch.manual_seed(0)
    model = fm.nn.Pair(random_mlp(2, classes=3), random_mlp(2, seed=1, classes=3))
    path, (x0, x1) = fm.BrownianBridge(0.7), pair(6, 2)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    objective = fm.ScoreAndFlow(path, weight=3.0)
    draw = objective.draw(x1, x0, label, seeded(1))
    mean, noise = model(draw.sample.t, draw.sample.x_t, label)
    expected = (mean - (x1 - x0)).square().mean(1) + 3 * (noise - draw.sample.z).square().mean(1)
    torch.testing.assert_close(objective.loss(model, draw).values, expected)


@pytest.mark.parametrize("gamma", [None, lambda t: t * (1 - t)])
def test_score_and_drift_are_refused_where_there_is_no_noise(gamma):
    bridge, x = fm.Bridge(lambda t, x: (x, x), fm.InterpolantPath(gamma)), torch.ones(2, 1)
    assert torch.isfinite(bridge(0.0, x)).all()
    for t in (0.0, 1.0, torch.tensor([0.5, 1.0])):
        for call in (bridge.score, lambda t, x: bridge.drift(t, x, scale=1.0)):
            with pytest.raises(ValueError, match="has no noise at t = .*stay inside"):
                call(t, x)


def test_a_gamma_with_an_infinite_rate_gives_the_interval_of_the_bridge():
    path = fm.InterpolantPath(lambda t: (2 * t * (1 - t)).sqrt())
    assert path.interval == fm.BrownianBridge().interval == (1e-4, 1 - 1e-4)
    with pytest.raises(ValueError, match="t must lie in"):
        path.sample(0.0, *pair(2, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fm.ScoreAndFlow(fm.AffinePath()), TypeError, "flowmatch InterpolantPath"),
        (lambda: fm.ScoreAndFlow(fm.BrownianBridge(), weight=0.0), ValueError, "weight must be a positive number"),
        (lambda: fm.ScoreAndFlow.schroedinger(-1.0), ValueError, "sigma must be a positive number"),
        (lambda: fm.Bridge(None, fm.BrownianBridge()), TypeError, "model must be a module or function"),
        (lambda: fm.Bridge(fm.nn.MLP(2), fm.AffinePath()), TypeError, "path must be a flowmatch InterpolantPath"),
        (
            lambda: fm.ScoreAndFlow(fm.BrownianBridge())(fm.nn.MLP(2), torch.zeros(3, 2)),
            ValueError,
            r"must return two tensors of shape \(3, 2\).*got Tensor.*fm.nn.Pair",
        ),
        (
            lambda: fm.Bridge(lambda t, x: (x, x[:, :1]), fm.BrownianBridge())(0.5, torch.zeros(3, 2)),
            ValueError,
            r"shapes \(3, 2\) and \(3, 1\)",
        ),
        (
            lambda: fm.Bridge(lambda t, x: (x, x), fm.BrownianBridge()).score(0.0, torch.zeros(3, 2)),
            ValueError,
            r"t must lie in \[0.0001, 0.9999\]",
        ),
    ],
)
def test_wrong_parts_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
