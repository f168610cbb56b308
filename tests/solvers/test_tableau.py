"""Tableaus prove their own order, so a mistyped coefficient cannot get in."""

from __future__ import annotations

import dataclasses

import pytest

from flowmatch.solvers import Tableau
from flowmatch.solvers.tableau import _density, _trees
from tests.problems import SOLVERS

TABLEAUS = {name: solver.tableau for name, solver in SOLVERS.items()}


def test_all_rooted_trees_are_looked_at():
    """Their numbers are 1, 1, 2, 4, 9, 20, 48 (OEIS A000081): a missing tree would be a condition not checked."""
    trees = [_trees(size) for size in range(1, 8)]
    assert [len(of_size) for of_size in trees] == [1, 1, 2, 4, 9, 20, 48]
    assert [len(set(of_size)) for of_size in trees] == [1, 1, 2, 4, 9, 20, 48]


def test_densities_of_the_trees_of_four_nodes():
    """Hairer, Norsett, Wanner, Table II.2.1: gamma = 4, 8, 12, 24."""
    assert sorted(_density(tree) for tree in _trees(4)) == [4, 8, 12, 24]


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_declared_order_is_the_whole_order(name):
    """One more would be refused: no method here is better than it says."""
    with pytest.raises(ValueError, match="order condition fails"):
        dataclasses.replace(TABLEAUS[name], order=TABLEAUS[name].order + 1)


def _mistyped(table: Tableau):
    for i, row in enumerate(table.a):
        for j in range(len(row)):
            wrong = tuple(v + 1e-6 * (k == j) for k, v in enumerate(row))
            yield {"a": (*table.a[:i], wrong, *table.a[i + 1 :])}
    for name in ("b", "b_low"):
        weights = getattr(table, name)
        for j in range(len(weights)):
            yield {name: tuple(v + 1e-6 * (k == j) for k, v in enumerate(weights))}


@pytest.mark.parametrize("name", TABLEAUS)
def test_every_coefficient_matters(name):
    changes = list(_mistyped(TABLEAUS[name]))
    assert changes
    for change in changes:
        with pytest.raises(ValueError, match="order condition fails"):
            dataclasses.replace(TABLEAUS[name], **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": ((), (0.5, 0.5)), "b": (0.5, 0.5), "order": 1}, "row i of an explicit tableau needs i entries"),
        ({"a": ((),), "b": (0.5, 0.5), "order": 1}, "row i of an explicit tableau needs i entries"),
        ({"a": ((),), "b": (0.9,), "order": 1}, "fails for a tree of 1 nodes: 0.9 is not 1"),
    ],
)
def test_malformed_tableaus_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tableau(**arguments)


def test_the_last_stage_is_reused_where_it_sits_at_the_new_state():
    assert {name for name, table in TABLEAUS.items() if table.first_same_as_last} == {"bs32", "dopri5", "tsit5"}
