"""Contract of couplings: indices, every row of the data used once, and both batches checked."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from flowmatch import couplings
from tests.problems import pair, seeded

COUPLINGS = {"independent": fm.Independent()}
EACH = pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS.keys())


def test_every_public_coupling_is_under_contract():
    assert {getattr(couplings, name) for name in couplings.__all__} <= {type(c) for c in COUPLINGS.values()}


@EACH
@pytest.mark.parametrize("shape", [(7, 2), (4, 3, 4, 4), (1, 5), (0, 2), (6,)])
def test_every_row_of_both_batches_is_used_once(coupling, shape):
    x0, x1 = pair(*shape)
    i, j = coupling(x0, x1, generator=seeded())
    everyone = torch.arange(shape[0])
    assert i.dtype == j.dtype == torch.long
    assert torch.equal(i.sort().values, everyone)
    assert torch.equal(j.sort().values, everyone)


@EACH
def test_the_generator_decides(coupling):
    x0, x1 = pair(16, 2)
    first, second = (torch.stack(coupling(x0, x1, generator=seeded(3))) for _ in range(2))
    assert torch.equal(first, second)


@EACH
def test_it_is_a_coupling_and_takes_a_condition(coupling):
    assert isinstance(coupling, fm.typing.Coupling)
    x0, x1 = pair(3, 2)
    i, j = coupling(x0, x1, {"label": torch.arange(3)}, seeded())
    assert i.shape == j.shape == (3,)


@EACH
@pytest.mark.parametrize(
    ("x0", "error"),
    [
        (torch.zeros(2, 3), ValueError),
        (torch.zeros(3, 2, dtype=torch.long), TypeError),
        (torch.zeros(3, 2).double(), TypeError),
    ],
)
def test_two_batches_that_do_not_fit_are_refused(coupling, x0, error):
    with pytest.raises(error, match="x0"):
        coupling(x0, torch.zeros(3, 2))


def test_independent_leaves_given_pairs_together():
    i, j = fm.Independent()(*pair(9, 2))
    assert torch.equal(i, j)
