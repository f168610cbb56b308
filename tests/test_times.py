"""Contract of times: where they fall, what law they follow, and that only their generator decides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

import flowmatch as fm
from flowmatch import times
from flowmatch.times import Beta, LogitNormal, Mixed, Mode, Power, Shifted, Stratified, Uniform
from flowmatch.times.base import TimesLaw
from tests.problems import seeded, z_scores

LAWS = {
    "uniform": Uniform(),
    "uniform-part": Uniform(0.25, 0.75),
    "logit-normal": LogitNormal(),
    "logit-normal-data": LogitNormal(1.0, 0.5, low=0.1, high=0.9),
    "mode": Mode(),
    "mode-ends": Mode(-0.8, low=0.0, high=1 - 1e-5),
    "power": Power(4.0),
    "power-source": Power(-0.5, low=0.2),
    "beta": Beta(2.0, 3.5),
    "beta-ends": Beta(0.5, 0.7, low=1e-3, high=0.99),
    "beta-wide": Beta(40.0, 1.0),
    "mixed": Mixed([LogitNormal(), Power(4.0)], [0.7, 0.3]),
    "mixed-part": Mixed([Uniform(0.1, 0.8), Power(1.0, 0.1, 0.8), Mode(low=0.1, high=0.8)], [0.2, 0.5, 0.3]),
    "shifted": Shifted(),
    "shifted-logit-normal": Shifted(LogitNormal(0.3, low=0.05, high=0.95), 0.4),
    "shifted-twice": Shifted(Shifted(Uniform(0.1, 0.8), 2.0), 1.5),
}
SAMPLERS = {
    **LAWS,
    "stratified": Stratified(),
    "stratified-part": Stratified(0.1, 1 - 1e-5),
    **{f"stratified-{name}": Stratified(base=law) for name, law in LAWS.items() if name != "uniform"},
    "shifted-stratified": Shifted(Stratified(base=Power(1.0))),
}
FLAT = {name: SAMPLERS[name] for name in ("uniform", "uniform-part", "stratified", "stratified-part")}
EACH = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
#: Stratified times have the density and the quantile of their base, so two of them stand for all.
SINGLE = {**LAWS, **{name: SAMPLERS[name] for name in ("stratified-part", "stratified-beta", "shifted-stratified")}}
EACH_LAW = pytest.mark.parametrize("law", SINGLE.values(), ids=SINGLE.keys())

#: The same laws as SciPy has them, on the unit interval.
ORACLES = {
    "uniform": stats.uniform(),
    "uniform-part": stats.uniform(),
    "power": stats.powerlaw(5.0),
    "power-source": stats.powerlaw(0.5),
    "beta": stats.beta(2.0, 3.5),
    "beta-ends": stats.beta(0.5, 0.7),
    "beta-wide": stats.beta(40.0, 1.0),
}


def test_every_public_sampler_is_under_contract():
    assert {getattr(times, name) for name in times.__all__} <= {type(s) for s in SAMPLERS.values()}
    assert all(isinstance(sampler, fm.typing.Times) for sampler in SAMPLERS.values())


# --- draws --------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_times_lie_in_the_half_open_interval(sampler, dtype):
    t = sampler(20_000, generator=seeded(), dtype=dtype)
    assert t.dtype == dtype
    assert t.min() >= torch.tensor(sampler.low, dtype=dtype)
    assert t.max() < torch.tensor(sampler.high, dtype=dtype)


@pytest.mark.parametrize("sampler", FLAT.values(), ids=FLAT.keys())
def test_times_are_uniform(sampler):
    n = 20_000
    t = (
        ((sampler(n, generator=seeded(), dtype=torch.float64) - sampler.low) / (sampler.high - sampler.low))
        .sort()
        .values
    )
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((steps[1:] - t).max().item(), (t - steps[:-1]).max().item())
    # Dvoretzky-Kiefer-Wolfowitz: a uniform sample exceeds this with probability 1e-6.
    assert distance < math.sqrt(math.log(2 / 1e-6) / (2 * n))


@pytest.mark.parametrize(
    "law", [LogitNormal(-12.0), LogitNormal(-6.0, low=0.25), LogitNormal(9.0, high=0.9), Power(8.0)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_draw_has_an_infinite_weight(law, dtype):
    """Rounding would put some times on an end at which the law has no density."""
    t = law(2000, generator=seeded(), dtype=dtype)
    assert bool(torch.isfinite(1 / law.density(t)).all())


@EACH
def test_draws_follow_the_quantiles(sampler):
    n = 20_000
    t = sampler(n, generator=seeded(5)).double().sort().values
    share = torch.arange(1, n + 1, dtype=torch.float64) / n
    margin = math.sqrt(math.log(2 / 1e-6) / (2 * n))
    below = torch.searchsorted(t, sampler.quantile(share), right=True) / n
    assert (below - share).abs().max() < margin


@EACH
def test_the_generator_decides_and_the_global_one_is_left_alone(sampler):
    before = torch.get_rng_state()
    first, second, other = (sampler(64, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@EACH
@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(sampler, n):
    t = sampler(n, generator=seeded())
    assert t.shape == sampler.density(t).shape == sampler.quantile(t).shape == (n,)


@pytest.mark.parametrize("sampler", FLAT.values(), ids=FLAT.keys())
def test_the_mean_is_unbiased_and_rows_are_alike(sampler):
    middle = (sampler.low + sampler.high) / 2
    generator = seeded()
    batches = torch.stack([sampler(8, generator=generator, dtype=torch.float64) for _ in range(4000)])
    # Each row is uniform by itself: a sorted batch would tie the time to the sample. Nine scores, bound at 1e-5 each.
    assert z_scores(batches - middle).abs().max() < 4.5
    assert z_scores((batches - middle).square().mean(1) - (sampler.high - sampler.low) ** 2 / 12).abs() < 4.5


# --- laws ---------------------------------------------------------------------------------------------------------


def _mass(law, low, high):
    """Integral of the density by quadrature, singular ends included."""

    def density(x):
        return float(law.density(torch.tensor([x], dtype=torch.float64)))

    low, high = float(low), float(high)
    return integrate.quad(density, low, high, epsabs=1e-6, epsrel=1e-5, limit=100)[0] if high > low else 0.0


@EACH_LAW
def test_the_density_integrates_to_one(law):
    middle = 0.5 * (law.low + law.high)
    assert _mass(law, law.low, middle) + _mass(law, middle, law.high) == pytest.approx(1.0, abs=1e-4)


@EACH_LAW
def test_the_quantile_inverts_the_distribution_function(law):
    u = torch.tensor([0.001, 0.1, 0.3, 0.5, 0.8, 0.999], dtype=torch.float64)
    t = law.quantile(u)
    for level, time in zip(u, t, strict=True):
        assert _mass(law, law.low, time) == pytest.approx(float(level), abs=1e-4)
    ends = law.quantile(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([law.low, law.high], dtype=torch.float64))


@EACH_LAW
def test_the_density_is_the_slope_of_the_quantile(law):
    u = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    step = 1e-5
    slope = (law.quantile(u + step) - law.quantile(u - step)) / (2 * step)
    torch.testing.assert_close(law.density(law.quantile(u)) * slope, torch.ones_like(u), rtol=1e-6, atol=0)


@EACH_LAW
def test_the_density_is_zero_outside(law):
    outside = torch.tensor([-0.1, law.low - 1e-3, law.high + 1e-3, 1.1])
    assert torch.equal(law.density(outside), torch.zeros(4))


@EACH_LAW
def test_a_weighted_mean_is_the_integral(law):
    """E[f(t) / p(t)] is the integral of f over the interval, so an importance-weighted loss stays unbiased."""
    generator = seeded(7)
    t = torch.stack([law(16, generator=generator, dtype=torch.float64) for _ in range(300)])
    # Between two quantiles, since at an end without density the weight has no variance.
    low, high = law.quantile(torch.tensor([0.02, 0.98], dtype=torch.float64)).tolist()
    value = torch.where((t > low) & (t < high), torch.exp(-2 * t) / law.density(t), 0.0)
    exact = (math.exp(-2 * low) - math.exp(-2 * high)) / 2
    assert z_scores(value.mean(1) - exact).abs() < 4.5


@pytest.mark.parametrize("name", ORACLES)
def test_laws_agree_with_scipy(name):
    law, oracle = LAWS[name], ORACLES[name]
    u = torch.tensor([1e-9, 1e-3, 0.05, 0.3, 0.5, 0.77, 0.99, 1 - 1e-6], dtype=torch.float64)
    width = law.high - law.low
    unit = (law.quantile(u) - law.low) / width
    torch.testing.assert_close(unit, torch.as_tensor(oracle.ppf(u.numpy())), rtol=1e-9, atol=1e-12)
    middle = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    density = law.density(law.low + width * middle) * width
    torch.testing.assert_close(density, torch.as_tensor(oracle.pdf(middle.numpy())), rtol=1e-9, atol=0)
    t = (law(5000, generator=seeded(1), dtype=torch.float64) - law.low) / width
    assert stats.kstest(t.numpy(), oracle.cdf).pvalue > 1e-4


@given(a=st.floats(0.1, 200), b=st.floats(0.1, 200), u=st.lists(st.floats(1e-12, 1 - 1e-12), min_size=1, max_size=8))
def test_beta_quantiles_agree_with_scipy(a, b, u):
    level = torch.tensor(u, dtype=torch.float64)
    t = Beta(a, b).quantile(level)
    # Near the upper end a double holds 1 - t to 1e-16 only, so the level is compared, not the time.
    again = torch.as_tensor(stats.beta.cdf(t.numpy(), a, b))
    near = torch.as_tensor(stats.beta.ppf(u, a, b))
    assert bool(((again - level).abs() < 1e-10).logical_or((t - near).abs() < 1e-12).all())


def test_the_log_odds_of_a_logit_normal_are_normal():
    t = LogitNormal(-0.4, 0.7)(5000, generator=seeded(1), dtype=torch.float64)
    assert stats.kstest(torch.logit(t).numpy(), stats.norm(-0.4, 0.7).cdf).pvalue > 1e-4


@pytest.mark.parametrize("scale", [-0.9, 0.0, 0.8, 1.29, 1.75])
def test_mode_is_the_formula_of_its_paper(scale):
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    paper = 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    torch.testing.assert_close(1 - Mode(scale).quantile(u), paper)
    torch.testing.assert_close(Mode(scale).quantile(1 - u), paper)  # symmetric: neither end is special


def test_mode_favours_the_middle_and_keeps_its_tails():
    ends, middle = Mode(1.29).density(torch.tensor([1e-6, 0.5], dtype=torch.float64))
    assert middle > 3 > 1 > ends > 0.4
    ends, middle = Mode(-0.8).density(torch.tensor([1e-6, 0.5], dtype=torch.float64))
    assert ends > 3 > 1 > middle


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shift_is_that_of_the_noise_level(shift):
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    noise = 1 - Uniform().quantile(u)
    shifted = shift * noise / (1 + (shift - 1) * noise)
    torch.testing.assert_close(Shifted(Uniform(), shift).quantile(u), 1 - shifted)


def test_a_shift_above_one_looks_more_at_the_source():
    assert Shifted(shift=3.0)(4000, generator=seeded()).median() == pytest.approx(0.25, abs=0.03)


def test_a_shift_moves_the_log_odds():
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    moved = Shifted(LogitNormal(1.0), 3.0).quantile(u)
    torch.testing.assert_close(moved, LogitNormal(1.0 - math.log(3.0)).quantile(u))


def test_a_shift_takes_any_sampler_but_needs_a_law_for_a_density():
    def middle(n, generator=None, device=None, dtype=None):
        return torch.full((n,), 0.5, device=device, dtype=dtype)

    shifted = Shifted(middle, 3.0)
    torch.testing.assert_close(shifted(2), torch.tensor([0.25, 0.25]))
    for method in (shifted.density, shifted.quantile):
        with pytest.raises(TypeError, match="no density and no quantile function"):
            method(torch.tensor([0.5]))


# --- stratified ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 256])
def test_stratified_draws_one_time_in_each_cell(n):
    for seed in range(20):
        cells = (n * fm.Stratified()(n, generator=seeded(seed), dtype=torch.float64)).floor()
        assert torch.equal(cells.sort().values, torch.arange(n, dtype=torch.float64))


SIMPLE = {name: law for name, law in LAWS.items() if not isinstance(law, Mixed)}


@pytest.mark.parametrize("law", SIMPLE.values(), ids=SIMPLE.keys())
def test_stratified_draws_one_time_in_each_cell_of_a_law(law):
    n = 64
    edges = law.quantile(torch.linspace(0, 1, n + 1, dtype=torch.float64))
    t = Stratified(base=law)(n, generator=seeded(2), dtype=torch.float64)
    cells = torch.searchsorted(edges, t, right=True) - 1
    assert torch.equal(cells.sort().values, torch.arange(n))
    assert not torch.equal(cells, torch.arange(n))


def test_a_stratified_mixture_has_the_strata_of_its_laws():
    """Of 64 times, 16 and 48 are of the two laws, one in each cell of its own: their means hardly vary."""
    mixed, n, f = Mixed([Power(1.0), LogitNormal()], [0.25, 0.75]), 64, lambda t: torch.exp(-3 * t)
    generator = seeded()
    drawn = {
        name: torch.stack([f(law(n, generator=generator)).mean() for _ in range(400)])
        for name, law in (("single", mixed), ("stratified", Stratified(base=mixed)))
    }
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    true = torch.trapezoid(mixed.density(t) * f(t), t)
    for means in drawn.values():
        assert abs(float(means.mean() - true)) < 5 * float(means.std()) / 20
    assert drawn["stratified"].var() < drawn["single"].var() / 50


def test_stratified_order_is_random():
    generator = seeded()
    draws = torch.stack([fm.Stratified()(4, generator=generator) for _ in range(2000)])
    orders = {tuple(order.tolist()) for order in draws.argsort(1)}
    assert len(orders) == 24


def test_stratified_variance_falls_with_the_cube_of_the_batch():
    generator, n, f = seeded(), 64, lambda t: torch.exp(-3 * t)
    draw = {
        kind: torch.stack([f(kind()(n, generator=generator)).mean() for _ in range(1500)])
        for kind in (fm.Uniform, fm.Stratified)
    }
    # Within cells of width 1/n the variance is |f'|^2 / 12 n^2, so that of the mean is E f'^2 / 12 n^3.
    predicted = 9 * (1 - math.exp(-6)) / 6 / (12 * n**3)
    spread = 5 * math.sqrt(2 / 1500)
    assert draw[fm.Stratified].var().item() == pytest.approx(predicted, rel=spread + 1 / n)
    assert draw[fm.Stratified].var() < draw[fm.Uniform].var() / 500


def test_a_stratified_law_has_the_interval_of_its_base():
    law = Stratified(base=Power(2.0, low=0.25, high=0.5))
    assert (law.low, law.high) == (0.25, 0.5)
    assert Stratified(0.25, 0.5, law.base) == law
    with pytest.raises(ValueError, match=r"base has the interval \(0.25, 0.5\), got \(0.1, 1.0\); give the interval"):
        Stratified(0.1, base=law.base)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [Uniform, Stratified, lambda low, high: LogitNormal(low=low, high=high), lambda low, high: Mode(1.0, low, high)]
    + [lambda low, high: Power(1.0, low, high), lambda low, high: Beta(1.0, 1.0, low, high)],
)
@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.7, 0.2), (math.nan, 1.0)])
def test_an_impossible_interval_is_refused(kind, low, high):
    with pytest.raises(ValueError, match=r"times need 0 <= low < high <= 1, got low="):
        kind(low, high)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitNormal(0.0, 0.0), "needs a finite mean and std > 0, got mean=0.0 and std=0.0"),
        (lambda: LogitNormal(math.nan), "needs a finite mean and std > 0, got mean=nan"),
        (lambda: Mixed([Uniform()], [0.5, 0.5]), "a weight for each of its laws, got 1 laws and 2 weights"),
        (lambda: Mixed([Uniform(), Power(1.0)], [0.5, 0.6]), "positive with sum 1, got .0.5, 0.6."),
        (lambda: Mixed([Uniform(), Uniform(0.1, 1.0)], [0.5, 0.5]), "one interval, got .0.0, 1.0., .0.1, 1.0."),
        (lambda: Mode(1.76), "scale between -1 and 2/.pi - 2. = 1.7519, got 1.76"),
        (lambda: Mode(-1.0), "scale between -1 and"),
        (lambda: Power(-1.0), "exponent above -1, got -1.0"),
        (lambda: Power(math.nan), "exponent above -1, got nan"),
        (lambda: Beta(0.0, 1.0), "a and b from 0.1 to 10000, got a=0.0 and b=1.0"),
        (lambda: Beta(1.0, math.inf), "a and b from 0.1 to 10000"),
        (lambda: Shifted(shift=0.0), "shift must be a positive number, got 0.0"),
        (lambda: Uniform().quantile(torch.tensor([1.5])), "u must lie in .0, 1., got values from 1.5 to 1.5"),
        (lambda: Mode().quantile(torch.tensor([math.nan])), "u must lie in .0, 1."),
    ],
)
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stratified(base=lambda n: n),
        lambda: Shifted(base=0.5),
        lambda: Power().density(torch.tensor([1])),
        lambda: Shifted().density(torch.tensor([1])),
        lambda: Power().quantile(torch.tensor([1])),
    ],
)
def test_wrong_kinds_are_refused(make):
    with pytest.raises(TypeError, match="must be"):
        make()


def test_a_law_of_ones_own_needs_two_functions():
    class Triangle(TimesLaw):
        low, high = 0.0, 0.5

        def _quantile(self, u):
            return u.sqrt()

        def _density(self, t):
            return 2 * t

    law = Triangle()
    assert law(3, generator=seeded()).max() < 0.5
    assert Stratified(base=law).density(torch.tensor([0.25])).item() == pytest.approx(2.0)
