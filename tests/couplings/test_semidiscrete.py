"""Laws of semidiscrete transport: cells known exactly, equal masses, the exact plan of a large sample."""

from __future__ import annotations

import math

import ot
import pytest
import torch

import flowmatch as fm
from flowmatch.couplings.semidiscrete import SemiDiscrete
from flowmatch.typing import Coupling
from tests.problems import seeded


def _law(n, dim=2, seed=0):
    """Points on a ring of clumps, far from the source's own law."""
    generator = seeded(seed)
    angle = torch.randint(5, (n,), generator=generator) * (2 * math.pi / 5)
    x = 0.4 * torch.randn(n, dim, generator=generator)
    return x + 3 * torch.nn.functional.pad(torch.stack([angle.cos(), angle.sin()], 1), (0, dim - 2))


@pytest.fixture(scope="module")
def ring():
    data = _law(200)
    return SemiDiscrete.fit(data, steps=1500, batch=512, generator=seeded(1))


# --- exact cells --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_two_points_halve_the_source(offset):
    """The cells of two points are half-spaces, and those of a symmetric law meet at its centre."""
    data = torch.tensor([[-1.0, 2.0], [4.0, 3.0]], dtype=torch.float64) + offset
    coupling = SemiDiscrete.fit(data, steps=1000, generator=seeded())
    across = data[1] - data[0]
    x0 = torch.randn(4000, 2, generator=seeded(5), dtype=torch.float64)
    side = x0 @ across / across.norm()
    j = coupling(x0, data)[1]
    clear = side.abs() > 0.02
    assert torch.equal(j[clear], (side[clear] > 0).long())
    assert coupling.marginal_error < 0.02


def test_cells_on_a_line_are_between_quantiles():
    data = torch.tensor([[3.0], [-2.0], [0.1], [0.0], [7.5]], dtype=torch.float64)
    coupling = SemiDiscrete.fit(data, steps=2000, generator=seeded())
    normal = torch.distributions.Normal(0.0, 1.0)
    edges = normal.icdf(torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))
    x0 = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    rank = torch.searchsorted(edges, x0)
    j = coupling(x0[:, None], data)[1]
    clear = (x0[:, None] - edges).abs().amin(1) > 0.02
    assert torch.equal(data.flatten().argsort()[rank[clear]], j[clear])


def test_potentials_on_a_line_are_those_of_the_edges():
    """At the edge between two neighbours both values are equal: g_k - g_j = |e - x_k|^2 - |e - x_j|^2."""
    data = torch.tensor([[-2.0], [0.5], [1.0]], dtype=torch.float64)
    g = SemiDiscrete.fit(data, steps=3000, generator=seeded()).potentials
    edges = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    x = data.flatten()
    expected = (edges - x[1:]) ** 2 - (edges - x[:-1]) ** 2
    # An edge known to 0.01 makes a potential known to 0.02 times the distance of the neighbours.
    assert bool(((g.diff() - expected).abs() < 0.02 * x.diff()).all())
    assert float(g.mean()) == pytest.approx(0.0, abs=1e-12)


def test_a_source_of_another_scale():
    data = torch.tensor([[-1.0], [0.0], [1.0]])
    coupling = SemiDiscrete.fit(data, fm.Normal(std=10.0), steps=1000, generator=seeded())
    edge = 10 * 0.4307  # the normal's upper third
    j = coupling(torch.tensor([[-edge - 0.3], [-edge + 0.3], [edge - 0.3], [edge + 0.3]]), data)[1]
    assert j.tolist() == [0, 1, 1, 2]


def test_one_point_takes_everything():
    data = torch.tensor([[5.0, 5.0]])
    coupling = SemiDiscrete.fit(data, steps=3, generator=seeded())
    assert coupling(torch.randn(7, 2, generator=seeded()), data)[1].tolist() == [0] * 7
    assert coupling.potentials.tolist() == [0.0]
    assert coupling.marginal_error == 0.0


# --- a cloud ------------------------------------------------------------------------------------------------------


def test_masses_are_uniform(ring):
    n, draws = ring.data.shape[0], 400_000
    x0 = torch.randn(draws, 2, generator=seeded(11))
    error = torch.bincount(ring(x0, ring.data)[1], minlength=n) * (n / draws) - 1
    counting = math.sqrt(n / draws)
    assert float(error.square().mean()) ** 0.5 < 0.06
    # What the fit says of itself, on other draws.
    true = max(0.0, float(error.square().mean()) - counting**2) ** 0.5
    assert ring.marginal_error == pytest.approx(true, rel=0.25)


def test_a_fit_that_is_cut_short_says_so():
    error = SemiDiscrete.fit(_law(200), steps=1, batch=512, generator=seeded()).marginal_error
    assert error > 0.2


def test_the_map_is_that_of_the_exact_plan(ring):
    """Between 20 draws a point and the data, with masses to spare for the sampling of the source."""
    n = ring.data.shape[0]
    x0 = torch.randn(20 * n, 2, generator=seeded(7))
    cost = torch.cdist(x0.double(), ring.data.double()).square()
    plan = torch.as_tensor(ot.emd([], [], cost.numpy(), numItermax=10**7))
    j = ring(x0, ring.data)[1]
    used = torch.bincount(j, minlength=n) / (20 * n)
    # Weak duality: the dual value of any potentials is at most the cost, and at the optimum equal to it.
    dual = ring.potentials.double().mean() + (cost[torch.arange(20 * n), j] - ring.potentials.double()[j]).mean()
    assert float(dual) == pytest.approx(float((plan * cost).sum()), rel=3e-3)
    # The map is optimal between the draws and the masses that it gives, whatever they are.
    own = ot.emd2(torch.full((20 * n,), 1 / (20 * n)).double().numpy(), used.double().numpy(), cost.numpy(), 10**7)
    assert float(cost[torch.arange(20 * n), j].mean()) == pytest.approx(own, rel=1e-5)


def test_the_map_is_monotone(ring):
    x0 = torch.randn(300, 2, generator=seeded(3))
    y = ring.data[ring(x0, ring.data)[1]]
    inner = ((x0[:, None] - x0) * (y[:, None] - y)).sum(2)
    assert float(inner.min()) > -1e-4


def test_chunks_change_nothing(ring):
    x0 = torch.randn(50, 2, generator=seeded(3))
    small = SemiDiscrete(ring.data, ring.potentials, chunk=130)
    assert torch.equal(small(x0, ring.data)[1], ring(x0, ring.data)[1])
    data = _law(40)
    one, other = (SemiDiscrete.fit(data, steps=20, batch=64, generator=seeded(), chunk=c) for c in (2**24, 500))
    torch.testing.assert_close(one.potentials, other.potentials, rtol=1e-4, atol=1e-5)


def test_equal_points_share_a_cell_and_its_draws():
    data = torch.tensor([[1.0], [-2.0], [1.0], [1.0]])
    coupling = SemiDiscrete.fit(data, steps=1000, generator=seeded())
    assert coupling.marginal_error < 0.03
    x0 = torch.randn(20_000, 1, generator=seeded(2))
    i, j = coupling(x0, data, generator=seeded(4))
    share = torch.bincount(j, minlength=4) / 20_000
    assert (share - 0.25).abs().max() < 4.5 * math.sqrt(0.25 * 0.75 / 20_000) + 0.01
    assert torch.equal(j, coupling(x0, data, generator=seeded(4))[1])
    assert not torch.equal(j, coupling(x0, data, generator=seeded(5))[1])


def test_an_event_of_any_shape_and_half_precision():
    data = _law(12, dim=12).reshape(12, 3, 4).bfloat16()
    coupling = SemiDiscrete.fit(data, steps=50, batch=64, generator=seeded())
    assert coupling.potentials.dtype == torch.float32
    i, j = coupling(torch.randn(5, 3, 4, generator=seeded()).bfloat16(), data)
    assert i.tolist() == [0, 1, 2, 3, 4]
    assert j.dtype == torch.long
    flat = SemiDiscrete(torch.tensor([0.0, 5.0]), torch.zeros(2))
    assert flat(torch.tensor([1.0, 4.0, 9.0]), flat.data)[1].tolist() == [0, 1, 1]


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(ring, n):
    i, j = ring(torch.zeros(n, 2), ring.data)
    assert i.shape == j.shape == (n,)


# --- a fit is kept and found again --------------------------------------------------------------------------------


def test_the_generator_decides():
    data = _law(20)
    one, same, other = (SemiDiscrete.fit(data, steps=20, batch=64, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one.potentials, same.potentials)
    assert one.marginal_error == same.marginal_error
    assert not torch.equal(one.potentials, other.potentials)


def test_its_tensors_make_it_again(ring):
    again = SemiDiscrete(ring.data.clone(), ring.potentials.clone(), ring.marginal_error)
    x0 = torch.randn(100, 2, generator=seeded())
    assert torch.equal(again(x0, ring.data)[1], ring(x0, ring.data)[1])
    assert again.marginal_error == ring.marginal_error
    assert repr(again) == repr(ring)
    moved = again.to("cpu")
    assert torch.equal(moved.potentials, ring.potentials)


def test_it_is_a_coupling_with_the_whole_data(ring):
    assert isinstance(ring, Coupling)
    assert SemiDiscrete.whole_data is True


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [lambda x: x[:-1], lambda x: x.flip(0), lambda x: x + 1e-6, lambda x: x[:, :1], lambda x: x[:0]]
)
def test_other_data_is_refused(ring, change):
    with pytest.raises(ValueError, match="is not the data .* that this coupling was fitted to; it needs the whole"):
        ring(torch.zeros(4, 2), change(ring.data))


@pytest.mark.parametrize(
    ("x0", "error", "message"),
    [
        (torch.zeros(4, 3), ValueError, r"event \(2,\) on cpu, got \(4, 3\)"),
        (torch.full((4, 2), math.nan), ValueError, "x0 has 8 entries that are NaN"),
        (torch.zeros(4, 2, dtype=torch.long), TypeError, "x0 must be floating point"),
        (torch.zeros(4, 2).double(), TypeError, "one dtype, got torch.float64 and torch.float32"),
    ],
)
def test_a_wrong_source_is_refused(ring, x0, error, message):
    with pytest.raises(error, match=message):
        ring(x0, ring.data)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SemiDiscrete.fit(torch.zeros(0, 2)), ValueError, "data is empty"),
        (lambda: SemiDiscrete.fit(torch.tensor([[1.0], [math.inf]])), ValueError, "data has 1 entries"),
        (lambda: SemiDiscrete.fit(torch.zeros(2, 2, dtype=torch.long)), TypeError, "data must be floating point"),
        (lambda: SemiDiscrete.fit(torch.ones(2, 2), steps=0), ValueError, "at least 1, got 0 and 1024"),
        (lambda: SemiDiscrete.fit(torch.ones(2, 2), batch=0), ValueError, "at least 1, got 1000 and 0"),
        (lambda: SemiDiscrete(torch.ones(2, 2), torch.zeros(3)), ValueError, "must be 2 finite numbers, got shape"),
        (lambda: SemiDiscrete(torch.ones(2, 2), torch.tensor([0.0, math.nan])), ValueError, "2 finite numbers"),
        (lambda: SemiDiscrete(torch.ones(2, 2), torch.zeros(2), chunk=0), ValueError, "chunk must be a positive"),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
