"""Guidance by what is known of the data, on normal data, where the law given the observation is known exactly."""

from __future__ import annotations

import math

import pytest
import torch

import flowmatch as fm
from flowmatch.fields import EnergyGuided, Inpainting, Observed, repaint
from flowmatch.fields.inverse import _conjugate_gradients
from tests.problems import SCHEDULES, mixture_world, pair, random_mlp, seeded
from tests.solvers.test_fixed import Counter

MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
COV = torch.tensor([[1.2, 0.5, 0.1], [0.5, 0.6, -0.2], [0.1, -0.2, 0.9]], dtype=torch.float64)
MIX = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.1]], dtype=torch.float64)
Y = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
TIMES = torch.linspace(0.01, 0.98, 12, dtype=torch.float64)
PATHS = pytest.mark.parametrize("name", ["linear", "linear-min", "cosine", "vp", "ve-mild", "sub-vp"])


def _seen(x1):
    return x1 @ MIX.T.to(x1)


def _prior(path=None, cov=COV):
    return fm.GaussianField(MEAN, cov=cov, path=path)


def _posterior(noise, path=None, cov=COV, y=Y):
    """The law of the data given ``y = MIX x1 + noise``, by the formula of linear regression."""
    precision = torch.linalg.inv(cov) + MIX.T @ MIX / noise**2
    mean = torch.linalg.solve(precision, torch.linalg.solve(cov, MEAN) + MIX.T @ y[0] / noise**2)
    return fm.GaussianField(mean, cov=torch.linalg.inv(precision), path=path)


def _points(n=12):
    return pair(n, 3)[0]


def _each(n=12):
    return Y.expand(n, 2)


def _law(field, cond, dim=3, **how):
    """Mean and covariance at the data of a flow that is affine in its start, from its images of a basis."""
    starts = torch.cat([torch.zeros(1, dim), torch.eye(dim)]).double()
    spread = torch.utils._pytree.tree_map(lambda leaf: leaf.expand(dim + 1, *leaf.shape[1:]), cond)
    x = fm.solve(fm.ODE(field, spread), starts, **(how or {"rtol": 1e-8, "atol": 1e-8})).x
    columns = (x[1:] - x[0]).T
    return x[0], columns @ columns.T


# --- observations: exact where they can be --------------------------------------------------------------------------


@PATHS
def test_the_true_covariance_gives_the_exact_velocity_of_the_posterior(name):
    path = fm.AffinePath(SCHEDULES[name])
    field = Observed(_prior(path), path, _seen, noise=0.4, data_std=None)
    torch.testing.assert_close(
        field(TIMES, _points(), _each()), _posterior(0.4, path)(TIMES, _points()), rtol=1e-9, atol=1e-9
    )


@PATHS
def test_one_spread_in_all_directions_is_exact_for_data_that_have_it(name):
    path, cov = fm.AffinePath(SCHEDULES[name]), 1.7**2 * torch.eye(3, dtype=torch.float64)
    field = Observed(_prior(path, cov), path, _seen, noise=0.4, data_std=1.7)
    truth = _posterior(0.4, path, cov)(TIMES, _points())
    torch.testing.assert_close(field(TIMES, _points(), _each()), truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine", "ve-mild"])
@pytest.mark.parametrize("data_std", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_other_covariances_give_the_formula_they_name(name, data_std, scale):
    """By matrices, on data whose covariance is none of these: DPS's zero, PiGDM's, and one of its own."""
    path, x = fm.AffinePath(SCHEDULES[name]), _points()
    prior = _prior(path)
    field = Observed(prior, path, _seen, noise=0.4, data_std=data_std, scale=scale)
    found = field(TIMES, x, _each())
    for i, t in enumerate(TIMES):
        a, s = path.schedule.alpha(t), path.schedule.sigma(t)
        jacobian = (
            a * COV @ torch.linalg.inv(a**2 * COV + s**2 * torch.eye(3, dtype=torch.float64))
        )  # of the posterior mean in x
        rest = Y[0] - MIX @ prior.posterior_mean(float(t), x[i : i + 1])[0]
        r2 = data_std**2 * s**2 / (s**2 + data_std**2 * a**2)
        weight = torch.linalg.solve(0.4**2 * torch.eye(2, dtype=torch.float64) + r2 * MIX @ MIX.T, rest)
        score = prior.score(float(t), x[i : i + 1])[0] + scale * jacobian.T @ MIX.T @ weight
        truth = path.convert(score[None], float(t), x[i : i + 1], "score", "velocity")[0]
        torch.testing.assert_close(found[i], truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["linear", "linear-min", "cosine"])
def test_samples_given_an_observation_have_the_posterior_s_moments(name):
    path = fm.AffinePath(SCHEDULES[name])
    law = _posterior(0.4)
    mean, cov = _law(Observed(_prior(path), path, _seen, noise=0.4, data_std=None), Y)
    end = path.schedule.sigma(torch.tensor(1.0)).item() ** 2 * torch.eye(3, dtype=torch.float64)
    truth = torch.linalg.inv(torch.linalg.inv(COV) + MIX.T @ MIX / 0.16)
    torch.testing.assert_close(mean, law.means[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(cov, truth + end, rtol=0, atol=1e-4)


def test_the_margin_costs_its_square():
    truth = _posterior(0.4).means[0]
    miss = []
    for margin in (0.04, 0.02):
        field = Observed(_prior(), fm.AffinePath(), _seen, noise=0.4, data_std=None, margin=margin)
        miss.append((_law(field, Y)[0] - truth).abs().max().item())
    assert 3 < miss[0] / miss[1] < 5
    assert miss[1] < 0.01


@pytest.mark.parametrize("t", [0.0101, 0.9899])
def test_beyond_the_margin_nothing_is_changed(t):
    field = Observed(_prior(), fm.AffinePath(), _seen, noise=0.4, data_std=None, margin=0.01)
    torch.testing.assert_close(field(t, _points(), _each()), _posterior(0.4)(t, _points()), rtol=1e-8, atol=1e-8)
    edge = 0.01 if t < 0.5 else 0.99
    end = 0.0 if t < 0.5 else 1.0
    assert torch.equal(field(end, _points(), _each()), field(edge, _points(), _each()))


def test_the_posterior_has_its_density():
    """The exact divergence runs forward through the backward pass of the guidance."""
    field, law = Observed(_prior(), fm.AffinePath(), _seen, noise=0.4, data_std=None), _posterior(0.4)
    x = law.sample(2, seeded())
    found = fm.log_likelihood(field, x, fm.Normal(), _each(2), steps=20, solver=fm.RK4())
    torch.testing.assert_close(found.log_prob, law.log_prob(1.0, x), rtol=0, atol=1e-3)


def test_an_exact_observation_is_met_and_pulls_at_the_rest():
    field = Observed(_prior(), fm.AffinePath(), _seen, data_std=None)
    gain = COV @ MIX.T @ torch.linalg.inv(MIX @ COV @ MIX.T)
    mean, cov = _law(field, Y)
    torch.testing.assert_close(mean, MEAN + gain @ (Y[0] - MIX @ MEAN), rtol=0, atol=3e-3)
    torch.testing.assert_close(cov, COV - gain @ MIX @ COV, rtol=0, atol=1e-4)


def test_an_operator_that_is_not_linear_is_taken_by_its_linear_part():
    path, x = fm.AffinePath(), _points()
    straight = Observed(_prior(), path, _seen, noise=0.4)(TIMES, x, _each())
    shifted = Observed(_prior(), path, lambda x1: _seen(x1) + 5, noise=0.4)(TIMES, x, _each() + 5)
    torch.testing.assert_close(shifted, straight)
    # At one point a curved operator and its tangent there are one.
    at = _prior().posterior_mean(0.5, x[:1])
    slope = torch.func.jacrev(lambda v: torch.sin(v @ MIX.T))(at[0])
    curved = Observed(_prior(), path, lambda x1: torch.sin(_seen(x1)), noise=0.4)(0.5, x[:1], Y)
    tangent = lambda x1: torch.sin(_seen(at)) + (x1 - at) @ slope.T  # noqa: E731
    torch.testing.assert_close(curved, Observed(_prior(), path, tangent, noise=0.4)(0.5, x[:1], Y))


def test_each_sample_keeps_its_own_observation_under_error_control():
    field = Observed(mixture_world(), fm.AffinePath(), lambda x1: x1[:, :1], noise=0.3)
    flow = fm.Flow(field, event_shape=(2,))
    y, x0 = torch.tensor([[1.5], [-3.0], [0.0]]).double(), pair(3, 2)[0]
    together = flow.decode(x0, y, rtol=1e-6)
    for i in range(3):
        alone = flow.decode(x0[i : i + 1], y[i : i + 1], rtol=1e-6)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-8, atol=1e-8)
    assert (flow.given(y[0]).sample(50, generator=seeded(), steps=20)[:, 0].mean() - 1.5).abs() < 0.3


def test_the_condition_of_the_field_goes_with_the_observation():
    net, x = random_mlp(2, classes=3), pair(6, 2)[0]
    label, y, t = torch.arange(6) % 3, torch.zeros(6, 1).double(), TIMES[:6]
    field = Observed(net, fm.AffinePath(), lambda x1: x1[:, :1], noise=0.5)
    together = field(t, x, (y, label))
    one = Observed(lambda t, x: net(t, x, label[2:3]), fm.AffinePath(), lambda x1: x1[:, :1], noise=0.5)
    torch.testing.assert_close(together[2:3], one(t[2:3], x[2:3], y[2:3]))


def test_gradients_reach_the_observation_and_the_network():
    net, x = random_mlp(2, scale=0.5), pair(3, 2)[0]
    y = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    field = Observed(net, fm.AffinePath(), lambda x1: x1[:, :1] * 2, noise=0.5, data_std=None)
    weight = net.inlet.weight

    def value():
        return field(0.4, x, y).square().sum()

    for leaf, gradient in zip((y, weight), torch.autograd.grad(value(), (y, weight)), strict=True):
        ends = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                leaf.view(-1)[0] += h
                ends.append(value().item())
                leaf.view(-1)[0] -= h
        assert gradient.view(-1)[0].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_without_gradients_no_graph_is_kept():
    field = Observed(random_mlp(2), fm.AffinePath(), lambda x1: x1, noise=0.5)
    with torch.no_grad():
        assert not field(0.4, torch.zeros(2, 2).double(), torch.zeros(2, 2).double()).requires_grad
    assert field(0.4, torch.zeros(2, 2).double(), torch.zeros(2, 2).double()).requires_grad


def test_the_field_is_called_once():
    watched = Counter(random_mlp(2))
    Observed(watched, fm.AffinePath(), lambda x1: x1, noise=0.5, data_std=None)(0.4, *[torch.zeros(2, 2).double()] * 2)
    assert watched.calls == 1


@pytest.mark.parametrize("size", [0, 1, 5])
def test_conjugate_gradients_solve_every_row_by_itself(size):
    root = torch.randn(size, 4, 4, generator=seeded(), dtype=torch.float64)
    matrix = root @ root.mT + 0.1 * torch.eye(4, dtype=torch.float64)
    b = torch.randn(size, 4, generator=seeded(1), dtype=torch.float64)
    b[:1] = 0  # arrived before it starts
    apply = lambda v: torch.einsum("bij,bj->bi", matrix, v)  # noqa: E731
    found = _conjugate_gradients(apply, b, 12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-8)
    negative = _conjugate_gradients(lambda v: -v, b, 5)
    assert torch.equal(negative, torch.zeros_like(b))


def test_conjugate_gradients_pass_on_what_is_not_a_number():
    """A zero in its place would be an observation left out without a word."""
    b = torch.tensor([[1.0, 2.0], [math.nan, 1.0], [0.0, 0.0]], dtype=torch.float64)
    found = _conjugate_gradients(lambda v: 2 * v, b, 5)
    torch.testing.assert_close(found[[0, 2]], b[[0, 2]] / 2)
    assert found[1].isnan().all()


# --- energies -------------------------------------------------------------------------------------------------------


@PATHS
def test_the_true_weight_of_the_noisy_state_gives_the_exact_velocity(name):
    """log h_t of a quadratic weight on normal data: log N(y; A E[x1 | x], s^2 I + A C A^T), in closed form."""
    path = fm.AffinePath(SCHEDULES[name])
    prior = _prior(path)

    def log_h(t, x):
        a, s = (part(t)[:, None, None] for part in (path.schedule.alpha, path.schedule.sigma))
        eye = torch.eye(3, dtype=torch.float64)
        gain = a * COV @ torch.linalg.inv(a**2 * COV + s**2 * eye)
        mean = MEAN + torch.einsum("bij,bj->bi", gain, x - a[:, 0] * MEAN)
        spread = MIX @ (COV - gain @ (a * COV)) @ MIX.T + 0.4**2 * torch.eye(2, dtype=torch.float64)
        rest = Y - mean @ MIX.T
        return -0.5 * torch.einsum("bi,bij,bj->b", rest, torch.linalg.inv(spread), rest)

    field = EnergyGuided(prior, path, log_h, on="state")
    torch.testing.assert_close(field(TIMES, _points()), _posterior(0.4, path)(TIMES, _points()), rtol=1e-8, atol=1e-8)


@PATHS
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_linear_energy_of_the_predicted_data_is_exact_for_normal_data(name, scale):
    """exp(w c x) N(x; m, S) is N(x; m + w S c, S)."""
    path, slope = fm.AffinePath(SCHEDULES[name]), torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    field = EnergyGuided(_prior(path), path, lambda x1: x1 @ slope, scale=scale)
    truth = fm.GaussianField(MEAN + scale * COV @ slope, cov=COV, path=path)
    torch.testing.assert_close(field(TIMES, _points()), truth(TIMES, _points()), rtol=1e-9, atol=1e-9)


def test_the_energy_of_an_observation_is_dps():
    path, x = fm.AffinePath(), _points()
    field = EnergyGuided(_prior(), path, lambda x1: -0.5 * (Y - _seen(x1)).square().sum(1) / 0.16)
    other = Observed(_prior(), path, _seen, noise=0.4, data_std=0.0)
    torch.testing.assert_close(field(TIMES, x), other(TIMES, x, _each()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_are_finite_and_right(dtype):
    slope = torch.tensor([2.0], dtype=dtype)
    field = EnergyGuided(fm.GaussianField(torch.zeros(1, dtype=dtype), std=1.0), fm.AffinePath(), lambda x1: x1 @ slope)
    for t, truth in ((0.0, 2.0), (1.0, 2.0 * 0.0 + 1.0)):
        x = torch.full((1, 1), 0.0 if t == 0 else 3.0, dtype=dtype)
        exact = fm.GaussianField(torch.full((1,), 2.0, dtype=dtype), std=1.0)(t, x)
        assert exact.item() == pytest.approx(2.0 if t == 0 else 3.0)
        torch.testing.assert_close(field(t, x), exact, rtol=0, atol=0.02 + 0 * truth)


# --- neutral at zero, shapes, types ---------------------------------------------------------------------------------

PLAIN = random_mlp(2)
NEUTRAL = {
    "energy": (EnergyGuided(PLAIN, fm.AffinePath(), lambda x1: 1 / 0, scale=0.0), ()),
    "state": (EnergyGuided(PLAIN, fm.AffinePath(), lambda t, x: 1 / 0, scale=0.0, on="state"), ()),
    "observed": (Observed(PLAIN, fm.AffinePath(), lambda x1: 1 / 0, scale=0.0), (torch.zeros(5, 1),)),
    "guide": (Inpainting(PLAIN, fm.AffinePath(), scale=0.0), ((torch.ones(5, 2), torch.ones(5, 2) > 0),)),
    "project": (Inpainting(PLAIN, fm.AffinePath(), "project", scale=0.0), ((torch.ones(5, 2), torch.ones(5, 2) > 0),)),
    "project nothing": (Inpainting(PLAIN, fm.AffinePath(), "project"), ((torch.ones(5, 2), torch.ones(5, 2) > 2),)),
    "guide nothing": (Inpainting(PLAIN, fm.AffinePath()), ((torch.ones(5, 2), torch.ones(5, 2) > 2),)),
}


@pytest.mark.parametrize("case", NEUTRAL)
def test_a_scale_of_zero_and_an_empty_mask_are_the_field_itself(case):
    field, cond = NEUTRAL[case]
    x, t = pair(5, 2)[0], torch.linspace(0.1, 0.9, 5).double()
    assert torch.equal(field(t, x, *cond), PLAIN(t, x))
    if "nothing" not in case:
        assert torch.equal(field(0.0, x, *cond), PLAIN(torch.zeros(5).double(), x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(2,), (3, 4, 2), (1,)])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_any_shape_and_type(dtype, event, size):
    plain = fm.GaussianField(torch.zeros(event, dtype=dtype), std=1.0)
    x = torch.randn(size, *event, generator=seeded()).to(dtype)
    mask, path, t = torch.rand(size, *event, generator=seeded(1)) < 0.5, fm.AffinePath(), torch.full((size,), 0.5)
    zero = torch.zeros_like(x)
    half = lambda x1: x1[..., :1].mean(-1) * 2  # noqa: E731
    for field, cond in (
        (EnergyGuided(plain, path, lambda x1: -x1.flatten(1).square().sum(1)), ()),
        (Observed(plain, path, half, noise=0.5), (half(zero),)),
        (Observed(plain, path, half, noise=0.5, data_std=None), (half(zero),)),
        (Inpainting(plain, path), ((zero, mask),)),
        (Inpainting(plain, path, "project"), ((zero, mask),)),
    ):
        found = field(t, x, *cond)
        assert found.dtype == dtype
        assert found.shape == x.shape
        wide = {torch.bfloat16: 0.1, torch.float32: 1e-5, torch.float64: 1e-5}[dtype]
        if isinstance(field, Inpainting):  # a standard normal entry known to be zero goes there, the others stand still
            torch.testing.assert_close(found, torch.where(mask, -2 * x, 0 * x), rtol=wide, atol=wide)


# --- inpainting -----------------------------------------------------------------------------------------------------

KNOWN = torch.tensor([[1.4, math.nan, -0.5]], dtype=torch.float64)
MASK = ~KNOWN.isnan()


def _conditional():
    """Mean and covariance of the second of three normal numbers given the first and third."""
    o, u = [0, 2], [1]
    gain = COV[u][:, o] @ torch.linalg.inv(COV[o][:, o])
    return MEAN[u] + gain @ (KNOWN[0, o] - MEAN[o]), COV[u][:, u] - gain @ COV[o][:, u]


def test_the_unknown_has_its_law_given_the_known():
    mean, cov = _law(Inpainting(_prior(), fm.AffinePath(), data_std=None), (KNOWN, MASK))
    middle, spread = _conditional()
    torch.testing.assert_close(mean[[1]], middle, rtol=0, atol=3e-3)
    torch.testing.assert_close(cov[[1]][:, [1]], spread, rtol=0, atol=1e-4)
    torch.testing.assert_close(mean[[0, 2]], KNOWN[0, [0, 2]], rtol=0, atol=2e-3)  # a third of the margin's way


def test_noise_on_the_known_is_weighed():
    """Against the observation of the same two numbers."""
    field = Inpainting(_prior(), fm.AffinePath(), noise=0.7, data_std=None)
    other = Observed(_prior(), fm.AffinePath(), lambda x1: x1[:, [0, 2]], noise=0.7, data_std=None)
    x = _points()
    found = field(TIMES, x, (KNOWN.expand(12, 3), MASK.expand(12, 3)))
    torch.testing.assert_close(found, other(TIMES, x, KNOWN[:, [0, 2]].expand(12, 2)))


@pytest.mark.parametrize("method", ["guide", "project"])
def test_the_known_ride_their_own_path_with_their_own_noise(method):
    """x_t = alpha y + sigma x0 at all times, for any field: here one that has never heard of them."""
    field = Inpainting(random_mlp(3), fm.AffinePath(fm.Cosine()), method, data_std=1.0)
    if method == "guide":  # exact for the law that it takes for granted
        field = Inpainting(fm.GaussianField(torch.zeros(3).double(), std=1.0, path=field.path), field.path)
    x0 = _points(4)
    grid = torch.linspace(0.01, 0.95, 40, dtype=torch.float64)
    cond = KNOWN.expand(4, 3), MASK.expand(4, 3)
    start = torch.where(MASK, field.path.position(0.01, x0, KNOWN.nan_to_num().expand(4, 3)), x0)
    solution = fm.solve(fm.ODE(field, cond), start, fm.RK4(), grid=grid, save=True)
    for t, x in zip(grid.tolist(), solution.trajectory, strict=True):
        truth = field.path.position(t, x0, KNOWN.nan_to_num().expand(4, 3))
        torch.testing.assert_close(x[:, [0, 2]], truth[:, [0, 2]], rtol=0, atol=1e-5)


def test_projection_leaves_the_others_to_the_field():
    net, x = random_mlp(3), _points()
    field = Inpainting(net, fm.AffinePath(), "project")
    found = field(TIMES, x, (KNOWN.expand(12, 3), MASK.expand(12, 3)))
    assert torch.equal(found[:, 1], net(TIMES, x)[:, 1])


def test_projection_follows_the_known_too_weakly():
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    plain = fm.GaussianField(torch.zeros(2).double(), cov=cov)
    cond = torch.tensor([[2.0, math.nan]]).double(), torch.tensor([[True, False]])
    weak, _ = _law(Inpainting(plain, fm.AffinePath(), "project"), cond, dim=2)
    right, _ = _law(Inpainting(plain, fm.AffinePath(), data_std=None), cond, dim=2)
    assert weak[1].item() == pytest.approx(2 * 0.35, abs=0.01)
    assert right[1].item() == pytest.approx(2 * 0.8, abs=0.001)


def test_masks_of_each_sample_on_pictures():
    plain = fm.GaussianField(torch.zeros(1, 3, 4).double(), std=1.0)
    known = torch.randn(5, 1, 3, 4, generator=seeded(), dtype=torch.float64)
    mask = torch.rand(5, 1, 3, 4, generator=seeded(1)) < 0.4
    flow = fm.Flow(Inpainting(plain, fm.AffinePath()), event_shape=(1, 3, 4)).double()
    x = flow.sample(5, (known, mask), generator=seeded(2), rtol=1e-5)
    free = fm.Flow(plain, event_shape=(1, 3, 4)).double().sample(5, generator=seeded(2), rtol=1e-5)
    torch.testing.assert_close(x[mask], known[mask], rtol=0, atol=3e-3)
    torch.testing.assert_close(x[~mask], free[~mask], rtol=0, atol=1e-3)  # of independent entries nothing follows


def test_inpainting_takes_the_condition_of_its_field():
    net, x, label = random_mlp(2, classes=3), pair(3, 2)[0], torch.arange(3)
    none = torch.zeros(3, 2, dtype=torch.bool)
    for method in ("guide", "project"):
        field = Inpainting(net, fm.AffinePath(), method)
        torch.testing.assert_close(field(0.5, x, (x, none, label)), net(torch.full((3,), 0.5).double(), x, label))


def test_inpainting_is_saved_and_loaded(tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra train")
    path = fm.AffinePath(fm.Cosine())
    field = Inpainting(random_mlp(2), path, "guide", noise=0.1, data_std=None, scale=2.0, iterations=3, margin=0.01)
    fm.Flow(field, path, (2,)).save(tmp_path)
    again, x = fm.Flow.load(tmp_path).field, pair(3, 2)[0]
    assert repr(again) == repr(field)
    cond = x + 1, x > 0
    assert torch.equal(again(0.3, x, cond), field(0.3, x, cond))


def test_what_holds_the_user_s_code_is_given_again(tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra train")
    field = Observed(random_mlp(2), fm.AffinePath(), lambda x1: x1)
    fm.Flow(field, event_shape=(2,)).save(tmp_path)
    with pytest.raises(fm.InputError, match=r"Observed' as the field.*Flow.load\(folder, field="):
        fm.Flow.load(tmp_path)
    assert fm.Flow.load(tmp_path, field=field).field is field


# --- going back and forth -------------------------------------------------------------------------------------------


def test_repainting_nears_the_law_given_the_known():
    cov, n = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64), 2000
    plain, mask = fm.GaussianField(torch.zeros(2).double(), cov=cov), torch.tensor([True, False]).expand(n, 2)
    known, x0 = torch.full((n, 2), 2.0).double(), pair(n, 2)[0]
    miss = []
    for rounds in (1, 4, 16):
        x = repaint(plain, fm.AffinePath(), x0, known, mask, steps=10, rounds=rounds, generator=seeded(1))
        assert torch.equal(x[:, 0], known[:, 0])
        miss.append(1.6 - x[:, 1].mean().item())
    assert miss[0] > 0.8
    assert miss[1] < 0.5 * miss[0]
    assert miss[2] < 0.15


@pytest.mark.parametrize("name", ["linear", "linear-min", "cosine", "vp", "ve-mild"])
def test_going_back_keeps_the_law_of_the_data(name):
    """With nothing known the rounds are free moves along the path: the law at the end is that of the data."""
    n, path = 3000, fm.AffinePath(SCHEDULES[name])
    plain = fm.GaussianField(torch.tensor([2.0]).double(), std=0.5, path=path)
    nothing = torch.zeros(n, 1, dtype=torch.bool)
    x0, end = path.source_std * pair(n, 1)[0], math.hypot(0.5, path.schedule.sigma(torch.tensor(1.0)))
    x = repaint(plain, path, x0, x0, nothing, steps=20, rounds=3, solver=fm.RK4(), generator=seeded(1))
    assert (x.mean() - 2).abs() < 5 * end / math.sqrt(n)
    assert (x.std() - end).abs() < 5 * end / math.sqrt(2 * n)
    once = repaint(plain, path, x0, x0, nothing, steps=20, rounds=1, solver=fm.RK4())
    torch.testing.assert_close(once, fm.solve(fm.ODE(plain), x0, fm.RK4(), steps=20, span=path.interval).x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(2,), (3, 4, 2), ()])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_repainting_takes_any_shape_and_type(dtype, event, size):
    x0 = torch.randn(size, *event, generator=seeded()).to(dtype)
    known, mask = torch.randn(size, *event, generator=seeded(1)), torch.rand(size, *event, generator=seeded(2)) < 0.5
    x = repaint(lambda t, x: 0 * x, fm.AffinePath(), x0, known, mask, steps=4, rounds=2, generator=seeded(3))
    assert x.dtype == dtype
    assert x.shape == x0.shape
    assert torch.equal(x[mask], known.to(dtype)[mask])
    assert x.isfinite().all()


def test_the_generator_decides():
    x0, mask = pair(4, 2)[0], torch.tensor([True, False]).expand(4, 2)
    field = random_mlp(2, classes=3)
    before = torch.get_rng_state()
    a, b, c = (
        repaint(
            field, fm.AffinePath(), x0, x0, mask, torch.tensor([0, 1, 2, 0]), steps=3, rounds=2, generator=seeded(s)
        )
        for s in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


# --- refusals -------------------------------------------------------------------------------------------------------

STAY = lambda t, x, *c: 0 * x  # noqa: E731
PATH = fm.AffinePath()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EnergyGuided(1.0, PATH, STAY), TypeError, "field must be a module or function"),
        (lambda: EnergyGuided(STAY, fm.FunctionPath(STAY), STAY), TypeError, "path must be a flowmatch AffinePath"),
        (lambda: EnergyGuided(STAY, PATH, 1.0), TypeError, "log_density must be a function"),
        (lambda: EnergyGuided(STAY, PATH, STAY, on="noise"), ValueError, "on must be 'target' .* got 'noise'"),
        (
            lambda: EnergyGuided(STAY, PATH, STAY, scale=math.inf),
            ValueError,
            "scale must be one finite number, got inf",
        ),
        (lambda: EnergyGuided(STAY, PATH, STAY, scale=torch.ones(2)), ValueError, "scale must be one finite number"),
        (lambda: EnergyGuided(STAY, PATH, STAY, margin=0.0), ValueError, r"margin must lie in \(0, 0.5\), got 0.0"),
        (lambda: Observed(STAY, PATH, None), TypeError, "operator must be a function"),
        (lambda: Observed(STAY, PATH, STAY, noise=-1.0), ValueError, "noise and data_std must be finite and not neg"),
        (lambda: Observed(STAY, PATH, STAY, data_std=math.nan), ValueError, "noise and data_std must be finite"),
        (lambda: Observed(STAY, PATH, STAY, data_std=0.0), ValueError, "data_std=0 .* needs noise > 0"),
        (lambda: Observed(STAY, PATH, STAY, iterations=0), ValueError, "iterations must be at least 1, got 0"),
        (lambda: Inpainting(STAY, PATH, "dps"), ValueError, "method must be 'guide' or 'project', got 'dps'"),
    ],
)
def test_wrong_parts_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


X = torch.zeros(3, 2)
ALL = torch.ones(3, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("field", "cond", "error", "message"),
    [
        (EnergyGuided(STAY, PATH, lambda x1: x1), (), ValueError, r"log_density returned shape \(3, 2\) for 3 samples"),
        (EnergyGuided(STAY, PATH, lambda x1: x1.sum()), (), ValueError, r"log_density returned shape \(\) for 3"),
        (
            EnergyGuided(lambda t, x: x[:, :1], PATH, lambda x1: x1),
            (),
            ValueError,
            r"the field returned shape \(3, 1\)",
        ),
        (Observed(STAY, PATH, lambda x1: x1[:, :1]), (), ValueError, "must be the observation y, or .* got NoneType"),
        (
            Observed(STAY, PATH, lambda x1: x1[:, :1]),
            (X,),
            ValueError,
            r"shape \(3, 2\) and the operator gives \(3, 1\)",
        ),
        (Inpainting(STAY, PATH), (), ValueError, r"must be \(known, mask\) or \(known, mask, cond\), got NoneType"),
        (Inpainting(STAY, PATH), (X,), ValueError, r"must be \(known, mask\) or \(known, mask, cond\), got Tensor"),
        (Inpainting(STAY, PATH), ((X, X),), TypeError, "mask must be boolean, .* got torch.float32"),
        (Inpainting(STAY, PATH), ((X, ALL[:, :1]),), ValueError, r"mask must be a tensor of the shape of x, \(3, 2\)"),
        (Inpainting(STAY, PATH), ((X[:1], ALL),), ValueError, r"known must be a tensor of the shape of x, \(3, 2\)"),
        (Inpainting(STAY, PATH), ((1.0, ALL),), ValueError, r"known must be a tensor of the shape of x.*got float"),
        (Observed(STAY, PATH, lambda x1: x1), (X / 0,), ValueError, "the observation has 6 entries that are NaN"),
        (Inpainting(STAY, PATH), ((X / 0, ALL),), ValueError, "known has 6 entries that are NaN .* where mask is true"),
        (Inpainting(STAY, PATH, "project"), ((X / 0, ALL),), ValueError, "known has 6 entries that are NaN"),
    ],
)
def test_what_does_not_fit_is_refused(field, cond, error, message):
    with pytest.raises(error, match=message):
        field(0.5, X, *cond)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((STAY, fm.FunctionPath(STAY), X, X, ALL), {}, TypeError, "path must be a flowmatch AffinePath"),
        ((STAY, PATH, X, X, ALL), {"rounds": 0}, ValueError, "steps and rounds must be at least 1"),
        ((STAY, PATH, X, X, ALL), {"steps": 0}, ValueError, "steps and rounds must be at least 1"),
        ((STAY, PATH, X, X, X), {}, TypeError, "mask must be boolean"),
        ((STAY, PATH, X, X[:1], ALL), {}, ValueError, "known must be a tensor of the shape of x"),
        ((STAY, PATH, X, X / 0, ALL), {}, ValueError, "known has 6 entries that are NaN or infinite"),
    ],
)
def test_repainting_refuses_what_does_not_fit(arguments, options, error, message):
    with pytest.raises(error, match=message):
        repaint(*arguments, **options)
