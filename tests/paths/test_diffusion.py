"""Diffusion paths are instances: their velocity is the probability-flow ODE of their stochastic equation.

The equations are written here from the coefficients of the stochastic differential equation alone. It runs from the
data at ``s = 0`` to the noise at ``s = 1``, ``dx = f(s) x ds + g(s) dw``, and its probability-flow velocity is
``f x - g^2 score / 2``. In our time ``t = 1 - s`` the sign turns.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate

import flowmatch as fm
from tests.problems import pair

T = [0.05, 0.3, 0.6, 0.9, 0.99]


def _probability_flow(x, x1, f, g2, mean, variance):
    score = -(x - mean * x1) / variance
    return -(f * x - 0.5 * g2 * score)


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (0.5, 12.0)])
@pytest.mark.parametrize("t", T)
def test_variance_preserving_velocity_is_the_probability_flow(low, high, t):
    s = 1 - t
    rate = lambda s: low + s * (high - low)  # noqa: E731
    noise, _ = integrate.quad(rate, 0, s)
    mean = math.exp(-noise / 2)  # solves m' = -rate m / 2
    variance, _ = integrate.quad(lambda r: rate(r) * math.exp(-integrate.quad(rate, r, s)[0]), 0, s, epsabs=1e-13)
    path = fm.AffinePath(fm.VariancePreserving(low, high))
    x, x1 = pair(50, 2)
    flow = _probability_flow(x, x1, -0.5 * rate(s), rate(s), mean, variance)
    torch.testing.assert_close(path.conditional_velocity(t, x, x1), flow, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("low", "high"), [(0.01, 50.0), (0.1, 4.0)])
@pytest.mark.parametrize("t", T)
def test_variance_exploding_velocity_is_the_probability_flow(low, high, t):
    s, h = 1 - t, 1e-6
    variance = lambda s: (low * (high / low) ** s) ** 2  # noqa: E731
    g2 = (variance(s + h) - variance(s - h)) / (2 * h)  # without drift the variance grows by g^2
    path = fm.AffinePath(fm.VarianceExploding(low, high))
    x, x1 = pair(50, 2)
    flow = _probability_flow(x, x1, 0.0, g2, 1.0, variance(s))
    torch.testing.assert_close(path.conditional_velocity(t, x, x1), flow, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("t", T)
def test_eq_17_of_the_paper(t):
    """u = -(sigma'_{1-t} / sigma_{1-t}) (x - x1)."""
    low, high = 0.1, 4.0
    path = fm.AffinePath(fm.VarianceExploding(low, high))
    x, x1 = pair(50, 2)
    log_sigma_dot = math.log(high / low)  # of sigma_s = low (high/low)^s, whatever s
    torch.testing.assert_close(path.conditional_velocity(t, x, x1), -log_sigma_dot * (x - x1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", T)
def test_eq_19_of_the_paper(t):
    """u = -(T'(1-t) / 2) [(e^{-T(1-t)} x - e^{-T(1-t)/2} x1) / (1 - e^{-T(1-t)})]."""
    low, high, s = 0.1, 20.0, 1 - t
    noise, noise_dot = low * s + 0.5 * (high - low) * s**2, low + (high - low) * s
    path = fm.AffinePath(fm.VariancePreserving(low, high))
    x, x1 = pair(50, 2)
    u = -0.5 * noise_dot * (math.exp(-noise) * x - math.exp(-noise / 2) * x1) / (1 - math.exp(-noise))
    torch.testing.assert_close(path.conditional_velocity(t, x, x1), u, rtol=1e-9, atol=1e-9)
