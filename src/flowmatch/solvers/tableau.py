r"""Butcher tableaus that prove their own order.

A Runge-Kutta method of ``s`` stages evaluates
:math:`k_i = v(t + c_i h, x + h \sum_j a_{ij} k_j)` and steps to :math:`x + h \sum_i b_i k_i`. It has order ``p`` if
and only if, for every rooted tree :math:`\tau` of at most ``p`` nodes,
:math:`\sum_i b_i \Phi_i(\tau) = 1 / \gamma(\tau)`, where for a tree with branches :math:`\tau_1, \ldots, \tau_m`

.. math:: \Phi_i(\tau) = \prod_l \sum_j a_{ij} \Phi_j(\tau_l), \qquad \gamma(\tau) = |\tau| \prod_l \gamma(\tau_l).

The conditions are checked when a tableau is made, so a mistyped coefficient fails at import.

**Dense output.** With polynomials for weights, :math:`x(t + \theta h) = x + h \sum_i b_i(\theta) k_i` is the state
within the step to order ``q`` if, for the trees of at most ``q`` nodes, power by power,
:math:`\sum_i b_i(\theta) \Phi_i(\tau) = \theta^{|\tau|} / \gamma(\tau)`.

Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 1993, section II.2, Theorem 2.13, and
section II.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations_with_replacement
from math import fsum, isclose, prod
from operator import mul

__all__ = ["Tableau"]

Tree = tuple["Tree", ...]


@dataclass(frozen=True)
class Tableau:
    r"""Coefficients of an explicit Runge-Kutta method.

    Args:
        a: rows of the strictly lower triangle; row ``i`` has ``i`` entries, the first is empty.
        b: weights of the step.
        order: order of the step.
        b_low: weights of the embedded lower-order step, or empty.
        order_low: order of the embedded step.
        dense: rows of the coefficients of :math:`\theta, \theta^2, \ldots, \theta^q` in :math:`b_i(\theta)`, for dense
            output of order ``q``, or empty.

    Raises:
        ValueError: an order condition fails, or the rows have wrong lengths.

    Example:
        >>> Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2).c
        (0.0, 0.5)
        >>> Tableau(a=((), (0.5,)), b=(0.5, 0.5), order=2)
        Traceback (most recent call last):
            ...
        ValueError: order condition fails for a tree of 2 nodes: 0.25 is not 0.5
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_low: tuple[float, ...] = ()
    order_low: int = 0
    dense: tuple[tuple[float, ...], ...] = ()
    c: tuple[float, ...] = field(init=False)
    error: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))):
            raise ValueError("row i of an explicit tableau needs i entries")
        # A last stage that sat a rounding past the end of the step would ask the field outside its interval.
        nodes = (fsum(row) for row in self.a)
        object.__setattr__(self, "c", tuple(1.0 if isclose(c, 1.0, rel_tol=1e-13) else c for c in nodes))
        error = tuple(high - low for high, low in zip(self.b, self.b_low, strict=True)) if self.b_low else ()
        object.__setattr__(self, "error", error)
        self._prove(self.b, self.order)
        if self.b_low:
            self._prove(self.b_low, self.order_low)
        for power, column in enumerate(zip(*self.dense, strict=True), 1):
            self._prove(column, len(self.dense[0]), power)

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage sits at the new state, so that the next step has it for free."""
        return len(self.b) > 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    def _prove(self, b: tuple[float, ...], order: int, power: int | None = None) -> None:
        """Conditions on the weights of a step, or on the coefficients of one power of dense output."""
        known: dict[Tree, list[float]] = {}
        # Published coefficients of dense output have 16 digits and cancel each other from some 50 down.
        slack = 1e-13 if power is None else 1e-12
        for size in range(1, order + 1):
            for tree in _trees(size):
                value = fsum(w * p for w, p in zip(b, self._weights(tree, known), strict=True))
                right = 1 / _density(tree) if power in (None, size) else 0.0
                if not isclose(value, right, rel_tol=1e-12, abs_tol=slack):
                    raise ValueError(f"order condition fails for a tree of {size} nodes: {value:g} is not {right:g}")

    def _weights(self, tree: Tree, known: dict[Tree, list[float]]) -> list[float]:
        if tree not in known:  # a tree is a branch of many others: order 8 has 200 trees
            rows = [
                [sum(map(mul, row, branch)) for row in self.a]
                for branch in (self._weights(branch, known) for branch in tree)
            ]
            known[tree] = [prod(column) for column in zip(*rows, strict=True)] if rows else [1.0] * len(self.a)
        return known[tree]


@cache
def _trees(size: int) -> tuple[Tree, ...]:
    """All rooted trees of ``size`` nodes, a tree being the sorted tuple of its branches."""
    return tuple(sorted(set(_forests(size - 1, size - 1))))


def _forests(size: int, largest: int) -> Iterator[Tree]:
    if size == 0:
        yield ()
    for biggest in range(min(size, largest), 0, -1):
        for count in range(1, size // biggest + 1):
            for same in combinations_with_replacement(_trees(biggest), count):
                for rest in _forests(size - biggest * count, biggest - 1):
                    yield same + rest


@cache
def _size(tree: Tree) -> int:
    return 1 + sum(map(_size, tree))


@cache
def _density(tree: Tree) -> int:
    return _size(tree) * prod(map(_density, tree))
