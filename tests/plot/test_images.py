"""A sheet holds every image at its place, on one grey scale with the real ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowmatch import plot
from tests.plot.look import check_look


def test_every_pixel_is_at_its_place() -> None:
    images = torch.arange(7 * 2 * 3).reshape(7, 2, 3).float()
    figure = plot.image_grid(images, columns=3)
    sheet = figure.axes[0].images[0].get_array()
    assert sheet.shape == (3 * 3 - 1, 3 * 4 - 1)
    for k, image in enumerate(images.numpy()):
        top, left = 3 * (k // 3), 4 * (k % 3)
        assert np.array_equal(sheet[top : top + 2, left : left + 3], image)
    assert np.ma.getmaskarray(sheet)[2].all()
    assert np.ma.getmaskarray(sheet)[6:, 4:].all()
    check_look(figure)


def test_samples_are_drawn_on_the_scale_of_the_real_images() -> None:
    figure = plot.image_grid(5 * torch.rand(4, 4, 4) - 2, real=torch.linspace(0, 1, 64).reshape(4, 4, 4))
    assert [ax.images[0].get_clim() for ax in figure.axes] == [(0.0, 1.0), (0.0, 1.0)]
    given = plot.image_grid(torch.rand(4, 4, 4), limits=(-1.0, 16.0))
    assert given.axes[0].images[0].get_clim() == (-1.0, 16.0)


def test_colour_images_are_cut_to_the_scale() -> None:
    pixels = torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.0, 0.25]).reshape(1, 1, 2, 3)
    shown = plot.image_grid(pixels, limits=(0.0, 1.0)).axes[0].images[0].get_array()
    assert np.allclose(shown.ravel(), [0, 0, 0.5, 1, 1, 0.25])


def test_rows_carry_their_class() -> None:
    images = torch.rand(25, 8, 8)
    figure = plot.image_grid(images, real=images, labels=["cat", "dog", "hen"])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["cat", "dog", "hen"]
    check_look(figure)


def test_a_blank_image_can_be_drawn() -> None:
    check_look(plot.image_grid(torch.zeros(1, 3, 3)))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(N, H, W\) or \(N, H, W, 3\), got \(4, 64\)"):
        plot.image_grid(torch.rand(4, 64))
    with pytest.raises(ValueError, match=r"one shape, got \(8, 8\) and \(4, 4\)"):
        plot.image_grid(torch.rand(4, 8, 8), real=torch.rand(4, 4, 4))
    with pytest.raises(ValueError, match="labels must name the 2 rows, got 1"):
        plot.image_grid(torch.rand(12, 4, 4), labels=["a"])
    with pytest.raises(ValueError, match="columns must be at least 1"):
        plot.image_grid(torch.rand(2, 4, 4), columns=0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        plot.image_grid(torch.full((1, 2, 2), float("inf")))
