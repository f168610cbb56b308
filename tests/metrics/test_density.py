"""Bits a dimension: known levels, additivity, messages."""

from __future__ import annotations

import math

import pytest
import torch

from flowmatch.metrics import bits_per_dim


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dim", [1, 12])
def test_a_uniform_law_over_k_levels_costs_log2_k(levels: int, dim: int) -> None:
    as_they_are = torch.full((3,), -dim * math.log(levels), dtype=torch.float64)
    want = torch.full_like(as_they_are, math.log2(levels))
    assert torch.allclose(bits_per_dim(as_they_are, dim), want)
    on_unit_cube = torch.zeros(3, dtype=torch.float64)
    assert torch.allclose(bits_per_dim(on_unit_cube, dim, scale=levels), want)


def test_the_unit_of_the_model_does_not_matter() -> None:
    log_prob = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    rescaled = log_prob + 4 * math.log(127.5)  # the density of x / 127.5 in four dimensions
    assert torch.allclose(bits_per_dim(rescaled, 4, scale=127.5), bits_per_dim(log_prob, 4))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="dim=0"):
        bits_per_dim(torch.zeros(1), 0)
    with pytest.raises(ValueError, match=r"scale=-1\.0"):
        bits_per_dim(torch.zeros(1), 2, scale=-1.0)
