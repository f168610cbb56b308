"""Frechet distance: closed forms, SciPy's matrix root as oracle, invariances, accumulation, bias and its removal."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.metrics import FrechetStatistics, frechet_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: Tensor, covariance: Tensor, rows: int, seed: int = 0) -> Tensor:
    """Rows whose mean and covariance (divisor N - 1) are exactly these."""
    z = normal(rows, len(mean), seed=seed)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (rows - 1))).T
    return mean + z @ torch.linalg.cholesky(covariance).T


def by_scipy(x: Tensor, y: Tensor) -> float:
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * np.trace(root.real))


def test_closed_form_for_commuting_covariances() -> None:
    mean, a, b = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([4.0, 1.0, 9.0]), torch.tensor([1.0, 25.0, 0.25])
    turn = torch.linalg.qr(normal(3, 3, seed=5)).Q
    x = with_moments(0 * mean, turn @ a.double().diag() @ turn.T, 30)
    y = with_moments(mean, turn @ b.double().diag() @ turn.T, 20, seed=1)
    want = mean.square().sum().item() + (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(x, y) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_equals_scipys_root_where_covariances_do_not_commute(dim: int) -> None:
    x, y = normal(40, dim) @ normal(dim, dim, seed=2), normal(50, dim, seed=1) @ normal(dim, dim, seed=3) + 0.3
    want = by_scipy(x, y) if dim > 1 else float((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2)
    assert frechet_distance(x, y) == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (2, 30), (6, 40)])
def test_fewer_rows_than_features(n: int, m: int) -> None:
    # The trace of the root is the nuclear norm of the cross products of centred rows: no covariance, no root.
    x, y = normal(n, 20), 2 * normal(m, 20, seed=1) + 0.1
    a, b = (x - x.mean(0)) / math.sqrt(n - 1), (y - y.mean(0)) / math.sqrt(m - 1)
    want = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    want = want - 2 * torch.linalg.matrix_norm(a @ b.T, ord="nuc")
    assert frechet_distance(x, y) == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("rows", [10, 200])
def test_zero_for_equal_sets_also_with_dead_and_repeated_features(rows: int) -> None:
    x = normal(rows, 16)
    x[:, 3], x[:, 4] = 0.0, x[:, 5]
    assert 0 <= frechet_distance(x, x.flip(0)) < 1e-6
    assert frechet_distance(x, x + 2) == pytest.approx(16 * 4, rel=1e-6)


def test_symmetric_blind_to_rotation_and_squares_the_unit() -> None:
    x, y = normal(60, 5), 1.5 * normal(50, 5, seed=1) + 1
    turn, want = torch.linalg.qr(normal(5, 5, seed=2)).Q, frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(x @ turn - 3, y @ turn - 3) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(10 * x, 10 * y) == pytest.approx(100 * want, rel=1e-9)


@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_batches_give_the_whole(cuts: list[int]) -> None:
    # A large mean shows what sums of squares would lose.
    x = normal(40, 3) @ normal(3, 3, seed=1) + 1e6
    statistics, edges = FrechetStatistics(), [0, *sorted(cuts), 40]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        statistics.update(x[low:high])
    assert statistics.count == 40
    torch.testing.assert_close(statistics.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(statistics.covariance, x.T.cov(), rtol=1e-9, atol=1e-9)


def test_merging_gives_the_whole_and_leaves_the_other_alone() -> None:
    x = normal(31, 4).float() + 100
    one, two = FrechetStatistics("net@1").update(x[:30]), FrechetStatistics("net@1").update(x[30:])
    merged = FrechetStatistics().merge(one).merge(two)
    torch.testing.assert_close(merged.covariance, x.double().T.cov(), rtol=1e-10, atol=1e-10)
    assert (merged.count, merged.features, one.count, two.count) == (31, "net@1", 30, 1)
    assert frechet_distance(merged, x) == pytest.approx(0, abs=1e-9)
    assert merged.merge(FrechetStatistics()).count == 31


def test_saved_statistics_stand_in_for_their_rows(tmp_path: Path) -> None:
    x, y = normal(30, 4), normal(20, 4, seed=1) + 1
    kept = FrechetStatistics("net@1").update(x)
    read = FrechetStatistics.load(kept.save(tmp_path / "x.npz"))
    assert (read.count, read.features) == (30, "net@1")
    want = frechet_distance(x, y)
    assert frechet_distance(read, y) == pytest.approx(want, rel=1e-12)
    assert frechet_distance(x, FrechetStatistics().update(y)) == pytest.approx(want, rel=1e-12)
    with np.load(tmp_path / "x.npz") as file:  # the names by which other programs read them
        np.testing.assert_allclose(file["mu"], x.mean(0).numpy())
        np.testing.assert_allclose(file["sigma"], np.cov(x.numpy(), rowvar=False))
    more = normal(10, 4, seed=2)
    torch.testing.assert_close(read.update(more).covariance, torch.cat([x, more]).T.cov())


def test_bias_has_the_stated_form() -> None:
    n, m, spectrum = 400, 250, torch.tensor([4.0, 1.0, 0.25, 0.25]).double()
    products, sums = torch.outer(spectrum, spectrum), spectrum[:, None] + spectrum
    bracket = spectrum.sum() + 0.5 * (products * (1 + torch.eye(4)) / sums).sum()
    want = (1 / n + 1 / m) * bracket.item()
    pairs = [(normal(n, 4, seed=s), normal(m, 4, seed=s + 999)) for s in range(200)]
    values = torch.tensor([frechet_distance(x * spectrum.sqrt(), y * spectrum.sqrt()) for x, y in pairs])
    assert abs(values.mean().item() - want) < 4 * values.std().item() / math.sqrt(200) + 0.02 * want


def test_extrapolation_removes_the_bias() -> None:
    rows, dim, shift = 200, 8, 0.2
    pairs = [(normal(rows, dim, seed=s), normal(rows, dim, seed=s + 999) + shift) for s in range(24)]
    biased = torch.tensor([frechet_distance(x, y) for x, y in pairs])
    free = torch.tensor([frechet_distance(x, y, unbiased=True) for x, y in pairs])
    true, error = dim * shift**2, free.std().item() / math.sqrt(24)
    assert biased.mean().item() - true > 4 * biased.std().item() / math.sqrt(24)
    assert abs(free.mean().item() - true) < 4 * error
    assert abs(free.mean().item() - true) < 0.4 * (biased.mean().item() - true)


def test_extrapolation_follows_its_generator_alone() -> None:
    x, y = normal(60, 2), normal(50, 2, seed=1)
    before = torch.get_rng_state()
    assert frechet_distance(x, y, unbiased=True) == frechet_distance(x, y, unbiased=True)
    assert torch.equal(before, torch.get_rng_state())
    g = [torch.Generator().manual_seed(7) for _ in range(2)]
    one, two = (frechet_distance(x, y, unbiased=True, generator=rng) for rng in g)
    assert one == two != frechet_distance(x, y, unbiased=True)


def test_arrays_and_images_are_features_too() -> None:
    x, y = normal(30, 1, 2, 2), normal(20, 1, 2, 2, seed=1)
    want = frechet_distance(x.flatten(1), y.flatten(1))
    assert frechet_distance(x.numpy(), y) == frechet_distance(x, y) == want
    assert isinstance(want, float)


def test_bad_input_is_named(tmp_path: Path) -> None:
    x = normal(5, 2)
    for few in (x[:0], x[:1]):
        with pytest.raises(ValueError, match="y must have at least 2 rows"):
            frechet_distance(x, few)
        with pytest.raises(ValueError, match="a covariance needs at least 2 rows"):
            frechet_distance(FrechetStatistics().update(few), x)
    with pytest.raises(ValueError, match="rows of one shape"):
        frechet_distance(x, normal(5, 3))
    with pytest.raises(ValueError, match="one number of features, got 2 and 3"):
        frechet_distance(FrechetStatistics().update(x), normal(5, 3))
    with pytest.raises(ValueError, match="rows must have 2 features as before, got 3"):
        FrechetStatistics().update(x).update(normal(5, 3))
    with pytest.raises(ValueError, match="features has 1 entries that are NaN"):
        FrechetStatistics().update(torch.tensor([[1.0], [math.nan]]))
    with pytest.raises(ValueError, match="features of a@1 and of b@2 cannot be compared"):
        frechet_distance(FrechetStatistics("a@1").update(x), FrechetStatistics("b@2").update(x))
    with pytest.raises(ValueError, match="cannot be compared"):
        FrechetStatistics("a@1").merge(FrechetStatistics("b@2"))
    with pytest.raises(ValueError, match="at least 16 rows of each for 2 features, got 15 and 90"):
        frechet_distance(normal(15, 2), normal(90, 2), unbiased=True)
    with pytest.raises(TypeError, match="needs the features themselves"):
        frechet_distance(FrechetStatistics().update(x), x, unbiased=True)
    with pytest.raises(ValueError, match="no features yet"):
        _ = FrechetStatistics().mean
    with pytest.raises(ValueError, match=r"must be named \.npz"):
        FrechetStatistics().update(x).save(tmp_path / "x.npy")


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(2))
    np.save(tmp_path / "b.npz.npy", np.zeros(2))
    (tmp_path / "c.npz").write_text("no archive")
    for name in ("a.npz", "b.npz.npy", "c.npz", "none.npz"):
        with pytest.raises(InputError, match="holds no statistics of ours"):
            FrechetStatistics.load(tmp_path / name)
