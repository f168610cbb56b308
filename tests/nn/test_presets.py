"""Sizes with a name: the papers' counts and shapes, and small ones that fit any side."""

from __future__ import annotations

import pytest
import torch

from flowmatch.nn import DiT, UNet, dit_preset, unet_preset

# Lipman et al. 2023, Table 3: side, channels, multipliers, depth, sides with attention.
PAPER = {
    "cifar10": (32, 256, (1, 2, 2, 2), 2, (16,)),
    "imagenet32": (32, 256, (1, 2, 2, 2), 3, (16, 8)),
    "imagenet64": (64, 192, (1, 2, 3, 4), 3, (32, 16, 8)),
    "imagenet128": (128, 256, (1, 1, 2, 3, 4), 3, (32, 16, 8)),
}


def _count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("name", PAPER)
def test_the_u_nets_are_those_of_the_table(name):
    side, channels, mults, depth, attention = PAPER[name]
    with torch.device("meta"):  # shapes without numbers: the largest has half a billion
        net = unet_preset(name, (3, side, side))
    assert (net.channels, net.mults, net.depth, net.attention) == (channels, mults, depth, attention)
    assert (net.head_channels, net.dropout) == (64, 0.0)


def test_the_u_net_of_imagenet_64_is_as_large_as_that_of_dhariwal_and_nichol():
    """Theirs, of the same sizes and 1000 classes, has 296 million parameters."""
    with torch.device("meta"):
        net = unet_preset("imagenet64", (3, 64, 64), classes=1000)
    assert round(_count(net) / 1e6) in (295, 296)


@pytest.mark.parametrize(("name", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_the_transformers_have_the_parameters_of_the_paper(name, millions):
    """Peebles and Xie 2023, Table 1 and section 5, for 4 x 32 x 32 latents of 1000 classes."""
    with torch.device("meta"):
        net = dit_preset(f"DiT-{name}/2", (4, 32, 32), classes=1000)
    assert round(_count(net) / 1e6) == millions


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 14, 14), (3, 32, 32), (1, 7, 7), (3, 9, 12)])
def test_the_small_networks_take_any_sides_and_stay_small(shape):
    for net in (unet_preset("small", shape, classes=10), *([dit_preset("small", shape)] if shape[1] % 2 == 0 else [])):
        assert _count(net) < 1e6
        label = (torch.tensor([10, 0]),) if net.classes else ()
        assert net(torch.rand(2), torch.randn(2, *shape), *label).shape == (2, *shape)


def test_attention_stays_on_its_level_at_other_sides():
    with torch.device("meta"):
        assert unet_preset("cifar10", (1, 24, 24)).attention == (12,)
        assert unet_preset("imagenet64", (3, 32, 32)).attention == (16, 8, 4)


def test_further_arguments_go_before_those_of_the_preset():
    net = unet_preset("small", (1, 8, 8), image=1, mask=True, dropout=0.1, channels=16, attention=(), mults=(1, 2))
    assert (net.image, net.mask, net.dropout, net.channels, net.attention) == (1, True, 0.1, 16, ())
    assert isinstance(net, UNet)
    net = dit_preset("small", (1, 8, 8), patch=4, checkpointing=True)
    assert (net.patch, net.checkpointing) == (4, True)
    assert isinstance(net, DiT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unet_preset("adm", (3, 32, 32)), "no preset 'adm'; there are small, base, cifar10, imagenet32"),
        (lambda: dit_preset("B/2", (3, 32, 32)), "no preset 'B/2'; there are small, DiT-S/2"),
        (lambda: unet_preset("cifar10", (1, 28, 28)), "multiples of 8, got 28 x 28; resize or pad to 24 or 32"),
        (lambda: unet_preset("small", (28, 28)), "shape must be three whole numbers"),
    ],
)
def test_what_is_no_preset_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
