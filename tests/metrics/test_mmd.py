"""MMD: laws, the closed form for two normals, a plain double loop as oracle, floors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowmatch.metrics import mmd


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x: Tensor, y: Tensor, h: float) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-(a - b).square().sum().item() / (2 * h * h))

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_equals_the_double_loop() -> None:
    x, y = normal(9, 3), normal(7, 3, seed=1) + 0.5
    assert mmd(x, y, bandwidth=1.3) == pytest.approx(by_hand(x, y, 1.3), rel=1e-10)


def test_symmetric_and_blind_to_rotation_shift_and_order() -> None:
    x, y = normal(40, 3), normal(30, 3, seed=1) + 0.5
    turn = torch.linalg.qr(normal(3, 3, seed=2)).Q
    want = mmd(x, y, bandwidth=1.0)
    assert mmd(y, x, bandwidth=1.0) == pytest.approx(want, rel=1e-9)
    assert mmd(x @ turn + 7, y @ turn + 7, bandwidth=1.0) == pytest.approx(want, rel=1e-7)
    assert mmd(x.flip(0), y, bandwidth=1.0) == pytest.approx(want, rel=1e-9)


def test_median_bandwidth_follows_the_unit() -> None:
    x, y = normal(40, 3), normal(30, 3, seed=1) + 0.5
    assert mmd(1000 * x, 1000 * y) == pytest.approx(mmd(x, y), rel=1e-6)
    pooled = torch.pdist(torch.cat([x, y])).median().item()
    assert mmd(x, y) == pytest.approx(mmd(x, y, bandwidth=pooled), rel=1e-9)


def test_expectation_for_two_normals() -> None:
    dim, h = 3, 1.5
    m = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    exact = 2 * (h**2 / (h**2 + 2)) ** (dim / 2) * (1 - math.exp(-m.square().sum().item() / (2 * (h**2 + 2))))
    pairs = [(normal(300, 3, seed=s), normal(250, 3, seed=s + 99) + m) for s in range(30)]
    values = torch.tensor([mmd(x, y, bandwidth=h) for x, y in pairs])
    assert abs(values.mean().item() - exact) < 4 * values.std().item() / math.sqrt(30)


def test_unbiased_at_equality_with_the_floor_of_the_docstring() -> None:
    values = torch.tensor([mmd(normal(1000, 2, seed=s), normal(1000, 2, seed=s + 99)) for s in range(20)])
    spread = values.std().item()
    assert abs(values.mean().item()) < 4 * spread / math.sqrt(20)
    assert 3e-4 < spread < 1.4e-3


def test_a_set_against_itself_has_its_stated_value() -> None:
    x, h = normal(50, 2), 1.0
    kernel = (-torch.cdist(x, x).square() / (2 * h * h)).exp()
    mean_off = (kernel.sum().item() - 50) / (50 * 49)
    assert mmd(x, x, bandwidth=h) == pytest.approx(-2 * (1 - mean_off) / 50, rel=1e-9)


def test_chunks_do_not_show() -> None:
    x, y = normal(1500, 2), normal(1100, 2, seed=1)
    xx, yy, xy = ((-torch.cdist(a, b).square() / 2).exp() for a, b in ((x, x), (y, y), (x, y)))
    within = sum((k.sum().item() - len(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
    assert mmd(x, y, bandwidth=1.0) == pytest.approx(within - 2 * xy.mean().item(), abs=1e-9)


@pytest.mark.parametrize("rows", [2, 10])
def test_constant_and_repeated_rows_have_a_bandwidth(rows: int) -> None:
    assert mmd(torch.ones(rows, 2), torch.ones(rows, 2)) == pytest.approx(0.0, abs=1e-12)
    repeated = torch.cat([torch.zeros(9, 1), torch.ones(1, 1)])
    assert math.isfinite(mmd(repeated, repeated.flip(0)))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"bandwidth must be positive, got 0\.0"):
        mmd(normal(5, 2), normal(5, 2), bandwidth=0.0)
    with pytest.raises(ValueError, match="y must have at least 2 rows"):
        mmd(normal(5, 2), normal(1, 2))
