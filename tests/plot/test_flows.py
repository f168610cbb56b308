"""Pictures of a flow: lines follow the trajectory, arrows the field, colours the density."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmatch import plot
from tests.plot.look import check_look


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def straight(start: Tensor, end: Tensor, steps: int = 11) -> Tensor:
    return torch.stack([start + (end - start) * t for t in torch.linspace(0, 1, steps)])


def test_lines_follow_the_first_paths_and_carry_their_time() -> None:
    path = straight(normal(30, 2), normal(30, 2, seed=1) + 4)
    figure = plot.trajectories(path, torch.linspace(0, 0.5, 11), lines=7)
    lines, starts, ends = figure.axes[0].collections
    pieces = np.stack(lines.get_segments()).reshape(10, 7, 2, 2)
    assert np.allclose(pieces[:, :, 0], path[:-1, :7])
    assert np.allclose(pieces[:, :, 1], path[1:, :7])
    assert np.allclose(lines.get_array().reshape(10, 7)[:, 3], np.linspace(0.025, 0.475, 10))
    assert np.allclose(starts.get_offsets(), path[0])
    assert np.allclose(ends.get_offsets(), path[-1])
    assert figure.axes[0].get_aspect() == 1.0
    check_look(figure)


def test_above_two_dimensions_the_plane_is_that_of_the_leading_components() -> None:
    spread = torch.tensor([0.1, 5.0, 0.1, 3.0, 0.1])
    end = normal(400, 5, seed=1) * spread + 10
    figure = plot.trajectories(straight(normal(400, 5), end))
    seen = np.asarray(figure.axes[0].collections[2].get_offsets())
    true = (end - end.mean(0))[:, [1, 3]].numpy()
    # The same points up to the signs of the two axes and the little that the other columns hold.
    assert np.allclose(np.abs(np.corrcoef(seen.T, true.T)[:2, 2:]), np.eye(2), atol=0.02)
    assert np.allclose(seen.std(0), true.std(0), rtol=0.01)
    assert re.fullmatch(r"first component \(7\d %\)", figure.axes[0].get_xlabel())  # 25 of 34, by a sample of 400
    check_look(figure)


def test_one_dimension_runs_over_time_and_images_are_flattened() -> None:
    figure = plot.trajectories(straight(normal(20, 1), normal(20, 1, seed=1)))
    assert figure.axes[0].get_xlabel() == "time t"
    assert figure.axes[0].get_xlim() == (0.0, 1.0)
    check_look(figure)
    check_look(plot.trajectories(straight(normal(3, 1, 4, 4), normal(3, 1, 4, 4, seed=1))))


def test_a_single_path_in_three_dimensions_can_be_drawn() -> None:
    check_look(plot.trajectories(straight(normal(1, 3), normal(1, 3, seed=1))))


def test_arrows_point_along_the_field_and_grow_with_speed() -> None:
    def turn(t: Tensor, x: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        return torch.stack([-x[:, 1], x[:, 0]], dim=1) * (1 + t[:, None])

    figure = plot.field(turn, [0.0, 0.25, 1.0], extent=(-2, 2, -1, 1), arrows=6)
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["t = 0", "t = 0.25", "t = 1"]
    arrows = figure.axes[1].collections[0]
    place, arrow = np.asarray(arrows.get_offsets()), np.stack([arrows.U, arrows.V], axis=1)
    want = np.stack([-place[:, 1], place[:, 0]], axis=1)
    cosine = (want * arrow).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(arrow, axis=1)
    assert np.allclose(cosine, 1)
    assert np.all(np.diff(np.linalg.norm(arrow, axis=1)[np.argsort(np.linalg.norm(want, axis=1))]) > -1e-9)
    assert np.allclose(arrows.get_array(), 1.25 * np.linalg.norm(want, axis=1), rtol=1e-5)
    check_look(figure)


def test_a_field_at_rest_can_be_drawn() -> None:
    check_look(plot.field(lambda t, x: torch.zeros_like(x), 0.5, extent=(-1, 1, -1, 1)))


def test_colours_are_the_density_and_sum_to_one() -> None:
    sizes = []

    def standard(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return -0.5 * ((x - torch.tensor([1.0, 0.0])) ** 2).sum(1) - math.log(2 * math.pi)

    figure = plot.density(standard, extent=(-5, 7, -6, 6), cells=90, samples=normal(30, 2))
    heat = figure.axes[0].images[0].get_array()
    assert heat.sum() * (12 / 90) ** 2 == pytest.approx(1, abs=1e-4)
    row, col = np.unravel_index(heat.argmax(), heat.shape)
    assert abs(-5 + 12 * (col + 0.5) / 90 - 1) < 0.1
    assert abs(-6 + 12 * (row + 0.5) / 90) < 0.1
    assert max(sizes) <= 4096
    assert sum(sizes) == 8100
    check_look(figure)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(T, B, \*event\) with T >= 2, got \(5, 2\)"):
        plot.trajectories(normal(5, 2))
    with pytest.raises(ValueError, match=r"times must have shape \(3,\)"):
        plot.trajectories(normal(3, 5, 2), times=torch.zeros(4))
    with pytest.raises(ValueError, match="trajectory has NaN"):
        plot.trajectories(normal(3, 5, 2) / 0)
    with pytest.raises(ValueError, match="left < right"):
        plot.field(lambda t, x: x, 0.0, extent=(1, 0, 0, 1))
    with pytest.raises(ValueError, match=r"the field must have shape \(N, 2\)"):
        plot.field(lambda t, x: x[:, :1], 0.0, extent=(0, 1, 0, 1))
    with pytest.raises(ValueError, match="at least one time"):
        plot.field(lambda t, x: x, [], extent=(0, 1, 0, 1))
    with pytest.raises(ValueError, match="NaN at 400 of 400"):
        plot.density(lambda x: x.sum(1) * math.nan, extent=(0, 1, 0, 1), cells=20)
