"""Pictures of points show the points they were given, and are honest about the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from torch import Tensor

from flowmatch import plot
from flowmatch.plot.canvas import DATA, SAMPLES
from tests.plot.look import check_look


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_samples_stand_beside_data_on_the_same_axes() -> None:
    x, y = normal(400, 2), 3 * normal(300, 2, seed=1)
    figure = plot.samples(x, y, names=("width", "height"))
    left, right = figure.axes
    assert np.allclose(left.collections[0].get_offsets(), y)
    assert np.allclose(right.collections[0].get_offsets(), x)
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    assert left.get_aspect() == right.get_aspect() == 1.0
    assert left.get_xlabel() == "width"
    check_look(figure)


def test_what_falls_outside_the_view_is_counted() -> None:
    x = normal(400, 2).clamp(-1, 1)
    wild = torch.cat([x, torch.full((3, 2), 1e6)])
    figure = plot.samples(wild, x)
    assert figure.axes[1].get_title(loc="left") == "samples (403, 3 outside the view)"
    assert figure.axes[1].get_xlim()[1] < 2
    check_look(figure)


def test_axes_of_unlike_ranges_fill_a_square() -> None:
    figure = plot.samples(normal(50, 2) * torch.tensor([1.0, 1e5]))
    assert figure.axes[0].get_aspect() == "auto"
    assert figure.axes[0].get_box_aspect() == 1
    check_look(figure)


def test_many_points_become_a_histogram_and_a_few_beside_many_stay_dots() -> None:
    many, few = normal(9000, 2), normal(50, 2)
    both = plot.samples(many, many)
    counted = np.ma.sum(both.axes[0].collections[0].get_array())
    assert counted > 0.95 * 9000
    one = plot.samples(many, few)
    assert "8,000 of 9,000" in one.axes[1].get_title(loc="left")
    assert len(one.axes[1].collections[0].get_offsets()) == 8000


def test_pairs_show_the_widest_columns_in_their_order() -> None:
    x = normal(60, 9) * torch.tensor([1.0, 9, 2, 8, 3, 7, 4, 6, 5])
    figure = plot.pairs(x, names=[f"c{d}" for d in range(9)])
    grid = [ax for ax in figure.axes if ax.get_visible()]
    assert len(grid) == 21
    assert [ax.get_xlabel() for ax in figure.axes[-6:]] == ["c1", "c3", "c5", "c6", "c7", "c8"]
    check_look(figure)


def test_pairs_draw_equal_numbers_of_both_in_mixed_order() -> None:
    figure = plot.pairs(normal(500, 2), normal(80, 2, seed=1))
    colours = figure.axes[2].collections[0].get_facecolors()[:, :3]
    made = np.isclose(colours, to_rgba(SAMPLES)[:3]).all(1)
    real = np.isclose(colours, to_rgba(DATA)[:3]).all(1)
    assert made.sum() == real.sum() == 80
    assert 20 < made[:80].sum() < 60
    check_look(figure)


def test_pairs_histograms_share_their_edges_and_dots_their_columns() -> None:
    x, y = normal(300, 3), normal(300, 3, seed=1)
    figure = plot.pairs(x, y, dims=[2, 0])
    dots = np.asarray(figure.axes[2].collections[0].get_offsets())
    every = np.concatenate([y[:, [2, 0]].numpy(), x[:, [2, 0]].numpy()])
    assert np.allclose(np.sort(dots[:, 0]), np.sort(every[:, 0]))
    assert np.allclose(np.sort(dots[:, 1]), np.sort(every[:, 1]))
    assert figure.axes[0].get_xlim() == figure.axes[2].get_xlim()


@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (2, 2), (15, 4), (40, 1)])
def test_small_sets_and_constant_columns_can_be_drawn(rows: int, dim: int) -> None:
    x = normal(rows, dim)
    x[:, -1] = 7
    check_look(plot.pairs(x, x + 1, names=["a name far too long to be written out in full"] * dim))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2\) with at least one row, got \(5, 3\)"):
        plot.samples(normal(5, 3))
    with pytest.raises(ValueError, match="data has 1 rows with NaN or infinite entries"):
        plot.pairs(normal(5, 2), torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"1 to 6 columns out of 0\.\.2, got \[0, 3\]"):
        plot.pairs(normal(5, 3), dims=[0, 3])
    with pytest.raises(ValueError, match="names must name all 3 columns, got 1"):
        plot.pairs(normal(5, 3), names=["a"])
