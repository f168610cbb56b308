r"""The compiled loops of :mod:`flowmatch.couplings.assignment`, on integer costs; needs numba.

Costs are integers between 0 and :math:`C = 2^{50}`, padded on the right to whole blocks of columns. Every loop keeps
prices :math:`p_j \ge 0` and a partial matching, and the value of column ``j`` to row ``i`` is
:math:`w_{ij} = c_{ij} + p_j`. Integers are added and compared without rounding, so a tie is a tie, and an edge that is
tight stays tight. Minima of integers, taken over blocks of known length, let the compiler use vector instructions
without the licence to reorder floating-point sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["BLOCK", "LIMIT", "quantise", "solve"]

# Columns a block. A solve of 1024 rows takes twice as long with 16 or 32, a tenth more with 128 (measured, AVX-512).
BLOCK = 64

# The largest cost. Before each stage the least price is made zero, and a perfect matching within eps of the row minima
# has prices no further apart than LIMIT + eps. Later in the stage a free column, whose price has not moved, bounds
# every bid and every path. With eps <= LIMIT / 2 no sum passes 16 LIMIT: the padding stays dearest, and 2^63 far away.
LIMIT = 2**50
_PADDING = 64 * LIMIT
_TOP = 2**62
_ONES = 2**63 - 1


@njit(cache=True, nogil=True)
def quantise(cost: Any, low: Any, scale: float, out: Any) -> None:
    """Write ``scale * (cost - low[:, None])``, rounded down, to ``out``; its surplus columns cost what nobody pays."""
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            out[i, j] = np.int64((np.float64(cost[i, j]) - low[i]) * scale)
        for j in range(cost.shape[1], out.shape[1]):
            out[i, j] = _PADDING


@njit(cache=True, nogil=True)
def _lowest(row: Any, price: Any) -> int:
    """The value of the cheapest column."""
    low = _TOP
    for k in range(price.size):
        low = min(low, row[k] + price[k])
    return low


@njit(cache=True, nogil=True)
def _lowest_two(row: Any, price: Any) -> tuple[int, int, int]:
    """The cheapest column, its value, and the value of the next one."""
    first, second, home = _TOP, _TOP, 0
    for b in range(price.size // BLOCK):
        low = _TOP
        for k in range(b * BLOCK, b * BLOCK + BLOCK):
            low = min(low, row[k] + price[k])
        if low < first:
            first, second, home = low, first, b * BLOCK
        else:
            second = min(second, low)
    ties, lead = 0, _TOP
    for k in range(home, home + BLOCK):
        value = row[k] + price[k]
        ties += value == first
        lead = min(lead, value if value > first else _TOP)
    column = home
    while row[column] + price[column] != first:
        column += 1
    return column, first, first if ties > 1 else min(second, lead)


@njit(cache=True, nogil=True)
def release(cost: Any, price: Any, eps: int, owner: Any, partner: Any, queue: Any) -> int:
    """Unmatch the rows whose edge is more than ``eps`` above their minimum; returns how many rows wait in ``queue``."""
    waiting = 0
    for i in range(partner.size):
        j = partner[i]
        if j >= 0 and cost[i, j] + price[j] - _lowest(cost[i], price) > eps:
            owner[j] = partner[i] = -1
        if partner[i] < 0:
            queue[waiting] = i
            waiting += 1
    return waiting


@njit(cache=True, nogil=True)
def bid(cost: Any, price: Any, eps: int, budget: int, owner: Any, partner: Any, queue: Any, waiting: int) -> int:
    """Let the waiting rows bid: until none waits if ``eps > 0``, else at most ``budget`` times; returns who waits.

    A bid raises the price of the cheapest column by its lead over the next one plus ``eps``. Without ``eps`` the edge
    is tight, and a row without a lead over a matched column waits instead, as its bid would change nothing.
    """
    stay = 0  # rows that gave up lie at the bottom of the queue, the others above them
    while waiting > stay:
        waiting -= 1
        i = queue[waiting]
        j, first, second = _lowest_two(cost[i], price)
        if eps == 0:
            budget -= 1
            if first == second and owner[j] >= 0:
                for k in range(partner.size):
                    if owner[k] < 0 and cost[i, k] + price[k] == first:
                        j = k
                        break
            if owner[j] >= 0 and (first == second or budget < 0):
                queue[waiting], queue[stay] = queue[stay], i
                waiting += 1
                stay += 1
                continue
        price[j] += second - first + eps
        loser = owner[j]
        owner[j] = i
        partner[i] = j
        if loser >= 0:
            partner[loser] = -1
            queue[waiting] = loser
            waiting += 1
    return stay


@njit(cache=True, nogil=True)
def augment(cost: Any, price: Any, owner: Any, partner: Any, queue: Any, waiting: int) -> None:
    r"""Match every waiting row along a shortest augmenting path in the reduced costs.

    Dijkstra's search from the row stops at the first free column, at distance ``best``. Then
    :math:`p_j \mathrel{+}= best - d_j` on the columns settled before keeps the edge of every row its cheapest.
    """
    size = price.size
    distance, source = np.empty(size, np.int64), np.empty(size, np.int64)
    closed, settled = np.empty(size, np.int64), np.empty(size, np.int64)
    for position in range(waiting):
        root = queue[position]
        for k in range(price.size):
            distance[k], closed[k] = _TOP, 0
        i, shift, last, count = root, 0, -1, 0
        while True:
            row, best, home = cost[i], _TOP, 0
            for b in range(price.size // BLOCK):
                low = _TOP
                for k in range(b * BLOCK, b * BLOCK + BLOCK):
                    value = row[k] + price[k] + shift
                    shorter = value < distance[k]
                    source[k] = i if shorter else source[k]
                    distance[k] = value if shorter else distance[k]
                    low = min(low, distance[k] | closed[k])  # closed is 0, or so many ones that it cannot be the least
                if low < best:
                    best, home = low, b * BLOCK
            j = home
            while distance[j] | closed[j] != best:
                j += 1
            if best == last and owner[j] >= 0:
                # A tie: a free column at this distance ends the search, so look for one before going on.
                for k in range(partner.size):
                    if owner[k] < 0 and distance[k] == best:
                        j = k
                        break
            if owner[j] < 0:
                break
            closed[j] = _ONES
            settled[count] = j
            count += 1
            i, last = owner[j], best
            shift = best - cost[i, j] - price[j]
        for s in range(count):
            price[settled[s]] += best - distance[settled[s]]
        while True:
            i = source[j]
            owner[j] = i
            j, partner[i] = partner[i], j
            if i == root:
                break


@njit(cache=True, nogil=True)
def solve(cost: Any, price: Any, eps: int, partner: Any) -> bool:
    """Solve the integer problem: write the ``partner`` column of every row and the ``price`` of every column.

    Stages with ``eps``, ``eps / 8``, ... down to its ``n``-th part bring the prices near their places, so that few
    rows are left for :func:`augment` (measured: one in ten at 1024 points of the plane, one in 500 of 64 dimensions).

    Returns whether every row has a column of its own at its minimum, which proves the matching optimal.
    """
    count = partner.size
    owner, queue = np.empty(price.size, np.int64), np.empty(count, np.int64)
    for j in range(price.size):
        owner[j], price[j] = -1, 0
    for i in range(count):
        partner[i] = -1
    finest = max(1, eps // count)
    while eps >= finest:
        waiting = release(cost, price, eps, owner, partner, queue)
        bid(cost, price, eps, 0, owner, partner, queue, waiting)
        least = price[0]
        for j in range(count):
            least = min(least, price[j])
        for j in range(count):
            price[j] -= least
        eps //= 8
    waiting = release(cost, price, 0, owner, partner, queue)
    waiting = bid(cost, price, 0, 2 * count, owner, partner, queue, waiting)
    augment(cost, price, owner, partner, queue, waiting)
    for i in range(count):
        j = partner[i]
        if owner[j] != i or cost[i, j] + price[j] != _lowest(cost[i], price):
            return False
    return True
