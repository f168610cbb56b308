"""Precision, recall, density, coverage: answers known by construction, a double loop as oracle, stated floors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowmatch.metrics import precision_recall


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x: Tensor, y: Tensor, k: int) -> tuple[float, float, float, float]:
    def radii(points: Tensor) -> list[float]:
        others = [sorted(float((p - q).norm()) for j, q in enumerate(points) if j != i) for i, p in enumerate(points)]
        return [row[k - 1] for row in others]

    of_x, of_y = radii(x), radii(y)
    in_x = [[float((p - q).norm()) <= r for p, r in zip(x, of_x, strict=True)] for q in y]  # a row for each sample
    in_y = [[float((p - q).norm()) <= r for q, r in zip(y, of_y, strict=True)] for p in x]  # a row for each datum
    precision = sum(any(row) for row in in_x) / len(y)
    recall = sum(any(row) for row in in_y) / len(x)
    density = sum(sum(row) for row in in_x) / (k * len(y))
    coverage = sum(any(row[i] for row in in_x) for i in range(len(x))) / len(x)
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_double_loop(k: int) -> None:
    x, y = normal(40, 3), 0.8 * normal(30, 3, seed=1) + 0.4
    assert tuple(precision_recall(x, y, k)) == pytest.approx(by_hand(x, y, k), rel=1e-12)


def test_half_the_modes_is_half_the_recall() -> None:
    one, two = 0.1 * normal(60, 2), 0.1 * normal(60, 2, seed=1) + 100
    data, samples = torch.cat([one, two]), one + 1e-6
    got = precision_recall(data, samples)
    assert (got.precision, got.recall, got.coverage) == (1.0, 0.5, 0.5)
    back = precision_recall(samples, data)
    assert (back.precision, back.recall, back.coverage) == (0.5, 1.0, 1.0)


def test_nothing_in_common_is_zero_and_copies_are_one() -> None:
    x = normal(30, 4)
    assert tuple(precision_recall(x, x + 1000)) == (0, 0, 0, 0)
    # A datum's ball holds its own copy and those of its k neighbours, the last of them on the rim.
    assert tuple(precision_recall(x, x.flip(0), k=3)) == pytest.approx((1, 1, 4 / 3, 1))
    assert tuple(precision_recall(1e3 + x.float(), 1e3 + x.float(), k=3)) == pytest.approx((1, 1, 4 / 3, 1))


def test_one_outlier_fools_precision_but_not_density() -> None:
    data = torch.cat([normal(100, 2), torch.tensor([[60.0, 0.0]]).double()])
    samples = torch.cat([normal(50, 2, seed=1), torch.tensor([[40.0, 3.0]]).double() + normal(50, 2, seed=2)])
    got = precision_recall(data, samples)
    assert got.precision > 0.95
    # Half of the samples lie in one ball, where k = 3 would be expected.
    assert got.density == pytest.approx(0.5 + 0.5 / 3, abs=0.1)


def test_repeated_rows_have_balls_without_size() -> None:
    x = torch.zeros(6, 2)
    assert tuple(precision_recall(x, x, k=2)) == (1, 1, 3, 1)
    assert precision_recall(x, x + 1, k=2).precision == 0


def test_blind_to_rotation_unit_and_order_and_swaps_with_the_arguments() -> None:
    x, y = normal(50, 3), normal(40, 3, seed=1) + 0.7
    want = precision_recall(x, y)
    turn = torch.linalg.qr(normal(3, 3, seed=2)).Q
    assert precision_recall(9 * x @ turn + 4, 9 * y @ turn + 4) == want
    assert precision_recall(x.flip(0), y.flip(0)) == want
    other = precision_recall(y, x)
    assert (other.precision, other.recall) == (want.recall, want.precision)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 3), normal(41, 3, seed=1) + 0.5
    want = precision_recall(x, y)
    monkeypatch.setitem(precision_recall.__globals__, "_CHUNK", 7)
    assert precision_recall(x, y) == want


def test_floors_of_the_docstring_hold() -> None:
    for dim, floor in ((2, 0.98), (64, 0.62)):
        got = precision_recall(normal(1000, dim), normal(1000, dim, seed=1))
        assert got.precision == pytest.approx(floor, abs=0.05)
        assert got.recall == pytest.approx(floor, abs=0.05)
    n, m = 60, 40
    exact = 1 - torch.tensor([(n - i) / (n + m - i) for i in (1, 2, 3)]).prod().item()
    values = [precision_recall(normal(n, 3, seed=s), normal(m, 3, seed=s + 999)) for s in range(60)]
    for of, want in (
        (torch.tensor([v.coverage for v in values]), exact),
        (torch.tensor([v.density for v in values]), 1),
    ):
        assert abs(of.mean().item() - want) < 4 * of.std().item() / 60**0.5


def test_bad_input_is_named() -> None:
    x = normal(5, 2)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        precision_recall(x, x, k=0)
    for few in (x[:0], x[:1], x[:3]):
        with pytest.raises(ValueError, match="y must have at least 4 rows"):
            precision_recall(x, few)
    with pytest.raises(ValueError, match="rows of one shape"):
        precision_recall(x, normal(5, 3))
