"""Stochastic interpolants: ends, rates, the law given the ends, and the score that the noise gives."""

from __future__ import annotations

import math

import pytest
import torch

import flowmatch as fm
from tests.problems import NOISY_PATHS, pair, seeded, z_scores

EACH = pytest.mark.parametrize("path", NOISY_PATHS.values(), ids=NOISY_PATHS.keys())


@EACH
def test_both_ends_are_the_data_without_noise(path):
    x0, x1 = pair(32, 3)
    z = 100 * torch.ones_like(x0)
    torch.testing.assert_close(path.position(0.0, x0, x1, z), x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path.position(1.0, x0, x1, z), x1, rtol=1e-12, atol=1e-12)


@EACH
def test_the_velocity_is_the_time_derivative_with_the_noise_held(path):
    t, h = torch.linspace(0.02, 0.98, 97, dtype=torch.float64), 1e-6
    x0, x1 = pair(97, 3)
    z = pair(97, 3, seed=5)[0]
    slope = (path.position(t + h, x0, x1, z) - path.position(t - h, x0, x1, z)) / (2 * h)
    torch.testing.assert_close(path.velocity(t, x0, x1, z), slope, rtol=1e-6, atol=1e-6)
    derived = fm.Path._both(path, t[:, None], x0, x1, z)[1]
    torch.testing.assert_close(path.velocity(t, x0, x1, z), derived, rtol=1e-10, atol=1e-10)


@EACH
@pytest.mark.parametrize("shape", [(4, 4), (3, 2, 3), (0, 2), (1, 5), (6,)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_sample_is_the_path_at_its_own_noise(path, shape, dtype):
    x0, x1 = pair(*shape, dtype=dtype)
    t = torch.linspace(0.1, 0.9, shape[0])
    sample = path.sample(t, x0, x1, seeded(3))
    assert sample.z.shape == x1.shape
    assert sample.x_t.dtype == sample.u_t.dtype == sample.z.dtype == dtype
    assert torch.equal(sample.x_t, path.position(t, x0, x1, sample.z))
    assert torch.equal(sample.u_t, path.velocity(t, x0, x1, sample.z))
    assert torch.equal(path.sample(t, x0, x1, seeded(3)).x_t, sample.x_t)
    for b in range(shape[0]):
        alone = path.position(float(t[b]), x0[b : b + 1], x1[b : b + 1], sample.z[b : b + 1])
        torch.testing.assert_close(sample.x_t[b], alone[0])


def test_the_bridge_has_the_variance_of_brownian_motion_tied_at_both_ends():
    n, t, sigma = 40_000, 0.3, 0.7
    x0, x1 = torch.zeros(n, 1, dtype=torch.float64), torch.ones(n, 1, dtype=torch.float64)
    x_t = fm.BrownianBridge(sigma).sample(t, x0, x1, seeded()).x_t
    # Against the motion itself: increments over a grid, tied by subtracting t times the end.
    steps = sigma * math.sqrt(0.1) * torch.randn(n, 10, generator=seeded(1), dtype=torch.float64)
    walk = steps[:, :3].sum(1) - t * steps.sum(1) + t
    assert x_t.mean().item() == pytest.approx(t, abs=5 * sigma * 0.46 / math.sqrt(n))
    assert x_t.var().item() == pytest.approx(sigma**2 * t * (1 - t), rel=5 * math.sqrt(2 / n))
    assert walk.var().item() == pytest.approx(sigma**2 * t * (1 - t), rel=5 * math.sqrt(2 / n))


def test_the_mean_noise_gives_the_score_of_the_marginal():
    """Normal ends: p_t is normal, so its score is known, and least squares of -z / gamma on x finds it."""
    n, t, path = 200_000, 0.4, fm.InterpolantPath(schedule=fm.Linear())
    x0 = torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    x1 = 2 * torch.randn(n, 1, generator=seeded(2), dtype=torch.float64)
    sample = path.sample(t, x0, x1, seeded(3))
    gamma = path.gamma(torch.tensor(t, dtype=torch.float64))
    variance = 4 * t**2 + (1 - t) ** 2 + gamma**2
    residual = (-sample.z / gamma + sample.x_t / variance) * sample.x_t
    assert abs(z_scores(residual).item()) < 4
    assert abs(z_scores((-sample.z / gamma + 1.1 * sample.x_t / variance) * sample.x_t).item()) > 4


def test_two_finite_sets_are_joined():
    source = fm.Empirical(torch.tensor([[-2.0], [2.0]]))
    x1 = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    sample, _ = fm.FlowMatching(fm.InterpolantPath(), source=source).draw(x1, generator=seeded())
    assert set(sample.x0.flatten().tolist()) <= {-2.0, 2.0}
    assert torch.isfinite(sample.u_t).all()


@EACH
def test_noise_that_is_missing_or_misshapen_is_asked_for(path):
    x0, x1 = pair(3, 2)
    for call in (path.position, path.velocity):
        with pytest.raises(ValueError, match=r"needs noise z of shape \(3, 2\), got none; or use path.sample"):
            call(0.5, x0, x1)
        with pytest.raises(ValueError, match=r"got shape \(3,\)"):
            call(0.5, x0, x1, torch.zeros(3))


def test_the_singular_ends_of_the_bridge_are_refused_by_name():
    x0, x1 = pair(3, 2)
    with pytest.raises(ValueError, match=r"t must lie in \[0.0001, 0.9999\] \(where the velocity of BrownianBridge"):
        fm.BrownianBridge().velocity(1.0, x0, x1, x0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fm.BrownianBridge(0.0), ValueError, "sigma must be a positive number, got 0.0"),
        (lambda: fm.BrownianBridge(math.inf), ValueError, "sigma"),
        (lambda: fm.InterpolantPath(gamma=1.0), TypeError, "gamma must be a function"),
        (lambda: fm.InterpolantPath(schedule=1.0), TypeError, "schedule must be a flowmatch Schedule"),
        (lambda: fm.InterpolantPath(gamma=lambda t: t), ValueError, "must be 0 at t = 0 and t = 1.*got 0, 1 and"),
        (lambda: fm.InterpolantPath(gamma=lambda t: 0 * t), ValueError, "positive inside"),
    ],
)
def test_arguments_that_make_no_path_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
