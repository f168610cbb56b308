"""Noise that keeps the marginals: the drift against the exact score, the laws against the exact ones, refusals."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from scipy.integrate import quad

import flowmatch as fm
from flowmatch.fields.stochastic import MarginalSDE
from flowmatch.solvers.exponential_sde import ExponentialSDE
from flowmatch.solvers.sde import EulerMaruyama, StochasticHeun
from tests.problems import gaussian_world, line_world, mixture_world, pair, random_mlp, seeded
from tests.solvers.test_sde import ScriptedMarginal, exact_law


def _own(t):
    return torch.sin(math.pi * t) + 0.5


PATHS = {
    "linear": fm.AffinePath(fm.Linear()),
    "linear-min": fm.AffinePath(fm.Linear(sigma_min=0.1)),
    "cosine": fm.AffinePath(fm.Cosine()),
    "polynomial": fm.AffinePath(fm.Polynomial(power=2.0)),
    "vp": fm.AffinePath(fm.VariancePreserving()),
    "ve": fm.AffinePath(fm.VarianceExploding(0.05, 20.0)),
}
FORMS = {"constant": "constant", "sigma": "sigma", "linear": "linear", "matched": "matched", "number": 0.7, "own": _own}
EACH_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
EACH_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


# --- the equation -------------------------------------------------------------------------------------------


@EACH_PATH
@EACH_FORM
def test_the_drift_is_the_velocity_and_half_the_noise_times_the_score(path, form):
    field, (_, x) = mixture_world(path), pair(9, 2)
    for t in (0.05, 0.5, 0.95):
        g = MarginalSDE(field, path=path, diffusion=form, rate=1.7).spread(t, x)
        push = 0.5 * g**2 * field.score(t, x)
        assert push.abs().min() > 1e-9
        for backward, sign in ((False, 1), (True, -1)):
            sde = MarginalSDE(field, path=path, diffusion=form, rate=1.7, backward=backward)
            torch.testing.assert_close(sde.drift(t, x), field(torch.tensor(t), x) + sign * push, rtol=1e-6, atol=1e-6)


@EACH_PATH
def test_the_noise_has_the_size_that_the_table_says(path):
    t, x = torch.linspace(0.1, 0.9, 5, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64)
    sigma, half = path.schedule.sigma(t), 1e-6
    rate = (path.schedule.log_snr(t + half) - path.schedule.log_snr(t - half)) / (4 * half)
    sizes = {
        "constant": 2 * torch.ones_like(t),
        "sigma": 2 * sigma,
        "linear": 2 * sigma**2,
        "matched": 2 * sigma**2 * rate,
        "number": 0.49 * torch.ones_like(t),
        "own": _own(t) ** 2,
    }
    assert sizes.keys() == FORMS.keys()
    for name, form in FORMS.items():
        g = MarginalSDE(lambda t, x: x, path=path, diffusion=form, rate=1.7).spread(t, x)[:, 0]
        torch.testing.assert_close(g**2, 1.7 * sizes[name], rtol=1e-6, atol=1e-9)


def test_the_matched_noise_is_that_of_the_forward_diffusion():
    t, x = torch.linspace(0.1, 0.9, 5, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64)
    field = lambda t, x: x  # noqa: E731
    vp, ve = fm.VariancePreserving(0.1, 20.0), fm.VarianceExploding(0.05, 20.0)
    g = MarginalSDE(field, path=fm.AffinePath(vp), diffusion="matched").spread(t, x)[:, 0]
    torch.testing.assert_close(g**2, 0.1 + 19.9 * (1 - t))
    g = MarginalSDE(field, path=fm.AffinePath(ve), diffusion="matched").spread(t, x)[:, 0]
    torch.testing.assert_close(g**2, -2 * ve.sigma(t) * ve.sigma_dot(t))


@EACH_PATH
@EACH_FORM
@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_the_share_of_noise_kept_is_the_integral_of_its_rate(path, form, spread):
    sde = MarginalSDE(lambda t, x: x, path=path, diffusion=form, rate=0.6)

    def rate(t):
        time, x = torch.tensor([t], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        alpha, sigma = sde.signal(t)
        return sde.spread(time, x).item() ** 2 / (2 * (sigma**2 + (alpha * spread) ** 2))

    for t, s in ((0.2, 0.5), (0.5, 0.9), (0.9, 0.6)):
        assert sde.kept(t, s, spread) == pytest.approx(math.exp(-abs(quad(rate, t, s)[0])), rel=1e-7)
    # Of two steps in a row as much is kept as of the two together.
    assert sde.kept(0.2, 0.7, spread) * sde.kept(0.7, 0.8, spread) == pytest.approx(sde.kept(0.2, 0.8, spread))


# --- laws, without a random draw ----------------------------------------------------------------------------


@EACH_PATH
@EACH_FORM
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("width", [0.0, 0.6])
def test_points_and_normal_data_have_their_law_at_every_time_after_any_steps(path, form, order, width):
    centre = torch.tensor([0.7], dtype=torch.float64)
    field = fm.GaussianField(centre, std=width or 1e-9, path=path)
    sde, solver = ScriptedMarginal(field, path=path, diffusion=form), ExponentialSDE(order, width)
    low, high = path.interval
    for grid in ([0.1, 0.4], [0.1, 0.15, 0.6, 0.9], [low, 0.3, high - 1e-3], [low, 0.5, high]):
        (alpha, sigma), (alpha_end, sigma_end) = sde.signal(grid[0]), sde.signal(grid[-1])
        times = torch.tensor(grid, dtype=torch.float64)
        mean, variance = exact_law(sde, solver, math.hypot(alpha * width, sigma), alpha * 0.7, grid=times)
        shift = alpha_end * 0.7 - mean
        assert variance == pytest.approx(alpha_end**2 * width**2 + sigma_end**2, rel=1e-6, abs=1e-9)
        # Where the path stands still it is asked a thousandth further inside.
        assert shift == pytest.approx(0.0, abs=1e-3 if path is PATHS["polynomial"] else 1e-9)


@EACH_FORM
def test_the_last_step_lands_on_the_target(form):
    """Two points, from one end of the straight path to the other, few steps, noise of any form."""
    field = fm.EmpiricalField(torch.tensor([[-2.0, 0.5], [3.0, 1.0]], dtype=torch.float64))
    asked = []

    def spy(t, x):
        asked.append(t[0].item())
        return field(t, x)

    x = torch.randn(200, 2, generator=seeded(1), dtype=torch.float64)
    for order in (1, 2):
        sde = MarginalSDE(spy, path=fm.AffinePath(), diffusion=form)
        end = fm.solve(sde, x, ExponentialSDE(order), steps=25, generator=seeded(2)).x
        near = torch.cdist(end, field.data).min(1).values
        assert near.median() < 1e-6
        assert end.isfinite().all()
    assert max(asked) == 24 / 25  # never at the end


@EACH_PATH
@EACH_FORM
def test_from_one_end_to_the_other_nothing_is_infinite(path, form):
    net, x = random_mlp(2), path.source_std * pair(3, 2)[0]
    for solver in (ExponentialSDE(), ExponentialSDE(2), ExponentialSDE(2, spread=1.0)):
        end = fm.solve(MarginalSDE(net, path=path, diffusion=form), x, solver, steps=5, generator=seeded(1)).x
        assert end.isfinite().all()
        sde = MarginalSDE(net, path=path, diffusion=form, backward=True)
        assert fm.solve(sde, end, solver, steps=5, span=(1.0, 0.0), generator=seeded(1)).x.isfinite().all()


@EACH_FORM
@pytest.mark.parametrize("order", [1, 2])
def test_backwards_the_law_is_kept_too(form, order):
    path = fm.AffinePath(fm.Cosine())
    field = fm.GaussianField(torch.tensor([0.0], dtype=torch.float64), std=0.6, path=path)
    sde = ScriptedMarginal(field, path=path, diffusion=form, backward=True)
    error = lambda n: abs(exact_law(sde, ExponentialSDE(order), 0.6, steps=n, span=(1.0, 0.0))[1] - 1)  # noqa: E731
    assert error(32) < (0.03 if order == 1 else 1e-3)
    if form == "sigma":
        assert math.log2(error(16) / error(64)) / 2 == pytest.approx(order, abs=0.3)
    # With the right width every step inside is exact; the first, from data without noise, takes them for points.
    grid = torch.tensor([0.9, 0.5, 0.2, 0.0], dtype=torch.float64)
    alpha, sigma = sde.signal(0.9)
    _, variance = exact_law(sde, ExponentialSDE(order, 0.6), math.hypot(0.6 * alpha, sigma), grid=grid)
    assert variance == pytest.approx(1.0, abs=1e-9)


def test_from_the_data_back_to_any_time_is_the_noising_law():
    """Constant noise renews all of the noise in the first step: the end is ``alpha x1 + sigma z``."""
    field, x1 = mixture_world(), pair(20_000, 2)[1]
    sde = MarginalSDE(field, path=fm.AffinePath(), diffusion="constant", backward=True)
    x = fm.solve(sde, x1, ExponentialSDE(), steps=1, span=(1.0, 0.4), generator=seeded(1)).x
    left = (x - 0.4 * x1) / 0.6
    assert abs(left.mean()) < 3 / math.sqrt(left.numel())
    assert abs(left.var() - 1) < 3 * math.sqrt(2 / left.numel())


# --- laws of mixtures, by samples ---------------------------------------------------------------------------


def _moments(x):
    """Moments up to the fourth, centred at a fixed point so that they are plain means: ``(N, K)``."""
    parts = [x, x**2, x**3, x**4]
    if x.shape[1] > 1:
        parts.append(x[:, :1] * x[:, 1:])
    return torch.cat(parts, dim=1)


def _worst(found, truth):
    """Largest difference of two samples' moments, in standard errors of the difference."""
    a, b = _moments(found), _moments(truth)
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return ((a.mean(0) - b.mean(0)) / error).abs().max().item()


@cache
def _flow(world, name):
    """A field on a path, starts, and where the flow without noise carries them."""
    path = PATHS[name]
    field = world(path)
    start = torch.randn(5000, field.means.shape[1], generator=seeded(1), dtype=torch.float64)
    return field, start, fm.solve(fm.ODE(field), start, fm.Heun(), steps=24, span=path.interval).x


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
@pytest.mark.parametrize("form", ["constant", "sigma", "linear", "matched"])
@pytest.mark.parametrize("world", [gaussian_world, line_world])
def test_the_moments_are_those_of_the_data_and_of_the_flow(name, form, world):
    path = PATHS[name]
    field, start, flow = _flow(world, name)
    sde, options = MarginalSDE(field, path=path, diffusion=form), {"steps": 24, "span": path.interval}
    solver = ExponentialSDE(order=2, spread=1.0)
    found = fm.solve(sde, start, solver, generator=seeded(2), **options).x
    assert _worst(found, field.sample(100_000, generator=seeded(3))) < 3
    assert _worst(found, flow) < 3
    # And it is another process: of the start little is left, or less than the flow keeps.
    kept, all_kept = (abs(torch.corrcoef(torch.stack([start[:, 0], end[:, 0]]))[0, 1]) for end in (found, flow))
    assert kept < 0.8 * all_kept


@pytest.mark.parametrize("solver", [EulerMaruyama(), StochasticHeun()], ids=repr)
@pytest.mark.parametrize("form", ["sigma", "linear"])
def test_plain_solvers_keep_the_moments_where_the_drift_is_finite(solver, form):
    field, n = line_world(), 6000
    start = torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    sde = MarginalSDE(field, path=fm.AffinePath(), diffusion=form)
    found = fm.solve(sde, start, solver, steps=120 // solver.evaluations, generator=seeded(2)).x
    assert _worst(found, field.sample(100_000, generator=seeded(3))) < 3


def test_at_a_time_inside_the_law_is_the_paths():
    field, n = line_world(), 10_000
    start = torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    sde, options = MarginalSDE(field, path=fm.AffinePath(), diffusion="matched"), {"steps": 30, "span": (0.0, 0.6)}
    found = fm.solve(sde, start, ExponentialSDE(2), generator=seeded(2), **options).x
    assert _worst(found, field.sample(100_000, generator=seeded(3), t=0.6)) < 3


def test_a_condition_chooses_the_law():
    means = torch.tensor([[-2.0], [1.0]], dtype=torch.float64)
    fields = [fm.GaussianField(mean, std=0.5) for mean in means]
    field = lambda t, x, c: torch.where(c[:, None] == 0, fields[0](t, x), fields[1](t, x))  # noqa: E731
    n, path = 8000, fm.AffinePath()
    label = torch.arange(n) % 2
    start = torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    sde = MarginalSDE(field, label, path=path, diffusion="sigma")
    x = fm.solve(sde, start, ExponentialSDE(2, spread=0.5), steps=10, generator=seeded(2)).x
    for k in (0, 1):
        part = x[label == k]
        assert abs(part.mean() - means[k]) < 3 * 0.5 / math.sqrt(n / 2)
        assert abs(part.std() - 0.5) < 3 * 0.5 / math.sqrt(n)


# --- refusals -----------------------------------------------------------------------------------------------


class Silent(fm.Schedule):
    """No noise at all."""

    def alpha(self, t):
        return t

    def sigma(self, t):
        return torch.zeros_like(t)


def _make(path=None, **options):
    return MarginalSDE(lambda t, x: x, path=path or fm.AffinePath(), **options)


@pytest.mark.parametrize("coupling", [fm.ExactOT(), fm.Sinkhorn(), fm.ConditionAware(fm.ExactOT())], ids=repr)
def test_couplings_that_tie_the_ends_are_refused(coupling):
    with pytest.raises(ValueError, match=r"x0 given x1 is not normal.*fm.Independent\(\).*ScoreAndFlow.*Bridge"):
        _make(coupling=coupling)
    _make(coupling=fm.Independent())


def test_sources_that_are_not_the_paths_are_refused():
    with pytest.raises(ValueError, match=r"only for the source Normal\(std=1.0\), got Empirical"):
        _make(source=fm.Empirical(torch.zeros(3, 1)))
    with pytest.raises(ValueError, match="only for the source"):
        _make(source=fm.Normal(2.0))
    _make(source=fm.Normal())
    _make(PATHS["ve"], source=fm.Normal(20.0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _make(fm.BrownianBridge()), TypeError, "learn it with fm.ScoreAndFlow.*fm.Bridge"),
        (lambda: _make(fm.FunctionPath(lambda t, x0, x1: x1)), TypeError, "must be a flowmatch AffinePath"),
        (lambda: _make(fm.AffinePath(Silent())), ValueError, "has no noise"),
        (lambda: _make(diffusion="none"), ValueError, "one of constant, sigma, linear, matched"),
        (lambda: _make(diffusion=None), TypeError, "diffusion must be a number or a function"),
        (lambda: _make(rate=-1.0), ValueError, "rate must be a finite number, not negative"),
        (
            lambda: fm.solve(_make(diffusion="matched"), torch.ones(2, 1), EulerMaruyama(), steps=2),
            ValueError,
            "infinite at t = 0|the noise must be finite.*t = 0",
        ),
        (
            lambda: fm.solve(_make(diffusion="constant"), torch.ones(2, 1), StochasticHeun(), steps=2),
            ValueError,
            "diffusion='constant' the drift is infinite at t = 1.*fm.ExponentialSDE",
        ),
        (
            lambda: fm.solve(_make(PATHS["vp"]), torch.ones(2, 1), EulerMaruyama(), grid=[0.5, 1.0, 1.1]),
            ValueError,
            r"t must lie in \[0.0, 0.99999\]",
        ),
        (
            lambda: fm.solve(_make(), torch.ones(2, 1), ExponentialSDE(), grid=[0.5, 1.1, 1.2]),
            ValueError,
            r"t must lie in \[0.0, 1.0\]",
        ),
    ],
)
def test_wrong_parts_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_guided_velocities_are_read_as_they_are():
    """The score of a guided velocity is the guided score, as is the custom."""
    fields = [fm.GaussianField(torch.tensor([m], dtype=torch.float64), std=0.7) for m in (-1.0, 1.5)]
    weak, strong = fields
    guided = fm.AutoGuided(strong, weak, scale=2.0)
    x = pair(5, 1)[0]
    sde = MarginalSDE(guided, path=fm.AffinePath(), diffusion=1.0)
    pushed = 2 * strong.score(0.5, x) - weak.score(0.5, x)
    torch.testing.assert_close(sde.drift(0.5, x), guided(torch.tensor(0.5), x) + 0.5 * pushed)
