"""Rescheduled: the field of one path on another, for every pair, every solver and both ends."""

from __future__ import annotations

import itertools

import pytest
import torch

import flowmatch as fm
from tests.problems import SCHEDULES, gaussian_world, mixture_world, pair, random_mlp, seeded

PAIRS = list(itertools.product(SCHEDULES, SCHEDULES))
EACH_PAIR = pytest.mark.parametrize(("old", "new"), PAIRS, ids=[f"{a}->{b}" for a, b in PAIRS])


def _both(world, old, new, **options):
    """The rescheduled field of a world and the world on the new path."""
    path_from, path_to = fm.AffinePath(SCHEDULES[old]), fm.AffinePath(SCHEDULES[new])
    return fm.Rescheduled(world(path_from), path_from, path_to), world(path_to)


@EACH_PAIR
def test_it_is_the_exact_field_of_the_new_path(old, new):
    field, truth = _both(gaussian_world, old, new)
    (low, high), x = truth.path.interval, pair(33, 2)[0]
    t = low + (high - low) * torch.linspace(0, 1, 33, dtype=torch.float64)
    x = x * (truth.path.schedule.alpha(t) ** 2 + truth.path.schedule.sigma(t) ** 2).sqrt()[:, None]
    exact = truth(t, x)
    # Between ends that the old path reaches this is rounding; beyond, the stated first order in what is missing.
    error = (field(t, x) - exact).norm(dim=1) / (1 + exact.norm(dim=1))
    reaches = _covers(old, new)
    assert error.max() < (1e-7 if reaches else 0.05)


def _covers(old, new):
    a, b = SCHEDULES[old], SCHEDULES[new]
    ends = [s.log_snr(torch.tensor(s.interval, dtype=torch.float64)) for s in (a, b)]
    still = a.alpha_dot(torch.tensor([0.0, 1.0])) == 0  # what the polynomials and the user's own do at an end
    return bool(ends[0][0] <= ends[1][0] and ends[0][1] >= ends[1][1]) and not still.any()


SOLVED = ("linear", "cosine", "polynomial", "vp", "ve", "own")


@pytest.mark.parametrize("new", SOLVED)
@pytest.mark.parametrize("old", SOLVED)
@pytest.mark.parametrize("solver", [fm.Heun(), fm.RK4()], ids=["heun", "rk4"])
def test_solving_on_the_new_path_is_as_accurate_as_its_own_field(old, new, solver):
    """Both solvers evaluate t = 1, from paths that end without noise, with noise, or just before a singular end."""
    field, truth = _both(gaussian_world, old, new)
    start = pair(40, 2)[0] * truth.path.source_std
    low, high = truth.path.interval
    exact = truth.transport(start, low, high)

    def error(f):
        moved = fm.solve(fm.ODE(f), start, solver=solver, steps=10, span=truth.path.interval).x
        return (moved - exact).norm(dim=1).square().mean().sqrt().item()

    assert error(field) <= 10 * error(truth)


@pytest.mark.parametrize("new", ["cosine", "polynomial", "vp", "sub-vp", "ve"])
@pytest.mark.parametrize("old", ["linear", "cosine", "vp", "sub-vp", "diffusion-cosine"])
def test_a_mixture_too(old, new):
    field, truth = _both(mixture_world, old, new)
    start = pair(40, 2)[0] * truth.path.source_std
    spans = {"rtol": 1e-7, "atol": 1e-7, "span": truth.path.interval}
    found = fm.solve(fm.ODE(field), start, solver=fm.Dopri5(), **spans).x
    exact = fm.solve(fm.ODE(truth), start, solver=fm.Dopri5(), **spans).x
    assert (found - exact).norm(dim=1).median() < 1e-3
    assert (found - exact).norm(dim=1).max() < 0.1  # a start near the watershed of two modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("old", "new"), [("linear", "cosine"), ("vp", "linear"), ("linear", "vp")])
def test_single_and_half_precision_reach_the_ends(old, new, dtype):
    field, truth = _both(gaussian_world, old, new)
    narrow = lambda t, x: truth(t.double(), x.double())  # noqa: E731
    low, high = truth.path.interval
    x = pair(20, 2, dtype=dtype)[0]
    for t in (low, 0.01, 0.5, 0.99, high):
        found, exact = field(t, x), narrow(torch.tensor(t), x)
        assert found.dtype == dtype
        error = (found.double() - exact).abs().max() / (1 + exact.abs().max())
        assert error < (1e-2 if dtype == torch.bfloat16 else 2e-4)


@pytest.mark.parametrize("old", ["vp", "sub-vp", "ve", "polynomial"])
def test_data_far_from_zero_are_carried_on_around_their_own_mean(old):
    path_from, path_to = fm.AffinePath(SCHEDULES[old]), fm.AffinePath(fm.Linear())
    mean = torch.tensor([50.0, -20.0], dtype=torch.float64)
    worlds = [fm.GaussianField(mean, std=2.0, path=path) for path in (path_from, path_to)]
    field, x = fm.Rescheduled(worlds[0], path_from, path_to), pair(16, 2)[0]
    for t in (0.0, 1e-4, 1e-3, 5e-3):
        error = (field(t, x + t * mean) - worlds[1](t, x + t * mean)).abs().max()
        assert error < 2e-3 * mean.abs().max()


def test_a_path_that_ends_with_noise_is_carried_on_to_second_order():
    """The stated exception: what the old path never showed is not known, and the error falls with its square."""
    errors = []
    for sigma in (0.2, 0.1, 0.05):
        path_from, path_to = fm.AffinePath(fm.Linear(sigma)), fm.AffinePath(fm.Linear())
        field, truth = fm.Rescheduled(gaussian_world(path_from), path_from, path_to), gaussian_world(path_to)
        x = truth.sample(200, seeded())
        errors.append((field(0.999, x) - truth(0.999, x)).norm(dim=1).mean().item())
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_the_field_is_called_once_where_the_old_path_covers(monkeypatch):
    calls = []

    def field(t, x):
        calls.append(len(x))
        return x.sin()

    moved = fm.Rescheduled(field, fm.AffinePath(), fm.AffinePath(fm.Cosine()))
    monkeypatch.setattr("flowmatch.fields.reschedule.can_look", lambda value: False)  # as on an accelerator
    moved(0.3, torch.zeros(5, 2))
    assert calls == [5]


def test_the_path_itself_changes_nothing():
    net, path = random_mlp(2), fm.AffinePath(fm.Cosine())
    field, x = fm.Rescheduled(net, path, path), pair(9, 2)[0]
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(field(t, x), net(t, x), rtol=1e-9, atol=1e-9)


def test_there_and_back_is_the_field_again():
    net, straight, curved = random_mlp(2), fm.AffinePath(fm.Linear()), fm.AffinePath(fm.Cosine())
    field, x = fm.Rescheduled(fm.Rescheduled(net, straight, curved), curved, straight), pair(9, 2)[0]
    t = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    torch.testing.assert_close(field(t, x), net(t, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 3, 4), (0, 2), (1, 2), (3, 3)])
def test_a_row_does_not_know_its_batch(shape):
    field = fm.Rescheduled(lambda t, x: x.sin(), fm.AffinePath(fm.VariancePreserving()), fm.AffinePath())
    x, t = pair(*shape)[0], torch.linspace(0.0, 1.0, shape[0], dtype=torch.float64)
    together = field(t, x)
    assert together.shape == x.shape
    for b in range(shape[0]):
        torch.testing.assert_close(field(t[b], x[b : b + 1])[0], together[b], rtol=1e-12, atol=1e-12)


def test_likelihoods_and_conditions_go_through_it():
    path_from, path_to = fm.AffinePath(fm.Linear(0.05)), fm.AffinePath(fm.Cosine())
    world = gaussian_world(path_from)
    field = fm.Rescheduled(world, path_from, path_to)
    flow, x = fm.Flow(field, path_to, (2,)), world.sample(8, seeded())
    exact = gaussian_world(path_to).log_prob(1.0, x)
    torch.testing.assert_close(flow.log_prob(x, rtol=1e-7, atol=1e-7), exact, rtol=2e-3, atol=2e-3)
    labelled = fm.Rescheduled(fm.nn.MLP(dim=2, classes=2), path_from, path_to)
    assert labelled(0.5, torch.zeros(2, 2), torch.tensor([0, 1])).shape == (2, 2)


def test_wrong_parts_and_times_are_refused():
    path = fm.AffinePath()
    with pytest.raises(TypeError, match="field must be a module or function"):
        fm.Rescheduled(None, path, path)
    with pytest.raises(TypeError, match="path_to must be a flowmatch AffinePath"):
        fm.Rescheduled(lambda t, x: x, path, fm.FunctionPath(lambda t, x0, x1: x1))
    with pytest.raises(ValueError, match=r"t must lie in \[0.0, 0.99999\] \(where the velocity of AffinePath"):
        fm.Rescheduled(lambda t, x: x, path, fm.AffinePath(fm.VariancePreserving()))(1.0, torch.zeros(1, 2))
