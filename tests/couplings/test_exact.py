"""The exact coupling: the cheapest permutation, the same each time, for every shape, type and device."""

from __future__ import annotations

import dataclasses

import ot
import pytest
import torch

from flowmatch.couplings.exact import ExactOT
from flowmatch.typing import Coupling
from tests.problems import pair, seeded

SHAPES = pytest.mark.parametrize("shape", [(7, 2), (4, 4), (3, 3, 8, 8), (1, 5), (0, 2), (6,), (130, 1)])


def _total(x0, x1, i, j):
    return (x0[i].double() - x1[j].double()).square().sum().item()


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_point_is_used_once_at_the_least_cost(shape, dtype):
    x0, x1 = (x.to(dtype) for x in pair(*shape))
    i, j = ExactOT()(x0, x1)
    everyone = torch.arange(shape[0])
    assert i.dtype == j.dtype == torch.long
    assert torch.equal(i, everyone)
    assert torch.equal(j.sort().values, everyone)
    if shape[0]:
        flat = [x.double().reshape(shape[0], -1).numpy() for x in (x0, x1)]
        best = shape[0] * ot.emd2([], [], ot.dist(*flat))
        assert _total(x0, x1, i, j) == pytest.approx(best, rel=1e-6 if dtype != torch.float64 else 1e-12)


def test_in_one_dimension_it_sorts():
    x0, x1 = torch.randn(2, 500, generator=seeded(), dtype=torch.float64)
    i, j = ExactOT()(x0, x1)
    order = x0[i].argsort()
    assert torch.equal(x1[j][order], x1.sort().values)


def test_it_undoes_a_permutation_far_from_the_origin():
    x0 = 1e4 + torch.randn(200, 3, generator=seeded())
    order = torch.randperm(200, generator=seeded(1))
    _, j = ExactOT()(x0, x0[order] + 0.01)
    assert torch.equal(order[j], torch.arange(200))


def test_a_pair_far_from_all_others_costs_the_others_no_digits():
    x0, x1 = pair(100, 2)
    x0[0], x1[-1] = 1e5, 1e5
    i, j = ExactOT()(x0, x1)
    assert j[0] == 99
    rest = 99 * ot.emd2([], [], ot.dist(x0[1:].numpy(), x1[:-1].numpy()))
    assert _total(x0, x1, i, j) == pytest.approx(rest, rel=1e-9)


def test_straight_paths_of_two_pairs_do_not_cross():
    # Cyclical monotonicity: no two pairs gain by an exchange.
    x0, x1 = pair(60, 2)
    i, j = ExactOT()(x0, x1)
    a, b = x0[i], x1[j]
    exchange = (a[:, None] - a[None]) * (b[:, None] - b[None])
    assert exchange.sum(-1).min() >= -1e-12


def test_nothing_is_random_and_the_condition_plays_no_part():
    x0, x1 = pair(40, 2)
    state = torch.get_rng_state()
    first = torch.stack(ExactOT()(x0, x1))
    second = torch.stack(ExactOT()(x0, x1, {"label": torch.arange(40)}, seeded(7)))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_sees_no_gradient_and_any_memory_layout():
    x0, x1 = pair(30, 4)
    expected = torch.stack(ExactOT()(x0, x1))
    strided = [x.clone().T.contiguous().T.requires_grad_() for x in (x0, x1)]
    assert torch.equal(torch.stack(ExactOT()(*strided)), expected)


def test_it_is_a_frozen_coupling():
    assert isinstance(ExactOT(), Coupling)
    assert ExactOT() == ExactOT()
    assert repr(ExactOT()) == "ExactOT()"
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExactOT().cost = None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["x0", "x1"])
def test_points_that_are_not_finite_are_refused(which, bad):
    points = dict(zip(("x0", "x1"), pair(5, 2), strict=True))
    points[which][3, 1] = bad
    with pytest.raises(ValueError, match=f"{which} has 1 entries that are NaN or infinite, the first in row 3"):
        ExactOT()(**points)


def test_distances_that_overflow_are_refused():
    x0, x1 = torch.zeros(3, 2), torch.full((3, 2), 3e19)
    x1[0] = -3e19
    with pytest.raises(ValueError, match="scale the points down"):
        ExactOT()(x0, x1)


@pytest.mark.parametrize(
    ("x0", "error", "match"),
    [
        (torch.zeros(2, 2), ValueError, "one number of rows, got 2 and 3"),
        (torch.zeros(3, 3), ValueError, "one event shape"),
        (torch.zeros(3, 2, dtype=torch.long), TypeError, "x0 must be floating point"),
        (torch.zeros(3, 2).double(), TypeError, "one dtype"),
        (torch.zeros(3, 2, device="meta"), ValueError, "one device"),
    ],
)
def test_two_batches_that_do_not_fit_are_refused(x0, error, match):
    with pytest.raises(error, match=match):
        ExactOT()(x0, torch.zeros(3, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_accelerator_gets_the_indices_of_the_cpu():
    x0, x1 = pair(100, 3)
    i, j = ExactOT()(x0.cuda(), x1.cuda())
    assert i.is_cuda
    assert j.is_cuda
    assert torch.equal(torch.stack((i, j)).cpu(), torch.stack(ExactOT()(x0, x1)))
