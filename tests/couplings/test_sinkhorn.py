"""Laws of the entropic plan: masses, optimality, its limits, POT as an oracle; and that it never fails in silence."""

from __future__ import annotations

import math

import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowmatch.couplings.cost import squared_distances
from flowmatch.couplings.plan import inverse_cumulative
from flowmatch.couplings.sinkhorn import Sinkhorn, sinkhorn
from flowmatch.typing import Coupling
from tests.problems import pair, seeded


def _eight(n, seed=0):
    """A normal source and eight Gaussians of spread 1 on a circle of radius 5."""
    generator = seeded(seed)
    x0 = torch.randn(n, 2, generator=generator)
    angle = torch.randint(8, (n,), generator=generator) * math.pi / 4
    return x0, 5 * torch.stack([angle.cos(), angle.sin()], 1) + torch.randn(n, 2, generator=generator)


def _mixture(n, dim=64, seed=0):
    generator = seeded(seed)
    x0, centres = torch.randn(n, dim, generator=generator), 2 * torch.randn(10, dim, generator=generator)
    part = torch.randint(10, (n,), generator=generator)
    return x0, centres[part] + 0.5 * torch.randn(n, dim, generator=generator)


def _masses(size, seed):
    raw = torch.rand(size, generator=seeded(seed), dtype=torch.float64) + 0.1
    return raw / raw.sum()


def _misplaced(plan, a, b):
    p = plan.log_plan.double().exp()
    return float((p.sum(-1) - a).abs().sum() + (p.sum(-2) - b).abs().sum())


# --- the plan -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (7, 7), (30, 50)])
@pytest.mark.parametrize("epsilon", [10.0, 0.1, 0.02])
def test_the_plan_is_that_of_pot(n, m, epsilon):
    cost = squared_distances(pair(n, 3)[0], pair(m, 3, seed=1)[1])
    a, b, reg = _masses(n, 2), _masses(m, 3), epsilon * float(cost.mean())
    plan = sinkhorn(cost, reg, a=a, b=b, tol=1e-11)
    oracle = ot.bregman.sinkhorn_log(a.numpy(), b.numpy(), cost.numpy(), reg, numItermax=200_000, stopThr=1e-13)
    torch.testing.assert_close(plan.log_plan.exp(), torch.as_tensor(oracle), rtol=1e-6, atol=1e-11)


@given(
    n=st.integers(1, 24),
    m=st.integers(1, 24),
    dim=st.integers(1, 5),
    epsilon=st.floats(0.02, 100.0),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_masses_and_form_hold_for_any_problem(n, m, dim, epsilon, scale, dtype):
    x0, x1 = pair(n, dim, dtype=dtype)[0] * scale, pair(m, dim, dtype=dtype, seed=1)[1] * scale
    cost = squared_distances(x0, x1)
    reg = epsilon * float(cost.mean())
    plan = sinkhorn(cost, reg, tol=1e-3)
    assert _misplaced(plan, 1 / n, 1 / m) <= 1.01e-3
    assert float(plan.error) <= 1e-3
    # Optimality: exp((f + g - cost) / reg) is the only plan of these masses that minimises.
    form = (plan.f[:, None] + plan.g - cost) / reg
    seen = plan.log_plan > -30
    slack = 100 * torch.finfo(dtype).eps * float(cost.max()) / reg + 1e-5
    torch.testing.assert_close(form[seen], plan.log_plan[seen], rtol=0, atol=slack)


def test_a_large_regularisation_gives_the_independent_plan():
    cost = squared_distances(*pair(6, 2))
    plan = sinkhorn(cost, 1e6 * float(cost.mean()), tol=1e-9)
    torch.testing.assert_close(plan.log_plan.exp(), torch.full_like(cost, 1 / 36), rtol=1e-5, atol=0)


def test_two_points_have_a_closed_form():
    cost = torch.tensor([[0.3, 2.0], [1.5, 0.1]], dtype=torch.float64)
    reg = 0.7
    ratio = math.exp((0.3 + 0.1 - 2.0 - 1.5) / (2 * reg))  # cross ratio of a plan with equal masses
    plan = sinkhorn(cost, reg, tol=1e-12).log_plan.exp()
    expected = 0.5 / (1 + ratio)
    torch.testing.assert_close(plan.diagonal(), torch.full((2,), expected, dtype=torch.float64))


def test_at_twice_the_variance_it_is_the_bridge_of_two_gaussians():
    """Between N(0, 1) and N(0, s^2) on a line the correlation of the bridge's ends has a closed form."""
    grid = torch.linspace(-9, 9, 400, dtype=torch.float64)
    s, sigma = 1.5, 0.8
    a, b = ((-0.5 * (grid / spread) ** 2).softmax(0) for spread in (1.0, s))
    plan = sinkhorn((grid[:, None] - grid) ** 2, 2 * sigma**2, a=a, b=b, tol=1e-9).log_plan.exp()
    covariance = float((plan * grid[:, None] * grid).sum())
    # Mallasto, Gerolin, Minh 2022: covariance of the entropic plan of two centred Gaussians.
    exact = math.sqrt(s**2 + sigma**4 / 4) - sigma**2 / 2
    assert covariance == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("make", [_eight, _mixture])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_costs_within_one_per_cent_of_the_exact_plan(make, seed):
    x0, x1 = make(1024, seed=seed)
    plan = Sinkhorn().plan(x0, x1)
    cost = squared_distances(x0, x1).double()
    exact = ot.emd2([], [], cost.numpy(), numItermax=10**7)
    assert exact <= float((plan.log_plan.double().softmax(1) / 1024 * cost).sum()) * (1 + 1e-3)
    assert float((plan.log_plan.double().softmax(1) / 1024 * cost).sum()) < 1.01 * exact


def test_problems_are_solved_together_as_alone():
    costs = torch.stack([squared_distances(*pair(9, 2, seed=s)) * 10.0 ** (s - 1) for s in range(6)]).reshape(
        2, 3, 9, 9
    )
    regs = 0.02 * costs.mean((2, 3))
    a = torch.stack([_masses(9, s) for s in range(6)]).reshape(2, 3, 9)
    together = sinkhorn(costs, regs, a=a, tol=1e-10)
    assert together.f.shape == together.g.shape == (2, 3, 9)
    assert together.error.shape == (2, 3)
    for k in range(2):
        for q in range(3):
            alone = sinkhorn(costs[k, q], float(regs[k, q]), a=a[k, q], tol=1e-10)
            torch.testing.assert_close(together.log_plan[k, q].exp(), alone.log_plan.exp(), rtol=0, atol=1e-9)


def test_no_problems_give_no_plans():
    plan = sinkhorn(torch.zeros(0, 3, 2), 1.0)
    assert plan.log_plan.shape == (0, 3, 2)
    assert plan.error.shape == (0,)


def test_a_common_offset_of_the_cost_changes_nothing():
    cost = squared_distances(*_eight(200))
    reg = 0.01 * float(cost.mean())
    near, far = (sinkhorn(cost + offset, reg, tol=1e-4).log_plan.exp() for offset in (0.0, 1000.0))
    # The offset costs the far one its digits below 1e-4 of a cost, 6e-4 of reg.
    torch.testing.assert_close(far, near, rtol=0, atol=2e-3 / 200)


def test_a_far_point_is_reached():
    cost = squared_distances(torch.zeros(20, 1), torch.cat([torch.linspace(0, 1, 19), torch.tensor([300.0])])[:, None])
    plan = sinkhorn(cost, 0.2, tol=1e-3)
    assert _misplaced(plan, 1 / 20, 1 / 20) < 1.1e-3


def test_a_row_too_light_for_the_kernel_is_right_too():
    """The products of float32 cannot hold a mass of 1e-30; such a row goes through log-sum-exp."""
    cost = squared_distances(*pair(3, 2, dtype=torch.float32))
    plan = sinkhorn(cost, 1.0, a=torch.tensor([0.25, 0.75, 1e-30]), tol=1e-4)
    expected = math.log(1e-30) + ((plan.g - cost[2]) / 1.0).log_softmax(0)
    torch.testing.assert_close(plan.log_plan[2], expected, rtol=0, atol=1e-3)
    rest = sinkhorn(cost[:2], 1.0, a=torch.tensor([0.25, 0.75]), tol=1e-4)
    torch.testing.assert_close(plan.log_plan[:2].exp(), rest.log_plan.exp(), rtol=0, atol=2e-4)


def test_the_cost_is_left_as_it_was():
    cost = squared_distances(*pair(8, 2))
    before = cost.clone()
    sinkhorn(cost, 0.1)
    assert torch.equal(cost, before)


def test_over_relaxation_pays():
    """The plain iteration needs 13000 iterations here."""
    x0, x1 = pair(256, 2)
    cost = squared_distances(x0, 3 * x1)
    assert sinkhorn(cost, 0.002 * float(cost.mean()), tol=1e-6).iterations < 4000


# --- the coupling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 2), (1, 5), (6,), (7, 2), (4, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_source_row_is_used_once(shape, dtype):
    i, j = Sinkhorn()(*pair(*shape, dtype=dtype), generator=seeded())
    assert torch.equal(i, torch.arange(shape[0]))
    assert j.shape == i.shape
    assert j.dtype == torch.long
    assert bool(((j >= 0) & (j < shape[0])).all())


@pytest.mark.parametrize(("n", "m"), [(5, 9), (9, 5), (3, 1), (0, 4)])
def test_batches_may_differ_in_size(n, m):
    i, j = Sinkhorn(epsilon=0.1)(pair(n, 2)[0], pair(m, 2)[1], generator=seeded())
    assert torch.equal(i, torch.arange(n))
    assert bool(((j >= 0) & (j < m)).all())


def test_pairs_follow_the_plan():
    x0, x1 = pair(6, 2)
    coupling = Sinkhorn(epsilon=0.5)
    plan = coupling.plan(x0, x1).log_plan.softmax(1)
    generator, draws = seeded(), 1000
    count = torch.zeros(6, 6, dtype=torch.float64)
    for _ in range(draws):
        i, j = coupling(x0, x1, generator=generator)
        count[i, j] += 1
    score = (count / draws - plan) / (plan * (1 - plan) / draws).sqrt()
    assert score.abs().max() < 4.8  # 36 cells, together at 1e-4


def test_the_generator_decides_and_the_global_one_is_left_alone():
    x0, x1 = pair(64, 2)
    before = torch.get_rng_state()
    first, second, other = (Sinkhorn(epsilon=0.5)(x0, x1, generator=seeded(s))[1] for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(Sinkhorn(), Coupling)


def test_a_relative_epsilon_knows_no_units():
    x0, x1 = pair(40, 2)
    here, there = (Sinkhorn()(scale * x0, scale * x1, generator=seeded())[1] for scale in (1.0, 1e3))
    assert torch.equal(here, there)


def test_an_absolute_regularisation_is_the_one_of_the_plan():
    x0, x1 = pair(10, 2)
    plan = Sinkhorn(reg=0.5, tol=1e-10).plan(x0, x1)
    torch.testing.assert_close(plan.log_plan, sinkhorn(squared_distances(x0, x1), 0.5, tol=1e-10).log_plan)


def test_equal_points_are_joined_to_anything():
    i, j = Sinkhorn()(torch.ones(50, 2), torch.ones(50, 2), generator=seeded())
    assert len(j.unique()) > 20


@pytest.mark.parametrize("level", [0.0, 1 - 2**-53])
def test_a_draw_never_falls_on_a_column_without_mass(level):
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    assert inverse_cumulative(weights, torch.tensor([[level]], dtype=torch.float64)).item() in (1, 3)


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_cost_that_is_not_finite_is_refused():
    for bad in (math.nan, math.inf, -math.inf):
        cost = torch.ones(3, 3)
        cost[1, 2] = bad
        with pytest.raises(ValueError, match="cost has 1 entries that are NaN or infinite"):
            sinkhorn(cost, 1.0)


@pytest.mark.parametrize("name", ["x0", "x1"])
def test_data_that_is_not_finite_is_refused(name):
    clouds = dict(zip(("x0", "x1"), pair(4, 2), strict=True))
    clouds[name][2, 1] = math.nan
    with pytest.raises(ValueError, match=rf"{name} has 1 entries that are NaN or infinite, the first in row 2"):
        Sinkhorn()(**clouds)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0)])
def test_a_plan_needs_two_sides(n, m):
    with pytest.raises(ValueError, match=f"at least one row each to be joined, got {n} and {m}"):
        Sinkhorn().plan(torch.zeros(n, 2), torch.zeros(m, 2))
    if n:
        with pytest.raises(ValueError, match="at least one row each"):
            Sinkhorn()(torch.zeros(n, 2), torch.zeros(m, 2))


def test_a_regularisation_below_the_type_is_refused_with_the_smallest_usable():
    cost = squared_distances(*pair(20, 2, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"reg = 1e-07 is too small for torch.float32.*smallest usable is ") as error:
        sinkhorn(cost, 1e-7)
    smallest = float(str(error.value).split("smallest usable is ")[1].split(",")[0])
    sinkhorn(cost.double(), 1.01 * smallest, tol=0.1)
    with pytest.raises(ValueError, match=r"use cost.double\(\)"):
        sinkhorn(cost, 0.98 * smallest)


def test_no_convergence_is_an_error_that_says_how_far_it_came():
    cost = squared_distances(*pair(50, 2))
    with pytest.raises(RuntimeError, match=r"wrong by [0-9.e-]+ after 5 iterations, tol is 1e-09; use more max_iter"):
        sinkhorn(cost, 0.01 * float(cost.mean()), tol=1e-9, max_iterations=5)
    with pytest.raises(RuntimeError, match=r"use more max_iterations, a larger reg than [0-9.]+, cost.double\(\) or"):
        sinkhorn(cost.float(), 0.01 * float(cost.mean()), tol=1e-9, max_iterations=300)
    with pytest.raises(RuntimeError, match="tol is 1e-09"):
        Sinkhorn(tol=1e-9, max_iterations=10)(*pair(50, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg": 0.0}, "reg must be positive and finite, got 0 to 0"),
        ({"reg": math.nan}, "reg must be positive and finite"),
        ({"reg": torch.ones(2)}, r"reg must be a number or have shape \(\), got \(2,\)"),
        ({"a": torch.ones(3)}, r"a must have shape \(2,\) or \(2,\), got \(3,\)"),
        ({"a": torch.tensor([0.0, 1.0])}, "a must be positive, its smallest entry is 0"),
        ({"b": torch.ones(3)}, "b must sum to 1, got sums from 3 to 3"),
        ({"b": torch.tensor([math.nan, 0.5, 0.5])}, "b must be positive"),
        ({"tol": 0.0}, "tol must be a positive number, got 0.0"),
        ({"max_iterations": 0}, "max_iterations must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.ones(2, 3), **{"reg": 1.0, **options})


@pytest.mark.parametrize("cost", [torch.ones(2, 2).half(), torch.ones(2, 2, dtype=torch.long), [[1.0]]])
def test_a_cost_of_another_type_is_refused(cost):
    with pytest.raises(TypeError, match="cost must be a float32 or float64 tensor"):
        sinkhorn(cost, 1.0)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0)])
def test_a_cost_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"cost must have shape \(..., n, m\) with n and m at least 1"):
        sinkhorn(torch.ones(shape), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.1, "reg": 0.1}, "one of the two; got 0.1 and 0.1"),
        ({"epsilon": 0.0}, "epsilon must be a positive number, got 0.0"),
        ({"reg": -1.0}, "reg must be a positive number, got -1.0"),
        ({"tol": math.nan}, "tol must be a positive number, got nan"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sinkhorn(**options)
