"""Weightings: one error in four units, formulas, finite ends, and a learnt one that finds the size of the loss."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import flowmatch as fm
from tests.problems import SCHEDULES, pair, seeded

KINDS = ("velocity", "target", "noise", "score")
WEIGHTINGS = {
    **{kind: fm.Implied(kind) for kind in KINDS},
    "snr": fm.PowerSNR(1.0),
    "root-snr": fm.PowerSNR(0.5),
    "min-snr": fm.MinSNR(5.0),
    "soft-min-snr": fm.MinSNR(5.0, soft=True),
    "sigmoid": fm.Sigmoid(1.0),
}


def _errors(path, t, x, wrong):
    """The same mistake, told by networks of all four kinds: predictions that differ from the truth."""
    sample = path.sample(t, x, wrong)  # any pair of ends
    target = wrong + 0.3 * torch.sin(x)  # a target prediction that is off
    off = {kind: path.convert(target, t, sample.x_t, "target", kind) for kind in KINDS}
    return sample, off


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "sub-vp", "ve-mild", "polynomial"])
@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS.keys())
def test_a_weighted_loss_does_not_depend_on_what_the_network_predicts(name, weighting):
    path, t = fm.AffinePath(SCHEDULES[name]), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    x0, x1 = pair(19, 3)
    sample, off = _errors(path, t, x0, x1)
    draw = fm.Draw(sample, None)
    losses = [
        fm.FlowMatching(path, predicts=kind, weighting=weighting).loss(lambda t, x, kind=kind: off[kind], draw).values
        for kind in KINDS
    ]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "ve-mild"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_loss_of_a_kind_is_the_one_it_implies(name, kind):
    path, t = fm.AffinePath(SCHEDULES[name]), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    sample, off = _errors(path, t, *pair(19, 3))
    draw = fm.Draw(sample, None)
    plain = fm.FlowMatching(path, predicts=kind).loss(lambda t, x: off[kind], draw).values
    implied = fm.Implied("noise" if kind == "score" else kind)  # a score's error counts in units of the noise
    velocity = fm.FlowMatching(path, weighting=implied).loss(lambda t, x: off["velocity"], draw).values
    torch.testing.assert_close(velocity, plain, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("weighting", "formula"),
    [
        (fm.PowerSNR(0.0), lambda snr: torch.ones_like(snr)),
        (fm.PowerSNR(1.0), lambda snr: snr),
        (fm.PowerSNR(-0.5), lambda snr: snr**-0.5),
        (fm.MinSNR(2.0), lambda snr: snr.clamp(max=2.0)),
        (fm.MinSNR(2.0, soft=True), lambda snr: 2 * snr / (2 + snr)),
    ],
)
def test_formulas_on_the_error_of_the_target(weighting, formula):
    path, t = fm.AffinePath(fm.Cosine()), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    snr = (path.schedule.alpha(t) / path.schedule.sigma(t)) ** 2
    torch.testing.assert_close(weighting(torch.ones_like(t), path, t, "target"), formula(snr), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", [fm.Linear(), fm.Cosine(), fm.Polynomial(2.0), fm.VariancePreserving()])
def test_the_logistic_weight_is_one_function_of_the_ratio_on_every_schedule(schedule):
    """Weight of the noise error times dt, per unit of log-SNR."""
    path, log_snr = fm.AffinePath(schedule), torch.tensor([-4.0, 0.0, 4.0], dtype=torch.float64)
    t = schedule.inverse_log_snr(log_snr)
    h = 1e-6
    rate = (schedule.log_snr(t + h) - schedule.log_snr(t - h)) / (2 * h)
    per_ratio = fm.Sigmoid(0.7)(torch.ones_like(t), path, t, "noise") / rate
    torch.testing.assert_close(per_ratio, torch.sigmoid(0.7 - log_snr), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS.keys())
def test_weights_are_finite_and_not_negative_at_the_ends(name, kind, weighting):
    path = fm.AffinePath(SCHEDULES[name])
    t = torch.tensor(path.interval)
    weights = weighting(torch.ones(2), path, t, kind)
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_any_kind_finds_the_field(kind):
    """Normal data: the best network of each kind is linear in x at one time, and least squares on the loss finds it."""
    std, time = 0.5, 0.6
    path = fm.AffinePath()
    world = fm.GaussianField(torch.zeros(1, dtype=torch.float64), std=std, path=path)

    class At:
        low, high = 0.0, 1.0

        def __call__(self, n, generator=None, device=None, dtype=None):
            return torch.full((n,), time, dtype=dtype)

    slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
    objective = fm.FlowMatching(path, times=At(), predicts=kind)
    optimizer = torch.optim.LBFGS([slope], max_iter=20)
    x1 = std * torch.randn(100_000, 1, generator=seeded(), dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = objective(lambda t, x: slope * x, x1, generator=seeded(1)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    field = fm.Predicts(lambda t, x: slope * x, path, kind)
    x = torch.tensor([[1.0]], dtype=torch.float64)
    assert field(time, x).item() == pytest.approx(world(time, x).item(), abs=0.03)


def test_a_learnt_weighting_finds_the_log_of_the_expected_loss():
    weighting, path = fm.LearnedUncertainty(), fm.AffinePath()
    objective = fm.FlowMatching(path, weighting=weighting)
    assert objective.parameters() == list(weighting.parameters())
    x1 = 2 * torch.randn(4096, 1, generator=seeded())
    generator = seeded(1)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        objective(lambda t, x: t[:, None] * x, x1, generator=generator).mean().backward()
        optimizer.step()
    # v = t x against u = x1 - x0 with x = t x1 + (1 - t) x0, Var x1 = 4:
    t = torch.tensor([0.1, 0.5, 0.9])
    expected = 4 * (t**2 - 1) ** 2 + (t * (1 - t) + 1) ** 2
    torch.testing.assert_close(weighting.log_size(t).detach(), expected.log(), rtol=0, atol=0.15)


def test_a_learnt_weighting_leaves_the_minimiser_alone_and_sits_on_another():
    weighting = fm.LearnedUncertainty(base=fm.Implied("noise"))
    values, t = torch.tensor([2.0, 3.0]), torch.tensor([0.25, 0.5])
    path = fm.AffinePath()
    torch.testing.assert_close(weighting(values, path, t, "velocity").detach(), values * t**2)


# --- importance weights ---


@pytest.mark.parametrize("times", [fm.Uniform(), fm.Stratified()])
def test_uniform_times_have_unit_importance(times):
    objective, plain = (fm.FlowMatching(fm.AffinePath(), times=times, unbiased=flag) for flag in (True, False))
    x1 = pair(64, 2)[1]
    losses = [o(lambda t, x: x.sin(), x1, generator=seeded()).values for o in (objective, plain)]
    torch.testing.assert_close(losses[0], losses[1])


class Early:
    """Times with density 2 (1 - t)."""

    low, high = 0.0, 1.0

    def __call__(self, n, generator=None, device=None, dtype=None):
        return 1 - torch.rand(n, generator=generator, dtype=dtype).sqrt().clamp(min=1e-3)

    def density(self, t):
        return 2 * (1 - t)


def test_the_expected_loss_is_that_of_uniform_times_again():
    x1 = pair(200_000, 1)[1]
    model = lambda t, x: t[:, None] * x.sin()  # noqa: E731
    uniform = fm.FlowMatching(fm.AffinePath())(model, x1, generator=seeded(1)).values
    early = fm.FlowMatching(fm.AffinePath(), times=Early())(model, x1, generator=seeded(2)).values
    unbiased = fm.FlowMatching(fm.AffinePath(), times=Early(), unbiased=True)(model, x1, generator=seeded(3)).values

    def z(a, b):
        return abs(a.mean() - b.mean()) / (a.var() / len(a) + b.var() / len(b)).sqrt()

    assert z(unbiased, uniform) < 4
    assert z(early, uniform) > 8


def test_the_density_counts_on_the_interval_of_the_times():
    """Times on a part of [0, 1]: the unbiased loss is the mean over that part."""
    x1, model = pair(200_000, 1)[1], lambda t, x: t[:, None] * x.sin()
    part = fm.FlowMatching(fm.AffinePath(), times=fm.Uniform(0.2, 0.7))(model, x1, generator=seeded(1)).values
    law = fm.Power(2.0, low=0.2, high=0.7)
    times = fm.FlowMatching(fm.AffinePath(), times=law, unbiased=True)(model, x1, generator=seeded(2)).values
    spread = (part.var() / len(part) + times.var() / len(times)).sqrt()
    assert abs(part.mean() - times.mean()) < 5 * spread


def test_a_whole_data_draw_has_as_many_rows_as_asked_for():
    class Any5:
        whole_data = True

        def __call__(self, x0, x1, cond=None, generator=None):
            return torch.arange(len(x0)), torch.zeros(len(x0), dtype=torch.long)

    sample, cond = fm.FlowMatching(fm.AffinePath(), Any5()).draw(pair(9, 2)[1], cond=torch.arange(9), size=5)
    assert sample.x1.shape == (5, 2)
    assert cond.tolist() == [0] * 5


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    kind=st.sampled_from(KINDS),
    weighting=st.sampled_from([None, *WEIGHTINGS.values()]),
)
def test_losses_are_one_a_row_in_float32_at_least_whatever_the_shape(shape, dtype, kind, weighting):
    objective = fm.FlowMatching(fm.AffinePath(), predicts=kind, weighting=weighting)
    x1 = pair(*shape, dtype=dtype)[1]
    loss = objective(lambda t, x: x.sin(), x1, generator=seeded())
    assert loss.values.shape == loss.t.shape == (shape[0],)
    assert loss.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    draw = objective.draw(x1, generator=seeded())
    for b in range(shape[0] if x1.numel() else 0):  # a row's loss does not know the others
        alone = fm.Draw(fm.PathSample(*(part[b : b + 1] if part is not None else None for part in draw.sample)), None)
        torch.testing.assert_close(objective.loss(lambda t, x: x.sin(), alone).values[0], loss.values[b])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"predicts": "eps"}, ValueError, "predicts must be one of velocity, target, noise, score, got 'eps'"),
        ({"path": fm.BrownianBridge(), "predicts": "noise"}, TypeError, "need an affine path, got BrownianBridge"),
        ({"path": fm.BrownianBridge(), "weighting": fm.MinSNR()}, TypeError, "need an affine path"),
        ({"times": lambda *a, **k: None, "unbiased": True}, ValueError, r"needs times with a method density\(t\)"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fm.FlowMatching(**({"path": fm.AffinePath()} | arguments))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fm.Implied("eps"), "of must be one of"),
        (lambda: fm.PowerSNR(math.inf), "power must be a finite number"),
        (lambda: fm.MinSNR(0.0), "gamma must be a positive number, got 0.0"),
        (lambda: fm.Sigmoid(math.nan), "bias must be a finite number"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
