"""Grids: exact ends, monotone, even in what they claim, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowmatch as fm
from flowmatch.solvers.grids import cosine_grid, edm_grid, log_snr_grid, path_grid, shifted_grid, uniform_grid
from tests.problems import SCHEDULES

PLAIN = {"uniform": uniform_grid, "cosine": cosine_grid, "shifted": shifted_grid}


@pytest.mark.parametrize("name", PLAIN)
@given(st.integers(1, 60), st.floats(-2, 2), st.floats(-2, 2))
def test_plain_grids_run_from_end_to_end(name, steps, start, end):
    if abs(start - end) < 1e-3:
        return
    grid = PLAIN[name](steps, span=(start, end))
    assert grid.dtype == torch.float64
    assert grid.shape == (steps + 1,)
    assert (grid[0].item(), grid[-1].item()) == (start, end)
    assert ((grid.diff() > 0) if end > start else (grid.diff() < 0)).all()


def test_uniform_steps_are_equal_and_those_of_the_driver():
    field = fm.ODE(lambda t, x: x * t[:, None])
    x = torch.ones(1, 1, dtype=torch.float64)
    by_grid = fm.solve(field, x, fm.Euler(), grid=uniform_grid(7, (0.2, 0.9)), save=True)
    by_steps = fm.solve(field, x, fm.Euler(), steps=7, span=(0.2, 0.9), save=True)
    torch.testing.assert_close(by_grid.t, by_steps.t, rtol=1e-15, atol=0)


def test_cosine_steps_are_the_points_of_chebyshev():
    expected = 0.5 * (1 - np.polynomial.chebyshev.chebpts2(9)[::-1])
    np.testing.assert_allclose(cosine_grid(8).numpy(), expected, atol=1e-15)


@given(st.integers(2, 40), st.floats(0.1, 10.0))
def test_a_shift_is_undone_by_its_inverse_on_the_flipped_axis(steps, shift):
    there, back = shifted_grid(steps, shift), shifted_grid(steps, 1 / shift)
    torch.testing.assert_close(1 - back.flip(0), there, rtol=0, atol=1e-12)


def test_a_shift_is_another_unit_of_the_data_on_the_straight_path():
    """t = u / (s + (1 - s) u) has the odds u / (s (1 - u)): even steps where the data are measured in s."""
    torch.testing.assert_close(shifted_grid(9, 3.0), path_grid(9, fm.Linear(), 3.0, "straight"), rtol=0, atol=1e-12)


def test_edm_levels_are_those_of_the_paper():
    schedule = fm.VarianceExploding(sigma_min=1e-4, sigma_max=1e3)
    grid = edm_grid(20, schedule)
    sigma = schedule.sigma(grid[1:-1]).numpy()
    i = np.arange(19) / 18
    np.testing.assert_allclose(sigma, (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rtol=1e-9)


def test_a_large_power_is_even_in_the_log():
    low, high = math.log(80.0), math.log(0.002)
    by_power = edm_grid(12, fm.Linear(), rho=1e6)
    torch.testing.assert_close(by_power, log_snr_grid(12, fm.Linear(), (-2 * low, -2 * high)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_steps_even_in_the_ratio_are_so_on_every_schedule(name, steps):
    schedule = SCHEDULES[name]
    grid = log_snr_grid(steps, schedule, (-2.0, 2.0))
    assert (grid[0].item(), grid[-1].item()) == schedule.interval
    assert grid.shape == (steps + 1,)
    assert (grid.diff() > 0).all()
    if steps > 2:
        levels = schedule.log_snr(grid[1:-1])
        torch.testing.assert_close(levels, torch.linspace(-2, 2, steps - 1, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_steps_even_in_a_frame_are_so_on_every_schedule(name, spread):
    schedule = SCHEDULES[name]
    for frame in ("angle", "straight"):
        grid = path_grid(8, schedule, spread, frame)
        assert (grid[0].item(), grid[-1].item()) == schedule.interval
        signal, noise = spread * schedule.alpha(grid), schedule.sigma(grid)
        places = torch.atan2(signal, noise) if frame == "angle" else signal / (signal + noise)
        steps = places.diff()
        torch.testing.assert_close(steps, steps.mean().expand(8), rtol=1e-5, atol=1e-9)


def test_a_part_of_the_way_can_be_asked_for():
    grid = path_grid(5, fm.Cosine(), span=(0.2, 0.7))
    torch.testing.assert_close(grid, torch.linspace(0.2, 0.7, 6, dtype=torch.float64))
    assert log_snr_grid(5, fm.Linear(), (-1.0, 1.0), span=(0.1, 0.9))[[0, -1]].tolist() == [0.1, 0.9]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform_grid(0), "steps must be a whole number, at least 1, got 0"),
        (lambda: cosine_grid(2.5), "steps must be a whole number, at least 1, got 2.5"),
        (lambda: path_grid(True, fm.Linear()), "steps must be a whole number"),
        (lambda: shifted_grid(4, 0.0), "shift must be a positive number, got 0.0"),
        (lambda: edm_grid(4, fm.Linear(), rho=0.0), "rho must be a positive number, got 0.0"),
        (lambda: edm_grid(4, fm.Linear(), noise=(1.0, 2.0)), "noise must fall from a positive level to a lower one"),
        (lambda: log_snr_grid(4, fm.Linear(), (1.0, 1.0)), "between must be two growing finite numbers"),
        (lambda: log_snr_grid(4, fm.Linear(), span=(1.0, 0.0)), "span must run from the noise to the data"),
        (lambda: log_snr_grid(4, fm.VarianceExploding(), (-20.0, 2.0)), "choose levels that it has, or fewer steps"),
        (lambda: path_grid(4, fm.Linear(), -1.0), "spread must be a positive number, got -1.0"),
        (lambda: path_grid(4, fm.Linear(), crowd=(1.0, 0.0)), r"crowd must hold two positive powers, got \(1.0, 0.0\)"),
        (lambda: path_grid(4, fm.Linear(), 1.0, "round"), "frame must be angle or straight, got 'round'"),
        (lambda: uniform_grid(4, (0.5, 0.5)), r"span must hold two different finite times, got \(0.5, 0.5\)"),
    ],
)
def test_grids_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("frame", ["angle", "straight"])
def test_crowded_ends_have_smaller_steps_and_keep_the_ends(frame):
    even = path_grid(16, fm.Linear(), 1.0, frame)
    torch.testing.assert_close(path_grid(16, fm.Linear(), 1.0, frame, crowd=(1.0, 1.0)), even, rtol=0, atol=0)
    for crowd in ((1.5, 1.0), (1.0, 1.5), (1.3, 1.3), (0.7, 1.0)):
        grid = path_grid(16, fm.Linear(), 1.0, frame, crowd=crowd)
        steps, own = grid.diff(), even.diff()
        assert (steps > 0).all()
        assert grid[[0, -1]].tolist() == [0, 1]
        for end, power in zip((0, -1), crowd, strict=True):
            if power != 1.0:
                assert (steps[end] < own[end]) == (power > 1)


def test_crowding_belongs_to_noise_and_data_whichever_way_the_solve_goes():
    there = path_grid(7, fm.Cosine(), crowd=(1.5, 1.1), span=(0.1, 0.9))
    back = path_grid(7, fm.Cosine(), crowd=(1.5, 1.1), span=(0.9, 0.1))
    torch.testing.assert_close(back, there.flip(0), rtol=0, atol=1e-14)


def test_crowding_is_the_formula():
    u = torch.arange(6, dtype=torch.float64) / 5
    torch.testing.assert_close(
        path_grid(5, fm.Linear(), 1.0, "straight", crowd=(2.0, 3.0)), u**2 / (u**2 + (1 - u) ** 3), rtol=0, atol=1e-14
    )
