"""The closed fields against truths written another way: joint normals, quadrature, DOP853, torch's distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate

import flowmatch as fm
from tests.problems import SCHEDULES, gaussian_world, line_world, mixture_world, pair, seeded

EACH = pytest.mark.parametrize("name", SCHEDULES)


def _path(name: str) -> fm.AffinePath:
    return fm.AffinePath(SCHEDULES[name])


def _coefficients(path: fm.AffinePath, t: float) -> tuple[torch.Tensor, ...]:
    at, s = torch.tensor(t, dtype=torch.float64), path.schedule
    return s.alpha(at), s.sigma(at), s.alpha_dot(at), s.sigma_dot(at)


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


def _torch_mixture(field: fm.MixtureField) -> torch.distributions.Distribution:
    cov = torch.tensor(
        [[[0.20, 0.05], [0.05, 0.10]], [[0.15, -0.10], [-0.10, 0.30]], [[0.1, 0.0], [0.0, 0.1]]]
    ).double()
    parts = torch.distributions.MultivariateNormal(field.means, cov)
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.5, 0.3, 0.2]).double()), parts
    )


def test_mixture_density_is_that_of_torch():
    field = mixture_world()
    x, _ = pair(100, 2)
    torch.testing.assert_close(field.log_prob(1.0, x), _torch_mixture(field).log_prob(x), rtol=1e-6, atol=1e-6)


# --- the ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "vp"])
def test_at_the_data_score_and_posterior_mean_are_the_datas_own(name):
    """Nothing is left of the noise: the score is that of the data's density, and x1 is x."""
    field = mixture_world(_path(name))
    x = pair(50, 2)[0].requires_grad_()
    score = torch.autograd.grad(_torch_mixture(field).log_prob(x).sum(), x)[0]
    torch.testing.assert_close(field.score(1.0, x.detach()), score, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(field.posterior_mean(1.0, x.detach()), x.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "own", "linear-min"])
def test_the_velocity_at_the_data_is_its_own_limit(name):
    field = mixture_world(_path(name))
    x, _ = pair(50, 2)
    h = 1e-5  # the two times before the end point to the value at it: the error of the line is of order h^2
    limit = 2 * field(1 - h, x) - field(1 - 2 * h, x)
    torch.testing.assert_close(field(1.0, x), limit, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "linear-min", "own"])
def test_at_the_source_nothing_is_known_of_the_data(name):
    field = mixture_world(_path(name))
    x, _ = pair(20, 2)
    mean = (torch.tensor([0.5, 0.3, 0.2]).double() @ field.means).expand(20, 2)
    torch.testing.assert_close(field.posterior_mean(0.0, x), mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(field.score(0.0, x), -x, rtol=1e-12, atol=1e-12)


# --- samples and arguments ----------------------------------------------------------------------------------------


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
        ({"means": torch.zeros(0, 2), "std": 1.0}, r"means must have shape \(K, \*event\) with K at least 1"),
        ({"means": torch.full((2, 2), torch.nan), "std": 1.0}, "means has 4 entries that are NaN"),
        ({"means": torch.zeros(3, 2)}, "give std= or cov=, one of the two"),
        ({"means": torch.zeros(3, 2), "std": 1.0, "cov": torch.eye(2).expand(3, 2, 2)}, "one of the two"),
        ({"means": torch.zeros(3, 2), "std": torch.ones(2)}, r"std must be a number, \(3,\) or \(3, 2\)"),
        ({"means": torch.zeros(3, 2), "std": torch.ones(1, 2)}, r"got \(1, 2\)"),
        ({"means": torch.zeros(3, 2), "std": torch.ones(3, 2, 1)}, r"got \(3, 2, 1\)"),
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


# --- paths of one's own -------------------------------------------------------------------------------------------


def _turning(t, x1):
    return torch.sin(t) * (x1 + 0.2 * x1.roll(1, -1))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (fm.GaussianPath(lambda t, x1: t * x1**3, lambda t, x1: 1 - 0.9 * t), "its mean is not linear in x1"),
        (fm.GaussianPath(_turning, lambda t, x1: 1 - 0.9 * t), "its mean is not linear in x1"),
        (fm.GaussianPath(lambda t, x1: t * x1, lambda t, x1: 1 - t * torch.sigmoid(x1)), "its std depends on x1"),
    ],
)
def test_a_path_under_which_a_mixture_does_not_stay_one_is_refused(path, reason):
    with pytest.raises(ValueError, match=rf"{reason}.*EmpiricalField\(data, path\)"):
        mixture_world(path)


def test_a_path_that_is_not_gaussian_is_refused():
    with pytest.raises(TypeError, match="must be Gaussian given x1"):
        mixture_world(fm.FunctionPath(lambda t, x0, x1: (1 - t) * x0 + t * x1))


def test_a_path_of_ones_own_with_the_formulas_of_the_linear_one_is_the_linear_one():
    own = fm.GaussianPath(mean=lambda t, x1: t * x1, std=lambda t, x1: 1 - 0.9 * t)
    one, other = mixture_world(own), mixture_world(fm.AffinePath(fm.Linear(0.1)))
    x, t = pair(30, 2)[0], torch.linspace(0, 1, 30, dtype=torch.float64)
    for ask in ("__call__", "score", "posterior_mean", "log_prob"):
        torch.testing.assert_close(getattr(one, ask)(t, x), getattr(other, ask)(t, x), rtol=1e-10, atol=1e-10)


def test_the_coefficients_may_carry_the_weights_of_a_network():
    """A path whose functions are float32 modules is called in float32, and its answers keep their gradients."""
    layer = torch.nn.Linear(1, 1)
    path = fm.GaussianPath(lambda t, x1: t * x1, lambda t, x1: 1 - t * torch.sigmoid(layer(t)))
    for field in (fm.GaussianField(torch.zeros(2), std=1.0, path=path), fm.EmpiricalField(torch.eye(2), path)):
        field.log_prob(0.5, torch.ones(3, 2)).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


def test_a_full_covariance_has_no_flow_map_where_dimensions_move_apart():
    apart = torch.tensor([0.9, 0.5], dtype=torch.float64)
    path = fm.GaussianPath(lambda t, x1: t * x1, lambda t, x1: 1 - t * apart)
    x, _ = pair(4, 2)
    with pytest.raises(ValueError, match=r"no closed flow map; solve it: fm.solve"):
        gaussian_world(path).transport(x, 0.0, 1.0)
    straight = fm.GaussianField(torch.tensor([0.7, -0.4]).double(), std=torch.tensor([0.5, 2.0]).double(), path=path)
    solved = fm.solve(fm.ODE(straight), x, solver=fm.Dopri5(), rtol=1e-9, atol=1e-9).x
    torch.testing.assert_close(straight.transport(x, 0.0, 1.0), solved, rtol=1e-6, atol=1e-6)


def test_an_infinite_speed_is_named_though_no_interval_was_declared():
    path = fm.GaussianPath(lambda t, x1: t * x1, lambda t, x1: (1 - t) ** 0.5)
    x, _ = pair(2, 2)
    with pytest.raises(ValueError, match=r"infinite speed at a time asked for, t = \[1.0, 1.0\]"):
        mixture_world(path)(1.0, x)
    assert mixture_world(path).score(1.0, x).isfinite().all()


def test_an_image_may_be_an_event():
    """Pixels of their own spread, against the same law written as a vector."""
    means, std = pair(3, 2, 1, 4)[1], 0.3 + torch.rand(3, 2, 1, 4, generator=seeded(), dtype=torch.float64)
    images, rows = fm.MixtureField(means, std=std), fm.MixtureField(means.flatten(1), std=std.flatten(1))
    x, t = pair(4, 2, 1, 4)[0], torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    for ask in ("__call__", "score", "posterior_mean"):
        value = getattr(images, ask)(t, x)
        assert value.shape == x.shape
        torch.testing.assert_close(value.flatten(1), getattr(rows, ask)(t, x.flatten(1)))
    torch.testing.assert_close(images.log_prob(t, x), rows.log_prob(t, x.flatten(1)))
    assert images.sample(5).shape == images.sample(5, t=0.5).shape == (5, 2, 1, 4)
    one = fm.GaussianField(means[0], std=std[0])
    torch.testing.assert_close(one.transport(one.transport(x, 0.0, 0.8), 0.8, 0.0), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_points_on_another_device_are_refused():
    with pytest.raises(ValueError, match="x is on cuda:0 and the field on cpu"):
        mixture_world()(0.5, torch.zeros(2, 2, dtype=torch.float64, device="cuda"))
