"""The field of a finite data set against brute force, and what it costs in digits and memory."""

from __future__ import annotations

import math

import pytest
import torch

import flowmatch as fm
from tests.problems import GAUSSIAN_PATHS, SCHEDULES, pair, seeded

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


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "own std"])
@pytest.mark.parametrize("ask", ["__call__", "score", "posterior_mean", "log_prob"])
def test_a_time_at_which_the_law_is_a_sum_of_points_is_refused(name, ask):
    x, data = pair(2, 2)
    own = fm.GaussianPath(lambda t, x1: t * x1, lambda t, x1: (1 - t) * (1 + t * x1**2))
    field = fm.EmpiricalField(data, own if name == "own std" else fm.AffinePath(SCHEDULES[name]))
    with pytest.raises(ValueError, match=r"zero at a time asked for, t = \[0.5, 1.0\].* sigma_min > 0 or a time below"):
        getattr(field, ask)(torch.tensor([0.5, 1.0]).double(), x)


def test_points_may_weigh_differently():
    """A point of weight 3 is three points."""
    x, data = pair(30, 2)
    own = fm.GaussianPath(lambda t, x1: t * x1, lambda t, x1: 1 - t * 0.9 * torch.sigmoid(x1))
    for path in (fm.AffinePath(fm.Linear(0.1)), own):
        heavy = fm.EmpiricalField(data[:3], path, weights=torch.tensor([3, 1, 2]), chunk=2)
        plain = fm.EmpiricalField(data[[0, 0, 0, 1, 2, 2]], path, chunk=4)
        for ask in ("__call__", "score", "posterior_mean", "log_prob"):
            torch.testing.assert_close(getattr(heavy, ask)(0.6, x), getattr(plain, ask)(0.6, x))
    assert heavy.sample(0).shape == (0, 2)
    drawn = heavy.sample(6000, generator=seeded())
    shares = torch.stack([(drawn == point).all(1).double().mean() for point in data[:3]])
    assert (shares - torch.tensor([3, 1, 2]) / 6).abs().max() < 5 * 0.5 / 6000**0.5


@pytest.mark.parametrize("offset", [0.0, 20_000.0])
@pytest.mark.parametrize("s", [1.0, 0.3, 0.03, 1e-3, 1e-6])
@pytest.mark.parametrize("dim", [2, 96])
def test_float32_loses_no_digits_to_the_form_of_the_sum(offset, s, dim):
    """Against differences written out in float64, on the same float32 points, far from zero and near the data."""
    path = fm.AffinePath(fm.VarianceExploding(1e-7, 1.0))  # the mean is x1 itself, so a point is s away from its own
    t = torch.tensor(1 - math.log(s / 1e-7) / math.log(1e7)).double()
    s = float(path.schedule.sigma(t))
    data = torch.randn(150, dim, generator=seeded(), dtype=torch.float64) + offset
    # Each point has a neighbour at about the distance s, so that the weights are no zeros and ones.
    data = torch.cat([data, data + s * torch.randn(150, dim, generator=seeded(2)).double()]).float()
    x = (data[:40].double() + s * torch.randn(40, dim, generator=seeded(1), dtype=torch.float64)).float()
    gaps = x.double()[:, None] - data.double()
    share = (-0.5 * (gaps / s).square().sum(-1)).softmax(1)
    mean = share @ data.double()
    field = fm.EmpiricalField(data, path)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(field.posterior_mean(t.float(), x).double(), mean, rtol=eps, atol=1e-5)
    truth = torch.einsum("bn,bnd->bd", share, -gaps) / s**2
    torch.testing.assert_close(field.score(t.float(), x).double(), truth, rtol=1e-5, atol=2e-5 / s)


def test_a_hundred_thousand_points_are_never_held_in_pairs():
    """Peak memory of a call stays below that of one column a pair, which a plain softmax would need 66 times over."""
    data = torch.randn(100_000, 64, generator=seeded())
    field = fm.EmpiricalField(data, fm.AffinePath(fm.Linear(0.01)))
    x = torch.randn(64, 64, generator=seeded(1))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out._base is None:
                largest = max(largest, out.numel())
            return out

    with Watch():
        field(0.7, x)
    assert largest <= 2 * 2**18 < 100_000 * 64 / 12


@pytest.mark.parametrize("name", ["linear-min", "gaussian-own-std"])
def test_the_field_can_be_differentiated_in_forward_mode(name):
    """The exact divergence of a likelihood, against that of the velocity's own differences."""
    _, data = pair(30, 2)
    field, x, h = fm.EmpiricalField(data, GAUSSIAN_PATHS[name].path), pair(10, 2)[0], 1e-5
    axes = torch.eye(2, dtype=torch.float64) * h
    slopes = [(field(0.6, x + axis) - field(0.6, x - axis))[:, d] / (2 * h) for d, axis in enumerate(axes)]
    torch.testing.assert_close(fm.divergence(field, 0.6, x), sum(slopes), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fm.EmpiricalField(torch.zeros(0, 2)), ValueError, "data is empty; give at least one point"),
        (lambda: fm.EmpiricalField(torch.zeros(3, 2), chunk=0), ValueError, "chunk must be at least 1, got 0"),
        (lambda: fm.EmpiricalField(torch.tensor([[0.0], [torch.nan]])), ValueError, "data has 1 entries that are NaN"),
        (
            lambda: fm.EmpiricalField(torch.zeros(3, 2), weights=torch.ones(2)),
            ValueError,
            r"weights must be 3 positive numbers, one a data point, got shape \(2,\)",
        ),
        (
            lambda: fm.EmpiricalField(torch.zeros(2, 2), weights=torch.tensor([1.0, 0.0])),
            ValueError,
            "smallest of 0; leave out points of weight 0",
        ),
        (
            lambda: fm.EmpiricalField(torch.zeros(3, 2), fm.FunctionPath(lambda t, x0, x1: x0)),
            TypeError,
            "must be Gaussian given x1",
        ),
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
