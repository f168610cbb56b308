"""Bytes to numbers and back: exact round trips, and the law of the noise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from flowmatch.data.images.pixels import dequantized, scaled, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_middles_of_cells_are_the_formula_and_come_back():
    x = scaled(LEVELS)
    assert x.dtype == torch.float32
    assert torch.equal(x.double(), (LEVELS.double() + 0.5) / 128 - 1)  # no rounding at all
    for kind in (torch.float16, torch.float32, torch.float64):
        assert torch.equal(to_uint8(x.to(kind)), LEVELS)


def test_converters_of_image_pipelines_read_the_middles_right():
    x = scaled(LEVELS)
    assert torch.equal(((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8), LEVELS)


def test_noise_stays_in_its_cell_and_comes_back_exactly(monkeypatch):
    many = LEVELS.repeat(4000)
    x = dequantized(many, torch.Generator().manual_seed(0))
    assert torch.equal(to_uint8(x), many)
    assert torch.equal(to_uint8(x.double()), many)
    assert -1 <= x.min() < x.max() < 1
    # The extreme draws of the noise, which random ones seldom meet: nothing is rounded across an edge.
    for word, edge in ((-(2**15), 0.0), (2**15 - 1, 1 - 2.0**-16)):
        drawn = torch.full((64 * 4,), word, dtype=torch.int16).view(torch.int64)
        monkeypatch.setattr("flowmatch.data.images.pixels.drawn", lambda *_, drawn=drawn: drawn)
        x = dequantized(LEVELS)
        assert torch.equal(x.double(), (LEVELS.double() + edge) / 128 - 1)
        assert torch.equal(to_uint8(x), LEVELS)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_noise_is_uniform_within_the_cell(level):
    x = dequantized(torch.full((20_000,), level, dtype=torch.uint8), torch.Generator().manual_seed(level))
    u = ((x.double() + 1) * 128 - level).numpy()
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
    assert (u * 2**16 == np.round(u * 2**16)).all()
    # Four noises come from one draw of 64 bits: neighbours must not know of each other.
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / len(u) ** 0.5


@pytest.mark.parametrize("shape", [(0, 1, 2, 2), (1, 1, 1, 1), (3, 3, 5, 7)])
def test_noise_has_any_shape_and_is_the_generators(shape):
    levels = torch.zeros(shape, dtype=torch.uint8)
    g = torch.Generator().manual_seed(3)
    a, b = dequantized(levels, g), dequantized(levels, g)
    assert a.shape == shape
    assert torch.equal(a, dequantized(levels, torch.Generator().manual_seed(3)))
    assert not levels.numel() or not torch.equal(a, b)


def test_what_a_flow_samples_is_cut_off_at_the_ends():
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match="x has 1 entries that are NaN or infinite, the first in row 1"):
        to_uint8(torch.tensor([0.0, float("nan")]))
    with pytest.raises(TypeError, match="x must be floating point, got torch.uint8"):
        to_uint8(LEVELS)
