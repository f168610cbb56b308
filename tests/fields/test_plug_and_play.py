"""Restoration by turns, on laws whose posterior is known: what it tends to, what it costs, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flowmatch as fm
from flowmatch.fields.plug_and_play import plug_and_play
from tests.problems import SCHEDULES, mixture_world, pair, random_mlp, seeded
from tests.solvers.test_fixed import Counter

MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
COV = torch.tensor([[1.2, 0.5, 0.1], [0.5, 0.6, -0.2], [0.1, -0.2, 0.9]], dtype=torch.float64)
MIX = torch.tensor([[0.6, -0.5, 0.3], [0.2, 0.5, -0.6]], dtype=torch.float64)  # singular values 0.98 and 0.64
Y = torch.tensor([2.5, -1.5], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)
PATH = fm.AffinePath()


def _seen(x1):
    return x1 @ MIX.T.to(x1)


def _prior(path=PATH):
    return fm.GaussianField(MEAN, cov=COV, path=path)


def _posterior(noise):
    """Mean and covariance of the data given ``Y = MIX x1 + noise``, by linear regression."""
    cov = torch.linalg.inv(torch.linalg.inv(COV) + MIX.T @ MIX / noise**2)
    return cov @ (torch.linalg.solve(COV, MEAN) + MIX.T @ Y / noise**2), cov


def _restored(n, path=PATH, seed=1, **options):
    x0 = path.source_std * pair(n, 3, seed=seed)[0]
    return plug_and_play(_prior(path), path, x0, _seen, Y.expand(n, 2), generator=seeded(seed), **options)


def _off(x, mean, cov):
    """How far the sample's mean and covariance are from those of a normal law, in standard errors."""
    n, miss = len(x), x - mean
    var = cov.diagonal()
    of_mean = miss.mean(0) / (var / n).sqrt()
    of_cov = (miss.T @ miss / n - cov) / ((cov**2 + var[:, None] * var) / n).sqrt()
    return max(of_mean.abs().max().item(), of_cov.abs().max().item())


# --- what it does, turn by turn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "linear-min", "cosine", "vp", "ve-mild"])
@pytest.mark.parametrize("options", [{}, {"noise": 0.4, "power": 0.7}, {"noises": 3, "step": 0.5}])
def test_on_normal_data_every_turn_is_an_affine_map_of_its_noise(name, options):
    """The law of the result is then normal, with a mean and covariance that follow from the turns' matrices."""
    path, steps = fm.AffinePath(SCHEDULES[name]), 12
    low, high = path.interval
    noise, size, count = options.get("noise", 0.0), options.get("step", 1.0), options.get("noises", 1)
    for i in range(steps):
        t = torch.tensor(low + (high - low) * i / steps, dtype=torch.float64)
        a, s = path.schedule.alpha(t), path.schedule.sigma(t)
        gain = a * COV @ torch.linalg.inv(a**2 * COV + s**2 * EYE)
        fresh = s**2 * gain @ gain.T
        if not i:
            start = path.source_std**2 / s**2  # what one takes for the first noise
            mean, cov = MEAN - a * gain @ MEAN, start * fresh
            continue
        length = size * (s / (a + s)) ** options.get("power", 0.1)
        if noise:
            length = torch.minimum(length, (s / a / noise) ** 2)
        turn = EYE - length * MIX.T @ MIX
        mean = MEAN + gain @ (a * (turn @ mean + length * MIX.T @ Y) - a * MEAN)
        cov = a**2 * gain @ turn @ cov @ turn.T @ gain.T + fresh / count
    x = _restored(4000, path, steps=steps, **options)
    assert _off(x, mean, cov) < 4.5


def test_the_scale_of_the_path_does_not_matter():
    """Twice the signal and twice the noise at every time show the same picture at twice the size."""

    class Twice(fm.Schedule):
        def alpha(self, t):
            return 2 * t

        def sigma(self, t):
            return 2 * (1 - t)

    x = [_restored(6, path, steps=9, noise=0.3, power=0.6) for path in (PATH, fm.AffinePath(Twice()))]
    torch.testing.assert_close(x[1], x[0], rtol=1e-9, atol=1e-9)


def test_what_it_costs():
    field = Counter(_prior())
    plug_and_play(field, PATH, pair(2, 3)[0], _seen, Y.expand(2, 2), steps=7, noises=3, generator=seeded())
    assert field.calls == 1 + 6 * 3


# --- what it tends to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noises", [1, 4])
def test_with_the_noise_told_it_gathers_about_the_mean_given_the_observation(noises):
    """The law tends to the posterior to the power of twice the noises averaged: the same mean, a part of the spread."""
    mean, cov = _posterior(0.5)
    x = _restored(1500, steps=120, noise=0.5, noises=noises)
    assert _off(x, mean, cov / (2 * noises)) < 4.5


def test_without_noise_many_turns_come_to_the_mean_given_the_observation():
    gain = COV @ MIX.T @ torch.linalg.inv(MIX @ COV @ MIX.T)
    truth = MEAN + gain @ (Y - MIX @ MEAN)
    miss = [(_restored(200, steps=n, noises=4).mean(0) - truth).abs().max().item() for n in (10, 40, 160)]
    assert miss[0] > 1.5 * miss[1] > 2.2 * miss[2]
    assert miss[2] < 0.15


def test_the_paper_s_step_fits_the_noise_and_the_noise_told_does_not():
    """Of noise as large as the data: half of the observation is to be believed."""
    plain, x0, y = fm.GaussianField(torch.zeros(1).double(), std=1.0), pair(800, 1)[0], torch.full((800, 1), 2.0)
    mean = {
        noise: plug_and_play(plain, PATH, x0, lambda x1: x1, y, noise=noise, generator=seeded()).mean().item()
        for noise in (0.0, 1.0)
    }
    assert mean[0.0] > 1.9
    assert mean[1.0] == pytest.approx(1.0, abs=0.1)


def test_what_is_seen_is_met_the_closer_the_less_noise_there_is():
    """On pictures of which some entries are seen."""
    n, event = 20, (1, 3, 4)
    plain = fm.GaussianField(torch.zeros(event).double(), std=1.0)
    mask = torch.rand(event, generator=seeded(3)) < 0.5
    y = torch.where(mask, pair(n, *event, seed=4)[1], 0.0)
    hide = lambda x1: torch.where(mask, x1, 0.0)  # noqa: E731
    miss = []
    for noise in (0.5, 0.1, 0.02, 0.0):
        x = plug_and_play(plain, PATH, pair(n, *event)[0], hide, y, noise=noise, steps=200, generator=seeded())
        miss.append((hide(x) - y).square().mean().sqrt().item())
    assert miss[0] > 2 * miss[1] > 4 * miss[2]
    assert max(miss[2:]) < 0.02
    assert x[:, ~mask].square().mean() == pytest.approx(0.5, abs=0.15)  # half the temperature where nothing is known


def test_on_a_mixture_it_ends_where_the_posterior_has_a_mode():
    """Many noises: the temperature is low. The modes are found by gradient ascent from the estimates themselves."""
    field, n, noise = mixture_world(), 60, 0.6
    y = torch.full((n, 1), -0.4, dtype=torch.float64)

    def log_posterior(x):
        return field.log_prob(1.0, x) - 0.5 * ((x[:, :1] - y[: len(x)]) / noise).square().sum(1)

    x = plug_and_play(
        field, PATH, pair(n, 2)[0], lambda x1: x1[:, :1], y, noise=noise, steps=100, noises=20, generator=seeded()
    )
    mode = x.clone().requires_grad_()
    for _ in range(300):
        [slope] = torch.autograd.grad(log_posterior(mode).sum(), mode)
        mode = (mode + 0.03 * slope).detach().requires_grad_()
    assert slope.abs().max() < 1e-4
    assert (x - mode).norm(dim=1).mean() < 0.12
    posterior = fm.Flow(fm.fields.Observed(field, PATH, lambda x1: x1[:, :1], noise), event_shape=(2,))
    spread = log_posterior(posterior.decode(pair(n, 2)[0], y, steps=30))
    assert log_posterior(x).mean() > spread.mean() + 0.5


# --- arguments ------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_an_operator_that_is_not_linear_is_taken_by_its_linear_part(shift, seed):
    x0 = pair(3, 3)[0]
    both = [
        plug_and_play(
            _prior(), PATH, x0, lambda x1, b=b: _seen(x1) + b, Y.expand(3, 2) + b, steps=5, generator=seeded(seed)
        )
        for b in (0.0, shift)
    ]
    torch.testing.assert_close(both[1], both[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(2,), (3, 4, 2), (1,)])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_any_shape_and_type(dtype, event, size):
    plain = fm.GaussianField(torch.zeros(event, dtype=dtype), std=1.0)
    x0 = torch.randn(size, *event, generator=seeded()).to(dtype)
    y = torch.full((size, *event[:-1]), 2.0)
    x = plug_and_play(plain, PATH, x0, lambda x1: x1[..., 0], y, steps=60, generator=seeded(1))
    assert x.dtype == dtype
    assert x.shape == x0.shape
    torch.testing.assert_close(x[..., 0], torch.full_like(x[..., 0], 2.0), rtol=0, atol=0.1)


def test_the_condition_of_the_field_goes_along():
    field, label, x0 = random_mlp(2, classes=3), torch.tensor([0, 1, 2]), pair(3, 2)[0]
    y, options = torch.zeros(3, 1, dtype=torch.float64), {"steps": 4}
    x = plug_and_play(field, PATH, x0, lambda x1: x1[:, :1], y, label, generator=seeded(), **options)
    for c in range(3):
        alone = lambda t, x, c=c: field(t, x, torch.full((3,), c))  # noqa: E731
        same = plug_and_play(alone, PATH, x0, lambda x1: x1[:, :1], y, generator=seeded(), **options)
        torch.testing.assert_close(x[c], same[c])
    assert not x.requires_grad


def test_the_generator_decides():
    before = torch.get_rng_state()
    a, b = (_restored(4, steps=5, seed=1) for _ in range(2))
    c = plug_and_play(_prior(), PATH, pair(4, 3, seed=1)[0], _seen, Y.expand(4, 2), steps=5, generator=seeded(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


# --- refusals -------------------------------------------------------------------------------------------------------

STAY = lambda t, x, *c: 0 * x  # noqa: E731
SAME = lambda x1: x1  # noqa: E731
X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((STAY, fm.FunctionPath(STAY), X, SAME, X), {}, TypeError, "path must be a flowmatch AffinePath"),
        ((STAY, PATH, X, X, X), {}, TypeError, "operator must be a function of x1, got Tensor"),
        ((STAY, PATH, X, SAME, [0.0]), {}, TypeError, "y must be the observation, .* got list"),
        ((STAY, PATH, X.long(), SAME, X), {}, TypeError, "x0 must be floating point"),
        ((STAY, PATH, X + math.nan, SAME, X), {}, ValueError, "x0 has 6 entries that are NaN or infinite"),
        ((STAY, PATH, X, SAME, X + math.inf), {}, ValueError, "y has 6 entries that are NaN or infinite"),
        ((STAY, PATH, X, SAME, X[:, :1]), {}, ValueError, r"has shape \(3, 1\) and the operator gives \(3, 2\)"),
        ((lambda t, x: x[:, :1], PATH, X, SAME, X), {}, ValueError, r"the field returned shape \(3, 1\)"),
        ((STAY, PATH, X, SAME, X), {"steps": 1}, ValueError, "steps must be at least 2, .* got steps=1"),
        ((STAY, PATH, X, SAME, X), {"noises": 0}, ValueError, "noises at least 1, got steps=100 and noises=0"),
        ((STAY, PATH, X, SAME, X), {"noise": -1.0}, ValueError, "need noise >= 0, .* got noise=-1.0"),
        ((STAY, PATH, X, SAME, X), {"step": 0.0}, ValueError, "need .* step > 0 .* step=0.0"),
        ((STAY, PATH, X, SAME, X), {"power": math.nan}, ValueError, "need .* power >= 0, .* power=nan"),
        (
            (fm.GaussianField(torch.zeros(2), std=1.0), PATH, X, lambda x1: 40 * x1, X + 1),
            {"power": 0.0},
            ValueError,
            r"the guess ran away: step=1.0 is too large .* 1 over the square of its\s+largest singular value",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        plug_and_play(*arguments, **options)
