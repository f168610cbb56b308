"""The transformer: patches, places, its start, and what is refused. The common contract is in test_images.py."""

from __future__ import annotations

import pytest
import torch

from flowmatch.nn import DiT
from tests.nn.networks import image_inputs, image_net


def test_a_patch_goes_back_to_its_place():
    """With no blocks' say and the outlet inverse to the inlet, the answer is minus the image."""
    net = DiT((2, 4, 6), patch=2, hidden=8, depth=1, heads=1).double()
    with torch.no_grad():
        net.places.zero_()
        net.inlet.weight.copy_(torch.eye(8).view(8, 2, 2, 2))
        # Channels lie innermost in what the outlet writes and outermost in what the inlet reads.
        net.outlet.weight.copy_(torch.eye(8).view(2, 2, 2, 8).permute(1, 2, 0, 3).reshape(8, 8))
        net.norm = torch.nn.Identity()
    t, x = image_inputs(3, shape=(2, 4, 6))
    torch.testing.assert_close(net(t, x), -x)


def test_every_place_is_another_and_rows_are_told_from_columns():
    net = DiT((1, 6, 10), patch=2, hidden=16, depth=1, heads=1)
    distances = torch.cdist(net.places, net.places) + 10 * torch.eye(15)
    assert distances.min() > 0.1
    grid = net.places.view(3, 5, 16)
    assert torch.equal(grid[:, :, :8], grid[:1, :, :8].expand(3, -1, -1))  # the column, the same down it
    assert torch.equal(grid[:, :, 8:], grid[:, :1, 8:].expand(-1, 5, -1))  # the row, the same along it


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 12)])
def test_tokens_see_each_other(shape):
    net, (t, x) = image_net("dit", shape=shape), image_inputs(1, shape=shape)
    moved = x.clone()
    moved[..., 0, 0] += 1
    assert ((net(t, moved) - net(t, x)).abs() > 1e-9).all()


def test_blocks_are_the_identity_at_first():
    net = DiT((1, 8, 8), hidden=16, depth=2, heads=2)
    h, told = torch.randn(2, 3, 16), torch.randn(2, 16)
    for block in net.blocks:
        assert torch.equal(block(h, told), h)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 3}, r"patch must divide 8 x 12, as \[1, 2, 4\] do, got 3"),
        ({"hidden": 18, "heads": 2}, "hidden must be a multiple of 4 and of heads=2, got 18"),
        ({"hidden": 16, "heads": 3}, "heads=3, got 16"),
        ({"depth": 0}, "need patch, hidden, depth, heads >= 1"),
    ],
)
def test_sizes_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiT((1, 8, 12), **{"hidden": 16, "depth": 1, "heads": 2} | arguments)
