"""Toy sets: the density is a density, the samples follow it, and the entropies are what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from flowmatch.data import TOYS, toy
from flowmatch.data.toy_curves import Curve
from flowmatch.errors import InputError

PLANE = [name for name in TOYS if toy(name).dim == 2]
CURVES = [name for name in TOYS if isinstance(toy(name), Curve)]
HALF = 5.6  # half width of a square that holds all but 1e-7 of every plane set
CELLS = 224  # cells along its side, 0.05 wide; edges of the checkerboard are edges of cells


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid() -> torch.Tensor:
    """Centres of the cells of the square, row by row."""
    step = 2 * HALF / CELLS
    axis = -HALF + step * (torch.arange(CELLS, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(axis, axis)


@pytest.fixture(scope="module")
def densities() -> dict[str, torch.Tensor]:
    """Log-density of every plane set on the grid, computed once."""
    points = grid()
    return {name: toy(name).log_prob(points) for name in PLANE}


@pytest.mark.parametrize("name", PLANE)
def test_density_integrates_to_one(name, densities):
    total = densities[name].exp().sum() * (2 * HALF / CELLS) ** 2
    assert abs(total.item() - 1) < 1e-5


@pytest.mark.parametrize("name", PLANE)
def test_entropy_is_that_of_the_density(name, densities):
    log_p = densities[name]
    p = log_p.exp()
    entropy = -(p * log_p.clamp(min=-1e4)).sum() * (2 * HALF / CELLS) ** 2
    assert abs(entropy.item() - toy(name).entropy) < 1e-5


@pytest.mark.parametrize("name", TOYS)
def test_samples_have_the_entropy(name):
    # The mean of -log p over samples is the entropy, within its own standard error.
    n = 20_000
    surprise = -toy(name).log_prob(toy(name).sample(n, generator=generator(), dtype=torch.float64))
    error = surprise.std().item() / math.sqrt(n)
    assert abs(surprise.mean().item() - toy(name).entropy) <= 4 * error + 1e-9


@pytest.mark.parametrize("name", PLANE)
def test_samples_fall_where_the_density_is(name, densities):
    # Chi-square of a coarse histogram; 5 standard deviations of its own law above its mean.
    n, blocks = 50_000, 28
    fine = densities[name].exp().reshape(CELLS, CELLS) * (2 * HALF / CELLS) ** 2
    side = CELLS // blocks
    expected = n * fine.reshape(blocks, side, blocks, side).sum((1, 3)).flatten()
    x = toy(name).sample(n, generator=generator(1), dtype=torch.float64)
    cell = ((x + HALF) / (2 * HALF) * blocks).floor().long().clamp(0, blocks - 1)
    counts = torch.bincount(cell[:, 0] * blocks + cell[:, 1], minlength=blocks**2).double()
    full = expected > 5
    statistic = ((counts - expected) ** 2 / expected)[full].sum().item()
    freedom = int(full.sum()) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
    assert counts[expected < 1e-9].sum() == 0


@pytest.mark.parametrize("name", PLANE)
def test_a_wrong_density_is_noticed(name, densities):
    # The histogram check can fail: a set moved by a quarter has another density under the same points.
    x = toy(name).sample(20_000, generator=generator(), dtype=torch.float64)
    moved = toy(name).log_prob(x + 0.25).clamp(min=-50)
    assert -moved.mean().item() > toy(name).entropy + 0.05


def test_known_entropies():
    assert toy("8gaussians").entropy == pytest.approx(2.833, abs=2e-3)  # the published Monte Carlo value
    assert toy("checkerboard").entropy == math.log(32)
    assert toy("funnel").entropy == pytest.approx(10 * 0.5 * math.log(2 * math.pi * math.e) + math.log(3), abs=1e-12)


def test_funnel_density_is_the_product_of_its_normals():
    x = toy("funnel").sample(64, generator=generator(), dtype=torch.float64)
    neck = torch.distributions.Normal(0.0, 3.0).log_prob(x[:, 0])
    rest = torch.distributions.Normal(0.0, (x[:, :1] / 2).exp()).log_prob(x[:, 1:]).sum(1)
    torch.testing.assert_close(toy("funnel").log_prob(x), neck + rest)


def test_funnel_is_finite_deep_in_its_neck():
    x = torch.zeros(1, 10)
    x[0, 0] = -95.0
    assert toy("funnel").log_prob(x).isfinite().all()


@pytest.mark.parametrize("name", CURVES)
def test_quadrature_has_converged(name):
    curve = toy(name)
    x = curve.sample(500, generator=generator(), dtype=torch.float64)
    angle = 2 * math.pi * torch.rand(500, 1, generator=generator(1), dtype=torch.float64)
    out = torch.cat([angle.cos(), angle.sin()], 1)
    finer = toy(name)
    finer.nodes = 2 * curve.nodes + 1
    for distance, bound in ((0.0, 1e-9), (8.0, 1e-8), (20.0, 1e-6)):
        points = x + distance * curve.std * out
        error = (curve.log_prob(points) - finer.log_prob(points)).abs().max().item()
        assert error < bound, f"{distance} standard deviations out"


@pytest.mark.parametrize("name", CURVES)
def test_quadrature_agrees_with_an_adaptive_rule(name):
    curve = toy(name)
    points = curve.sample(4, generator=generator(2), dtype=torch.float64)
    log_p = curve.log_prob(points)

    def integrand(s: float, x: np.ndarray) -> float:
        centres = curve.curve(torch.tensor([s], dtype=torch.float64))[0].numpy()
        bump = np.exp(-0.5 * ((x - centres) ** 2).sum(1) / curve.std**2) / (2 * math.pi * curve.std**2)
        return float(curve.power * s ** (curve.power - 1) * bump.mean())

    for x, value in zip(points.numpy(), log_p, strict=True):
        integral, _ = integrate.quad(integrand, 0, 1, args=(x,), limit=500, epsabs=1e-12, epsrel=1e-10)
        assert abs(math.log(integral) - value.item()) < 1e-6


def test_ring_density_is_that_of_the_convolution():
    # One ring by brute force over the angle, where the formula has a Bessel function.
    rings, x = toy("rings"), torch.tensor([[1.4, 0.2], [0.0, 0.0], [3.1, -0.1]], dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(20_000, dtype=torch.float64) / 20_000
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    total = sum(
        torch.exp(-0.5 * ((x[:, None] - radius * circle) / rings.STD).square().sum(-1)).mean(1)
        for radius in (0.75, 1.5, 2.25, 3.0)
    )
    torch.testing.assert_close(rings.log_prob(x), (total / (4 * 2 * math.pi * rings.STD**2)).log())


@pytest.mark.parametrize("name", TOYS)
def test_generator_fixes_the_draw(name):
    first, again, other = (toy(name).sample(50, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", TOYS)
def test_global_state_is_left_alone_when_a_generator_is_given(name):
    before = torch.get_rng_state()
    toy(name).sample(10, generator=generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_shapes_and_types(name, n):
    for dtype in (torch.float32, torch.float64):
        x = toy(name).sample(n, generator=generator(), dtype=dtype)
        log_p = toy(name).log_prob(x)
        assert x.shape == (n, toy(name).dim)
        assert log_p.shape == (n,)
        assert x.dtype == log_p.dtype == dtype
        assert log_p.isfinite().all()
    assert toy(name).sample(n, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", TOYS)
def test_float32_agrees_with_float64(name):
    x = toy(name).sample(2000, generator=generator(), dtype=torch.float32)
    torch.testing.assert_close(toy(name).log_prob(x).double(), toy(name).log_prob(x.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in PLANE if name != "checkerboard"])
def test_log_density_has_a_gradient(name):
    x = toy(name).sample(5, generator=generator(), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(toy(name).log_prob, (x,))


def test_checkerboard_edges_and_outside():
    board = toy("checkerboard")
    x = torch.tensor([[-4.0, -4.0], [4.0, 4.0], [-4.1, 0.5], [1.0, 1.0], [1.0, -1.0], [math.nan, 0.0]])
    expected = torch.tensor([-math.log(32), -math.inf, -math.inf, -math.log(32), -math.inf, math.nan])
    torch.testing.assert_close(board.log_prob(x), expected, equal_nan=True)


def test_far_points_stay_finite():
    x = torch.tensor([[200.0, -300.0]])
    for name in PLANE:
        if name != "checkerboard":
            assert toy(name).log_prob(x).isfinite().all(), name


def test_alias_and_unknown_name():
    assert toy("2spirals").name == "two_spirals"
    with pytest.raises(InputError, match=r"called 'mons' \(did you mean 'moons'\?\); there are 8gaussians,"):
        toy("mons")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(B, 2\) for toy 'moons', got \(3, 5\)"):
        toy("moons").log_prob(torch.zeros(3, 5))
    with pytest.raises(TypeError, match="floating point"):
        toy("moons").log_prob(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        toy("moons").sample(-1)
