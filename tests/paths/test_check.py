"""check_path: passes every path that keeps the laws, and names the law that a broken one breaks."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from tests.problems import NOISY_PATHS, PATHS, pair, seeded

GOOD = {name: case.path for name, case in PATHS.items() if name != "ve-mild"} | NOISY_PATHS


def _line(t, x0, x1):
    return (1 - t) * x0 + t * x1


class WrongSign(fm.Path):
    """The velocity that some notes print, with a plus before the noise."""

    def _position(self, t, x0, x1, z):
        return _line(t, x0, x1)

    def _both(self, t, x0, x1, z):
        return _line(t, x0, x1), x1 + x0


class WrongSomewhere(fm.Path):
    """A closed form that is right but for a stretch in the middle."""

    def _position(self, t, x0, x1, z):
        return _line(t, x0, x1)

    def _both(self, t, x0, x1, z):
        return _line(t, x0, x1), x1 - x0 + torch.where((t - 0.625).abs() < 0.02, 0.1, 0.0)


@pytest.mark.parametrize("path", GOOD.values(), ids=GOOD.keys())
def test_a_path_that_keeps_the_laws_passes(path):
    report = fm.check_path(path, generator=seeded(4))
    assert report.velocity < 1e-6
    assert report.rows < 1e-12


@pytest.mark.parametrize("shape", [(5,), (3, 2, 4), (1, 3)])
def test_own_samples_of_any_shape_may_be_given(shape):
    x0, x1 = pair(*shape)
    assert fm.check_path(fm.AffinePath(fm.Linear(0.1)), x0, x1).data == pytest.approx(
        (0.1 * x0).square().mean().sqrt().item() / torch.cat([x0, x1]).square().mean().sqrt().item()
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (fm.FunctionPath(lambda t, x0, x1: x0 + t * x1), "does not end at the data: at t = 1 it is .* away from x1"),
        (fm.FunctionPath(lambda t, x0, x1: t * x1 + 0 * x0), "does not start at the source: at t = 0"),
        (fm.FunctionPath(lambda t, x0, x1: t * x0 + (1 - t) * x1), "does not start at the source"),  # time reversed
        (fm.AffinePath(fm.VarianceExploding(0.1, 4.0)), r"away from 4 \* x0"),
        (
            fm.FunctionPath(lambda t, x0, x1: _line(t, x0, x1) + 0 * torch.log(t)),
            "position of .* is not finite at t = 0",
        ),
        (fm.FunctionPath(lambda t, x0, x1: (1 - t.sqrt()) * x0 + t.sqrt() * x1), "velocity of .* not finite at t = 0"),
        (
            fm.GaussianPath(lambda t, x1: t * x1, lambda t, x1: 1 - 2 * t + t**2 - 0.05 * t),
            r"standard deviation of GaussianPath.* is -0.0\d+ at t = 0.8",
        ),
        (WrongSign(), "velocity of .* is not the time derivative of its position: they differ by"),
        (WrongSomewhere(), "they differ by 0.06.* at t = 0.6"),
        (fm.FunctionPath(lambda t, x0, x1: (1 - t) * x0 + t.flatten() * x1), "depends on other rows|does not end"),
        (
            fm.FunctionPath(lambda t, x0, x1: _line(t, x0, x1) + t * (1 - t) * (x1 - x1.mean(0))),
            "depends on other rows of the batch .*keepdim=True",
        ),
    ],
)
def test_the_law_that_is_broken_is_named(path, message):
    with pytest.raises(fm.PathError, match=message):
        fm.check_path(path)


def test_a_time_that_broadcasts_along_the_event_is_found():
    path = fm.FunctionPath(lambda t, x0, x1: (1 - t.flatten()) * x0 + t.flatten() * x1)
    with pytest.raises(fm.PathError, match="depends on other rows"):
        fm.check_path(path)


def test_what_is_wrong_with_the_question_is_not_blamed_on_the_path():
    path, (x0, x1) = fm.AffinePath(), pair(4, 2)
    with pytest.raises(ValueError, match="times must be at least 3"):
        fm.check_path(path, times=2)
    x1[2, 1] = torch.nan
    with pytest.raises(ValueError, match="x1 has 1 entries that are NaN or infinite, the first in row 2"):
        fm.check_path(path, x0, x1)


def test_a_path_with_weights_is_checked_without_a_word():
    assert fm.check_path(fm.AffinePath(fm.Learned(4))).velocity < 1e-6


def test_a_path_error_is_a_value_error_and_a_class_is_no_path():
    assert issubclass(fm.PathError, ValueError)
    with pytest.raises(TypeError, match="path must be a flowmatch Path .* got function"):
        fm.check_path(_line)
