"""The loss curve shows every finite loss, and a mean that is one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flowmatch import plot
from tests.plot.look import check_look


def test_both_losses_and_the_running_mean() -> None:
    history = [{"step": 10 * k, "loss": float(k % 5), "rate": 0.1} for k in range(1, 101)]
    history += [{"step": 10 * k, "heldout_loss": 2.5} for k in (50, 100)]
    raw, mean, held = plot.loss_curve(history, smooth=0.05).axes[0].lines
    assert np.array_equal(raw.get_xdata(), [10 * k for k in range(1, 101)])
    assert np.allclose(mean.get_ydata()[4:], 2.0)  # any five values in a row are 0..4
    assert mean.get_ydata()[0] == 1.0
    assert np.array_equal(held.get_xdata(), [500, 1000])
    check_look(plot.loss_curve(history))


def test_rows_without_a_loss_and_broken_losses_are_passed_over() -> None:
    history = [
        {"step": 1, "loss": math.nan},
        {"step": 2, "loss": 3.0},
        {"loss": 1.0},
        {"step": 3, "heldout_loss": None},
    ]
    raw, mean = plot.loss_curve(history).axes[0].lines
    assert list(raw.get_xdata()) == [2]
    assert list(mean.get_ydata()) == [3.0]


def test_the_first_steep_fall_does_not_flatten_the_rest() -> None:
    history = [{"step": k, "loss": 1000.0 if k < 4 else 1 + 0.1 * math.sin(k)} for k in range(400)]
    low, high = plot.loss_curve(history).axes[0].get_ylim()
    assert low < 0.9
    assert 1.1 < high < 2


@pytest.mark.parametrize("history", [[{"step": 1, "heldout_loss": 2.0}], [{"step": 1, "loss": 0.0}]])
def test_one_point_can_be_drawn(history: list[dict[str, float]]) -> None:
    check_look(plot.loss_curve(history))


def test_nothing_to_draw_is_named() -> None:
    with pytest.raises(ValueError, match="no row with a step and a loss"):
        plot.loss_curve([{"step": 1}])
