"""The condition-aware coupling: every label keeps the law of the source, which plain transport takes away."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowmatch.couplings.conditional import ConditionAware
from flowmatch.couplings.exact import ExactOT
from flowmatch.couplings.independent import Independent
from flowmatch.couplings.partial import PartialOT
from flowmatch.typing import Coupling
from tests.problems import pair, seeded


def _labelled(size, generator, classes=3):
    """A normal source, and data whose label moves it far along the first axis."""
    label = torch.randint(0, classes, (size,), generator=generator)
    x0, z = torch.randn(2, size, 2, generator=generator, dtype=torch.float64)
    return x0, torch.stack((8.0 * label, torch.zeros(size)), 1) + z, label


def _largest_z(coupling, statistic):
    """Over the labels, the z-score of the mean of a statistic of the sources joined to a label; its law's mean is 0.

    Batches are independent, but the rows of one are not, so the unit of the count is the batch.
    """
    generator = seeded(5)
    means = []
    for _ in range(120):
        x0, x1, label = _labelled(48, generator)
        i, j = coupling(x0, x1, label, generator)
        value = statistic(x0[i])
        means.append([value[label[j] == k].mean().item() if (label[j] == k).any() else math.nan for k in range(3)])
    table = torch.tensor(means)
    return ((table.nanmean(0)) / (table.std(0) / len(means) ** 0.5)).abs().max().item()


STATISTICS = {
    "mean along the labels": lambda x: x[:, 0],
    "mean across": lambda x: x[:, 1],
    "variance": lambda x: x[:, 0] ** 2 - 1,
    "tail": lambda x: (x[:, 0] > 1).double() - 0.5 * math.erfc(2**-0.5),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_every_label_keeps_the_law_of_the_source(name):
    assert _largest_z(ConditionAware(), STATISTICS[name]) < 5


def test_plain_optimal_transport_fails_the_same_test():
    assert _largest_z(ExactOT(), STATISTICS["mean along the labels"]) > 50


def test_it_costs_more_than_the_plain_coupling_and_less_than_independent_pairs():
    x0, x1, label = _labelled(200, seeded())

    def cost(coupling):
        i, j = coupling(x0, x1, label, seeded())
        return (x0[i] - x1[j]).square().sum().item()

    assert cost(ExactOT()) < cost(ConditionAware()) < cost(Independent())
    # Within a label the data is a shifted normal: what is left above the shift is the two samples' own distance.
    shift = (8.0 * label).square().sum().item()
    assert cost(ConditionAware()) - shift < 0.5 * (cost(Independent()) - shift)


@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 1000))
def test_every_row_of_both_batches_is_used_once(size, classes, seed):
    x0, x1, label = _labelled(size, seeded(seed), classes)
    i, j = ConditionAware()(x0, x1, label, seeded(seed))
    everyone = torch.arange(size)
    assert i.dtype == j.dtype == torch.long
    assert torch.equal(i, everyone)
    assert torch.equal(j.sort().values, everyone)


def test_within_a_label_no_exchange_is_cheaper():
    x0, x1, label = _labelled(60, seeded())
    i, j = ConditionAware()(x0, x1, label, seeded())
    for k in range(3):
        a, b = x0[i][label[j] == k], x1[j][label[j] == k]
        exchange = ((a[:, None] - a[None]) * (b[:, None] - b[None])).sum(-1)
        assert exchange.min() >= -1e-12


def test_one_label_for_all_is_the_plain_coupling():
    x0, x1 = pair(30, 2)
    for label in (torch.zeros(30, dtype=torch.long), torch.ones(30, dtype=torch.bool), torch.full((30, 1), 7)):
        joined = ConditionAware()(x0, x1, label, seeded())
        assert torch.equal(torch.stack(joined), torch.stack(ExactOT()(x0, x1)))


def test_a_label_of_its_own_for_every_row_leaves_a_random_permutation():
    x0, x1 = pair(200, 2)
    draws = [ConditionAware()(x0, x1, torch.arange(200), seeded(s))[1] for s in range(30)]
    stays = sum((j == torch.arange(200)).sum().item() for j in draws)
    assert stays < 30 + 5 * 30**0.5  # fixed points of a random permutation: mean 1, variance 1


def test_names_of_the_labels_do_not_matter():
    x0, x1, label = _labelled(50, seeded())
    first = ConditionAware()(x0, x1, label, seeded(2))
    renamed = torch.tensor([10**12, -5, 3])[label]
    assert torch.equal(torch.stack(first), torch.stack(ConditionAware()(x0, x1, renamed, seeded(2))))


def test_the_generator_decides():
    x0, x1, label = _labelled(50, seeded())
    first, same, other = (torch.stack(ConditionAware()(x0, x1, label, seeded(s))) for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# --- floating conditions ----------------------------------------------------------------------------------------


def _continuous(size, generator):
    c = torch.randn(size, 1, generator=generator, dtype=torch.float64)
    x0, z = torch.randn(2, size, 2, generator=generator, dtype=torch.float64)
    return x0, c * torch.tensor([3.0, 1.5], dtype=torch.float64) + 0.5 * z, c


def test_the_weight_trades_straightness_for_the_law_of_the_source():
    bias, cost = [], []
    for weight in (0.0, 1.0, 10.0, 1000.0):
        generator, joined, paid = seeded(3), [], []
        for _ in range(30):
            x0, x1, c = _continuous(100, generator)
            i, j = ConditionAware(weight=weight)(x0, x1, c, generator)
            joined.append((x0[i, 0] * c[j, 0]).mean().item())
            paid.append((x0[i] - x1[j]).square().sum(1).mean().item())
        bias.append(sum(joined) / 30)
        cost.append(sum(paid) / 30)
    assert bias[0] > 0.8
    assert bias[0] > 2 * bias[1] > 10 * bias[2] > 0
    assert abs(bias[3]) < 5 / 3000**0.5  # x0 and c independent: a mean of 3000 products of variance 1
    assert cost == sorted(cost)


def test_it_minimises_the_stated_cost():
    x0, x1, c = _continuous(6, seeded())
    coupling = ConditionAware(weight=2.0)
    i, j = coupling(x0, x1, c, seeded(4))
    drawn = c[torch.randperm(6, generator=seeded(4))]
    points = (x0[:, None] - x1).square().sum(-1)
    apart = (drawn - c.T).square()
    cost = points + 2.0 * points.mean() / apart.mean() * apart
    best = min(cost[torch.arange(6), torch.tensor(p)].sum().item() for p in itertools.permutations(range(6)))
    assert cost[i, j].sum().item() == pytest.approx(best, rel=1e-12)


def test_no_weight_or_no_spread_is_the_plain_coupling():
    x0, x1, c = _continuous(40, seeded())
    plain = torch.stack(ExactOT()(x0, x1))
    assert torch.equal(torch.stack(ConditionAware(weight=0.0)(x0, x1, c, seeded())), plain)
    assert torch.equal(torch.stack(ConditionAware()(x0, x1, torch.ones_like(c), seeded())), plain)
    assert torch.equal(torch.stack(ConditionAware()(x0, x1, torch.ones(40, 0), seeded())), plain)


def test_the_unit_of_the_conditions_does_not_matter():
    x0, x1, c = _continuous(40, seeded())
    first = ConditionAware()(x0, x1, c, seeded())
    assert torch.equal(torch.stack(first), torch.stack(ConditionAware()(x0, x1, 1024 * c, seeded())))


def test_a_tree_of_conditions_joins_within_labels_and_near_in_the_rest():
    x0, x1, c = _continuous(80, seeded())
    label, flag = torch.arange(80) % 2, torch.arange(80) % 4 < 2
    tree = {"label": label, "other": (flag, c.float(), None)}
    i, j = ConditionAware()(x0, x1, tree, seeded(4))
    drawn = torch.randperm(80, generator=seeded(4))
    assert torch.equal(label[drawn[i]], label[j])
    assert torch.equal(flag[drawn[i]], flag[j])
    near = (c[drawn[i]] - c[j]).square().mean()
    i, j = ConditionAware()(x0, x1, {"label": label, "other": flag}, seeded(4))
    assert near < 0.2 * (c[drawn[i]] - c[j]).square().mean()


# --- other couplings within a label, shapes and refusals ------------------------------------------------------------


def test_another_coupling_joins_within_each_label():
    x0, x1, label = _labelled(60, seeded())
    i, j = ConditionAware(PartialOT(0.5))(x0, x1, label, seeded(4))
    drawn = torch.randperm(60, generator=seeded(4))
    assert torch.equal(label[drawn[i]], label[j])
    assert len(i.unique()) == len(j.unique()) == len(i)
    for k in range(3):
        a, b = PartialOT(0.5)(x0[label[drawn] == k], x1[label == k])
        best = (x0[label[drawn] == k][a] - x1[label == k][b]).square().sum()
        torch.testing.assert_close((x0[i] - x1[j])[label[j] == k].square().sum(), best)
    i, j = ConditionAware(PartialOT(0.5))(x0[:0], x1[:0], label[:0], seeded())
    assert i.shape == j.shape == (0,)


@pytest.mark.parametrize("shape", [(9, 3, 4, 4), (1, 2), (0, 2), (9,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("floating", [False, True])
def test_any_shape_and_type(shape, dtype, floating):
    x0, x1 = (x.to(dtype) for x in pair(*shape))
    cond = torch.linspace(0, 1, shape[0], dtype=dtype) if floating else torch.arange(shape[0]) % 2
    i, j = ConditionAware()(x0, x1, cond, seeded())
    assert torch.equal(i, torch.arange(shape[0]))
    assert torch.equal(j.sort().values, i)


def test_it_is_a_frozen_coupling():
    assert isinstance(ConditionAware(), Coupling)
    assert ConditionAware() == ConditionAware(ExactOT())
    assert repr(ConditionAware(weight=2.0)) == "ConditionAware(coupling=ExactOT(), weight=2.0)"


@pytest.mark.parametrize("cond", [None, {}, {"label": None}])
def test_without_a_condition_the_error_names_the_plain_coupling(cond):
    with pytest.raises(ValueError, match="without conditions use the coupling itself"):
        ConditionAware()(*pair(3, 2), cond)


@pytest.mark.parametrize(
    ("cond", "error", "match"),
    [
        (torch.arange(4), ValueError, r"the 3 rows of x1 as its leading dimension, got shape \(4,\)"),
        (torch.tensor(1), ValueError, r"leading dimension, got shape \(\)"),
        ((torch.arange(3), torch.zeros(1, 3)), ValueError, r"got shape \(1, 3\)"),
        (torch.tensor([0.0, math.nan, 1.0]), ValueError, "cond has 1 entries that are NaN or infinite"),
        (torch.zeros(3, device="meta"), ValueError, "cond must be on the device of x1, cpu, got meta"),
        (torch.zeros(3, dtype=torch.complex64), TypeError, "cond must be real"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(cond, error, match):
    with pytest.raises(error, match=match):
        ConditionAware()(*pair(3, 2), cond)


def test_floating_conditions_need_the_exact_coupling():
    with pytest.raises(TypeError, match=r"need ConditionAware\(ExactOT\(\), weight=...\), got PartialOT"):
        ConditionAware(PartialOT(0.5))(*pair(3, 2), torch.zeros(3))


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_no_weight_is_refused(weight):
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0, got"):
        ConditionAware(weight=weight)


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one number of rows"):
        ConditionAware()(torch.zeros(2, 2), torch.zeros(3, 2), torch.arange(3))
    with pytest.raises(ValueError, match="x0 has 1 entries"):
        ConditionAware()(torch.tensor([[math.nan]]), torch.zeros(1, 1), torch.arange(1))
