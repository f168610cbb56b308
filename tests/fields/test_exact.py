"""The exact fields against truths written another way: joint normals, quadrature, brute force, DOP853."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate

import flowmatch as fm
from flowmatch import fields
from tests.problems import GAUSSIAN_PATHS, SCHEDULES, gaussian_world, line_world, mixture_world, pair, seeded

EACH = pytest.mark.parametrize("name", SCHEDULES)
UNDER_CONTRACT = {fm.GaussianField, fm.MixtureField, fm.EmpiricalField}


def _path(name: str) -> fm.AffinePath:
    return fm.AffinePath(SCHEDULES[name])


def _coefficients(path: fm.AffinePath, t: float) -> tuple[torch.Tensor, ...]:
    at, s = torch.tensor(t, dtype=torch.float64), path.schedule
    return s.alpha(at), s.sigma(at), s.alpha_dot(at), s.sigma_dot(at)


def test_every_public_field_is_held_against_a_truth_here():
    assert {getattr(fields, name) for name in fields.__all__} == UNDER_CONTRACT


# --- one Gaussian -------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 0.99])
def test_gaussian_velocity_is_the_conditional_mean_of_two_joint_normals(name, t):
    """cov(velocity, x_t) cov(x_t)^-1 (x - mean), with full matrices in place of the eigenbasis of the code."""
    field = gaussian_world(_path(name))
    alpha, sigma, alpha_dot, sigma_dot = _coefficients(field.path, t)
    mean = torch.tensor([0.7, -0.4], dtype=torch.float64)
    cov = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    x, _ = pair(50, 2)
    gain = (alpha_dot * alpha * cov + sigma_dot * sigma * eye) @ torch.linalg.inv(alpha**2 * cov + sigma**2 * eye)
    truth = alpha_dot * mean + (x - alpha * mean) @ gain.T
    torch.testing.assert_close(field(t, x), truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear-min", "cosine", "vp", "ve-mild", "own"])
def test_transport_is_the_flow_of_the_field(name):
    field = gaussian_world(_path(name))
    start = field.path.interval[0]
    x, _ = pair(3, 2)

    def rhs(t: float, y: np.ndarray) -> np.ndarray:
        return field(t, torch.from_numpy(y.reshape(3, 2))).numpy().ravel()

    truth = integrate.solve_ivp(rhs, (start, 0.95), x.numpy().ravel(), method="DOP853", rtol=1e-8, atol=1e-8).y[:, -1]
    moved = field.transport(x, start, 0.95)
    torch.testing.assert_close(moved, torch.from_numpy(truth.reshape(3, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(field.transport(moved, 0.95, start), x, rtol=1e-9, atol=1e-9)


def test_transport_reaches_the_data_exactly():
    field = gaussian_world()
    x0 = torch.randn(200_000, 2, generator=seeded(), dtype=torch.float64)
    x1 = field.transport(x0, 0.0, 1.0)
    spread = 6 / 200_000**0.5 * 1.5
    torch.testing.assert_close(x1.mean(0), torch.tensor([0.7, -0.4]).double(), rtol=0, atol=spread)
    torch.testing.assert_close(x1.T.cov(), torch.tensor([[1.2, 0.5], [0.5, 0.6]]).double(), rtol=0, atol=2 * spread)


# --- mixtures -----------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_mixture_velocity_is_the_posterior_mean_by_quadrature(name, t):
    """u(x) = int u(x | x1) p(x | x1) q(x1) dx1 / int p(x | x1) q(x1) dx1, Eq. 8, on a line."""
    field = line_world(_path(name))
    x = torch.linspace(-2, 3, 9, dtype=torch.float64)[:, None] * _coefficients(field.path, t)[0]
    x1 = torch.linspace(-6, 8, 4_001, dtype=torch.float64)[:, None]
    prior = line_world().log_prob(1.0, x1).exp()  # the data's own law: the linear path ends on it
    numerator, denominator = [], []
    for point in x:
        here = point.expand_as(x1)
        weight = prior * field.path.conditional_log_prob(t, here, x1).exp()
        numerator.append(torch.trapezoid(weight * field.path.conditional_velocity(t, here, x1)[:, 0], x1[:, 0]))
        denominator.append(torch.trapezoid(weight, x1[:, 0]))
    truth, density = torch.stack(numerator) / torch.stack(denominator), torch.stack(denominator)
    torch.testing.assert_close(field(t, x)[:, 0], truth, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(field.log_prob(t, x).exp(), density, rtol=1e-7, atol=1e-12)


def test_tilted_mixture_velocity_is_the_posterior_mean_by_quadrature():
    field, t = mixture_world(), 0.6
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    x1 = torch.cartesian_prod(axis, axis)
    prior = field.log_prob(1.0, x1).exp()
    for point in torch.tensor([[0.5, 0.1], [-0.4, 0.3], [0.0, -1.0]], dtype=torch.float64):
        here = point.expand_as(x1)
        weight = prior * field.path.conditional_log_prob(t, here, x1).exp()
        truth = (weight[:, None] * field.path.conditional_velocity(t, here, x1)).sum(0) / weight.sum()
        torch.testing.assert_close(field(t, point[None])[0], truth, rtol=1e-7, atol=1e-7)


@EACH
@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_the_velocity_and_the_score_say_the_same(name, t):
    """Two columns of one linear system: score = (alpha v - alpha' x) / (sigma (alpha' sigma - alpha sigma'))."""
    field = mixture_world(_path(name))
    alpha, sigma, alpha_dot, sigma_dot = _coefficients(field.path, t)
    x = (alpha * field.sample(40, generator=seeded()) + sigma * pair(40, 2)[0]).requires_grad_()
    score = torch.autograd.grad(field.log_prob(t, x).sum(), x)[0]
    from_velocity = (alpha * field(t, x) - alpha_dot * x) / (sigma * (alpha_dot * sigma - alpha * sigma_dot))
    torch.testing.assert_close(from_velocity, score, rtol=1e-7, atol=1e-7)


@EACH
def test_the_field_obeys_the_continuity_equation_with_its_density(name):
    field = mixture_world(_path(name))
    t = torch.tensor([0.1, 0.35, 0.6, 0.85], dtype=torch.float64, requires_grad=True)
    at = t.detach()[:, None]
    centre = field.path.schedule.alpha(at) * field.means[:1] + 0.3 * field.path.schedule.sigma(at)
    x = centre.clone().requires_grad_()
    along_t, score = torch.autograd.grad(field.log_prob(t, x).sum(), (t, x))
    divergence = fm.divergence(field, at[:, 0], x.detach())
    balance = along_t + (field(t, x) * score).sum(1) + divergence
    torch.testing.assert_close(balance, torch.zeros_like(balance), rtol=0, atol=1e-7)


def test_mixture_density_is_that_of_torch():
    field = mixture_world()
    cov = torch.tensor(
        [[[0.20, 0.05], [0.05, 0.10]], [[0.15, -0.10], [-0.10, 0.30]], [[0.1, 0.0], [0.0, 0.1]]]
    ).double()
    parts = torch.distributions.MultivariateNormal(field.means, cov)
    truth = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.5, 0.3, 0.2]).double()), parts
    )
    x, _ = pair(100, 2)
    torch.testing.assert_close(field.log_prob(1.0, x), truth.log_prob(x), rtol=1e-6, atol=1e-6)


def test_mixture_samples_have_the_moments_of_the_law():
    field, n = mixture_world(), 100_000
    x = field.sample(n, generator=seeded())
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    mean = weights @ field.means
    error = (x.mean(0) - mean) / (x.std(0) / n**0.5)
    assert error.abs().max() < 5
    # Shares of the components, each within five standard errors of its weight.
    near = torch.cdist(x, field.means).argmin(1).bincount(minlength=3) / n
    assert (near - weights).abs().max() < 0.02
    assert torch.equal(x, field.sample(n, generator=seeded()))


@pytest.mark.parametrize("std", [0.5, torch.tensor([0.5, 0.5, 0.5]), torch.full((3, 2), 0.5), torch.tensor(0.5)])
def test_the_spreads_may_be_given_in_any_shape(std):
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    cov = 0.25 * torch.eye(2).expand(3, 2, 2)
    x = torch.randn(6, 2, generator=seeded())
    one, other = fm.MixtureField(means, std=std), fm.MixtureField(means, cov=cov)
    torch.testing.assert_close(one(0.4, x), other(0.4, x))
    torch.testing.assert_close(one.log_prob(0.4, x), other.log_prob(0.4, x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"means": torch.zeros(2)}, r"means must have shape \(K, D\)"),
        ({"means": torch.zeros(3, 2)}, "give std= or cov=, one of the two"),
        ({"means": torch.zeros(3, 2), "std": 1.0, "cov": torch.eye(2).expand(3, 2, 2)}, "one of the two"),
        ({"means": torch.zeros(3, 2), "std": torch.ones(2)}, r"std must be a number, \(3,\) or \(3, 2\)"),
        ({"means": torch.zeros(3, 2), "std": 0.0}, "std must be positive"),
        ({"means": torch.zeros(3, 2), "cov": torch.eye(2)}, r"cov must have shape \(3, 2, 2\)"),
        ({"means": torch.zeros(1, 2), "cov": torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])}, "positive definite.* is -1"),
        ({"means": torch.zeros(3, 2), "std": 1.0, "weights": torch.ones(2)}, "weights must be 3 positive numbers"),
        ({"means": torch.zeros(2, 2), "std": 1.0, "weights": torch.tensor([1.0, -1.0])}, "weights must be 2 positive"),
    ],
)
def test_laws_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fm.MixtureField(**arguments)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 2, 2)])
def test_points_of_another_shape_are_refused(x):
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
        mixture_world()(0.5, x.double())


@pytest.mark.parametrize("make", [gaussian_world, mixture_world])
def test_a_singular_time_is_refused_by_name_and_the_density_is_not(make):
    field = make(_path("vp"))
    x, _ = pair(2, 2)
    with pytest.raises(ValueError, match=r"0.99999\] \(where the velocity of AffinePath\(VariancePreserving"):
        field(1.0, x)
    torch.testing.assert_close(field.log_prob(1.0, x), make().log_prob(1.0, x), rtol=1e-12, atol=1e-12)


# --- a finite data set --------------------------------------------------------------------------------------------


def _brute_force(path: fm.GaussianPath, data: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One point at a time, one data point at a time, with the public formulas of the path alone."""
    velocities = []
    for b in range(x.shape[0]):
        here = x[b : b + 1]
        logs = torch.cat([path.conditional_log_prob(float(t[b]), here, end[None]) for end in data])
        ends = torch.cat([path.conditional_velocity(float(t[b]), here, end[None]) for end in data])
        velocities.append(torch.einsum("n,n...->...", logs.softmax(0), ends))
    return torch.stack(velocities)


@pytest.mark.parametrize("name", GAUSSIAN_PATHS)
@pytest.mark.parametrize("event", [(2,), (1, 3, 4), ()])
def test_the_field_of_a_data_set_is_the_softmax_over_it(name, event):
    path = GAUSSIAN_PATHS[name].path
    x, data = pair(4, *event)
    t = torch.tensor([0.05, 0.4, 0.8, 0.97], dtype=torch.float64)
    field = fm.EmpiricalField(torch.cat([data, -data, 0.5 * data]), path)
    torch.testing.assert_close(field(t, x), _brute_force(path, field.data, t, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_the_chunk_does_not_matter_even_where_weights_span_hundreds_of_nats(chunk):
    x, data = pair(40, 3)
    data = 5 * data
    t = torch.linspace(0, 0.999, 40, dtype=torch.float64)
    path = fm.AffinePath(fm.Linear(1e-3))
    whole = fm.EmpiricalField(data, path, chunk=data.shape[0])(t, x)
    torch.testing.assert_close(fm.EmpiricalField(data, path, chunk=chunk)(t, x), whole, rtol=1e-9, atol=1e-9)
    assert torch.isfinite(whole).all()


def test_a_data_set_is_a_mixture_of_points():
    x, data = pair(20, 2)
    points = fm.EmpiricalField(data, fm.AffinePath(fm.Linear(0.1)))
    narrow = fm.MixtureField(data, std=1e-6, path=fm.AffinePath(fm.Linear(0.1)))
    torch.testing.assert_close(points(0.7, x), narrow(0.7, x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["data set", "mixture"])
def test_weights_are_computed_in_float32_at_least(dtype, kind):
    x, data = pair(50, 64, dtype=dtype)  # in 64 dimensions log-densities are near -100: to 0.5 in bfloat16
    make = fm.EmpiricalField if kind == "data set" else lambda points: fm.MixtureField(points, std=0.5)
    velocity, exact = make(data)(0.5, x), make(data.double())(0.5, x.double())
    assert velocity.dtype == dtype
    bound = 2 * torch.finfo(dtype).eps * exact.abs() + 1e-4
    assert ((velocity.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_a_time_at_which_the_law_is_a_sum_of_points_is_refused(name):
    x, data = pair(2, 2)
    with pytest.raises(ValueError, match="standard deviation is zero .* use sigma_min > 0 or a time below 1"):
        fm.EmpiricalField(data, _path(name))(torch.tensor([0.5, 1.0]).double(), x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fm.EmpiricalField(torch.zeros(0, 2)), ValueError, "data is empty; give at least one point"),
        (lambda: fm.EmpiricalField(torch.zeros(3, 2), chunk=0), ValueError, "chunk must be at least 1, got 0"),
        (lambda: fm.EmpiricalField(torch.zeros(3, 2, dtype=torch.long)), TypeError, "data must be floating point"),
        (
            lambda: fm.EmpiricalField(torch.zeros(3, 2))(0.5, torch.zeros(3, 3)),
            ValueError,
            r"x must have shape \(B, 2\)",
        ),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("field", [gaussian_world(), mixture_world(), fm.EmpiricalField(pair(5, 2)[1])])
def test_an_empty_batch_has_an_empty_velocity(field):
    assert field(0.5, torch.zeros(0, 2).double()).shape == (0, 2)
    assert field(torch.zeros(0), torch.zeros(0, 2).double()).shape == (0, 2)
