"""Laws of the flow: it samples its law, encoding undoes decoding, conditions, types, randomness, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import flowmatch as fm
from tests.problems import SCHEDULES, gaussian_world, mixture_world, random_mlp, seeded, z_scores


def _gaussian_flow(name: str = "linear", **options) -> fm.Flow:
    path = fm.AffinePath(SCHEDULES[name])
    return fm.Flow(gaussian_world(path), path, event_shape=(2,), **options).double()


@pytest.mark.parametrize("name", ["linear", "linear-min", "cosine", "polynomial", "vp", "own"])
def test_samples_have_the_law_of_the_data(name):
    n = 20_000
    x = _gaussian_flow(name).sample(n, rtol=1e-4, atol=1e-4, generator=seeded())
    mean = torch.tensor([0.7, -0.4], dtype=torch.float64)
    cov = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
    left = SCHEDULES[name].sigma(torch.tensor(1.0, dtype=torch.float64)).item() ** 2
    spread = 5 * 1.5 / math.sqrt(n) + (0.01 if name == "vp" else 1e-3)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=spread)
    torch.testing.assert_close(x.T.cov(), cov + left * torch.eye(2, dtype=torch.float64), rtol=0, atol=2 * spread)


def test_a_variance_exploding_flow_starts_from_the_noise_of_its_schedule():
    flow = _gaussian_flow("ve")
    assert flow.source.std == pytest.approx(50.0)
    x0 = flow.start(20_000, seeded())
    assert x0.std().item() == pytest.approx(50.0, rel=0.02)
    x = flow.sample(2000, rtol=1e-4, atol=1e-4, generator=seeded())
    truth = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(x.T.cov(), truth, rtol=0, atol=0.25)


@pytest.mark.parametrize("name", SCHEDULES)
def test_encoding_undoes_decoding(name):
    flow = _gaussian_flow(name)
    x0 = flow.start(16, seeded())
    for steps in ({"rtol": 1e-9, "atol": 1e-9}, {"steps": 60, "solver": fm.Dopri5()}):
        if name.startswith("ve") and "steps" in steps:
            continue  # equal steps are the wrong ones where the noise shrinks by a factor of 5000
        x = flow.decode(x0, **steps)
        torch.testing.assert_close(flow.encode(x, **steps), x0, rtol=1e-4, atol=1e-4)
    start, end = flow.path.interval
    torch.testing.assert_close(flow.decode(x0, rtol=1e-9), flow.field.transport(x0, start, end), rtol=1e-6, atol=1e-6)


def test_sampling_is_decoding_a_start():
    flow = fm.Flow(random_mlp(3), event_shape=(3,))
    x = flow.sample(8, steps=4, generator=seeded(2))
    assert torch.equal(x, flow.decode(flow.start(8, seeded(2)), steps=4))
    assert torch.equal(x, flow.trajectory(8, steps=4, generator=seeded(2)).x)
    assert torch.equal(x, flow.trajectory(flow.start(8, seeded(2)), steps=4).x)


def test_the_generator_decides_and_the_global_one_is_left_alone():
    flow = fm.Flow(random_mlp(3), event_shape=(3,))
    before = torch.get_rng_state()
    a, b, c = (flow.sample(5, steps=2, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_type_of_the_parameters_is_the_type_of_the_samples(dtype):
    flow = fm.Flow(random_mlp(2), event_shape=(2,)).to(dtype)
    assert flow.sample(3, steps=2, generator=seeded()).dtype == dtype
    bare = fm.Flow(lambda t, x: -x, event_shape=2).to(dtype)  # no parameters: the flow itself remembers
    assert bare.sample(3, steps=2, generator=seeded()).dtype == dtype


def test_half_precision_samples_are_those_of_float32_to_a_rounding():
    field = lambda t, x: (math.log(4) * x.float()).to(x.dtype)  # noqa: E731
    flow = fm.Flow(field, event_shape=(4,))
    x0 = flow.to(torch.bfloat16).start(50, seeded())
    torch.testing.assert_close(
        flow.decode(x0, steps=500).float(), flow.decode(x0.float(), steps=500), rtol=0.01, atol=0
    )


def test_the_device_is_that_of_the_parameters():
    flow = fm.Flow(fm.nn.MLP(2), event_shape=(2,)).to("meta")
    assert flow.start(3).device.type == "meta"


@pytest.mark.parametrize(("shape", "event"), [((3,), (3,)), (3, (3,)), ([1, 4, 4], (1, 4, 4)), ((), ())])
def test_events_of_any_shape(shape, event):
    flow = fm.Flow(lambda t, x: -x, event_shape=shape)
    for n in (0, 1, 4):
        x = flow.sample(n, steps=3, generator=seeded())
        assert x.shape == (n, *event)
        assert flow.log_prob(x, steps=3).shape == (n,)
        assert flow.encode(x, steps=3).shape == (n, *event)
    assert flow.sample(np.int64(2), steps=1).shape == (2, *event)


# --- conditions ---------------------------------------------------------------------------------------------------


def _two_laws(t, x, cond):
    """Label 0 moves the normal to -3, label 1 to +3."""
    return torch.where(cond["label"][:, None] == 0, -3.0, 3.0).to(x) + cond["shift"]


def test_a_condition_is_one_row_a_sample():
    flow = fm.Flow(_two_laws, event_shape=(1,)).double()
    cond = {"label": torch.tensor([0, 1, 0]), "shift": torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)}
    x0 = flow.start(3, seeded())
    moved = torch.tensor([[-3.0], [3.5], [-2.0]], dtype=torch.float64)
    torch.testing.assert_close(flow.sample(3, cond, steps=1, generator=seeded()), x0 + moved)
    torch.testing.assert_close(flow.encode(x0 + moved, cond, rtol=1e-6), x0)
    torch.testing.assert_close(flow.log_prob(x0 + moved, cond), fm.Normal().log_prob(x0))
    torch.testing.assert_close(flow.trajectory(x0, cond, steps=2).trajectory[1], x0 + moved / 2)


def test_a_flow_under_one_condition_is_a_distribution():
    flow = fm.Flow(_two_laws, event_shape=(1,)).double()
    one = flow.given({"label": torch.tensor(1), "shift": torch.tensor([0.5], dtype=torch.float64)})
    x = one.sample(5000, steps=1, generator=seeded())
    assert z_scores(x - 3.5).abs() < 5
    every = {"label": torch.ones(5000, dtype=torch.long), "shift": torch.full((5000, 1), 0.5, dtype=torch.float64)}
    assert torch.equal(x, flow.sample(5000, every, steps=1, generator=seeded()))
    torch.testing.assert_close(one.log_prob(x, steps=2), fm.Normal().log_prob(x - 3.5))
    assert one.sample(0, steps=1).shape == (0, 1)


def test_a_network_with_labels_is_conditioned():
    net = random_mlp(2, classes=3)
    flow = fm.Flow(net, event_shape=(2,))
    given = flow.given(torch.tensor(2)).sample(4, steps=3, generator=seeded())
    assert torch.equal(given, flow.sample(4, torch.full((4,), 2), steps=3, generator=seeded()))
    assert not torch.equal(given, flow.given(torch.tensor(1)).sample(4, steps=3, generator=seeded()))
    with pytest.raises(ValueError, match="this network needs a condition, integer labels"):
        flow.sample(4, steps=3)


# --- how it steps -------------------------------------------------------------------------------------------------


def test_defaults_are_error_control_at_1e_5():
    flow = _gaussian_flow()
    x0 = flow.start(4, seeded())
    assert torch.equal(flow.decode(x0), flow.decode(x0, rtol=1e-5, atol=1e-5, solver=fm.Dopri5()))
    assert torch.equal(flow.decode(x0, steps=7), flow.decode(x0, steps=7, solver=fm.Midpoint()))


def test_the_flow_s_own_solver_is_used_and_can_be_overruled():
    flow = _gaussian_flow(solver=fm.Euler())
    x0 = flow.start(4, seeded())
    assert torch.equal(flow.decode(x0, steps=5), flow.decode(x0, steps=5, solver=fm.Euler()))
    assert not torch.equal(flow.decode(x0, steps=5), flow.decode(x0, steps=5, solver=fm.RK4()))
    with pytest.raises(ValueError, match="Euler takes fixed steps: say how many with steps=, or where with grid="):
        flow.decode(x0)
    assert torch.equal(flow.decode(x0, solver=fm.Dopri5()), _gaussian_flow().decode(x0))


def test_every_interval_is_that_of_the_path():
    seen = []
    path = fm.AffinePath(fm.VariancePreserving())
    flow = fm.Flow(lambda t, x: seen.append(t) or -x, path, event_shape=(1,))
    flow.trajectory(2, steps=3)
    assert torch.cat(seen).max() <= 1 - 1e-5
    solution = flow.trajectory(2, steps=3)
    torch.testing.assert_close(solution.t, torch.linspace(0, 1 - 1e-5, 4))
    assert solution.trajectory.shape == (4, 2, 1)
    assert flow.solve(torch.zeros(1, 1), steps=1, reverse=True).t.tolist() == pytest.approx([1 - 1e-5, 0.0])


def test_a_budget_that_runs_out_gives_no_half_made_samples():
    flow = _gaussian_flow()
    x = flow.start(3, seeded())
    for call in (flow.decode, flow.encode, flow.log_prob):
        with pytest.raises(fm.SolveError, match="max_nfe ran out after .* or take what there is from solve"):
            call(x, rtol=1e-9, max_nfe=10)
    assert flow.solve(x, rtol=1e-9, max_nfe=10).status == "max_nfe"
    assert flow.trajectory(x, steps=9, max_nfe=10).trajectory.shape[0] == 6


def test_no_graph_is_kept():
    flow = fm.Flow(random_mlp(2), event_shape=(2,))
    x = torch.zeros(2, 2, dtype=torch.float64)
    for made in (
        flow.sample(2, steps=2),
        flow.decode(x, steps=2),
        flow.encode(x, steps=2),
        flow.trajectory(x, steps=2).x,
    ):
        assert not made.requires_grad
    assert flow.solve(x, steps=2).x.requires_grad  # the one that leaves it to the caller
    assert flow(torch.zeros(2).double(), x).requires_grad


def test_the_field_s_parameters_are_the_flow_s():
    net = random_mlp(2)
    flow = fm.Flow(net, event_shape=(2,))
    assert [id(p) for p in flow.parameters()] == [id(p) for p in net.parameters()]
    assert all(name.startswith("field.") for name in flow.state_dict())


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["decode", "encode", "log_prob", "likelihood", "trajectory", "solve"])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 3), ValueError, r"this flow takes x of shape \(B, 2\), got \(3, 3\)"),
        (torch.zeros(2), ValueError, r"this flow takes x of shape \(B, 2\), got \(2,\)"),
        (torch.zeros(3, 2, dtype=torch.long), TypeError, "x must be floating point"),
    ],
)
def test_points_of_another_shape_are_refused(call, x, error, message):
    with pytest.raises(error, match=message):
        getattr(_gaussian_flow(), call)(x, steps=2)


@pytest.mark.parametrize("call", ["encode", "log_prob", "likelihood"])
def test_data_that_is_not_finite_is_named(call):
    x = torch.zeros(4, 2, dtype=torch.float64)
    x[2, 1] = torch.nan
    with pytest.raises(
        ValueError, match="x has 1 entries that are NaN or infinite, the first in row 2; remove or impute"
    ):
        getattr(_gaussian_flow(), call)(x)


@pytest.mark.parametrize("n", [-1, 2.5, "3", None])
def test_numbers_of_samples_that_are_none_are_refused(n):
    with pytest.raises(ValueError, match="n must be a whole number, at least 0, got"):
        _gaussian_flow().sample(n)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fm.Flow("net"), r"field must be a module or function \(t, x\) -> velocity, got str"),
        (
            lambda: fm.Flow(fm.nn.MLP(2), fm.Linear()),
            r"path must be a flowmatch Path such as fm.AffinePath\(fm.Linear\(\)\)",
        ),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_two_ways_of_stepping_at_once_are_refused():
    with pytest.raises(ValueError, match="choose the steps in one way, got steps and rtol"):
        _gaussian_flow().sample(2, steps=3, rtol=1e-3)


# --- sources ------------------------------------------------------------------------------------------------------


def test_normal_samples_and_scores_alike():
    source = fm.Normal(2.5)
    x = source.sample((50_000, 2), seeded(), dtype=torch.float64)
    assert x.std().item() == pytest.approx(2.5, rel=0.02)
    # Cross-entropy of its own samples: entropy of the normal, within five standard errors.
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(2.5))
    assert z_scores(-source.log_prob(x) - entropy).abs() < 5
    assert torch.equal(x, source.sample((50_000, 2), seeded(), dtype=torch.float64))
    assert isinstance(source, fm.typing.Source)


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_a_normal_without_spread_is_refused(std):
    with pytest.raises(ValueError, match="std must be a positive number, got"):
        fm.Normal(std)


def test_a_source_of_the_user_s_own():
    class Coin:
        """Minus one or one, with noise of 0.1."""

        def sample(self, shape, generator=None, device=None, dtype=None):
            sign = torch.randint(2, shape, generator=generator, device=device) * 2 - 1
            return sign + 0.1 * torch.randn(shape, generator=generator, device=device, dtype=dtype)

        def log_prob(self, x):
            near = torch.distributions.Normal(torch.tensor([-1.0, 1.0], dtype=x.dtype), 0.1)
            return (near.log_prob(x[..., None]).logsumexp(-1) - math.log(2)).sum(1)

    flow = fm.Flow(lambda t, x: math.log(2) * x, event_shape=(1,), source=Coin()).double()
    x = flow.sample(100, rtol=1e-6, generator=seeded())
    torch.testing.assert_close(x, 2 * Coin().sample((100, 1), seeded(), dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(flow.log_prob(x, rtol=1e-7), Coin().log_prob(x / 2) - math.log(2), rtol=1e-4, atol=1e-4)


def test_mixture_and_flow_agree_on_the_bits():
    """Cross-entropy by the flow's density equals that by the closed form, on the flow's own samples."""
    field = mixture_world()
    flow = fm.Flow(field, event_shape=(2,)).double()
    x = flow.sample(200, rtol=1e-6, generator=seeded())
    torch.testing.assert_close(flow.log_prob(x, rtol=1e-6), field.log_prob(1.0, x), rtol=0, atol=1e-4)


# Sampling with noise


@pytest.mark.parametrize("schedule", [fm.Linear(), fm.VariancePreserving()])
@pytest.mark.parametrize("diffusion", ["sigma", "constant", "matched"])
def test_samples_with_noise_have_the_law_of_those_without(schedule, diffusion):
    field = fm.GaussianField(torch.tensor([1.0, -2.0]), std=0.5, path=fm.AffinePath(schedule))
    flow = fm.Flow(field, field.path, 2)
    x = flow.sample(4000, steps=30, diffusion=diffusion, generator=seeded(), solver=fm.ExponentialSDE(2, spread=0.5))
    bare = flow.sample(4000, steps=30, generator=seeded())
    assert (x.mean(0) - torch.tensor([1.0, -2.0])).abs().max() < 3.5 * 0.5 / 4000**0.5
    assert (x.std(0) - 0.5).abs().max() < 3.5 * 0.5 / 8000**0.5
    assert not torch.allclose(x, bare, atol=0.1)
    again = flow.sample(
        4000, steps=30, diffusion=diffusion, generator=seeded(), solver=fm.ExponentialSDE(2, spread=0.5)
    )
    assert torch.equal(x, again)


def test_a_bridge_samples_with_noise_of_a_scale():
    path = fm.BrownianBridge(sigma=1.0)
    still = fm.Bridge(lambda t, x: (torch.zeros_like(x), torch.zeros_like(x)), path)
    flow = fm.Flow(still, path, 1, source=fm.Normal())
    x = flow.sample(4000, steps=4, diffusion=1.0, generator=seeded())
    assert abs(x.std() - 2**0.5) < 0.06  # Brownian motion from a normal
    with pytest.raises(ValueError, match="noise of a bridge is a number"):
        flow.sample(4, steps=4, diffusion="sigma")


def test_noise_is_refused_where_the_velocity_does_not_tell_the_score(tmp_path):
    net = fm.nn.MLP(dim=2)
    joined = fm.Flow(net, event_shape=2, independent=False)
    with pytest.raises(ValueError, match="trained with pairs of a coupling"):
        joined.sample(4, steps=4, diffusion="sigma")
    joined.save(tmp_path)
    assert not fm.Flow.load(tmp_path).independent  # the mark is kept
    with pytest.raises(ValueError, match="fixed steps"):
        fm.Flow(net, event_shape=2).sample(4, diffusion="sigma")
    other = fm.Flow(net, event_shape=2, source=fm.Empirical(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="source"):
        other.sample(4, steps=4, diffusion="sigma")


def test_the_amount_of_noise_is_heard():
    path = fm.BrownianBridge(sigma=1.0)
    still = fm.Bridge(lambda t, x: (torch.zeros_like(x), torch.zeros_like(x)), path)
    flow = fm.Flow(still, path, 1, source=fm.Normal())
    x = flow.sample(4000, steps=4, diffusion=1.0, rate=3.0, generator=seeded())
    assert abs(x.std() - 2.0) < 0.08
    with pytest.raises(ValueError, match="rate=3.0 is the amount of noise"):
        flow.sample(4, steps=4, rate=3.0)
    with pytest.raises(ValueError, match="fixed steps"):
        flow.sample(4, steps=4, nfe=4, diffusion=1.0)


def test_a_target_network_is_sampled_with_noise_in_steps_of_any_length():
    """Near the data the velocity is that of the margin's edge, and it has to be read as such."""
    path = fm.AffinePath()
    exact = fm.GaussianField(torch.tensor([3.0], dtype=torch.float64), std=0.002, path=path)
    field = fm.Predicts(exact.posterior_mean, path, "target")
    flow = fm.Flow(field, path, 1).double()
    for steps in (100, 400):
        x = flow.sample(500, steps=steps, diffusion="sigma", generator=seeded())
        assert abs(x.mean() - 3) < 1.5e-3
