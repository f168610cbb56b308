"""Contract of couplings: indices, every row used once, the generator, any shape and type, both batches checked.

What each one minimises, and against which oracle, is in its own file.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import flowmatch as fm
from flowmatch import couplings
from tests.problems import pair, seeded

#: True for those that use every point of both batches once.
COUPLINGS = {
    "independent": (fm.Independent(), True),
    "exact": (fm.ExactOT(), True),
    "condition-aware": (fm.ConditionAware(), True),
    "partial": (fm.PartialOT(fraction=1.0), True),
    "sinkhorn": (fm.Sinkhorn(), False),
    "unbalanced": (fm.UnbalancedOT(), False),
}
FITTED = {fm.SemiDiscrete}  # to a data set of its own: test_semidiscrete.py
EACH = pytest.mark.parametrize("name", COUPLINGS)


def _call(name, x0, x1, generator=None):
    return COUPLINGS[name][0](x0, x1, torch.arange(len(x1)) % 2, generator)


def test_every_public_coupling_is_under_contract():
    public = {getattr(couplings, name) for name in couplings.__all__}
    classes = {kind for kind in public if isinstance(kind, type) and "__call__" in vars(kind)}
    listed = {type(coupling) for coupling, _ in COUPLINGS.values()} | FITTED
    assert classes == listed


@EACH
@settings(deadline=None, max_examples=15)
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_indices_point_into_the_batches_whatever_the_shape(name, shape, dtype, seed):
    x0, x1 = pair(*shape, dtype=dtype, seed=seed)
    i, j = _call(name, x0, x1, seeded(seed))
    assert i.dtype == j.dtype == torch.long
    assert i.device == j.device == x1.device
    assert i.shape == j.shape == (shape[0],)
    assert x0[i].shape == x1[j].shape == x1.shape
    if COUPLINGS[name][1]:
        everyone = torch.arange(shape[0])
        assert torch.equal(i.sort().values, everyone)
        assert torch.equal(j.sort().values, everyone)


@EACH
def test_the_generator_decides(name):
    x0, x1 = pair(16, 2)
    first, second = (torch.stack(_call(name, x0, x1, seeded(3))) for _ in range(2))
    assert torch.equal(first, second)


@EACH
def test_it_is_a_coupling_and_an_objective_takes_it(name):
    coupling = COUPLINGS[name][0]
    assert isinstance(coupling, fm.typing.Coupling)
    x0, x1 = pair(8, 2)
    label = torch.arange(8)
    sample, cond = fm.FlowMatching(fm.AffinePath(), coupling).draw(x1, x0, label % 2, seeded())
    rows = (sample.x1[:, None] == x1).all(-1).int().argmax(1)
    assert torch.equal(cond, label[rows] % 2)  # the condition has followed its row


@pytest.mark.parametrize("name", [name for name in COUPLINGS if name != "independent"])  # which does not look
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_point_that_is_not_finite_is_named(name, value, side):
    batches = [x.clone() for x in pair(6, 2)]
    batches[side][4, 1] = value
    with pytest.raises(ValueError, match=f"x{side} has 1 entries that are NaN or infinite, the first in row 4"):
        _call(name, *batches)


@EACH
@pytest.mark.parametrize(
    ("x0", "error"),
    [
        (torch.zeros(3, 4), ValueError),
        (torch.zeros(3, 2, dtype=torch.long), TypeError),
        (torch.zeros(3, 2).double(), TypeError),
    ],
)
def test_two_batches_that_do_not_fit_are_refused(name, x0, error):
    with pytest.raises(error, match="x0"):
        _call(name, x0, torch.zeros(3, 2))


def test_independent_leaves_given_pairs_together():
    i, j = fm.Independent()(*pair(9, 2))
    assert torch.equal(i, j)
