"""Contract of paths: both ends, the velocity as the time derivative, Theorem 3, shapes, types and refusals."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from flowmatch import paths
from tests.problems import GAUSSIAN_PATHS, NOISY_PATHS, PATHS, pair, public_subclasses, seeded

EACH = pytest.mark.parametrize("name", PATHS)
EACH_GAUSSIAN = pytest.mark.parametrize("name", GAUSSIAN_PATHS)
SHAPES = pytest.mark.parametrize("shape", [(4, 4), (3, 5), (4, 3, 4), (4, 3, 4, 4), (1, 2), (0, 2), (0, 1, 3, 3), (5,)])


def _times(size: int) -> torch.Tensor:
    return torch.linspace(0.02, 0.97, size, dtype=torch.float64)


def test_every_public_path_is_under_contract():
    listed = [case.path for case in PATHS.values()] + list(NOISY_PATHS.values())  # the latter: test_interpolant.py
    assert public_subclasses(paths, fm.Path) <= {type(path) for path in listed}


@EACH
def test_the_path_has_the_stated_ends(name):
    case = PATHS[name]
    x0, x1 = pair(64, 3)
    of_x0, of_x1 = case.start
    torch.testing.assert_close(case.path.position(0.0, x0, x1), of_x0 * x0 + of_x1 * x1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(case.path.position(1.0, x0, x1), case.end(x0, x1), rtol=1e-12, atol=1e-12)


@EACH
def test_the_velocity_is_the_time_derivative_of_the_position(name):
    path, t, h = PATHS[name].path, _times(200), 1e-5
    x0, x1 = pair(200, 3)
    velocity = path.velocity(t, x0, x1)
    difference = (path.position(t + h, x0, x1) - path.position(t - h, x0, x1)) / (2 * h)
    torch.testing.assert_close(velocity, difference, rtol=1e-6, atol=1e-6)
    derived = fm.Path._both(path, t[:, None], x0, x1, None)[1]  # forward mode, whatever closed form the class has
    torch.testing.assert_close(velocity, derived, rtol=1e-11, atol=1e-11)


@EACH
@SHAPES
def test_every_sample_has_its_own_time_whatever_the_shape(name, shape):
    path, t = PATHS[name].path, _times(shape[0])
    x0, x1 = pair(*shape)
    sample = path.sample(t, x0, x1)
    assert sample.t.shape == shape[:1]
    assert sample.x_t.shape == sample.u_t.shape == x1.shape
    for b in range(shape[0]):
        alone = path.sample(float(t[b]), x0[b : b + 1], x1[b : b + 1])
        torch.testing.assert_close(sample.x_t[b], alone.x_t[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sample.u_t[b], alone.u_t[0], rtol=1e-12, atol=1e-12)


@EACH
@SHAPES
def test_one_time_for_all_is_that_time_for_each(name, shape):
    path = PATHS[name].path
    x0, x1 = pair(*shape)
    three = torch.tensor(0.3, dtype=torch.float64)
    one, scalar, each = (path.sample(t, x0, x1) for t in (0.3, three, three.repeat(shape[0])))
    for field in ("t", "x_t", "u_t"):
        assert torch.equal(getattr(one, field), getattr(each, field))
        assert torch.equal(getattr(one, field), getattr(scalar, field))


@EACH
def test_sample_is_position_and_velocity_in_one(name):
    path, t = PATHS[name].path, _times(16)
    x0, x1 = pair(16, 2)
    sample = path.sample(t, x0, x1)
    assert torch.equal(sample.x_t, path.position(t, x0, x1))
    assert torch.equal(sample.u_t, path.velocity(t, x0, x1))
    assert sample.x0 is x0
    assert sample.x1 is x1
    assert sample.z is None


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_type_of_the_data_rules(name, dtype):
    path = PATHS[name].path
    x0, x1 = pair(6, 2, dtype=dtype)
    for t in (0.4, torch.full((6,), 0.4), torch.full((6,), 0.4, dtype=torch.float64)):
        sample = path.sample(t, x0, x1)
        assert sample.x_t.dtype == sample.u_t.dtype == dtype
        assert sample.t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", [name for name, case in PATHS.items() if case.exact_in_half])
@pytest.mark.parametrize("t", [0.99, torch.full((500,), 0.99)], ids=["scalar", "batch"])
@pytest.mark.parametrize("what", ["position", "velocity"])
def test_bfloat16_is_one_rounding_away_from_float64_near_the_data(name, t, what):
    path = PATHS[name].path
    x0, x1 = pair(500, 1, dtype=torch.bfloat16)
    exact = getattr(path, what)(float(torch.tensor(0.99)), x0.double(), x1.double())  # the same 0.99, float32's
    error = (getattr(path, what)(t, x0, x1).double() - exact).abs()
    # Half a unit of the last of eight bits, and the roundings of the terms in float32 before that.
    terms = x0.double().abs() + x1.double().abs()
    assert (error <= 2**-8 * exact.abs() + 1e-5 * terms * max(1.0, exact.abs().max().item())).all()


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_finite_at_both_ends_of_the_interval(name, dtype):
    path = PATHS[name].path
    x0, x1 = pair(32, 2, dtype=dtype)
    for t in path.interval:
        sample = path.sample(t, x0, x1)
        assert torch.isfinite(sample.x_t).all()
        assert torch.isfinite(sample.u_t).all()


@pytest.mark.parametrize("name", ["vp", "vp-mild"])
@pytest.mark.parametrize("t", [1.0, torch.tensor([0.5, 1.0])])
def test_a_singular_end_is_refused_by_name_and_has_a_position(name, t):
    path = PATHS[name].path
    x0, x1 = pair(2, 2)
    for call in (path.velocity, path.sample):
        with pytest.raises(ValueError, match=r"t must lie in \[0.0, 0.99999\] \(where the velocity of AffinePath\(Var"):
            call(t, x0, x1)
    assert torch.equal(path.position(1.0, x0, x1), x1)


@EACH
@pytest.mark.parametrize(
    ("t", "x0", "x1", "error", "message"),
    [
        (0.5, torch.zeros(2, 3), torch.zeros(2, 4), ValueError, "one shape"),
        (0.5, torch.zeros(2, 3), torch.zeros(3), ValueError, "one shape"),
        (0.5, torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3), TypeError, "x0 must be floating point"),
        (0.5, torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), TypeError, "x1 must be floating point"),
        (0.5, torch.zeros(2, 3), torch.zeros(2, 3).double(), TypeError, "one dtype"),
        (0.5, torch.tensor(0.0), torch.tensor(0.0), ValueError, "got a scalar"),
        (0.5, torch.zeros(2, 3), [0.0], TypeError, "x1 must be a torch.Tensor"),
        (1.1, torch.zeros(2, 3), torch.zeros(2, 3), ValueError, "t must lie in"),
        (-0.1, torch.zeros(2, 3), torch.zeros(2, 3), ValueError, "t must lie in"),
        (float("nan"), torch.zeros(2, 3), torch.zeros(2, 3), ValueError, "t must lie in"),
        (torch.tensor([0.5, float("nan")]), torch.zeros(2, 3), torch.zeros(2, 3), ValueError, "t must lie in"),
        (torch.zeros(2, 1), torch.zeros(2, 3), torch.zeros(2, 3), ValueError, "t must have shape"),
        (torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 3), ValueError, "t must have shape"),
    ],
)
def test_bad_input_is_named(name, t, x0, x1, error, message):
    path = PATHS[name].path
    for call in (path.position, path.velocity, path.sample):
        with pytest.raises(error, match=message):
            call(t, x0, x1)


@EACH
def test_gradients_reach_both_ends(name):
    path = PATHS[name].path
    x0, x1 = (x.requires_grad_() for x in pair(3, 2))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: path.sample(t, a, b)[1:3], (x0, x1))


# --- Gaussian paths ---------------------------------------------------------------------------------------------


@EACH_GAUSSIAN
def test_theorem_3_at_a_point_of_the_path_is_the_velocity_there(name):
    path, t = PATHS[name].path, _times(200)
    x0, x1 = pair(200, 3)
    sample = path.sample(t, x0, x1)
    torch.testing.assert_close(path.conditional_velocity(t, sample.x_t, x1), sample.u_t, rtol=1e-9, atol=1e-9)


@EACH_GAUSSIAN
def test_theorem_3_transports_the_conditional_density(name):
    """The continuity equation itself: d/dt log p + u . grad log p + div u = 0, in one dimension, by derivatives."""
    path = PATHS[name].path
    t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.3], [-0.8], [1.0], [0.4]], dtype=torch.float64, requires_grad=True)
    x1 = torch.tensor([[0.5], [-1.0], [0.8], [0.5]], dtype=torch.float64)
    log_p = path.conditional_log_prob(t, x, x1)
    along_t, score = torch.autograd.grad(log_p.sum(), (t, x))
    u = path.conditional_velocity(t, x, x1)
    divergence = torch.autograd.grad(u.sum(), x)[0]
    balance = along_t + (u * score + divergence).sum(1)
    torch.testing.assert_close(balance, torch.zeros_like(balance), rtol=0, atol=1e-7)


@EACH_GAUSSIAN
def test_the_conditional_density_is_that_of_the_drawn_noise(name):
    path, t = PATHS[name].path, _times(50)
    x0, x1 = pair(50, 1)
    x_t = path.position(t, x0, x1)
    _, std = path._mean_std(t[:, None], x1)
    noise = torch.distributions.Normal(*torch.tensor([0.0, 1.0], dtype=torch.float64)).log_prob(x0)
    expected = (noise - torch.as_tensor(std).log()).flatten()
    torch.testing.assert_close(path.conditional_log_prob(t, x_t, x1), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "vp"])
@pytest.mark.parametrize("t", [1.0, torch.tensor([0.5, 1.0])])
def test_no_noise_no_conditional_velocity(name, t):
    x0, x1 = pair(2, 2)
    for call in (PATHS[name].path.conditional_velocity, PATHS[name].path.conditional_log_prob):
        with pytest.raises(ValueError, match=r"standard deviation is zero or negative at t = .*sigma_min > 0"):
            call(t, x0, x1)


@pytest.mark.parametrize("std", [lambda t, x1: t - 0.5, lambda t, x1: 0.0 * t, lambda t, x1: t * float("nan")])
def test_a_std_that_is_not_positive_is_refused(std):
    path = fm.GaussianPath(lambda t, x1: t * x1, std)
    x0, x1 = pair(2, 2)
    with pytest.raises(ValueError, match="standard deviation is zero or negative"):
        path.conditional_velocity(0.5, x0, x1)


def test_a_condition_point_beside_the_data_is_checked():
    with pytest.raises(ValueError, match="one shape"):
        fm.AffinePath().conditional_velocity(0.5, torch.zeros(2, 3), torch.zeros(2, 2))


# --- the paper's own path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_min", [0.0, 1e-5, 0.1])
def test_condot_removes_the_noise_on_the_way(sigma_min):
    """Eq. 22-23, with the sign that matters: u = x1 - (1 - sigma_min) x0, and not plus."""
    path = fm.AffinePath(fm.Linear(sigma_min))
    x0, x1 = pair(100, 3)
    u = path.velocity(_times(100), x0, x1)
    torch.testing.assert_close(u, x1 - (1 - sigma_min) * x0, rtol=1e-15, atol=1e-15)
    assert (u - (x1 + (1 - sigma_min) * x0)).abs().max() > 1
    arrived = path.position(0.0, x0, x1) + u  # straight lines: one step of the whole way arrives
    torch.testing.assert_close(arrived, path.position(1.0, x0, x1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma_min", [1e-5, 0.1])
def test_both_forms_of_eq_21_agree(sigma_min):
    path, t = fm.AffinePath(fm.Linear(sigma_min)), _times(100)
    x0, x1 = pair(100, 3)
    x_t = path.position(t, x0, x1)
    other = (x1 - (1 - sigma_min) * x_t) / (1 - (1 - sigma_min) * t[:, None])
    torch.testing.assert_close(path.velocity(t, x0, x1), other, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.conditional_velocity(t, x_t, x1), other, rtol=1e-10, atol=1e-10)


# --- users' functions ----------------------------------------------------------------------------------------------


def test_a_function_path_is_the_affine_path_of_the_same_formula():
    own = fm.FunctionPath(lambda t, x0, x1: t * x1 + (1 - 0.9 * t) * x0)
    x0, x1 = pair(8, 3, 4, 4)
    for ours, theirs in zip(
        own.sample(_times(8), x0, x1)[1:3], fm.AffinePath(fm.Linear(0.1)).sample(_times(8), x0, x1)[1:3], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_time_arrives_ready_to_broadcast():
    seen = []
    path = fm.FunctionPath(lambda t, x0, x1: seen.append(t.shape) or (1 - t) * x0 + t * x1)
    x0, x1 = pair(5, 3, 2, 2)
    path.position(0.5, x0, x1)
    path.velocity(torch.full((5,), 0.5), x0, x1)
    assert seen == [(5, 1, 1, 1)] * 2


@pytest.mark.parametrize(
    "phi", [lambda t, x0, x1: (t * x1).sum(-1), lambda t, x0, x1: t * x1[:, :1], lambda t, x0, x1: t[None] * x1]
)
def test_a_formula_of_wrong_shape_is_refused(phi):
    path = fm.FunctionPath(phi)
    for call in (path.position, path.velocity, path.sample):
        with pytest.raises(ValueError, match=r"the path returned shape .* a position has the shape of x0 and x1"):
            call(0.5, *pair(3, 2))


@pytest.mark.parametrize("which", ["mean", "std"])
def test_a_gaussian_formula_that_loses_a_dimension_is_refused_even_where_it_would_broadcast(which):
    formulas = {"mean": lambda t, x1: t * x1, "std": lambda t, x1: 1 - t, which: lambda t, x1: x1.abs().sum(1)}
    path = fm.GaussianPath(**formulas)
    for call in (path.position, path.velocity, path.sample, path.conditional_velocity):
        with pytest.raises(ValueError, match=rf"{which}\(t, x1\) returned shape \(4,\) .*keepdim=True"):
            call(0.5, *pair(4, 4))


def test_a_gaussian_path_with_a_constant_std():
    path = fm.GaussianPath(mean=lambda t, x1: t * x1, std=lambda t, x1: 0.1)
    x0, x1 = pair(4, 2)
    torch.testing.assert_close(path.position(0.3, x0, x1), 0.3 * x1 + 0.1 * x0, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(path.velocity(0.3, x0, x1), x1, rtol=1e-15, atol=0)
    torch.testing.assert_close(path.conditional_velocity(0.3, x0, x1), x1, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fm.FunctionPath("phi"), r"phi must be a function \(t, x0, x1\) -> x_t, got str"),
        (lambda: fm.GaussianPath(mean=1.0, std=lambda t, x1: t), r"mean must be a function .*got float"),
        (lambda: fm.GaussianPath(mean=lambda t, x1: t, std=None), r"std must be a function .*got NoneType"),
        (
            lambda: fm.AffinePath(fm.Linear),
            r"schedule must be a flowmatch Schedule such as fm.Linear\(\), got <class .*Linear",
        ),
        (lambda: fm.AffinePath(0.1), "for a formula of your own use fm.FunctionPath"),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_paths_name_their_parts():
    assert repr(fm.AffinePath(fm.Linear(0.1))) == "AffinePath(Linear(sigma_min=0.1))"
    named = fm.FunctionPath(torch.lerp)
    assert repr(named) == "FunctionPath(lerp)"
    assert repr(fm.GaussianPath(torch.add, torch.mul)) == "GaussianPath(add, mul)"


def test_the_start_of_a_flow_is_the_noise_of_the_path():
    assert fm.AffinePath(fm.Linear(0.1)).source_std == 1
    assert fm.AffinePath(fm.VariancePreserving()).source_std == 1
    assert fm.AffinePath(fm.VarianceExploding(0.1, 7.0)).source_std == pytest.approx(7.0, rel=1e-12)


def test_nothing_is_drawn_by_these_paths():
    generator = seeded()
    state = generator.get_state()
    for case in PATHS.values():
        case.path.sample(0.5, *pair(2, 2), generator=generator)
    assert torch.equal(generator.get_state(), state)
