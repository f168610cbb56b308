"""Contract of schedules: derivatives, ends, finite values on the declared interval, and growing signal to noise."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import flowmatch as fm
from flowmatch import schedules
from tests.problems import SCHEDULES, public_subclasses

#: alpha and sigma at both ends of [0, 1]; None where the class states a deviation that is tested below.
ENDS = {
    "linear": (0.0, 1.0, 1.0, 0.0),
    "linear-min": (0.0, 1.0, 1.0, 0.1),
    "cosine": (0.0, 1.0, 1.0, 0.0),
    "polynomial": (0.0, 1.0, 1.0, 0.0),
    "polynomial-1.5": (0.0, 1.0, 1.0, 0.0),
    "vp": (math.exp(-5.025), math.sqrt(1 - math.exp(-10.05)), 1.0, 0.0),
    "vp-mild": (math.exp(-3.125), math.sqrt(1 - math.exp(-6.25)), 1.0, 0.0),
    "ve": (1.0, 50.0, 1.0, 0.01),
    "ve-mild": (1.0, 4.0, 1.0, 0.1),
    "own": (0.0, 1.0, 1.0, 0.01),
}

EACH = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def _inside(schedule: fm.Schedule, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(*schedule.interval, 401, dtype=dtype)


def test_every_public_schedule_is_under_contract():
    assert public_subclasses(schedules, fm.Schedule) <= {type(s) for s in SCHEDULES.values()}


@EACH
def test_derivatives_are_those_of_forward_mode(schedule):
    t = _inside(schedule)[1:-1]
    for name in ("alpha", "sigma"):
        closed, derived = getattr(schedule, f"{name}_dot")(t), getattr(fm.Schedule, f"{name}_dot")(schedule, t)
        torch.testing.assert_close(closed, derived, rtol=1e-10, atol=1e-10)


@EACH
def test_derivatives_are_those_of_central_differences(schedule):
    t, h = torch.linspace(0.01, 0.98, 98, dtype=torch.float64), 1e-5
    for name in ("alpha", "sigma"):
        function = getattr(schedule, name)
        difference = (function(t + h) - function(t - h)) / (2 * h)
        torch.testing.assert_close(getattr(schedule, f"{name}_dot")(t), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ends_are_as_stated(name, dtype):
    ends, schedule = torch.tensor([0.0, 1.0], dtype=dtype), SCHEDULES[name]
    (alpha0, alpha1), (sigma0, sigma1) = schedule.alpha(ends).tolist(), schedule.sigma(ends).tolist()
    near = 4 * torch.finfo(dtype).eps * 10  # exp(5) magnifies a rounding of the exponent tenfold
    assert (alpha0, sigma0) == pytest.approx(ENDS[name][:2], rel=near, abs=0)
    assert (alpha1, sigma1) == pytest.approx(ENDS[name][2:], rel=near, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_values_and_derivatives_are_finite_on_the_declared_interval(schedule, dtype):
    t = _inside(schedule, dtype)
    for function in (schedule.alpha, schedule.sigma, schedule.alpha_dot, schedule.sigma_dot):
        value = function(t)
        assert value.shape == t.shape
        assert value.dtype == dtype
        assert torch.isfinite(value).all()


@EACH
def test_the_signal_grows_and_the_noise_shrinks(schedule):
    t = _inside(schedule)
    log_snr = schedule.alpha(t).log() - schedule.sigma(t).log()
    assert (log_snr.diff() > 0).all()
    assert (schedule.alpha_dot(t) >= 0).all()
    assert (schedule.sigma_dot(t) <= 0).all()


@EACH
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 1), (0,)])
def test_the_shape_of_time_is_kept(schedule, shape):
    t = torch.full(shape, 0.25)
    for function in (schedule.alpha, schedule.sigma, schedule.alpha_dot, schedule.sigma_dot):
        assert function(t).shape == t.shape


def test_variance_preserving_keeps_the_variance_and_is_singular_beyond_its_interval():
    vp = fm.VariancePreserving()
    t = _inside(vp)
    torch.testing.assert_close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)
    assert vp.interval[1] < 1
    assert vp.sigma_dot(torch.tensor(1.0)) == -torch.inf  # which is why the interval ends before


def test_cosine_keeps_the_variance():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    cosine = fm.Cosine()
    torch.testing.assert_close(cosine.alpha(t) ** 2 + cosine.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("sigma_min", [0.0, 1e-5, 1e-3, 0.3])
def test_linear_ends_at_sigma_min_in_every_type(sigma_min, dtype):
    assert fm.Linear(sigma_min).sigma(torch.tensor(1.0, dtype=dtype)) == torch.tensor(sigma_min, dtype=dtype)


def test_vp_keeps_all_digits_near_the_data():
    vp, t = fm.VariancePreserving(), torch.tensor([1 - 2**-13, 1 - 2**-16], dtype=torch.float32)
    torch.testing.assert_close(vp.sigma(t).double(), vp.sigma(t.double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (fm.Linear, {"sigma_min": 1.0}, r"sigma_min must lie in \[0, 1\), got 1.0"),
        (fm.Linear, {"sigma_min": -0.1}, "sigma_min"),
        (fm.Linear, {"sigma_min": math.nan}, "sigma_min"),
        (fm.Polynomial, {"power": 0.5}, "power must be a finite number >= 1, got 0.5"),
        (fm.Polynomial, {"power": math.inf}, "power"),
        (fm.VariancePreserving, {"beta_min": 0.0}, "0 < beta_min <= beta_max"),
        (fm.VariancePreserving, {"beta_min": 3.0, "beta_max": 2.0}, "got 3.0 and 2.0"),
        (fm.VarianceExploding, {"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        (fm.VarianceExploding, {"sigma_min": 2.0, "sigma_max": 2.0}, "got 2.0 and 2.0"),
    ],
)
def test_arguments_out_of_range_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "own"])
def test_schedules_are_values(name):
    schedule = SCHEDULES[name]
    assert dataclasses.replace(schedule) == schedule
    assert hash(dataclasses.replace(schedule)) == hash(schedule)
    assert eval(repr(schedule), vars(fm)) == schedule
