r"""The assignment problem: join every row to a column of its own at the least total cost, with a proof.

.. math:: \min_\sigma \sum_i c_{i \sigma(i)} \quad \text{over the permutations } \sigma

**Certificate.** Numbers :math:`u_i` and :math:`v_j` with :math:`u_i + v_j \le c_{ij}` for all pairs bound every
permutation from below, :math:`\sum_i c_{i \sigma(i)} \ge \sum_i u_i + \sum_j v_j`. A permutation whose edges all have
:math:`u_i + v_{\sigma(i)} = c_{i \sigma(i)}` attains the bound, so it is optimal. This is complementary slackness, and
it can be checked in one pass over the matrix, whatever the algorithm was.

**Algorithm.** With prices :math:`p_j = -v_j`, row ``i`` wants the column of least :math:`c_{ij} + p_j`.

1. *Auction.* Rows bid for columns, each bid overtaking the next best column by :math:`\epsilon`. All rows end within
   :math:`\epsilon` of what they want; four stages or so divide :math:`\epsilon` by 8 each.
2. *Tight edges.* Edges that are not exactly tight are dropped, and their rows bid again without :math:`\epsilon`.
3. *Shortest augmenting paths* in the reduced costs :math:`c_{ij} + p_j - \min_k (c_{ik} + p_k) \ge 0` match the rows
   that are left. Each path adds one edge and keeps all of them tight.
4. *Check.* Each row is at its minimum in a column of its own. Here :math:`u_i = \min_j (c_{ij} + p_j)`.

Each part ends after a bounded number of steps: a bid of stage 1 raises a bounded price by at least :math:`\epsilon`,
stage 2 has a budget, and stage 3 has at most :math:`n` paths of at most :math:`n` scans. So nothing can fail to
converge, and the whole is :math:`O(n^3)` at worst.

**Arithmetic.** The row minima are subtracted and the rest, of range ``R``, is rounded to multiples of
:math:`q = 2^{-50} R`. All four parts then run in 64-bit integers, where sums and comparisons are exact. For the costs
as given the rounding leaves :math:`u_i + v_j \le c_{ij} + 2 q`, hence a total within :math:`2 n q` of the optimum: the
rounding of float64, but for two bits. An offset common to a row costs no digits.

Source:
    Bertsekas, The auction algorithm: a distributed relaxation method for the assignment problem, 1988; Jonker and
    Volgenant, A shortest augmenting path algorithm for dense and sparse linear assignment problems, 1987.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["assign"]

Numbers = NDArray[np.float64]


def assign(cost: NDArray[Any]) -> tuple[NDArray[np.int64], Numbers, Numbers]:
    r"""Exact solution of the assignment problem and its dual.

    The same matrix gives the same answer, also where several permutations are optimal. The global interpreter lock is
    free while the solver runs, so a thread may solve the next batch beside the training step.

    The solver is compiled when it is first used, which takes about four seconds, and is kept on disc for the next
    process: beside the source, else, where that folder is read-only, in the user's cache folder. Where neither can be
    written, set the environment variable ``NUMBA_CACHE_DIR`` to a folder that can.

    Args:
        cost: real costs of shape ``(n, n)``, row ``i`` joined to column ``j``. Any memory layout, any sign.

    Returns:
        The column of every row, ``(n,)`` integers, and the dual values :math:`u` of the rows and :math:`v` of the
        columns, ``(n,)`` float64 each. :math:`c_{i \sigma(i)} = u_i + v_{\sigma(i)}` and :math:`c_{ij} \ge u_i + v_j`,
        both to the rounding stated above.

    Raises:
        TypeError: not a NumPy array of real numbers.
        ValueError: not a square matrix, an entry that is NaN or infinite, or a range that float64 cannot scale.
        RuntimeError: the compiled solver can be kept nowhere, or the final check failed, a defect of the solver.
        ImportError: numba is not installed.

    Example:
        >>> columns, rows_dual, columns_dual = assign(np.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))
        >>> columns
        array([1, 0, 2])
        >>> round(float(rows_dual.sum() + columns_dual.sum()), 9)
        5.0
    """
    if not isinstance(cost, np.ndarray) or cost.dtype.kind not in "biuf":
        what = f"an array of {cost.dtype}" if isinstance(cost, np.ndarray) else type(cost).__name__
        raise TypeError(f"cost must be a NumPy array of real numbers, got {what}")
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(
            f"cost must be a square matrix (n, n), got shape {cost.shape}; pad the shorter side to leave points out"
        )
    kernels = _kernels()
    size = cost.shape[0]
    if cost.dtype not in (np.float32, np.float64):
        cost = cost.astype(np.float64)
    cost = np.ascontiguousarray(cost)
    if size == 0:
        return np.empty(0, np.int64), np.empty(0), np.empty(0)
    low, high = cost.min(1).astype(np.float64), cost.max(1).astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        row = int(np.flatnonzero(~np.isfinite(cost).all(1))[0])
        raise ValueError(
            f"cost must be finite, got NaN or infinity, first in row {row}; for a pair that must not be joined use a "
            "large finite cost, and scale the points down if their squared distances overflow"
        )
    with np.errstate(over="ignore", divide="ignore"):
        spread = (high - low).max()
        scale = kernels.LIMIT / spread
    if spread == 0:  # every row is indifferent
        return np.arange(size), low, np.zeros(size)
    if not (np.isfinite(spread) and np.isfinite(scale)):
        raise ValueError(f"cost has rows of range {spread:g}, which float64 cannot scale; multiply it by a constant")

    padded = np.empty((size, -(-size // kernels.BLOCK) * kernels.BLOCK), np.int64)
    kernels.quantise(cost, low, scale, padded)
    # Half the median cost is a coarse first step. It is taken over one entry a row, and only the speed depends on it.
    rows = np.arange(size)
    step = int(np.median(padded[rows, (37 * rows) % size])) // 2
    price, columns = np.empty(padded.shape[1], np.int64), np.empty(size, np.int64)
    if not kernels.solve(padded, price, step, columns):
        raise RuntimeError("the assignment is not optimal by its own check; please report the cost matrix")
    column_duals = price[:size] / -scale
    return columns, cost[rows, columns] - column_duals[columns], column_duals


def _kernels() -> Any:
    try:
        from flowmatch.couplings import kernels
    except ImportError as error:
        raise ImportError('exact optimal transport needs numba, install it: pip install "flowmatch[ot]"') from error
    except RuntimeError as error:
        raise RuntimeError(
            f"numba cannot keep the compiled solver ({error}): neither the folder of the package nor the user's cache "
            "folder can be written; set the environment variable NUMBA_CACHE_DIR to a folder that can"
        ) from error
    return kernels
