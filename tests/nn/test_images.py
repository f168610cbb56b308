"""Image networks, all kinds under one contract: shapes, conditions, types, derivatives, guidance, files, refusals."""

from __future__ import annotations

import json

import pytest
import torch

import flowmatch as fm
from flowmatch.data.images import Downsampled, Images, Masked
from flowmatch.nn import DiT, UNet
from flowmatch.tensors import take
from tests.nn.networks import CONDITIONS, SIZES, image_inputs, image_net, shaken
from tests.problems import seeded

KINDS = pytest.mark.parametrize("kind", SIZES)
CONDS = pytest.mark.parametrize("cond", CONDITIONS)


@KINDS
@CONDS
@pytest.mark.parametrize("size", [0, 1, 8])
def test_a_sample_depends_on_itself_alone(kind, cond, size):
    """A batch as large as the sides too, where a time or noise of the wrong shape would go unseen."""
    net, inputs = image_net(kind, cond), image_inputs(size, cond)
    whole = net(*inputs)
    assert whole.shape == (size, 1, 8, 8)
    for b in range(size):
        alone = net(*take(inputs, torch.tensor([b])))
        torch.testing.assert_close(alone[0], whole[b], rtol=1e-9, atol=1e-9)


@KINDS
@CONDS
def test_time_point_and_every_part_of_the_condition_matter(kind, cond):
    net, (t, x, *told) = image_net(kind, cond), image_inputs(4, cond)
    base = net(t, x, *told)

    def changed(*inputs):
        return ((net(*inputs) - base).abs().amax((1, 2, 3)) > 1e-6).all()

    assert changed(0.9 * t, x, *told)
    assert changed(t, 0.9 * x, *told)
    if cond == "labels":
        assert changed(t, x, (told[0] + 1) % 4)
    elif told:
        moves = {"image": lambda v: 0.9 * v, "mask": torch.logical_not, "noise": lambda v: 0.5 * v + 1}
        moves["label"] = lambda v: (v + 1) % 4
        for key, value in told[0].items():
            assert changed(t, x, told[0] | {key: moves[key](value)}), key


@KINDS
def test_one_time_for_all_will_do(kind):
    net, (_, x) = image_net(kind), image_inputs(3)
    each = net(torch.full((3,), 0.3, dtype=torch.float64), x)
    assert torch.equal(net(torch.tensor(0.3, dtype=torch.float64), x), each)
    assert torch.equal(net(0.3, x), each)


@KINDS
@pytest.mark.parametrize("shape", [(3, 4, 12), (2, 8, 4)])
def test_oblong_images_of_several_channels(kind, shape):
    sizes = {"attention": (max(shape[1:]) // 2,)} if kind == "unet" else {}
    net, (t, x) = image_net(kind, shape=shape, **sizes), image_inputs(2, shape=shape)
    velocity = net(t, x)
    assert velocity.shape == x.shape
    assert (net(t, x.flip(3)) - velocity).abs().max() > 1e-3  # it can tell left from right


@KINDS
@CONDS
def test_the_first_field_is_zero_and_every_parameter_learns(kind, cond):
    network, sizes = SIZES[kind]
    net = network((1, 8, 8), **sizes | CONDITIONS[cond])
    t, x, *told = image_inputs(4, cond)
    told = [{key: v.float() if v.is_floating_point() else v for key, v in c.items()} if isinstance(c, dict) else c
            for c in told]  # fmt: skip
    assert torch.equal(net(t, x.float(), *told), torch.zeros(4, 1, 8, 8))
    (net(t, x.float(), *told) - x.float()).square().mean().backward()
    assert sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None) > 0

    full = image_net(kind, cond)
    (full(t, x, *image_inputs(4, cond)[2:]) - x).square().mean().backward()
    still = [name for name, p in full.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias added before a normalisation by groups of one channel, or a key's bias, changes nothing at all.
    assert [name for name in still if not name.endswith(("to_k.bias", "conv1.bias"))] == []


@KINDS
@CONDS
def test_forward_mode_is_the_difference_quotient(kind, cond):
    net, (t, x, *told) = image_net(kind, cond), image_inputs(3, cond)
    direction, h = torch.randn(x.shape, generator=seeded(5), dtype=x.dtype), 1e-6
    value, slope = torch.func.jvp(lambda point: net(t, point, *told), (x,), (direction,))
    quotient = (net(t, x + h * direction, *told) - net(t, x - h * direction, *told)) / (2 * h)
    torch.testing.assert_close(value, net(t, x, *told), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(slope, quotient, rtol=1e-5, atol=1e-7)


@KINDS
def test_forward_mode_in_time_is_reverse_mode(kind):
    """As objectives on flow maps need it. Quotients are no oracle here: a U-Net embeds its time in float32."""
    net, (t, x) = image_net(kind), image_inputs(3)
    _, slope = torch.func.jvp(lambda time: net(time, x), (t,), (torch.ones_like(t),))
    weights = torch.randn(x.shape, generator=seeded(5), dtype=x.dtype)
    time = t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((net(time, x) * weights).sum(), time)
    torch.testing.assert_close((slope * weights).sum((1, 2, 3)), gradient, rtol=1e-6, atol=1e-6)


@KINDS
def test_the_exact_divergence_is_the_trace_and_hutchinson_is_about_it(kind):
    shape = (1, 4, 4)
    net = image_net(kind, shape=shape, **({"attention": (2,)} if kind == "unet" else {}))
    t, x = image_inputs(2, shape=shape)
    exact = fm.divergence(net, t, x)
    jacobian = torch.autograd.functional.jacobian(lambda point: net(t, point), x).reshape(2, 16, 2, 16)
    torch.testing.assert_close(exact, torch.einsum("bibi->b", jacobian), rtol=1e-9, atol=1e-9)
    probes = fm.Hutchinson(probes=64)
    estimates = probes(fm.ODE(net), t, x, probes.tangents(x, seeded()))[1]
    error = estimates.std(1) / 8
    assert ((estimates.mean(1) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize(("kind", "sizes"), [("unet", {"mults": (1,), "attention": (2,)}), ("dit", {"patch": 1})])
def test_a_flow_on_images_has_its_exact_density(kind, sizes):
    """The base density less the log-determinant of the map, had from differences of solves."""
    net = shaken(image_net(kind, shape=(1, 2, 2), **sizes), scale=0.15)
    flow = fm.Flow(net, event_shape=(1, 2, 2), solver=fm.RK4())
    x0, h = torch.randn(4, generator=seeded(3), dtype=torch.float64), 1e-5
    moves = h * torch.eye(4, dtype=torch.float64)
    starts = torch.cat([x0 + moves, x0 - moves, x0[None]]).view(9, 1, 2, 2)
    up, down, end = flow.decode(starts, steps=3).flatten(1).split([4, 4, 1])
    moved = (end - x0).norm()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x0).sum() - torch.linalg.slogdet((up - down) / (2 * h))[1]
    assert moved > 0.1
    found = flow.log_prob(end.view(1, 1, 2, 2), steps=3, divergence=fm.Exact())
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-3)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_type_of_the_parameters_rules_and_time_stays_wide(kind, dtype):
    exact, (t, x) = image_net(kind), image_inputs(4)
    expected, net = exact(t, x), image_net(kind).to(dtype)
    found = net(t.float(), x.to(dtype))
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 0.1, torch.float32: 1e-3}[dtype]
    assert (found.double() - expected).norm() < tolerance * expected.norm()
    # Two times that are one in bfloat16 stay apart.
    near = [net(torch.tensor(time), x.to(dtype)) for time in (0.99, 0.9905)]
    assert not torch.equal(*near)


@KINDS
@CONDS
def test_a_network_is_made_again_from_its_config_as_json(kind, cond):
    net = image_net(kind, cond, checkpointing=True)
    config = json.loads(json.dumps(net.config()))
    twin = type(net)(**config).double().eval()
    twin.load_state_dict(net.state_dict())
    inputs = image_inputs(3, cond)
    assert torch.equal(net(*inputs), twin(*inputs))
    assert twin.config() == net.config()
    assert repr(twin) == repr(net)
    assert len(repr(net)) < 160


@KINDS
@CONDS
def test_a_flow_comes_back_from_its_folder(kind, cond, tmp_path):
    net, (t, x, *told) = image_net(kind, cond), image_inputs(2, cond)
    fm.Flow(net, event_shape=(1, 8, 8)).save(tmp_path)
    back = fm.Flow.load(tmp_path)
    assert type(back.field) is type(net)
    assert torch.equal(back.field(t, x, *told), net(t, x, *told))


@KINDS
def test_checkpointing_changes_neither_value_nor_gradient(kind):
    t, x = image_inputs(2)
    gradients = []
    for saving in (False, True):
        net = image_net(kind, checkpointing=saving).train()
        calls = []
        block = next(
            m for name, m in net.named_modules() if name.endswith(("resnets.0", ".blocks.0")) or name == "blocks.0"
        )
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        net(t, x).square().sum().backward()
        assert len(calls) == 1 + saving  # the block is run again in the backward pass
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    # And forward mode, with its graph, goes through a network that saves memory.
    _, slope = torch.func.jvp(lambda point: net(t, point), (x,), (x,))
    slope.square().sum().backward()
    plain = image_net(kind)
    torch.testing.assert_close(slope, torch.func.jvp(lambda point: plain(t, point), (x,), (x,))[1])


@KINDS
def test_guidance_with_the_empty_label(kind):
    net, (t, x, label) = image_net(kind, "labels"), image_inputs(4, "labels")
    assert net.null == 3
    guided = fm.Guided(net, scale=2.0, null=net.null)
    empty = net(t, x, torch.full((4,), 3))
    torch.testing.assert_close(guided(t, x, label), empty + 2 * (net(t, x, label) - empty))


@KINDS
@pytest.mark.parametrize("cond", ["image", "mask", "noise"])
def test_guidance_with_the_empty_image(kind, cond):
    net, (t, x, told) = image_net(kind, cond), image_inputs(4, cond)
    nothing = {key: torch.zeros_like(value) for key, value in told.items()}
    if "label" in nothing:
        nothing["label"] += 3
    guided = fm.Guided(net, scale=2.0, null=net.null)
    empty = net(t, x, nothing)
    torch.testing.assert_close(guided(t, x, told), empty + 2 * (net(t, x, told) - empty))


@KINDS
def test_the_conditions_of_the_data_fit(kind):
    network, sizes = SIZES[kind]
    pixels = torch.randint(256, (6, 1, 8, 8), generator=seeded(), dtype=torch.uint8)
    images = Images(pixels, labels=torch.arange(6) % 3)
    jobs = [(Downsampled(images, 2, noise=0.3), {"noise": True}), (Masked(images), {"mask": True})]
    for pairs, options in jobs:
        x1, cond = pairs.take(torch.arange(6), seeded())
        net = network((1, 8, 8), classes=3, image=1, **options, **sizes)
        assert net(torch.rand(6, generator=seeded()), x1, cond).shape == x1.shape
        assert list(net.null) == list(cond)  # guidance asks for one order


@KINDS
@pytest.mark.parametrize(
    ("cond", "given", "error", "message"),
    [
        ("plain", torch.zeros(4), ValueError, "this network has no condition, got one; build it with classes= or"),
        ("labels", None, ValueError, r"needs a condition, integer labels of shape \(4,\) in 0..2, or 3 for no class"),
        ("labels", torch.zeros(3, dtype=torch.long), ValueError, r"the labels of shape \(4,\), got shape \(3,\)"),
        ("labels", torch.full((4,), 4), ValueError, "must lie in 0..2, or 3 for no class, got 4 to 4"),
        ("labels", torch.full((4,), -1), ValueError, "got -1 to -1"),
        ("labels", torch.zeros(4), TypeError, "class labels must be integers, got torch.float32"),
        ("labels", {"label": torch.zeros(4)}, ValueError, "got dict"),
        ("image", None, ValueError, "a dict with image, got none"),
        ("image", torch.zeros(4, 2, 8, 8), ValueError, "a dict with image, got Tensor"),
        ("image", {"image": torch.zeros(4, 1, 8, 8)}, ValueError, r"\(4, 2, 8, 8\), got shape \(4, 1, 8, 8\)"),
        ("image", {"image": torch.zeros(4, 2, 8, 8), "label": torch.zeros(4)}, ValueError, r"got \['image', 'label'\]"),
        ("mask", {"image": torch.zeros(4, 1, 8, 8)}, ValueError, r"with image, mask, label, got \['image'\]"),
        (
            "mask",
            {"image": torch.zeros(4, 1, 8, 8), "mask": torch.zeros(4, 1, 8, 8), "label": torch.zeros(4).long()},
            TypeError,
            r'cond\["mask"\] must be boolean, true where the image is known, got torch.float32',
        ),
        (
            "noise",
            {"image": torch.zeros(4, 1, 8, 8), "noise": torch.zeros(4, 1), "label": torch.zeros(4).long()},
            ValueError,
            r'cond\["noise"\] of shape \(4,\), got shape \(4, 1\)',
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(kind, cond, given, error, message):
    with pytest.raises(error, match=message):
        image_net(kind, cond)(torch.zeros(4), torch.zeros(4, 1, 8, 8), given)


@KINDS
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 1, 8, 4), (4, 64), (4,)])
def test_images_of_another_shape_are_refused(kind, shape):
    with pytest.raises(ValueError, match=r"this network takes x of shape \(B, 1, 8, 8\), got \(4"):
        image_net(kind)(torch.zeros(4), torch.zeros(shape))


@KINDS
@pytest.mark.parametrize("t", [torch.zeros(3), torch.zeros(4, 1), torch.tensor(1.5)])
def test_times_that_are_none_are_refused(kind, t):
    with pytest.raises(ValueError, match="t must"):
        image_net(kind)(t, torch.zeros(4, 1, 8, 8))


@pytest.mark.parametrize("network", [UNet, DiT])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (8, 8)}, r"shape must be three whole numbers \(channels, height, width\), got \(8, 8\)"),
        ({"shape": (1, 8, 0)}, "shape must be three whole numbers"),
        ({"shape": (1, 8.0, 8)}, "shape must be three whole numbers"),
        ({"shape": (1, 8, 8), "classes": -1}, "need classes, image >= 0, got classes=-1"),
        ({"shape": (1, 8, 8), "mask": True}, "mask and noise say more of an image: give image="),
        ({"shape": (1, 8, 8), "time_scale": 0.0}, "time_scale must be positive and finite, got 0.0"),
    ],
)
def test_arguments_that_make_no_network_are_refused(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)
