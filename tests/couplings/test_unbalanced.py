"""Laws of the unbalanced plan: POT as an oracle, what its potentials say of the masses, its limits, outliers."""

from __future__ import annotations

import math

import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowmatch.couplings.cost import squared_distances
from flowmatch.couplings.sinkhorn import sinkhorn
from flowmatch.couplings.unbalanced import UnbalancedOT, unbalanced_sinkhorn
from flowmatch.typing import Coupling
from tests.problems import pair, seeded


def _cost(n, m):
    return squared_distances(pair(n, 3)[0], pair(m, 3, seed=1)[1])


@pytest.mark.parametrize(("n", "m"), [(1, 4), (12, 12), (20, 30)])
@pytest.mark.parametrize("epsilon", [1.0, 0.05])
@pytest.mark.parametrize("penalty", [0.05, 1.0, 20.0])
def test_the_plan_is_that_of_pot(n, m, epsilon, penalty):
    cost = _cost(n, m)
    unit = float(cost.mean())
    a, b = (torch.rand(k, generator=seeded(k), dtype=torch.float64).add(0.2) for k in (n, m))
    a, b = a / a.sum(), b / b.sum()
    plan = unbalanced_sinkhorn(cost, epsilon * unit, penalty * unit, a=a, b=b, tol=1e-11)
    oracle = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(),
        b.numpy(),
        cost.numpy(),
        epsilon * unit,
        penalty * unit,
        reg_type="kl",
        numItermax=200_000,
        stopThr=1e-14,
    )
    torch.testing.assert_close(plan.log_plan.exp(), torch.as_tensor(oracle), rtol=1e-6, atol=1e-10)


@given(
    n=st.integers(1, 16),
    m=st.integers(1, 16),
    epsilon=st.floats(0.02, 10.0),
    penalty=st.floats(0.02, 1e4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_potentials_say_what_a_point_keeps(n, m, epsilon, penalty, dtype):
    """The derivative of the objective by the plan is zero: (P1)_i = a_i exp(-f_i / penalty)."""
    cost = _cost(n, m).to(dtype)
    reg, price = epsilon * float(cost.mean()), penalty * float(cost.mean())
    plan = unbalanced_sinkhorn(cost, reg, price)
    p = plan.log_plan.exp()
    f, g = plan.f + reg * math.log(n), plan.g + reg * math.log(m)  # without the masses
    rows, columns = (-f / price).exp() / n, (-g / price).exp() / m
    off = (p.sum(1) - rows).abs().sum() + (p.sum(0) - columns).abs().sum()
    assert float(off / p.sum()) < 1.1e-3
    form = (plan.f[:, None] + plan.g - cost) / reg
    seen = plan.log_plan > -30
    torch.testing.assert_close(
        form[seen], plan.log_plan[seen], rtol=1e-4, atol=1e-2 if dtype == torch.float32 else 1e-8
    )


def test_a_high_price_gives_the_balanced_plan_at_no_more_iterations():
    cost = _cost(30, 30)
    reg = 0.05 * float(cost.mean())
    balanced = sinkhorn(cost, reg, tol=1e-9)
    dear = unbalanced_sinkhorn(cost, reg, 1e6 * float(cost.mean()), tol=1e-9)
    torch.testing.assert_close(dear.log_plan.exp(), balanced.log_plan.exp(), rtol=1e-4, atol=1e-9)
    assert dear.iterations <= 2 * balanced.iterations  # without the shift it is some 10^5


def test_one_pair_has_a_closed_form():
    """With one point a side f = g, and (penalty + reg) f = reg (cost - f) / 1: mass exp(-cost / (2 penalty + reg))."""
    cost, reg, penalty = 3.0, 0.5, 2.0
    plan = unbalanced_sinkhorn(torch.tensor([[cost]], dtype=torch.float64), reg, penalty, tol=1e-12)
    assert float(plan.log_plan) == pytest.approx(-cost / (2 * penalty + reg), rel=1e-9)


def test_an_outlier_keeps_less_mass():
    x0, x1 = pair(40, 2)
    x1[7] = 50.0
    log_plan = UnbalancedOT(penalty=0.3).plan(x0, x1).log_plan
    mass = log_plan.exp().sum(0)
    assert float(mass[7]) < 1e-3 * float(mass.median())


def test_an_outlier_is_hardly_drawn_and_the_others_are():
    x0, x1 = pair(64, 2)
    x1[7], x0[3] = 50.0, -50.0
    coupling, generator, different = UnbalancedOT(penalty=0.3), seeded(), []
    for _ in range(10):
        i, j = coupling(x0, x1, generator=generator)
        assert i.shape == j.shape == (64,)
        assert 7 not in j
        assert 3 not in i
        different.append(len(i.unique()))
    # Independent draws of 62 rows would use 62 (1 - 1/e) = 40 of them.
    assert sum(different) / 10 > 46


def test_pairs_follow_the_normalised_plan():
    x0, x1 = pair(4, 2)[0], pair(5, 2, seed=3)[1]
    coupling = UnbalancedOT(penalty=0.5, epsilon=0.5)
    plan = coupling.plan(x0, x1).log_plan.exp()
    plan = plan / plan.sum()
    generator, draws, count = seeded(), 1000, torch.zeros(4, 5, dtype=torch.float64)
    for _ in range(draws):
        i, j = coupling(x0, x1, generator=generator)
        count.index_put_((i, j), torch.ones(5, dtype=torch.float64), accumulate=True)
    # One draw in each fifth of the mass has no more variance than five independent ones.
    score = (count / (5 * draws) - plan) / (plan * (1 - plan) / (5 * draws)).sqrt()
    assert score.abs().max() < 4.8


def test_a_unit_of_one_makes_the_parameters_absolute():
    x0, x1 = pair(10, 2)
    plan = UnbalancedOT(penalty=2.0, epsilon=0.3, unit=1.0, tol=1e-9).plan(x0, x1)
    absolute = unbalanced_sinkhorn(squared_distances(x0, x1), 0.3, 2.0, tol=1e-9)
    torch.testing.assert_close(plan.log_plan, absolute.log_plan)
    near, far = (UnbalancedOT()(scale * x0, scale * x1, generator=seeded()) for scale in (1.0, 100.0))
    assert torch.equal(torch.stack(near), torch.stack(far))


@pytest.mark.parametrize(("n", "m"), [(0, 0), (1, 1), (5, 9), (9, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_there_is_a_pair_for_every_data_row(n, m, dtype):
    i, j = UnbalancedOT()(pair(n, 2, dtype=dtype)[0], pair(m, 2, dtype=dtype)[1], generator=seeded())
    assert i.shape == j.shape == (m,)
    assert i.dtype == j.dtype == torch.long
    assert bool(((i >= 0) & (i < max(n, 1)) & (j >= 0) & (j < max(m, 1))).all())


def test_the_generator_decides():
    x0, x1 = pair(32, 2)
    first, second, other = (torch.stack(UnbalancedOT()(x0, x1, generator=seeded(s))) for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert isinstance(UnbalancedOT(), Coupling)


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_plan_without_mass_is_an_error():
    x0, x1 = pair(5, 2)
    with pytest.raises(ValueError, match="hardly any mass is left in the plan .* far above the penalty of 0.1"):
        UnbalancedOT(penalty=0.1, epsilon=0.1, unit=1.0, max_iterations=500)(x0 + 100, x1)


def test_no_source_for_the_data_is_an_error():
    with pytest.raises(ValueError, match="at least one row each to be joined, got 0 and 3"):
        UnbalancedOT()(torch.zeros(0, 2), torch.zeros(3, 2))


def test_data_that_is_not_finite_and_no_convergence_are_errors():
    x0, x1 = pair(20, 2)
    with pytest.raises(RuntimeError, match="after 5 iterations, tol is 1e-09"):
        UnbalancedOT(tol=1e-9, max_iterations=5)(x0, x1)
    x1[0, 0] = math.inf
    with pytest.raises(ValueError, match="x1 has 1 entries that are NaN or infinite"):
        UnbalancedOT()(x0, x1)


@pytest.mark.parametrize("name", ["penalty", "epsilon", "unit", "tol"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_wrong_options_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got {value}"):
        UnbalancedOT(**{name: value})
    if name == "penalty":
        with pytest.raises(ValueError, match="penalty must be a positive number"):
            unbalanced_sinkhorn(torch.ones(2, 2), 1.0, value)
