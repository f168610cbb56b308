"""C2ST: 0.5 where nothing can be told, 1 where all can, and the best accuracy in between."""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch.metrics import c2st


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_half_for_one_law_one_for_two() -> None:
    rows = 400
    same = c2st(normal(rows, 2), normal(rows, 2, seed=1))
    assert abs(same - 0.5) < 5 / math.sqrt(8 * rows)
    assert c2st(normal(200, 2), normal(200, 2, seed=1) + 20) == 1.0


def test_shifted_normals_reach_the_best_accuracy_possible() -> None:
    # Bayes' rule for N(0, 1) against N(2, 1) is right with probability Phi(1).
    rows, best = 500, 0.8413447460685429
    got = c2st(normal(rows, 1), normal(rows, 1, seed=1) + 2)
    assert abs(got - best) < 5 * math.sqrt(best * (1 - best) / (2 * rows))


def test_sees_what_the_marginals_hide() -> None:
    x = normal(400, 2)
    tied = torch.stack([normal(400, seed=2), torch.zeros(400)], 1)
    tied[:, 1] = 0.99 * tied[:, 0] + math.sqrt(1 - 0.99**2) * normal(400, seed=3)
    assert c2st(x, tied) > 0.75


def test_same_seed_same_number_and_any_unit() -> None:
    x, y = normal(80, 2), normal(80, 2, seed=1) + 0.7
    assert c2st(x, y, seed=3) == c2st(x, y, seed=3)
    unit, shift = torch.tensor([1024.0, 0.5]), torch.tensor([8.0, -4.0])
    assert c2st(x, y) == pytest.approx(c2st(x * unit + shift, y * unit + shift), abs=0.02)


def test_one_wild_sample_does_not_hide_the_rest() -> None:
    y = normal(100, 1, seed=1) + 6
    y[0] = 1e4
    assert c2st(normal(100, 1), y) > 0.95


def test_sizes_are_evened_and_capped() -> None:
    # A classifier that always says "y" would be right on 80 % of unequal samples.
    assert c2st(normal(50, 2), normal(200, 2, seed=1)) < 0.5 + 5 / math.sqrt(8 * 50)
    x, y = normal(5000, 2), normal(5000, 2, seed=1)
    got = c2st(x, y, max_rows=20)
    assert got * 40 == pytest.approx(round(got * 40))


def test_tiny_samples_and_constant_columns_work() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.cat([normal(6, 1), torch.ones(6, 1)], 1)
        assert 0 <= c2st(x, x + torch.tensor([9.0, 0.0]), folds=3) <= 1


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="x must have at least 5 rows"):
        c2st(normal(4, 2), normal(9, 2))
    with pytest.raises(ValueError, match="folds >= 2"):
        c2st(normal(9, 2), normal(9, 2), folds=1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        c2st(normal(9, 2), normal(9, 2) / 0)


def test_missing_sklearn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r'pip install "flowmatch\[tables\]"'):
        c2st(normal(9, 2), normal(9, 2))
