"""Contract of times: where they fall, how they are spread, and that only their generator decides."""

from __future__ import annotations

import math

import pytest
import torch

import flowmatch as fm
from flowmatch import times
from tests.problems import seeded, z_scores

SAMPLERS = {
    "uniform": fm.Uniform(),
    "uniform-part": fm.Uniform(0.25, 0.75),
    "stratified": fm.Stratified(),
    "stratified-part": fm.Stratified(0.1, 1 - 1e-5),
}
EACH = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def test_every_public_sampler_is_under_contract():
    assert {getattr(times, name) for name in times.__all__} <= {type(s) for s in SAMPLERS.values()}
    assert all(isinstance(sampler, fm.typing.Times) for sampler in SAMPLERS.values())


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_times_lie_in_the_half_open_interval(sampler, dtype):
    t = sampler(20_000, generator=seeded(), dtype=dtype)
    assert t.dtype == dtype
    assert t.min() >= torch.tensor(sampler.low, dtype=dtype)
    assert t.max() < torch.tensor(sampler.high, dtype=dtype)


@EACH
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
    assert sampler(n, generator=seeded()).shape == (n,)


@EACH
def test_the_mean_is_unbiased_and_rows_are_alike(sampler):
    middle = (sampler.low + sampler.high) / 2
    generator = seeded()
    batches = torch.stack([sampler(8, generator=generator, dtype=torch.float64) for _ in range(4000)])
    # Each row is uniform by itself: a sorted batch would tie the time to the sample. Nine scores, bound at 1e-5 each.
    assert z_scores(batches - middle).abs().max() < 4.5
    assert z_scores((batches - middle).square().mean(1) - (sampler.high - sampler.low) ** 2 / 12).abs() < 4.5


@pytest.mark.parametrize("n", [1, 2, 7, 256])
def test_stratified_draws_one_time_in_each_cell(n):
    for seed in range(20):
        cells = (n * fm.Stratified()(n, generator=seeded(seed), dtype=torch.float64)).floor()
        assert torch.equal(cells.sort().values, torch.arange(n, dtype=torch.float64))


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


@pytest.mark.parametrize("kind", [fm.Uniform, fm.Stratified])
@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.7, 0.2), (math.nan, 1.0)])
def test_an_impossible_interval_is_refused(kind, low, high):
    with pytest.raises(ValueError, match=r"times need 0 <= low < high <= 1, got low="):
        kind(low, high)
