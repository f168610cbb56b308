"""Which rows are compared: none twice, of like condition, and no more than there are."""

from __future__ import annotations

import pytest
import torch

from flowmatch.report.distances import _like, plan
from flowmatch.report.subject import Rows


@pytest.mark.parametrize("train", [1, 40, 9000])
@pytest.mark.parametrize("heldout", [1, 15, 700, 3000])
@pytest.mark.parametrize("samples", [2, 100, 2000])
def test_batches_fit_what_there_is_and_repeat_no_row(train: int, heldout: int, samples: int) -> None:
    draws = plan(train, heldout, samples, torch.Generator().manual_seed(0))
    sizes = {len(index) for index in draws.rows}
    rows = sizes.pop()
    assert not sizes
    assert 1 <= rows <= min(train, heldout)
    assert len(draws.rows) * rows <= max(samples, 1)
    assert draws.together * rows <= min(train, heldout)
    every = torch.cat(draws.rows)
    assert int(every.max()) < heldout
    size = draws.together * rows
    for group in every.split(size):
        assert len(group.unique()) == len(group)
    if samples >= 4 * rows:
        assert len(draws.rows) >= 4


def test_training_rows_have_the_condition_asked_for_and_come_once() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=g)
    asked = torch.tensor([3] * 20 + [0] * 5)
    x = torch.zeros(300, 2)
    picked = _like(Rows(x[:25], asked), Rows(x, labels), classes=4)
    assert torch.equal(labels[picked], asked)
    assert len(picked.unique()) == 25
    ages, wanted = torch.rand(300, 1, generator=g), torch.rand(25, 1, generator=g)
    near = _like(Rows(x[:25], wanted), Rows(x, ages), classes=0)
    assert len(near.unique()) == 25
    assert float((ages[near] - wanted).abs().max()) < 0.06


def test_a_class_that_runs_out_gives_way_to_others() -> None:
    x = torch.zeros(6, 1)
    picked = _like(Rows(x[:4], torch.tensor([1, 1, 1, 1])), Rows(x, torch.tensor([0, 1, 0, 1, 0, 0])), classes=2)
    assert sorted(picked[:2].tolist()) == [1, 3]
    assert len(picked.unique()) == 4
