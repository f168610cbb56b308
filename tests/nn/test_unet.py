"""The U-Net: its levels, what each argument does, and what is refused. The common contract is in test_images.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from flowmatch.nn import UNet
from tests.nn.networks import UNETS, image_inputs, image_net


def _net(shape=(1, 8, 8), **options):
    return UNet(shape, **UNETS | options)


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", ["block", "conv"])
def test_velocity_is_minus_the_inner_network_at_the_noise_share(scale_shift, resample):
    net = image_net("unet", "labels", scale_shift=scale_shift, resample=resample, time_scale=100.0)
    t, x, label = image_inputs(3, "labels")
    assert torch.equal(net(t, x, label), -net.net(x, 100 * (1 - t), label).sample)


def test_channels_are_joined_in_the_order_image_mask_noise():
    net, (t, x, cond) = image_net("unet", "mask", noise=True), image_inputs(3, "mask")
    cond["noise"] = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    plane = cond["noise"][:, None, None, None].expand(3, 1, 8, 8)
    joined = torch.cat([x, cond["image"], cond["mask"].double(), plane], 1)
    assert torch.equal(net(t, x, cond), -net.net(joined, 1000 * (1 - t), cond["label"]).sample)


def test_attention_is_where_it_is_asked_for_and_in_the_middle():
    def heads(**options):
        net = _net(**options)
        return {name.rsplit(".attentions")[0]: m.heads for name, m in net.net.named_modules() if "to_q" in dir(m)}

    assert heads(attention=()) == {"mid_block": 2}
    assert heads(attention=(4,)) == {"mid_block": 2, "down_blocks.1": 2, "up_blocks.0": 2}
    assert heads(attention=(8,), head_channels=4) == {"mid_block": 4, "down_blocks.0": 2, "up_blocks.1": 2}
    assert heads(shape=(1, 4, 8), attention=(8,)) == {"mid_block": 2, "down_blocks.0": 1, "up_blocks.1": 1}


def test_depth_and_width_are_those_asked_for():
    net = _net(channels=16, mults=(1, 3), depth=2).net
    assert [len(block.resnets) for block in net.down_blocks] == [2, 2]
    assert [len(block.resnets) for block in net.up_blocks] == [3, 3]
    assert [block.resnets[-1].out_channels for block in net.down_blocks] == [16, 48]


def test_dropout_acts_in_training_only():
    net, (t, x) = image_net("unet", dropout=0.5), image_inputs(2)
    assert torch.equal(net(t, x), net(t, x))
    net.train()
    assert not torch.equal(net(t, x), net(t, x))


def test_widths_that_share_no_power_of_two_have_groups_that_fit():
    net, (t, x) = image_net("unet", channels=6, head_channels=3), image_inputs(2)
    assert net(t, x).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (1, 14, 14),
            r"multiples of 4, got 14 x 14; resize or pad to 12 or 16 by 12 or 16, or give mults of at most 2",
        ),
        ((1, 16, 9), r"multiples of 4, got 16 x 9; resize or pad to 16 by 8 or 12, or give mults of at most 1 level"),
        ((1, 2, 8), r"got 2 x 8; resize or pad to 4 by 8, or give mults of at most 2 levels"),
    ],
)
def test_sides_that_cannot_be_halved_are_refused_with_those_that_can(shape, message):
    with pytest.raises(ValueError, match=message):
        _net(shape, mults=(1, 2, 2), attention=())


@pytest.mark.parametrize("shape", [(1, 14, 14), (3, 28, 4), (1, 2, 2)])
def test_the_number_of_levels_that_the_refusal_names_will_do(shape):
    levels = {(1, 14, 14): 2, (3, 28, 4): 3, (1, 2, 2): 2}[shape]
    _net(shape, mults=(1,) * levels, attention=())
    with pytest.raises(ValueError, match=f"at most {levels} levels"):
        _net(shape, mults=(1,) * (levels + 1), attention=())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "need channels, depth, head_channels >= 1"),
        ({"mults": ()}, r"mults=\(\)"),
        ({"mults": (1, 0.5)}, "mults of whole numbers >= 1"),
        ({"depth": 0}, "depth=0"),
        ({"dropout": 1.0}, r"dropout must be a share in \[0, 1\), got 1.0"),
        ({"resample": "fir"}, "resample must be 'block' or 'conv', got 'fir'"),
        ({"attention": (16,)}, r"attention must be among the sides of the levels, \[8, 4\], got \[16\]"),
        ({"head_channels": 5}, "head_channels must divide the width wherever there is attention, such as 16, got 5"),
        ({"attention": (8,), "head_channels": 16}, "such as 8, got 16"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _net(**arguments)


def test_without_diffusers_the_extra_is_named_and_the_rest_works():
    code = """
import sys
sys.modules["diffusers"] = None
import flowmatch.nn
import torch
net = flowmatch.nn.DiT((1, 4, 4), hidden=8, depth=1, heads=2)
net(torch.rand(1), torch.zeros(1, 1, 4, 4))
for make in (lambda: flowmatch.nn.UNet((1, 8, 8)), net.to_diffusers):
    try:
        make()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        'UNet needs diffusers: pip install "flowmatch[networks]"',
        'export to diffusers needs diffusers: pip install "flowmatch[networks]"',
    ]


def test_import_of_the_package_loads_no_diffusers():
    code = "import sys, flowmatch; print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
