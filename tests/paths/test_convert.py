"""Velocity, target, noise and score: each from each, at every time, shape and type, ends included."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import flowmatch as fm
from tests.problems import SCHEDULES, mixture_world, pair, seeded

KINDS = ("velocity", "target", "noise", "score")
EACH = pytest.mark.parametrize("name", SCHEDULES)


def _values(path, t, x0, x1):
    """The four kinds on the path of one pair, which is a law of its own."""
    sample = path.sample(t, x0, x1)
    sigma = path.schedule.sigma(sample.t).reshape(-1, *(1,) * (x1.ndim - 1)).to(x1.dtype)
    return sample.x_t, {"velocity": sample.u_t, "target": x1, "noise": x0, "score": -x0 / sigma}


@EACH
@pytest.mark.parametrize("given_kind", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_each_kind_comes_from_each(name, given_kind, to):
    path, t = fm.AffinePath(SCHEDULES[name]), torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    x0, x1 = pair(49, 3)
    x, values = _values(path, t, x0, x1)
    found = path.convert(values[given_kind], t, x, given_kind, to)
    torch.testing.assert_close(found, values[to], rtol=1e-7, atol=1e-7)  # VP starts with a signal of 0.007


@EACH
@pytest.mark.parametrize("given_kind", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_exact_fields_agree_at_all_times(name, given_kind, to):
    """The four means of a mixture, each from its own formula, and no kind from itself by way of another."""
    path = fm.AffinePath(SCHEDULES[name])
    world = mixture_world(path)
    low, high = path.interval
    x = 1.5 * torch.randn(64, 2, generator=seeded(2), dtype=torch.float64)
    t = low + (high - low) * torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    target = world.posterior_mean(t, x)
    alpha, sigma = path.schedule.alpha(t)[:, None], path.schedule.sigma(t)[:, None]
    x = x * (alpha**2 + sigma**2).sqrt()
    target = world.posterior_mean(t, x)
    values = {
        "velocity": world(t, x),
        "target": target,
        "score": world.score(t, x),
        "noise": (x - alpha * target) / sigma,
    }
    found = path.convert(values[given_kind], t, x, given_kind, to)
    torch.testing.assert_close(found, values[to], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "polynomial-1.5", "sub-vp", "learned"])
@pytest.mark.parametrize("given_kind", KINDS)
def test_the_velocity_at_the_ends_is_the_limit(name, given_kind):
    """At t = 0 and t = 1 the conversion of the exact mean is the exact velocity, where formulas have 0 / 0."""
    path = fm.AffinePath(SCHEDULES[name])
    mean = torch.tensor([0.7, -0.4], dtype=torch.float64)
    world = fm.GaussianField(mean, std=0.8, path=path)
    x = torch.randn(16, 2, generator=seeded(3), dtype=torch.float64)
    for t in (0.0, 1.0):
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = path.schedule.alpha(time), path.schedule.sigma(time)
        target = mean + 0.64 * alpha / (0.64 * alpha**2 + sigma**2) * (x - alpha * mean)
        noise = sigma / (0.64 * alpha**2 + sigma**2) * (x - alpha * mean)
        score = -(x - alpha * mean) / (0.64 * alpha**2 + sigma**2)
        velocity = world(t, x)
        value = {"velocity": velocity, "target": target, "noise": noise, "score": score}[given_kind]
        found = path.convert(value, t, x, given_kind, "velocity", data_mean=mean)
        torch.testing.assert_close(found, velocity, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [fm.Linear(), fm.Cosine(), fm.Polynomial(2.0)])
@pytest.mark.parametrize("given_kind", ["velocity", "target", "noise"])
def test_the_score_without_noise_is_refused_by_name(schedule, given_kind):
    x = torch.ones(2, 2)
    with pytest.raises(ValueError, match=rf"no noise left .sigma = 0..*the {given_kind} does not tell.*sigma_min > 0"):
        fm.AffinePath(schedule).convert(x, torch.tensor([0.5, 1.0]), x, given_kind, "score")


class Naive(fm.Schedule):
    """A quarter turn as one writes it, whose noise at t = 1 is -4e-8 in float32 and 6e-17 in float64."""

    def alpha(self, t):
        return torch.sin(t * torch.pi / 2)

    def sigma(self, t):
        return torch.cos(t * torch.pi / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_end_that_is_zero_but_for_rounding_has_the_limit_too(dtype):
    path, exact = fm.AffinePath(Naive()), fm.AffinePath(fm.Cosine())
    x = torch.ones(2, 2, dtype=dtype)
    for kind in ("velocity", "noise"):
        found, expected = (p.convert(x + 0.01, 1.0, x, "target", kind) for p in (path, exact))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="no noise left"):
        path.convert(x, 1.0, x, "target", "score")
    assert path.schedule.log_snr(torch.ones((), dtype=dtype)) > 30


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    scalar=st.booleans(),
)
def test_a_row_does_not_know_its_batch(name, shape, kinds, dtype, scalar):
    path = fm.AffinePath(SCHEDULES[name])
    value, x = pair(*shape, dtype=dtype)
    t = torch.tensor(0.3) if scalar else torch.linspace(0.1, 0.9, shape[0])
    found = path.convert(value, t, x, *kinds)
    assert found.shape == x.shape
    assert found.dtype == dtype
    for b in range(shape[0]):
        one = path.convert(value[b : b + 1], t if scalar else t[b], x[b : b + 1], *kinds)
        assert torch.equal(one[0], found[b])


@pytest.mark.parametrize("to", ["velocity", "noise"])
def test_half_precision_is_one_rounding_from_float64(to):
    path = fm.AffinePath()
    x0, x1 = pair(200, 2, dtype=torch.bfloat16)
    t = torch.full((200,), 0.99)
    x = path.position(t, x0, x1)
    exact = path.convert(x1.double(), t.double(), x.double(), "target", to)
    found = path.convert(x1, t, x, "target", to).double()
    assert ((found - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"given": "drift"}, "a kind is one of velocity, target, noise, score, got 'drift'"),
        ({"to": "x1"}, "got 'x1'"),
        ({"value": torch.zeros(3)}, r"one shape, got \(3,\) and \(3, 2\)"),
        ({"t": 1.5}, r"t must lie in \[0.0, 1.0\]"),
        ({"t": torch.zeros(4)}, r"t must have shape"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    base = {"value": torch.zeros(3, 2), "t": 0.5, "x": torch.zeros(3, 2), "given": "target", "to": "noise"}
    with pytest.raises(ValueError, match=message):
        fm.AffinePath().convert(**(base | arguments))


def test_the_velocity_of_a_diffusion_is_refused_beyond_its_interval():
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"t must lie in \[0.0, 0.99999\]"):
        fm.AffinePath(fm.VariancePreserving()).convert(x, 1.0, x, "target", "velocity")
