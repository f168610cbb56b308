"""KID: a plain double loop as oracle, unbiasedness with an honest error, the moments it sees."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowmatch.metrics import kernel_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x: Tensor, y: Tensor) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_equals_the_double_loop_on_all_rows() -> None:
    x, y = normal(9, 3), normal(9, 3, seed=1) + 0.5
    got = kernel_distance(x, y, rows=9)
    assert got.mean == pytest.approx(by_hand(x, y), rel=1e-10)
    assert (got.rows, got.subsets) == (9, 1)
    assert math.isnan(got.error)


def test_chunks_do_not_show() -> None:
    x, y = normal(1100, 2), normal(1100, 2, seed=1) + 0.1
    xx, yy, xy = ((a @ b.T / 2 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    want = sum((v.sum() - v.trace()).item() for v in (xx, yy)) / (1100 * 1099) - 2 * xy.mean().item()
    assert kernel_distance(x, y, rows=1100).mean == pytest.approx(want, rel=1e-9)


def test_blocks_share_no_row() -> None:
    # The same two orders, cut by hand: every row is in one block.
    x = torch.arange(12.0).double()[:, None]
    got = kernel_distance(x, x, rows=4)
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randperm(12, generator=g).view(3, 4) for _ in range(2))
    assert left.flatten().unique().numel() == right.flatten().unique().numel() == 12
    values = torch.tensor([by_hand(x[i], x[j]) for i, j in zip(left, right, strict=True)])
    assert (got.rows, got.subsets) == (4, 3)
    assert got.mean == pytest.approx(values.double().mean().item(), rel=1e-6)
    assert got.error == pytest.approx(values.double().std().item() / math.sqrt(3), rel=1e-6)


def test_mean_zero_at_equality_and_an_honest_error() -> None:
    results = [kernel_distance(normal(200, 4, seed=s), normal(200, 4, seed=s + 999)) for s in range(100)]
    means = torch.tensor([r.mean for r in results])
    spread = means.std().item()
    assert abs(means.mean().item()) < 3 * spread / math.sqrt(100)
    # The error of one call is, in the mean square, the spread over samples.
    claimed = math.sqrt(sum(r.error**2 for r in results) / 100)
    assert claimed == pytest.approx(spread, rel=0.35)


def test_expectation_for_two_normals_on_a_line() -> None:
    # E k(x, y) for x ~ N(a, 1), y ~ N(b, 1): the moments of x y are products of those of x and of y.
    def moment(a: float, b: float) -> float:
        first, second, third = a, a * a + 1, a**3 + 3 * a
        one, two, three = b, b * b + 1, b**3 + 3 * b
        return third * three + 3 * second * two + 3 * first * one + 1

    shift = 0.4
    exact = moment(0, 0) + moment(shift, shift) - 2 * moment(0, shift)
    values = [kernel_distance(normal(400, 1, seed=s), normal(400, 1, seed=s + 999) + shift) for s in range(40)]
    means = torch.tensor([v.mean for v in values])
    assert abs(means.mean().item() - exact) < 4 * means.std().item() / math.sqrt(40)


def test_sees_the_third_moment() -> None:
    skew = -torch.log(1 - torch.rand(2000, 1, generator=torch.Generator().manual_seed(3))) - 1  # mean 0, variance 1
    got = kernel_distance(normal(2000, 1), skew.double())
    assert got.mean > 3 * got.error


def test_subsets_drawn_anew_follow_the_generator() -> None:
    x, y = normal(50, 3), normal(40, 3, seed=1)
    before = torch.get_rng_state()
    got = kernel_distance(x, y, rows=20, subsets=7)
    assert (got.rows, got.subsets) == (20, 7)
    assert got == kernel_distance(x, y, rows=20, subsets=7)
    assert torch.equal(before, torch.get_rng_state())
    g = [torch.Generator().manual_seed(5) for _ in range(2)]
    one, two = (kernel_distance(x, y, rows=20, subsets=7, generator=rng) for rng in g)
    assert one == two != got


@pytest.mark.parametrize(("rows", "want"), [(2, 2), (25, 2), (300, 30)])
def test_default_is_about_ten_blocks(rows: int, want: int) -> None:
    assert kernel_distance(normal(rows, 2), normal(rows + 5, 2)).rows == want


def test_single_precision_keeps_the_small_difference() -> None:
    x, y = 30 + normal(100, 3), 30 + normal(100, 3, seed=1)
    want = kernel_distance(x.float().double(), y.float().double())
    assert kernel_distance(x.float(), y.float()).mean == pytest.approx(want.mean, rel=1e-9)


def test_bad_input_is_named() -> None:
    x = normal(5, 2)
    for few in (x[:0], x[:1]):
        with pytest.raises(ValueError, match="x must have at least 2 rows"):
            kernel_distance(few, x)
    with pytest.raises(ValueError, match="rows must be from 2 to 5, the rows of the smaller sample, got 6"):
        kernel_distance(x, normal(9, 2), rows=6)
    with pytest.raises(ValueError, match="got 1"):
        kernel_distance(x, x, rows=1)
    with pytest.raises(ValueError, match="subsets must be at least 1"):
        kernel_distance(x, x, subsets=0)
