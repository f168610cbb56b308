"""The partial coupling against POT, every choice of pairs, and the full coupling it becomes."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowmatch.couplings.exact import ExactOT
from flowmatch.couplings.partial import PartialOT
from flowmatch.typing import Coupling
from tests.problems import pair, seeded

SIZES = pytest.mark.parametrize(("n", "m"), [(12, 12), (40, 25), (25, 40), (1, 6), (1, 1), (100, 70)])


def _clouds(n, m, *event):
    x0, x1 = torch.randn(n, *event, generator=seeded()), 2 + torch.randn(m, *event, generator=seeded(1))
    return x0.double(), x1.double()


def _total(x0, x1, i, j):
    return (x0[i] - x1[j]).square().sum().item()


@SIZES
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.9, 1.0])
def test_it_joins_the_cheapest_pairs_by_pot(n, m, fraction):
    x0, x1 = _clouds(n, m, 2)
    i, j = PartialOT(fraction)(x0, x1)
    pairs = max(1, round(fraction * min(n, m)))
    assert i.shape == j.shape == (pairs,)
    assert i.dtype == j.dtype == torch.long
    assert len(i.unique()) == len(j.unique()) == pairs
    assert torch.equal(i, i.sort().values)
    cost = ot.dist(x0.numpy(), x1.numpy())
    # Unit weights make the corners of POT's polytope the matchings of k pairs.
    best = (ot.partial.partial_wasserstein(np.ones(n), np.ones(m), cost, m=pairs) * cost).sum()
    assert _total(x0, x1, i, j) == pytest.approx(best, rel=1e-9)


@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 1.0), st.integers(0, 100))
def test_no_other_choice_of_pairs_is_cheaper(n, m, fraction, seed):
    # On a coarse grid, so that many choices tie and points coincide.
    x0, x1 = (torch.randint(0, 4, (size, 1), generator=seeded(seed + size)).double() for size in (n, m))
    i, j = PartialOT(fraction)(x0, x1)
    cost = (x0 - x1.T).square()
    choices = itertools.product(itertools.combinations(range(n), len(i)), itertools.permutations(range(m), len(i)))
    assert _total(x0, x1, i, j) == min(sum(cost[a, b].item() for a, b in zip(*c, strict=True)) for c in choices)


def test_outliers_are_left_out():
    x0, x1 = pair(50, 3)
    x0[[4, 17]] += 100
    x1[[0, 8]] -= 100
    i, j = PartialOT(0.96)(x0, x1)
    assert len(i) == 48
    assert not torch.isin(torch.tensor([4, 17]), i).any()
    assert not torch.isin(torch.tensor([0, 8]), j).any()


def test_the_whole_of_two_equal_batches_is_the_exact_coupling():
    x0, x1 = pair(30, 2)
    assert torch.equal(torch.stack(PartialOT(1.0)(x0, x1)), torch.stack(ExactOT()(x0, x1)))


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_points_that_all_coincide_are_joined_as_often_as_asked(fraction):
    x = torch.ones(10, 2)
    i, j = PartialOT(fraction)(x, x)
    assert len(i.unique()) == len(j.unique()) == len(i) == round(10 * fraction)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_without_points_there_are_no_pairs(n, m):
    i, j = PartialOT(0.5)(torch.zeros(n, 2), torch.zeros(m, 2))
    assert i.shape == j.shape == (0,)
    assert i.dtype == torch.long


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_in_any_type(dtype):
    x0, x1 = (x.to(dtype) for x in _clouds(8, 6, 3, 4, 4))
    assert torch.equal(
        torch.stack(PartialOT(0.5)(x0, x1)),
        torch.stack(PartialOT(0.5)(x0.double().flatten(1), x1.double().flatten(1))),
    )


def test_it_is_a_coupling_in_which_nothing_is_random():
    assert isinstance(PartialOT(0.5), Coupling)
    x0, x1 = pair(20, 2)
    first, second = (torch.stack(PartialOT(0.7)(x0, x1, torch.arange(20), seeded(s))) for s in (0, 1))
    assert torch.equal(first, second)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got"):
        PartialOT(fraction)


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one event shape"):
        PartialOT(0.5)(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="x1 has 1 entries that are NaN"):
        PartialOT(0.5)(torch.zeros(3, 1), torch.tensor([[0.0], [float("nan")]]))
