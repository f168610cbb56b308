"""Sliced and exact Wasserstein distances: laws, closed forms, POT as oracle, floors."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from flowmatch.metrics import sliced_wasserstein, wasserstein
from flowmatch.metrics.wasserstein import wasserstein_1d


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("metric", [sliced_wasserstein, wasserstein])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 27)])
def test_zero_symmetric_and_blind_to_order(metric: Any, n: int, m: int) -> None:
    x, y = normal(n, 3), normal(m, 3, seed=1) + 0.5
    assert metric(x, x.flip(0)) == pytest.approx(0.0, abs=1e-7)
    assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-9)
    assert metric(x, y) == pytest.approx(metric(x.flip(0), y), rel=1e-9)
    assert metric(x, y) > 0


@pytest.mark.parametrize("metric", [sliced_wasserstein, wasserstein])
def test_repeating_every_row_changes_nothing(metric: Any) -> None:
    x, y = normal(12, 2), normal(9, 2, seed=1)
    assert metric(x.repeat(3, 1), y.repeat(2, 1)) == pytest.approx(metric(x, y), rel=1e-9)
    assert metric(x.repeat(3, 1), x) == pytest.approx(0.0, abs=1e-7)


def test_scales_with_the_unit() -> None:
    x, y = normal(30, 4), normal(20, 4, seed=1)
    assert sliced_wasserstein(5 * x, 5 * y) == pytest.approx(5 * sliced_wasserstein(x, y), rel=1e-9)
    assert wasserstein(5 * x, 5 * y) == pytest.approx(5 * wasserstein(x, y), rel=1e-9)


def test_shift_has_its_closed_form() -> None:
    x, m = normal(50, 4), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    assert wasserstein(x, x + m) == pytest.approx(m.norm().item(), rel=1e-9)
    # Var of <theta, m>^2 / |m|^2 is 2 (D - 1) / (D^2 (D + 2)): the band is five standard errors of 4096 directions.
    ratio = sliced_wasserstein(x, x + m, projections=4096) ** 2 / m.square().sum().item()
    assert abs(ratio - 1 / 4) < 5 * math.sqrt(2 * 3 / (16 * 6) / 4096)


def test_rotation_leaves_the_exact_distance_and_nearly_the_sliced_one() -> None:
    x, y = normal(60, 3), 1.5 * normal(60, 3, seed=1) + 1
    turn = torch.linalg.qr(normal(3, 3, seed=2)).Q
    assert wasserstein(x @ turn, y @ turn) == pytest.approx(wasserstein(x, y), rel=1e-9)
    many = [sliced_wasserstein(a, b, projections=4096) for a, b in ((x, y), (x @ turn, y @ turn))]
    assert many[0] == pytest.approx(many[1], rel=0.03)
    assert many[0] < wasserstein(x, y)


@pytest.mark.parametrize(("n", "m"), [(31, 31), (31, 17), (7, 100), (1, 5)])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_same_numbers_as_pot(n: int, m: int, p: float) -> None:
    x, y = normal(n, 5), normal(m, 5, seed=1) + 0.3
    g = torch.Generator().manual_seed(7)
    directions = torch.randn(5, 64, generator=g, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    ours = sliced_wasserstein(x, y, projections=64, p=p, generator=torch.Generator().manual_seed(7))
    theirs = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.numpy(), p=p)
    assert ours == pytest.approx(float(theirs), rel=1e-9)
    line = wasserstein_1d(x[:, :1], y[:, :1], 2.0).item()
    assert line == pytest.approx(ot.emd2_1d(x[:, 0].numpy(), y[:, 0].numpy(), metric="sqeuclidean"), rel=1e-9)
    assert wasserstein(x[:, :1], y[:, :1]) == pytest.approx(sliced_wasserstein(x[:, :1], y[:, :1]), rel=1e-6)


def test_reproducible_without_touching_the_global_generator() -> None:
    x, y = normal(30, 3), normal(30, 3, seed=1)
    before = torch.get_rng_state()
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)
    assert torch.equal(before, torch.get_rng_state())
    other = sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(5))
    assert other != sliced_wasserstein(x, y)


def test_arrays_images_and_single_precision_give_the_same_number() -> None:
    x, y = normal(20, 2, 3), normal(25, 2, 3, seed=1)
    want = sliced_wasserstein(x, y)
    assert sliced_wasserstein(x.numpy(), y.numpy()) == want
    assert sliced_wasserstein(x.flatten(1), y.flatten(1)) == want
    g = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert sliced_wasserstein(x.float(), np.float32(y.numpy()), 999, generator=g[0]) == pytest.approx(
        sliced_wasserstein(x, y, 999, generator=g[1]), rel=0.05
    )


def test_floor_of_the_docstring_holds() -> None:
    for rows, floor in ((100, 0.23), (1000, 0.08)):
        values = [sliced_wasserstein(normal(rows, 8, seed=s), normal(rows, 8, seed=s + 50)) for s in range(5)]
        assert np.mean(values) == pytest.approx(floor, rel=0.15)


def test_bad_input_is_named() -> None:
    x = normal(5, 2)
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        sliced_wasserstein(x, normal(5, 3))
    with pytest.raises(ValueError, match="y has 1 entries that are NaN or infinite, the first in row 3"):
        sliced_wasserstein(x, torch.where(torch.arange(10).reshape(5, 2) == 6, math.nan, x))
    with pytest.raises(ValueError, match=r"x must have at least 1 rows, got shape \(0, 2\)"):
        wasserstein(x[:0], x)
    with pytest.raises(ValueError, match=r"p >= 1, got p=0\.5"):
        wasserstein(x, x, p=0.5)
    with pytest.raises(ValueError, match="projections=0"):
        sliced_wasserstein(x, x, projections=0)


def test_missing_pot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r'pip install "flowmatch\[ot\]"'):
        wasserstein(normal(3, 2), normal(3, 2))
