"""The MLP field: conditions, its own divergence against the general way, types, and refusals."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from flowmatch.nn import MLP, TimeEmbedding
from tests.problems import random_mlp, seeded

KINDS = {"plain": {}, "labels": {"classes": 4}, "numbers": {"cond_dim": 3}}
EACH = pytest.mark.parametrize("kind", KINDS)


def _inputs(size, dim, kind, dtype=torch.float64):
    generator = seeded(3)
    t = torch.rand(size, generator=generator, dtype=dtype)
    x = torch.randn(size, dim, generator=generator, dtype=dtype)
    cond = {
        "plain": (),
        "labels": (torch.randint(4, (size,), generator=generator),),
        "numbers": (torch.randn(size, 3, generator=generator, dtype=dtype),),
    }[kind]
    return t, x, *cond


def test_every_public_network_is_under_contract():
    elsewhere = {fm.nn.Pair, fm.nn.UNet, fm.nn.DiT, fm.nn.FromDiffusers}  # test_pair, test_images, test_imported
    assert {getattr(fm.nn, name) for name in fm.nn.__all__ if name[0].isupper()} == {MLP, TimeEmbedding} | elsewhere


@EACH
@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_sample_depends_on_itself_alone(kind, size, depth):
    net = random_mlp(5, depth=depth, **KINDS[kind])
    inputs = _inputs(size, 5, kind)
    whole = net(*inputs)
    assert whole.shape == (size, 5)
    for b in range(size):
        torch.testing.assert_close(net(*(part[b : b + 1] for part in inputs))[0], whole[b], rtol=1e-10, atol=1e-12)


@EACH
def test_time_point_and_condition_all_matter(kind):
    net = random_mlp(2, **KINDS[kind])
    inputs = _inputs(6, 2, kind)
    base = net(*inputs)
    for i, part in enumerate(inputs):
        moved = (part + 1) % 4 if part.dtype == torch.long else part * 0.9
        assert ((net(*inputs[:i], moved, *inputs[i + 1 :]) - base).abs().amax(1) > 1e-6).all()


@EACH
@pytest.mark.parametrize(("size", "dim"), [(7, 1), (3, 5), (1, 40), (0, 3)])
@pytest.mark.parametrize("depth", [1, 2])
def test_its_own_divergence_is_the_general_one(kind, size, dim, depth):
    net = random_mlp(dim, depth=depth, **KINDS[kind])
    t, x, *cond = _inputs(size, dim, kind)
    value, trace = net.value_and_divergence(t, x, *cond)
    general = fm.divergence(net, t, x, *cond, method=fm.Exact(chunk=2))
    torch.testing.assert_close(value, net(t, x, *cond), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(trace, general, rtol=1e-10, atol=1e-10)
    if size:  # and the traces of the Jacobian itself, which torch does not take of nothing
        jacobian = torch.autograd.functional.jacobian(lambda points: net(t, points, *cond), x)
        torch.testing.assert_close(trace, torch.einsum("bibi->b", jacobian), rtol=1e-9, atol=1e-9)


def test_its_divergence_does_not_depend_on_how_the_directions_are_cut():
    """A batch large enough that the blocks of directions hold one direction, a part of them, and all."""
    net = random_mlp(6, hidden=64)
    t, x = _inputs(3000, 6, "plain")
    _, trace = net.value_and_divergence(t, x)
    _, few = net.value_and_divergence(t[:10], x[:10])
    _, some = net.value_and_divergence(t[:700], x[:700])
    torch.testing.assert_close(trace[:10], few, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(trace[:700], some, rtol=1e-10, atol=1e-10)


class _Both(torch.nn.Module):
    """A module whose forward is the network's value and divergence."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, x):
        return self.net.value_and_divergence(t, x)


def test_gradients_reach_the_parameters_through_the_divergence():
    both = _Both(random_mlp(3, hidden=4, depth=2))
    inputs = _inputs(2, 3, "plain")
    names = [name for name, _ in both.named_parameters()]

    def run(*values):
        return torch.func.functional_call(both, dict(zip(names, values, strict=True)), inputs)

    assert torch.autograd.gradcheck(run, tuple(p.detach().clone().requires_grad_() for p in both.parameters()))


def test_the_first_field_is_zero_and_learns():
    net = MLP(dim=3)
    t, x = _inputs(4, 3, "plain", torch.float32)
    assert torch.equal(net(t, x), torch.zeros(4, 3))
    (net(t, x) - 1).square().mean().backward()
    assert net.outlet.weight.grad.abs().sum() > 0


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_type_of_the_parameters_rules(kind, dtype):
    net = random_mlp(3, **KINDS[kind]).to(dtype)
    t, x, *cond = _inputs(4, 3, kind, dtype)
    t = t.to(fm.tensors.time_dtype(dtype))
    assert net(t, x, *cond).dtype == dtype
    value, trace = net.value_and_divergence(t, x, *cond)
    assert value.dtype == dtype
    assert torch.isfinite(trace).all()
    if dtype == torch.float32:
        exact = random_mlp(3, **KINDS[kind])
        wide = [c.double() if c.is_floating_point() else c for c in cond]
        torch.testing.assert_close(
            net(t, x, *cond).double(), exact(t.double(), x.double(), *wide), rtol=1e-4, atol=1e-4
        )


def test_one_time_for_all_will_do():
    net, x = random_mlp(2), torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    half = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(net(half, x), net(half.expand(5), x))


@EACH
def test_a_network_is_made_again_from_its_config(kind):
    net = MLP(3, hidden=8, depth=2, **KINDS[kind])
    twin = MLP(**net.config())
    twin.load_state_dict(net.state_dict())
    inputs = _inputs(4, 3, kind, torch.float32)
    assert torch.equal(net(*inputs), twin(*inputs))
    assert twin.config() == net.config()


@pytest.mark.parametrize(
    ("kind", "cond", "error", "message"),
    [
        (
            "plain",
            torch.zeros(4),
            ValueError,
            "this network has no condition, got one; build it with classes= or cond_dim=",
        ),
        ("labels", None, ValueError, r"needs a condition, integer labels of shape \(4,\), got none"),
        ("labels", torch.zeros(3, dtype=torch.long), ValueError, r"integer labels of shape \(4,\), got shape \(3,\)"),
        ("labels", torch.zeros(4, 1, dtype=torch.long), ValueError, r"got shape \(4, 1\)"),
        ("labels", torch.zeros(4), TypeError, "class labels must be integers, got torch.float32"),
        ("numbers", None, ValueError, r"needs a condition, numbers of shape \(4, 3\), got none"),
        ("numbers", torch.zeros(4, 2), ValueError, r"numbers of shape \(4, 3\), got shape \(4, 2\)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(kind, cond, error, message):
    net = MLP(2, hidden=8, depth=1, **KINDS[kind])
    with pytest.raises(error, match=message):
        net(torch.zeros(4), torch.zeros(4, 2), cond)


@pytest.mark.parametrize("x", [torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, 1, 2)])
def test_points_of_another_shape_are_refused(x):
    with pytest.raises(ValueError, match=r"this network takes x of shape \(B, 2\), got \(4"):
        MLP(2, hidden=8)(torch.zeros(4), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "need dim, hidden, depth >= 1"),
        ({"dim": 2, "depth": 0}, "depth=0"),
        ({"dim": 2, "classes": -1}, "classes=-1"),
        ({"dim": 2, "classes": 2, "cond_dim": 3}, "give classes= for labels or cond_dim= for numbers, not both"),
    ],
)
def test_sizes_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)


def test_the_embedding_tells_all_times_apart():
    t = torch.linspace(0, 1, 1001)
    embedded = TimeEmbedding()(t)
    assert embedded.shape == (1001, 16)
    distances = torch.cdist(embedded, embedded) + 10 * torch.eye(1001)
    assert distances.min() > 0.1  # neighbours 1e-3 apart, and the two ends
    assert embedded.abs().max() <= 1
