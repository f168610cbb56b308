"""Contract of objectives: what is drawn, what is regressed on what, and that the gradient vanishes at the truth."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from flowmatch import objectives
from tests.problems import PATHS, SCHEDULES, mixture_world, pair, random_mlp, seeded, z_scores


class Shuffle:
    """A coupling that permutes both sides, by its generator."""

    def __call__(self, x0, x1, cond=None, generator=None):
        n = x1.shape[0]
        return torch.randperm(n, generator=generator), torch.randperm(n, generator=generator)


def _zero(t, x, *cond):
    return torch.zeros_like(x)


def test_every_public_objective_is_under_contract():
    offered = {getattr(objectives, name) for name in objectives.__all__}
    listed = {fm.FlowMatching, fm.ScoreAndFlow}  # the latter in test_bridge.py
    assert {kind for kind in offered if hasattr(kind, "loss")} == listed


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_mean_gradient_vanishes_at_the_exact_field(name):
    """Add theta . basis(t, x) to the exact field: at theta = 0 the gradient is zero in the mean, for any basis."""
    path = fm.AffinePath(SCHEDULES[name])
    field, n, generator = mixture_world(path), 20_000, seeded(11)
    scale = path.schedule.sigma_dot(torch.tensor(0.5)).abs().item()
    theta = torch.zeros(n, 5, dtype=torch.float64, requires_grad=True)  # one a sample, for one gradient a sample

    def model(t, x):
        size = x.square().sum(1, keepdim=True).sqrt()
        basis = torch.stack(
            [torch.ones_like(x), x / (1 + size), t[:, None].expand_as(x), x.sin(), x.flip(1).tanh()], dim=1
        )
        return field(t, x) + torch.einsum("bk,bkd->bd", theta, basis) * scale

    objective = fm.FlowMatching(path, times=fm.Uniform(0.0, 0.95))
    objective(model, field.sample(n, generator), generator=generator).values.sum().backward()
    assert z_scores(theta.grad).abs().max() < 5  # 50 scores in all, a false alarm once in 3e4
    theta.grad = None
    objective(
        lambda t, x: model(t, x) + 0.2 * scale, field.sample(n, generator), generator=generator
    ).values.sum().backward()
    assert z_scores(theta.grad).abs().max() > 5


@pytest.mark.parametrize("name", PATHS)
def test_the_loss_is_the_mean_square_distance_to_the_velocity_of_the_path(name):
    path, (x0, x1) = PATHS[name].path, pair(6, 3, 2, 2)
    objective = fm.FlowMatching(path)
    loss = objective(lambda t, x: x.sin(), x1, x0, generator=seeded())
    sample = path.sample(loss.t, x0, x1)
    expected = (sample.x_t.sin() - sample.u_t).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.mean(), expected.mean(), rtol=1e-12, atol=0)
    assert loss.t.min() >= path.interval[0]
    assert loss.t.max() <= path.interval[1]


@pytest.mark.parametrize("coupling", [None, fm.Independent(), Shuffle()])
def test_conditions_follow_the_data_through_the_coupling(coupling):
    n = 50
    x1 = torch.arange(n, dtype=torch.float32)[:, None]
    x0 = -torch.arange(n, dtype=torch.float32)[:, None] - 1
    cond = {"label": torch.arange(n), "parts": [2 * torch.arange(n), (x1.clone(),)]}
    sample, drawn = fm.FlowMatching(fm.AffinePath(), coupling).draw(x1, x0, cond, seeded())
    assert torch.equal(drawn["label"].float(), sample.x1[:, 0])
    assert torch.equal(drawn["parts"][0].float(), 2 * sample.x1[:, 0])
    assert torch.equal(drawn["parts"][1][0], sample.x1)
    moved = isinstance(coupling, Shuffle)
    assert torch.equal(sample.x1, x1) != moved
    assert torch.equal(sample.x0, x0) != moved
    assert torch.equal(sample.x0.sort(0).values, x0.sort(0).values)


@pytest.mark.parametrize("coupling", [None, Shuffle()])
def test_a_call_is_a_draw_and_a_loss(coupling):
    net = random_mlp(2, classes=3)
    objective = fm.FlowMatching(fm.AffinePath(), coupling, fm.Stratified())
    _, x1 = pair(16, 2)
    cond = torch.arange(16) % 3
    whole = objective(net, x1, cond=cond, generator=seeded(1))
    again = objective(net, x1, cond=cond, generator=seeded(1))
    draw = objective.draw(x1, cond=cond, generator=seeded(1))
    split = objective.loss(net, draw)
    other = objective(net, x1, cond=cond, generator=seeded(2))
    assert torch.equal(whole.values, again.values)
    assert torch.equal(whole.values, split.values)
    assert torch.equal(whole.t, split.t)
    assert not torch.equal(whole.values, other.values)
    # A part of the draw has the part of the losses: how a batch is split over devices does not matter.
    part = fm.Draw(fm.PathSample(*(p if p is None else p[3:7] for p in draw.sample)), draw.cond[3:7])
    torch.testing.assert_close(objective.loss(net, part).values, whole.values[3:7], rtol=1e-12, atol=1e-12)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    fm.FlowMatching(fm.AffinePath(), Shuffle(), fm.Stratified())(_zero, torch.zeros(4, 2), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_called_once_and_sees_a_condition_only_if_there_is_one():
    calls = []

    def model(*args):
        calls.append([tuple(a.shape) for a in args])
        return torch.zeros_like(args[1])

    objective = fm.FlowMatching(fm.AffinePath())
    objective(model, torch.zeros(3, 2, 4))
    objective(model, torch.zeros(3, 2, 4), cond=torch.zeros(3, 5))
    assert calls == [[(3,), (3, 2, 4)], [(3,), (3, 2, 4), (3, 5)]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_reduced_in_float32(dtype):
    x0, x1 = pair(8, 4096, dtype=dtype)
    loss = fm.FlowMatching(fm.AffinePath())(lambda t, x: 0.5 * x, x1, x0, generator=seeded())
    assert loss.values.dtype == loss.t.dtype == torch.float32
    sample = fm.AffinePath().sample(loss.t, x0, x1)
    exact = ((0.5 * sample.x_t).double() - sample.u_t.double()).square().mean(1)
    # The same half-precision numbers: only the sum is at stake, which in the half type would be off by a percent.
    torch.testing.assert_close(loss.values.double(), exact, rtol=1e-5, atol=0)


def test_float64_stays_float64():
    loss = fm.FlowMatching(fm.AffinePath())(_zero, torch.ones(3, 2, dtype=torch.float64))
    assert loss.values.dtype == loss.t.dtype == torch.float64


def test_the_source_and_the_times_are_used():
    objective = fm.FlowMatching(fm.AffinePath(), times=fm.Uniform(0.2, 0.4), source=fm.Normal(7.0))
    sample, _ = objective.draw(torch.zeros(4000, 1), generator=seeded())
    assert sample.x0.std() == pytest.approx(7.0, rel=0.06)
    assert sample.t.min() >= 0.2
    assert sample.t.max() < 0.4


def test_gradients_reach_the_model_and_only_the_model():
    net = random_mlp(2)
    fm.FlowMatching(fm.AffinePath())(net, pair(8, 2)[1], generator=seeded()).mean().backward()
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters()]
    assert all(reached)


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (4,)])
def test_small_and_flat_batches(shape):
    loss = fm.FlowMatching(fm.AffinePath())(_zero, torch.ones(shape), generator=seeded())
    assert loss.values.shape == loss.t.shape == shape[:1]


@pytest.mark.parametrize(
    "model", [lambda t, x: x[:, :1], lambda t, x: x.sum(1), lambda t, x: x[:2], lambda t, x: x[None]]
)
def test_a_model_of_wrong_shape_is_refused(model):
    with pytest.raises(
        ValueError, match=r"the model returned shape .* for x of shape \(3, 2\); a velocity has the shape"
    ):
        fm.FlowMatching(fm.AffinePath())(model, torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("x1", "x0", "error", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.long), None, TypeError, r"x1 must be floating point.*x1.float\(\)"),
        ([0.0], None, TypeError, "x1 must be a torch.Tensor"),
        (torch.zeros(3, 2), torch.zeros(3, 3), ValueError, "one shape"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), TypeError, "one dtype"),
    ],
)
def test_bad_batches_are_named(x1, x0, error, message):
    with pytest.raises(error, match=message):
        fm.FlowMatching(fm.AffinePath())(_zero, x1, x0)


def test_a_path_is_asked_for():
    with pytest.raises(
        TypeError, match=r"path must be a flowmatch Path such as fm.AffinePath\(fm.Linear\(\)\), got Linear"
    ):
        fm.FlowMatching(fm.Linear())


@pytest.mark.parametrize("times", [fm.Uniform(), fm.Stratified()])
def test_times_beyond_the_regular_interval_are_refused_before_the_training_starts(times):
    path = fm.AffinePath(fm.VariancePreserving())
    with pytest.raises(
        ValueError, match=rf"reaches beyond \[0.0, 0.99999\].*give {type(times).__name__} with low=0.0 and high=0.99999"
    ):
        fm.FlowMatching(path, times=times)
    fm.FlowMatching(path, times=type(times)(*path.interval))(_zero, torch.zeros(100, 2))
