"""Sources: draws by the generator, the density of the normal, and a finite set that has none."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from tests.problems import seeded


@pytest.mark.parametrize("source", [fm.Normal(2.0), fm.Empirical(torch.arange(6.0).reshape(3, 2))])
def test_the_generator_decides(source):
    first, second = (source.sample((5, 2), seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert source.sample((0, 2)).shape == (0, 2)
    assert source.sample((5, 2), dtype=torch.float64).dtype == torch.float64


def test_points_are_drawn_in_equal_shares():
    source = fm.Empirical(torch.arange(5.0)[:, None])
    counts = source.sample((10_000, 1), seeded()).flatten().long().bincount(minlength=5)
    assert (counts - 2000).abs().max() < 5 * (10_000 * 0.2 * 0.8) ** 0.5


def test_points_have_no_density_and_a_flow_says_so():
    source = fm.Empirical(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="a finite set has no density"):
        source.log_prob(torch.zeros(1, 2))
    flow = fm.Flow(lambda t, x: -x, event_shape=(2,), source=source)
    assert flow.sample(4, steps=2).shape == (4, 2)
    with pytest.raises(ValueError, match="no log_prob"):
        flow.log_prob(torch.zeros(1, 2), steps=2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fm.Empirical(torch.zeros(3, dtype=torch.long)), TypeError, "data must be floating point"),
        (lambda: fm.Empirical(torch.zeros(0, 2)), ValueError, "data is empty"),
        (lambda: fm.Empirical(torch.tensor([[1.0], [torch.nan]])), ValueError, "NaN or infinite, the first in row 1"),
        (lambda: fm.Empirical(torch.zeros(3, 2)).sample((4, 3)), ValueError, r"shape \(2,\), asked for \(3,\)"),
        (lambda: fm.Normal(0.0), ValueError, "std must be a positive number"),
    ],
)
def test_wrong_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
