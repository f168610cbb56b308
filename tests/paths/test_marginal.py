"""The average velocity of the paths through a point is the exact marginal field there (Theorem 1's definition)."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from tests.problems import SCHEDULES, line_world, seeded

EACH = pytest.mark.parametrize("name", SCHEDULES)
BINS = 12


def _scores(u: torch.Tensor, guess: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
    """Mean of ``u - guess`` in each of the bins of ``x_t``, in units of its standard error."""
    inside = x_t.sort().values[:: len(x_t) // BINS][1:].contiguous()
    cell = torch.bucketize(x_t, inside)
    residual = u - guess
    scores = [residual[cell == k].mean() / residual[cell == k].std() * (cell == k).sum() ** 0.5 for k in range(BINS)]
    return torch.stack(scores)


@EACH
@pytest.mark.parametrize("t", [0.15, 0.5, 0.85])
def test_the_mean_velocity_at_a_point_is_the_marginal_field(name, t):
    path = fm.AffinePath(SCHEDULES[name])
    field, generator, n = line_world(path), seeded(7), 20_000
    x1 = field.sample(n, generator=generator)
    x0 = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    sample = path.sample(t, x0, x1)
    guess = field(t, sample.x_t)
    # 360 bins in all: a normal score exceeds 5.5 in one of them with probability 1e-5.
    assert _scores(sample.u_t[:, 0], guess[:, 0], sample.x_t[:, 0]).abs().max() < 5.5
    # And the look is sharp enough to see a field that is a quarter of the spread of the velocities off.
    off = guess + 0.25 * sample.u_t.std()
    assert _scores(sample.u_t[:, 0], off[:, 0], sample.x_t[:, 0]).abs().max() > 5.5


def test_a_function_path_has_the_marginal_field_of_its_twin():
    """No closed form at all: phi of the user's own, held against the field of the same affine path."""
    own = fm.FunctionPath(lambda t, x0, x1: torch.sin(t * torch.pi / 2) * x1 + torch.cos(t * torch.pi / 2) * x0)
    field, generator = line_world(fm.AffinePath(fm.Cosine())), seeded(8)
    x1 = field.sample(20_000, generator=generator)
    sample = own.sample(0.4, torch.randn(20_000, 1, generator=generator, dtype=torch.float64), x1)
    assert _scores(sample.u_t[:, 0], field(0.4, sample.x_t)[:, 0], sample.x_t[:, 0]).abs().max() < 5.5
