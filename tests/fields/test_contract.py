"""What every exact field must obey, on every path it takes: each law ties two of its answers together."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import flowmatch as fm
from flowmatch import fields
from tests.problems import GAUSSIAN_PATHS, SCHEDULES, gaussian_world, mixture_world, pair, seeded, z_scores

APART = torch.tensor([0.9, 0.6], dtype=torch.float64)

#: Linear in the data, each in its own way: one coefficient, one a dimension, and a shift.
LINEAR_PATHS: dict[str, fm.GaussianPath | fm.AffinePath] = {
    **{name: fm.AffinePath(schedule) for name, schedule in SCHEDULES.items()},
    "even": fm.GaussianPath(lambda t, x1: t**2 * x1, lambda t, x1: 1 - 0.9 * t),
    "per-dimension": fm.GaussianPath(
        lambda t, x1: torch.sin(APART * t) * x1 + t * (1 - t) * 0.4, lambda t, x1: 1 - APART * t**2
    ),
}
OTHER_PATHS = {"own-std": GAUSSIAN_PATHS["gaussian-own-std"].path}


def _diagonal(path):
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    return fm.MixtureField(means, std=torch.tensor([[0.3, 0.7], [0.5, 0.2]]).double(), path=path)


def _points(path):
    return fm.EmpiricalField(pair(40, 2)[1], path, chunk=15, weights=torch.arange(1.0, 41.0))


MAKERS: dict[str, Callable] = {
    "gaussian": gaussian_world,
    "mixture": mixture_world,
    "diagonal mixture": _diagonal,
    "data set": _points,
}
LINEAR = [pytest.param(make, path, id=f"{w}, {p}") for w, make in MAKERS.items() for p, path in LINEAR_PATHS.items()]
ALL = [*LINEAR, *(pytest.param(_points, path, id=f"data set, {p}") for p, path in OTHER_PATHS.items())]
FEW = [case for case in ALL if any(name in case.id for name in ("linear-min", "per-dim", "own-std"))]
EACH = pytest.mark.parametrize(("make", "path"), ALL)
ASK = ("__call__", "score", "posterior_mean", "log_prob")


def test_every_exact_field_is_under_the_contract():
    exact = {getattr(fields, n) for n in fields.__all__ if hasattr(getattr(fields, n), "posterior_mean")}
    assert {type(make(None)) for make in MAKERS.values()} == exact


def _look(field: fm.EmpiricalField | fm.MixtureField, n: int = 12) -> tuple[Tensor, Tensor]:
    """Times spread over the path's interior, and points where the law has its mass."""
    t = torch.linspace(0.08, 0.92, n, dtype=torch.float64)
    return t, field.sample(n, seeded(3), t=t)


@EACH
def test_the_score_is_the_gradient_of_the_log_density(make, path):
    field = make(path)
    t, x = _look(field)
    x.requires_grad_()
    gradient = torch.autograd.grad(field.log_prob(t, x).sum(), x)[0]
    scale = gradient.abs().amax()
    torch.testing.assert_close(field.score(t, x.detach()) / scale, gradient / scale, rtol=1e-8, atol=1e-9)


@EACH
def test_theorem_1_velocity_and_density_obey_the_continuity_equation(make, path):
    """The slope of log p in time by differences, the divergence by forward mode, the score by the field's own word."""
    field = make(path)
    t, x = _look(field)
    h = 1e-5
    along = (field.log_prob(t + h, x) - field.log_prob(t - h, x)) / (2 * h)
    flux = fm.divergence(field, t, x) + (field(t, x) * field.score(t, x)).sum(1)
    scale = 1 + along.abs()
    torch.testing.assert_close(-flux / scale, along / scale, rtol=0, atol=2e-5)


def _affine(path: fm.ConditionalGaussianPath, t: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Scale, shift and std of a path linear in the data, with their slopes by central differences."""

    def at(s: Tensor) -> tuple[Tensor, ...]:
        column, zero = s[:, None], torch.zeros(len(s), 2, dtype=torch.float64)
        shift = path.position(s, zero, zero)
        return (
            path.position(s, zero, zero + 1) - shift,
            shift,
            path.position(s, zero + 1, zero) - shift + 0 * column,
        )

    h = 1e-6
    return at(t), tuple((a - b) / (2 * h) for a, b in zip(at(t + h), at(t - h), strict=True))


@pytest.mark.parametrize(("make", "path"), LINEAR)
def test_velocity_and_score_follow_from_the_posterior_mean(make, path):
    field = make(path)
    t, x = _look(field)
    (a, b, s), (a_dot, b_dot, s_dot) = _affine(field.path, t)
    mean = field.posterior_mean(t, x)
    velocity = a_dot * mean + b_dot + s_dot / s * (x - a * mean - b)
    score = (a * mean + b - x) / s**2
    for value, truth in ((field(t, x), velocity), (field.score(t, x), score)):
        scale = 1 + truth.abs().amax()
        torch.testing.assert_close(value / scale, truth / scale, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("make", "path"), ALL)
def test_samples_at_a_time_have_the_law_of_the_density(make, path):
    """Stein's identity, E[score] = 0 and E[x score^T] = -I, holds for the density's own samples only."""
    field, n = make(path), 4000
    t = torch.tensor(0.6, dtype=torch.float64)
    x = field.sample(n, seeded(4), t=t)
    score = field.score(t, x)
    terms = torch.cat([score, (x[:, :, None] * score[:, None] + torch.eye(2)).flatten(1)], dim=1)
    assert z_scores(terms).abs().max() < 5
    assert torch.equal(x, field.sample(n, seeded(4), t=t))


@pytest.mark.parametrize(
    "path", [fm.AffinePath(fm.Linear(0.05)), fm.AffinePath(fm.VariancePreserving()), LINEAR_PATHS["per-dimension"]]
)
@pytest.mark.parametrize("make", [gaussian_world, mixture_world, _diagonal])
def test_a_large_sample_has_the_field_of_its_law(make, path):
    """Each value within five standard errors of a weighted mean; two ways to it that share no formula."""
    exact = make(path)
    data = exact.sample(40_000, seeded(5))
    field = fm.EmpiricalField(data, path)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    x = exact.sample(4, seeded(6), t=t)
    for b in range(4):
        here = x[b].expand_as(data)
        share = path.conditional_log_prob(float(t[b]), here, data).softmax(0)
        ends = path.conditional_velocity(float(t[b]), here, data)
        for value, truth, terms in (
            (field(t, x)[b], exact(t, x)[b], ends),
            (field.posterior_mean(t, x)[b], exact.posterior_mean(t, x)[b], data),
        ):
            error = (share[:, None] * (terms - value)).square().sum(0).sqrt()
            assert ((value - truth).abs() < 5 * error).all()
            assert (error < 0.1 * (1 + terms.abs().amax())).all()  # else five of them say nothing


@pytest.mark.parametrize(("make", "path"), ALL)
def test_rows_of_a_batch_do_not_meet(make, path):
    field = make(path)
    t, x = _look(field, 5)
    for ask in ASK:
        whole = getattr(field, ask)(t, x)
        rows = torch.cat([getattr(field, ask)(float(s), row[None]) for s, row in zip(t, x, strict=True)])
        torch.testing.assert_close(whole, rows, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["mixture", "data set"])
@given(
    event=st.lists(st.integers(1, 4), max_size=3),
    batch=st.sampled_from(["none", "one", "width"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    scalar=st.booleans(),
)
def test_any_shape_and_type_goes_in_and_comes_out(kind, event, batch, dtype, scalar):
    size = {"none": 0, "one": 1, "width": event[-1] if event else 3}[batch]
    data = torch.randn(3, *event, generator=seeded(), dtype=torch.float64)
    path = fm.AffinePath(fm.Linear(0.1))
    make = (lambda d: fm.MixtureField(d, std=0.5, path=path)) if kind == "mixture" else fm.EmpiricalField
    field, exact = make(data.to(dtype)), make(data.to(dtype).double())
    x = torch.randn(size, *event, generator=seeded(1), dtype=torch.float64).to(dtype)
    t = torch.tensor(0.5) if scalar else torch.arange(size) / 4 + 0.125
    for ask in ASK:
        value, truth = getattr(field, ask)(t, x), getattr(exact, ask)(t, x.double())
        assert value.shape == truth.shape == ((size,) if ask == "log_prob" else x.shape)
        assert value.dtype == (torch.promote_types(dtype, torch.float32) if ask == "log_prob" else dtype)
        bound = 4 * torch.finfo(value.dtype).eps * (1 + truth.abs()) + 1e-5
        assert ((value.double() - truth).abs() <= bound).all()
    assert field.sample(size, seeded(), t=0.5).shape == (size, *event)


@pytest.mark.parametrize(("make", "path"), FEW)
@pytest.mark.parametrize("ask", ASK)
def test_points_and_times_that_do_not_fit_are_refused(make, path, ask):
    field = make(path)
    call = getattr(field, ask)
    x = torch.zeros(3, 2).double()
    for bad in (torch.zeros(3).double(), torch.zeros(3, 3).double(), torch.zeros(3, 2, 2).double()):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
            call(0.5, bad)
    with pytest.raises(TypeError, match="x must be floating point"):
        call(0.5, torch.zeros(3, 2, dtype=torch.long))
    for t in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"t must lie in \[0"):
            call(t, x)
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(B,\) = \(3,\)"):
        call(torch.zeros(2).double(), x)
