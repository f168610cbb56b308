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
    "sub-vp": (math.exp(-5.025), 1 - math.exp(-10.05), 1.0, 0.0),
    "diffusion-cosine": (0.0, 1.0, 1.0, 0.0),
    "learned": (0.0, 1.0, 1.0, 0.02),
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
        (fm.SubVariancePreserving, {"beta_min": 3.0, "beta_max": 2.0}, "got 3.0 and 2.0"),
        (fm.DiffusionCosine, {"offset": 0.0}, "without one it is fm.Cosine"),
        (fm.Learned, {"degree": 0}, "degree must be at least 1, got 0"),
        (fm.Learned, {"sigma_min": 1.0}, "sigma_min"),
        (fm.Learned, {"degree": 3, "weights": [[0.0], [0.0]]}, r"two lists of degree = 3 numbers, got shape \(2, 1\)"),
        (fm.VarianceExploding, {"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        (fm.VarianceExploding, {"sigma_min": 2.0, "sigma_max": 2.0}, "got 2.0 and 2.0"),
    ],
)
def test_arguments_out_of_range_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("own", "learned")])
def test_schedules_are_values(name):
    schedule = SCHEDULES[name]
    assert dataclasses.replace(schedule) == schedule
    assert hash(dataclasses.replace(schedule)) == hash(schedule)
    assert eval(repr(schedule), vars(fm)) == schedule


# --- signal-to-noise ratio ---


@EACH
def test_the_log_ratio_is_that_of_the_coefficients_and_grows(schedule):
    t = _inside(schedule)[1:-1]
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(log_snr.exp(), (schedule.alpha(t) / schedule.sigma(t)) ** 2, rtol=1e-10, atol=0)
    assert (log_snr.diff() > 0).all()


@EACH
def test_the_inverse_undoes_the_log_ratio_ends_included(schedule):
    t = _inside(schedule)
    torch.testing.assert_close(schedule.inverse_log_snr(schedule.log_snr(t)), t, rtol=0, atol=1e-14)


@EACH
def test_a_closed_inverse_is_that_of_bisection(schedule):
    log_snr = torch.linspace(-30.0, 30.0, 121, dtype=torch.float64)
    derived = fm.Schedule.inverse_log_snr(schedule, log_snr)
    torch.testing.assert_close(schedule.inverse_log_snr(log_snr), derived, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_a_ratio_beyond_the_schedule_gives_the_nearer_end(schedule, dtype):
    ends = torch.tensor([-torch.inf, torch.inf], dtype=dtype)
    expected = torch.tensor(schedule.interval, dtype=dtype)
    for inverse in (schedule.inverse_log_snr, lambda ratio: fm.Schedule.inverse_log_snr(schedule, ratio)):
        assert torch.equal(inverse(ends), expected)
        assert inverse(ends).dtype == dtype


@pytest.mark.parametrize("schedule", [fm.Polynomial(3.0), fm.SubVariancePreserving(), fm.DiffusionCosine()])
def test_noise_near_the_data_keeps_all_digits_in_float32(schedule):
    t = torch.tensor([1 - 2**-13, 1 - 2**-16], dtype=torch.float32)
    torch.testing.assert_close(schedule.sigma(t).double(), schedule.sigma(t.double()), rtol=2e-6, atol=0)


def test_trigonometric_is_the_quarter_turn():
    assert fm.Trigonometric is fm.Cosine


def test_the_cosine_of_diffusion_tends_to_the_quarter_turn():
    t = torch.linspace(0.0, 0.99, 50, dtype=torch.float64)
    for name in ("alpha", "sigma"):
        near, limit = getattr(fm.DiffusionCosine(1e-7), name)(t), getattr(fm.Cosine(), name)(t)
        torch.testing.assert_close(near, limit, rtol=0, atol=1e-5)


def test_the_cosine_of_diffusion_is_the_published_formula():
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    f = lambda s: torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    expected = f(1 - t) / f(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(fm.DiffusionCosine().alpha(t) ** 2, expected, rtol=1e-12, atol=1e-15)


# --- a learned schedule ---


def test_a_fresh_learned_schedule_is_the_straight_one():
    t, learned, straight = torch.linspace(0, 1, 33), fm.Learned(degree=7, sigma_min=0.1), fm.Linear(0.1)
    for name in ("alpha", "sigma", "alpha_dot", "sigma_dot"):
        torch.testing.assert_close(getattr(learned, name)(t), getattr(straight, name)(t))


def test_a_learned_schedule_comes_near_another_one():
    target, learned, t = fm.Cosine(), fm.Learned(degree=12), torch.linspace(0, 1, 101)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(600):
        loss = (learned.alpha(t) - target.alpha(t)).square().mean() + (
            learned.sigma(t) - target.sigma(t)
        ).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4  # degree 12 is not the sine itself
    assert learned.alpha(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_the_least_kinetic_energy_is_that_of_constant_speed():
    """Normal data of spread 3: the energy of the marginal flow is the integral of the square of d/dt s(t)."""
    learned = fm.Learned(degree=8).double()
    field = fm.GaussianField(torch.zeros(1, dtype=torch.float64), std=3.0, path=fm.AffinePath(learned))
    optimizer, generator = torch.optim.Adam(learned.parameters(), lr=0.2), torch.Generator().manual_seed(0)

    def energy(n: int) -> torch.Tensor:
        t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        spread = (9 * learned.alpha(t) ** 2 + learned.sigma(t) ** 2).sqrt()
        x = spread[:, None] * torch.randn(n, 1, dtype=torch.float64, generator=generator).sign()  # second moment exact
        return field(t, x).square().mean()

    start = energy(500).item()
    for _ in range(300):
        optimizer.zero_grad()
        energy(64).backward()
        optimizer.step()
    end = energy(500).item()
    assert start > 5  # the straight schedule is not of constant speed
    assert 4 <= end < 4.06  # (3 - 1)^2, the squared Wasserstein distance, is the least; 8 degrees come this near


def test_gradients_of_an_objective_reach_the_schedule():
    learned = fm.Learned(degree=4)
    x1 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    objective = fm.FlowMatching(fm.AffinePath(learned))
    objective(lambda t, x: -x, x1, generator=torch.Generator().manual_seed(1)).mean().backward()
    assert torch.isfinite(learned.weights.grad).all()
    assert (learned.weights.grad != 0).all()


def test_a_learned_schedule_is_made_again_from_its_config():
    learned = SCHEDULES["learned"]
    again, t = fm.Learned(**learned.config()), torch.linspace(0, 1, 9)
    assert torch.equal(again.alpha(t), learned.alpha(t))
    assert torch.equal(again.sigma(t), learned.sigma(t))
