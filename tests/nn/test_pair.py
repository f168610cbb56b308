"""Pair: two networks on one input, as one module."""

from __future__ import annotations

import torch

import flowmatch as fm
from tests.problems import pair, random_mlp


def test_a_pair_is_its_two_networks():
    first, second = random_mlp(2, seed=1, classes=3), random_mlp(2, seed=2, classes=3)
    both = fm.nn.Pair(first, second)
    t, x, label = torch.linspace(0, 1, 4, dtype=torch.float64), pair(4, 2)[0], torch.tensor([0, 1, 2, 0])
    found = both(t, x, label)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], first(t, x, label))
    assert torch.equal(found[1], second(t, x, label))
    assert len(list(both.parameters())) == 2 * len(list(first.parameters()))


def test_a_pair_is_made_again_from_its_config():
    both = fm.nn.Pair(random_mlp(2), random_mlp(2, seed=1))
    assert repr(fm.nn.Pair(**both.config())) == repr(both)
