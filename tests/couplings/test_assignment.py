"""The assignment solver against its own certificate, SciPy, POT and every permutation of small matrices."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numba
import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from flowmatch import couplings
from flowmatch.couplings.assignment import assign

SIZES = [2, 3, 63, 64, 65, 130, 300]
EPS = np.finfo(np.float64).eps


def _points(n: int, dim: int, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(n + dim)
    a, b = random.standard_normal((n, dim)), scale * random.standard_normal((n, dim))
    return np.square(a[:, None] - b).sum(-1)


def _two_outliers(n: int) -> np.ndarray:
    # Far from all others and near each other: the range of the costs is 1e8 times what the optimum pays.
    random = np.random.default_rng(n)
    a, b = random.standard_normal((n, 2)), random.standard_normal((n, 2))
    a[0], b[-1] = 1e4, 1e4 + 0.5
    return np.square(a[:, None] - b).sum(-1)


def _ints(n: int, high: int) -> np.ndarray:
    return np.random.default_rng(n).integers(-high, high, (n, n))


MATRICES = {
    "plane": lambda n: _points(n, 2, 5.0),
    "64 dimensions": lambda n: _points(n, 64),
    "float32": lambda n: _points(n, 2).astype(np.float32),
    "float16": lambda n: _points(n, 2).astype(np.float16),
    "uniform": lambda n: np.random.default_rng(n).random((n, n)),
    "two outliers": _two_outliers,
    "ties": lambda n: _ints(n, 2),
    "few ties": lambda n: _ints(n, 50),
    "booleans": lambda n: _ints(n, 2) > 0,
    "products": lambda n: np.outer(np.arange(n), np.arange(n)) / n,
    "line": lambda n: np.abs(np.subtract.outer(np.arange(n), np.arange(n)[::-1])),
    "one row": lambda n: np.eye(n)[0] * np.eye(n)[:, :1],
    "offset": lambda n: _points(n, 2) + 1e9,
    "row offsets": lambda n: _points(n, 2) + 1e6 * np.random.default_rng(0).standard_normal((n, 1)),
    "column offsets": lambda n: _points(n, 2) + 1e6 * np.random.default_rng(0).standard_normal(n),
    "negative": lambda n: -_points(n, 2),
    "tiny": lambda n: 1e-200 * _points(n, 2),
    "huge": lambda n: 1e200 * _points(n, 2),
    "heavy tails": lambda n: np.exp(8 * np.random.default_rng(n).standard_normal((n, n))),
    "transposed": lambda n: _points(n, 3, 2.0).T,
    "strided": lambda n: _points(2 * n, 3)[::2, ::-2],
}


def _check(cost: np.ndarray) -> float:
    """Assert that the answer is a permutation with the stated certificate; returns its total."""
    columns, u, v = assign(cost)
    wide = cost.astype(np.float64)
    rows = np.arange(len(cost))
    assert np.array_equal(np.sort(columns), rows)
    # The docstring's 2 q, and the rounding of the sums of this check itself.
    quantum = 2.0**-50 * np.ptp(wide, axis=1).max()
    slack = 2 * quantum + 4 * EPS * (np.abs(wide).max() + np.abs(u).max() + np.abs(v).max())
    gaps = wide - u[:, None] - v
    assert gaps.min() >= -slack
    assert np.abs(gaps[rows, columns]).max() <= slack
    return wide[rows, columns].sum()


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("n", SIZES)
def test_it_is_optimal_by_its_certificate_and_by_scipy(name, n):
    cost = MATRICES[name](n)
    total = _check(cost)
    wide = cost.astype(np.float64)
    best = wide[linear_sum_assignment(wide)].sum()
    assert abs(total - best) <= 8 * n * EPS * np.abs(wide).max()


@pytest.mark.parametrize("n", [5, 200])
@pytest.mark.parametrize("dim", [2, 64])
def test_it_is_optimal_by_pot(n, dim):
    cost = _points(n, dim, 3.0)
    weight = np.full(n, 1 / n)
    assert _check(cost) / n == pytest.approx(ot.emd2(weight, weight, cost), rel=1e-12)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.integers(-3, 9), min_size=n * n, max_size=n * n)))
@settings(max_examples=150, deadline=None)
def test_no_permutation_is_cheaper(entries):
    n = round(len(entries) ** 0.5)
    cost = np.array(entries).reshape(n, n)
    everyone = itertools.permutations(range(n))
    assert _check(cost) == min(sum(cost[i, j] for i, j in enumerate(order)) for order in everyone)


@given(st.integers(2, 90), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 1000]))
@settings(max_examples=60, deadline=None)
def test_a_renaming_of_rows_and_columns_changes_no_total(n, seed, high):
    random = np.random.default_rng(seed)
    cost = random.integers(0, high, (n, n)).astype(np.float64)
    assert _check(cost) == _check(cost[random.permutation(n)][:, random.permutation(n)])


def test_a_hidden_permutation_is_found():
    order = np.random.default_rng(0).permutation(200)
    cost = 1.0 + np.random.default_rng(1).random((200, 200))
    cost[np.arange(200), order] = 0.5
    assert np.array_equal(assign(cost)[0], order)


def test_a_price_too_high_to_pay_forbids_a_pair():
    cost = np.full((80, 80), 1e15)
    allowed = np.random.default_rng(0).random((80, 80)) < 0.1
    cost[allowed] = np.random.default_rng(1).random(allowed.sum())
    np.fill_diagonal(cost, 2.0)
    columns = assign(cost)[0]
    assert cost[np.arange(80), columns].max() <= 2.0


@pytest.mark.parametrize("value", [0.0, 7.5, -1e300])
@pytest.mark.parametrize("n", [1, 2, 100])
def test_equal_costs(n, value):
    columns, u, v = assign(np.full((n, n), value))
    assert np.array_equal(np.sort(columns), np.arange(n))
    assert np.array_equal(u[:, None] + v, np.full((n, n), value))


def test_no_points():
    columns, u, v = assign(np.empty((0, 0)))
    assert columns.dtype == np.int64
    assert columns.shape == u.shape == v.shape == (0,)


def test_it_is_deterministic_and_leaves_the_costs_alone():
    cost = MATRICES["ties"](100).astype(np.float64)
    before = cost.copy()
    first, second = assign(cost), assign(cost)
    assert np.array_equal(cost, before)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_cost_that_is_not_finite_is_refused(bad):
    cost = np.ones((4, 4), np.float32)
    cost[2, 1] = bad
    with pytest.raises(ValueError, match=r"finite, got NaN or infinity, first in row 2"):
        assign(cost)


@pytest.mark.parametrize("value", [1e-320, 1.7e308])
def test_a_range_that_cannot_be_scaled_is_refused(value):
    with pytest.raises(ValueError, match="multiply it by a constant"):
        assign(np.array([[-value, value], [value, -value]]))


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 2, 2)])
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match=r"square matrix \(n, n\), got shape"):
        assign(np.zeros(shape))


@pytest.mark.parametrize("cost", [[[1.0]], np.array([["a"]]), np.array([[1j]])])
def test_what_is_no_array_of_real_numbers_is_refused(cost):
    with pytest.raises(TypeError, match="NumPy array of real numbers, got"):
        assign(cost)


def test_an_answer_that_fails_the_check_is_never_returned(monkeypatch):
    from flowmatch.couplings import kernels

    def spoil(cost, price, eps, partner):
        partner[:] = 0
        return False

    monkeypatch.setattr(kernels, "solve", spoil)
    with pytest.raises(RuntimeError, match="not optimal by its own check"):
        assign(np.eye(3))


def test_other_threads_run_beside_the_solver():
    from flowmatch.couplings import kernels

    assert all(kernel.targetoptions["nogil"] for kernel in (kernels.quantise, kernels.solve))


def _forget_kernels(monkeypatch):
    monkeypatch.delitem(sys.modules, "flowmatch.couplings.kernels", raising=False)
    monkeypatch.delattr(couplings, "kernels", raising=False)


def test_without_numba_the_error_names_the_extra(monkeypatch):
    _forget_kernels(monkeypatch)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r'pip install "flowmatch\[ot\]"'):
        assign(np.zeros((2, 2)))


def test_where_nothing_can_be_kept_the_error_names_the_way_out(monkeypatch):
    def nowhere(**options):
        raise RuntimeError("no locator available")

    _forget_kernels(monkeypatch)
    monkeypatch.setattr(numba, "njit", nowhere)
    with pytest.raises(RuntimeError, match=r"no locator available.*set the environment variable NUMBA_CACHE_DIR"):
        assign(np.zeros((2, 2)))


def test_numba_is_loaded_by_the_first_call_only():
    code = "import sys, flowmatch.couplings.exact; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
