"""What a run takes, against the run itself."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowmatch.recipes import ImageConfig, make_image_model
from flowmatch.recipes.estimate import estimate
from flowmatch.train import TrainConfig

CONFIG = ImageConfig(network="dit-small", network_options={"hidden": 16, "depth": 2, "heads": 2})


def test_parameters_and_kept_bytes_are_those_of_the_network():
    shape, train = (1, 8, 8), TrainConfig(batch_size=4, steps=10)
    found = estimate(CONFIG, train, shape, 100, classes=3)
    net = make_image_model(CONFIG, shape, 3)
    assert found.parameters == sum(weight.numel() for weight in net.parameters())
    assert found.state_bytes == 20 * found.parameters
    weights, kept = {weight.untyped_storage().data_ptr() for weight in net.parameters()}, {}
    alive = []

    def keep(tensor):
        alive.append(tensor)
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # Without shapes a fused kernel is not chosen, and what this one keeps is an upper bound for the fused ones.
    plain = sdpa_kernel(SDPBackend.MATH)
    with plain, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(torch.rand(1), torch.randn(1, *shape), torch.tensor([1]))
    assert found.step_bytes / 4 == pytest.approx(sum(kept.values()), rel=0.02)


def test_operations_are_those_of_the_layers():
    """A transformer without attention to speak of: two a weight and token, and those of the embedding a sample."""
    config = ImageConfig(network="dit-small", network_options={"hidden": 64, "depth": 1, "heads": 1})
    found = estimate(config, TrainConfig(), (1, 8, 8), 100)
    net = make_image_model(config, (1, 8, 8))
    tokens, block = 16, net.blocks[0]
    per_token = sum(layer.weight.numel() for layer in (block.read, block.write, block.mlp[0], block.mlp[2]))
    per_token += net.inlet.weight.numel() + net.outlet.weight.numel()
    once = sum(layer.weight.numel() for layer in (block.film, net.film, net.time[0], net.time[2]))
    attention = 2 * 2 * tokens * tokens * 64
    assert found.flops == pytest.approx(2 * (tokens * per_token + once) + attention, rel=0.01)


def test_hours_epochs_and_shares_follow_from_the_options():
    base = estimate(CONFIG, TrainConfig(batch_size=8, steps=100), (1, 8, 8), 200)
    assert (base.epochs, base.steps_per_epoch, base.images) == (4.0, 25.0, 800)
    assert base.hours(2.0) == pytest.approx(800 / 2 / 3600)
    assert base.work == 3.0 * base.flops * 800
    split = estimate(CONFIG, TrainConfig(batch_size=8, steps=100, accumulate=2), (1, 8, 8), 200, processes=2)
    assert split.step_bytes * 4 == base.step_bytes
    without = estimate(CONFIG, TrainConfig(batch_size=8, steps=100, ema=0.0), (1, 8, 8), 200)
    assert without.state_bytes == 16 * without.parameters
    assert "hours at 2 images a second" in base.lines(2.0)[-1]


def test_no_numbers_are_computed():
    with torch.device("meta"):
        net = make_image_model(CONFIG, (1, 8, 8))
    assert all(weight.device.type == "meta" for weight in net.parameters())
