"""Laws of the likelihood: closed forms, the divergences, what they cost, gradients through it, and bits."""

from __future__ import annotations

import math

import pytest
import torch

import flowmatch as fm
from flowmatch.likelihood import HutchPlusPlus, bits_per_dim, divergences, nats_to_bits
from tests.problems import SCHEDULES, gaussian_world, mixture_world, random_mlp, seeded
from tests.solvers.test_fixed import Counter


class WaveField:
    """A nonlinear field on events of any shape whose Jacobian is full, made of plain tensor operations."""

    def __init__(self, *event, seed=0):
        dim = math.prod(event)
        self.mix = torch.randn(dim, dim, generator=seeded(seed), dtype=torch.float64) / math.sqrt(dim)

    def __call__(self, t, x, *cond):
        flat = x.reshape(x.shape[0], len(self.mix))
        wave = torch.sin(flat @ self.mix.to(x) + 3 * t[:, None].to(x)) * (1 if not cond else cond[0][:, None].to(x))
        return (wave @ self.mix.T.to(x)).view_as(x)


def _rows(field, x, *, tol=1e-9, **options):
    return fm.log_likelihood(field, x, fm.Normal(), rtol=tol, atol=tol, **options)


class Pictures(torch.nn.Module):
    """A small convolutional field on ``(B, 2, H, W)``, far from linear, with weights in every layer."""

    def __init__(self, seed=0, width=6):
        super().__init__()
        shapes = [(width, 3, 3, 3), (width, width, 3, 3), (2, width, 3, 3)]
        draws = (torch.randn(shape, generator=seeded(seed + i), dtype=torch.float64) for i, shape in enumerate(shapes))
        self.weights = torch.nn.ParameterList(draw / math.sqrt(draw[0].numel()) for draw in draws)

    def forward(self, t, x):
        clock = t.reshape(-1, 1, 1, 1).to(x).expand(x.shape[0], 1, *x.shape[2:])
        h = torch.cat([x, torch.sin(3 * clock)], dim=1)
        for i, weight in enumerate(self.weights):
            h = torch.nn.functional.conv2d(torch.tanh(2 * h) if i else h, weight.to(x), padding=1)
        return h


# --- closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name"), [*((mixture_world, n) for n in SCHEDULES), (gaussian_world, "vp")])
def test_log_prob_of_an_exact_field_is_the_density_of_its_law(name, make):
    """From the law at the path's start, which is the source's or, for a diffusion, nearly so, to that at its end."""
    path = fm.AffinePath(SCHEDULES[name])
    field, (start, end) = make(path), path.interval

    class Start:
        """The law of x at the start itself: what a diffusion really starts from."""

        log_prob = staticmethod(lambda x: field.log_prob(start, x))

    x = make().sample(5, generator=seeded())
    solved = fm.log_likelihood(field, x, Start(), span=(end, start), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(solved.log_prob, field.log_prob(end, x), rtol=1e-6, atol=1e-6)
    assert torch.equal(solved.stderr, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("name", ["linear-min", "cosine"])
def test_flows_from_the_source_itself_have_the_closed_form(name):
    path = fm.AffinePath(SCHEDULES[name])
    field = mixture_world(path)
    flow = fm.Flow(field, path, event_shape=(2,))
    x = field.sample(8, generator=seeded())
    torch.testing.assert_close(flow.log_prob(x, rtol=1e-8, atol=1e-8), field.log_prob(1.0, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve-mild"])
def test_diffusions_miss_the_closed_form_by_their_start_alone(name):
    """log p - truth = log source(x0) - log p_0(x0): what the schedule's stated deviation costs, and nothing more."""
    path = fm.AffinePath(SCHEDULES[name])
    field, (start, end) = mixture_world(path), path.interval
    flow = fm.Flow(field, path, event_shape=(2,))
    x = field.sample(8, generator=seeded())
    solved = flow.likelihood(x, rtol=1e-8, atol=1e-8)
    cost = flow.source.log_prob(solved.x0) - field.log_prob(start, solved.x0)
    torch.testing.assert_close(solved.log_prob, field.log_prob(end, x) + cost, rtol=1e-6, atol=1e-6)
    assert cost.abs().max() < (0.05 if name == "vp" else 1.5)


@pytest.mark.parametrize("start", [-0.1, 1.7])
def test_a_point_at_rest_still_gathers_its_divergence(start):
    """Where the velocity is zero the path alone would let the solver leap over the divergence."""
    field = lambda t, x: 8 * torch.cos(9 * t)[:, None] * torch.sin(math.pi * x)  # noqa: E731
    x = torch.tensor([[0.0], [start]], dtype=torch.float64)
    solved = _rows(field, x, tol=1e-7)
    gathered = 8 * math.pi * math.sin(9.0) / 9  # integral of the divergence at x = 0
    assert (solved.log_prob[0] - fm.Normal().log_prob(x[:1])[0]).item() == pytest.approx(-gathered, abs=1e-5)


@pytest.mark.parametrize(
    "steps", [{"steps": 80, "solver": fm.RK4()}, {"steps": 30, "solver": fm.Dopri5()}, {"rtol": 1e-8}]
)
def test_any_way_of_stepping_will_do(steps):
    field = gaussian_world()
    x = field.sample(10, generator=seeded())
    solved = fm.log_likelihood(field, x, fm.Normal(), **steps)
    torch.testing.assert_close(solved.log_prob, field.log_prob(1.0, x), rtol=0, atol=1e-5)
    torch.testing.assert_close(solved.x0, field.transport(x, 1.0, 0.0), rtol=0, atol=1e-5)


def test_the_density_of_a_random_network_integrates_to_one():
    # The outer layers are scaled so that the map is smooth but far from the identity.
    net = random_mlp(2, seed=2, scale=0.8)
    flow = fm.Flow(net, event_shape=(2,)).double()
    cells, reach = 90, 6.0
    axis = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * reach - reach
    with torch.no_grad():
        log_p = flow.log_prob(torch.cartesian_prod(axis, axis), steps=25, solver=fm.Midpoint())
    total = log_p.exp().sum() * (2 * reach / cells) ** 2
    assert total.item() == pytest.approx(1.0, abs=0.01)
    plain = fm.Normal().log_prob(torch.cartesian_prod(axis, axis))
    assert (log_p.exp() - plain.exp()).abs().sum() * (2 * reach / cells) ** 2 > 0.3  # which is not the source's


# --- the exact divergence -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [(5,), (2, 3), (2, 3, 4), (1,), ()])
@pytest.mark.parametrize("size", [0, 1, 4])
@pytest.mark.parametrize("chunk", [None, 1, 3, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_exact_divergence_is_that_of_a_loop_of_backward_passes(event, size, chunk, reverse):
    field = WaveField(*event)
    x = torch.randn(size, *event, generator=seeded(), dtype=torch.float64)
    t = torch.rand(size, generator=seeded(1), dtype=torch.float64)
    got = fm.divergence(field, t, x, method=fm.Exact(chunk, reverse))
    leaf = x.clone().requires_grad_()
    value, loop = field(t, leaf).reshape(size, math.prod(event)), torch.zeros(size, dtype=torch.float64)
    for i in range(math.prod(event)):
        gradient = torch.autograd.grad(value[:, i].sum(), leaf, retain_graph=True)[0]
        loop = loop + gradient.reshape(size, math.prod(event))[:, i]
    torch.testing.assert_close(got, loop, rtol=1e-10, atol=1e-10)


def test_images_are_scored_as_their_flattened_vectors():
    wave = WaveField(1, 3, 4)
    images = torch.randn(4, 1, 3, 4, generator=seeded(), dtype=torch.float64)
    flat = lambda t, x: wave(t, x.view(-1, 1, 3, 4)).flatten(1)  # noqa: E731
    for method in (None, fm.Exact(chunk=5), fm.Hutchinson(probes=3)):
        a = _rows(wave, images, method=method, generator=seeded(9), tol=1e-7)
        b = _rows(flat, images.flatten(1), method=method, generator=seeded(9), tol=1e-7)
        torch.testing.assert_close(a.log_prob, b.log_prob, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(a.x0.flatten(1), b.x0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"classes": 3}, {"cond_dim": 2}])
def test_a_network_that_knows_its_divergence_is_asked_for_it(options, monkeypatch):
    net = random_mlp(4, scale=0.5, **options)
    x = torch.randn(6, 4, generator=seeded(), dtype=torch.float64)
    cond = {"classes": torch.arange(6) % 3, "cond_dim": torch.randn(6, 2, generator=seeded(2)).double()}
    given = {"cond": cond[next(iter(options))]} if options else {}
    with torch.no_grad():
        general = fm.log_likelihood(net, x, fm.Normal(), method=fm.Exact(chunk=2), steps=10, **given)
        monkeypatch.setattr(net, "forward", None)  # its own way is the only one left
        own = fm.log_likelihood(net, x, fm.Normal(), steps=10, **given)
    torch.testing.assert_close(own.log_prob, general.log_prob, rtol=1e-10, atol=1e-10)
    assert own.nfe == general.nfe


@pytest.mark.parametrize("size", [0, 1, 4])
@pytest.mark.parametrize("probes", [1, 3])
def test_probes_give_the_same_estimates_in_reverse(size, probes):
    field = WaveField(2, 3)
    x = torch.randn(size, 2, 3, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        forward, reverse = (
            fm.log_likelihood(field, x, fm.Normal(), method=method, generator=seeded(3), steps=4)
            for method in (fm.Hutchinson(probes), fm.Hutchinson(probes, reverse=True))
        )
    torch.testing.assert_close(reverse.log_prob, forward.log_prob, rtol=1e-12, atol=1e-12)
    assert not reverse.log_prob.requires_grad
    if probes > 1:
        torch.testing.assert_close(reverse.stderr, forward.stderr, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_reverse_the_field_runs_once_whatever_the_chunk_and_keeps_no_graph(dtype):
    x = torch.randn(2, 6, generator=seeded()).to(dtype)
    field = Counter(WaveField(6))
    with torch.no_grad():
        found = fm.divergence(field, 0.5, x, method=fm.Exact(4, reverse=True))
    assert field.calls == 1
    assert found.dtype == torch.float32
    assert not found.requires_grad
    wide = fm.divergence(WaveField(6), 0.5, x.double())
    torch.testing.assert_close(found.double(), wide, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-5)
    net = random_mlp(4)  # which has a formula of its own
    point = torch.randn(3, 4, generator=seeded()).double()
    torch.testing.assert_close(
        fm.divergence(net, 0.5, point, method=fm.Exact(reverse=True)), fm.divergence(net, 0.5, point)
    )


def test_in_reverse_a_field_without_gradients_is_refused_and_forward_it_is_right():
    blind = torch.no_grad()(lambda t, x: -3 * x)
    x = torch.zeros(2, 4)
    for method in (fm.Exact(reverse=True), fm.Hutchinson(1, reverse=True)):
        with pytest.raises(ValueError, match=r"cut off from x, .* leave it out, to go forward"):
            fm.divergence(blind, 0.5, x, method=method)
    torch.testing.assert_close(fm.divergence(blind, 0.5, x), torch.full((2,), -12.0))


@pytest.mark.parametrize("gradients", [False, True])
def test_in_reverse_a_velocity_of_the_weights_alone_is_refused(gradients):
    """It has a graph, in which the point is not."""
    weight = torch.ones(4, requires_grad=True)
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match=r"cut off from x, .* does not depend on x"):
        fm.divergence(lambda t, x: weight.expand(2, 4), 0.5, torch.zeros(2, 4), method=fm.Hutchinson(2, reverse=True))


def test_the_field_runs_once_for_the_value_and_once_for_each_chunk():
    x = torch.zeros(2, 6, dtype=torch.float64)
    for chunk, calls in ((None, 1), (6, 1), (4, 2), (1, 6)):
        field = Counter(WaveField(6))
        fm.divergence(field, 0.5, x, method=fm.Exact(chunk))
        assert field.calls == calls


# --- Hutchinson ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_probes_have_mean_zero_and_variance_one(kind, dtype):
    """The one thing that makes z' J z unbiased: E z z' = I."""
    x = torch.zeros(50_000, 4, dtype=dtype)
    z = fm.Hutchinson(2, kind).tangents(x, seeded())
    assert z.shape == (50_000, 2, 4)
    assert z.dtype == dtype
    z = z.double().flatten(0, 1)
    moments = z.T @ z / len(z)
    spread = 5 * math.sqrt(2 / len(z))
    torch.testing.assert_close(
        moments, torch.eye(4, dtype=torch.float64), rtol=0, atol=spread + 2e-3 * (dtype == torch.bfloat16)
    )
    assert z.mean(0).abs().max() < 5 / math.sqrt(len(z))
    assert torch.isfinite(z).all()
    if kind == "rademacher":
        assert torch.equal(z.abs(), torch.ones_like(z))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_within_its_own_standard_error(kind):
    field = WaveField(2, 4)
    x = torch.randn(3, 2, 4, generator=seeded(), dtype=torch.float64)
    exact = fm.divergence(field, 0.3, x)
    estimates = torch.stack(
        [fm.divergence(field, 0.3, x, method=fm.Hutchinson(8, kind), generator=g) for g in map(seeded, range(300))]
    )
    score = (estimates.mean(0) - exact) / (estimates.std(0) / math.sqrt(300))
    assert score.abs().max() < 4.5
    assert estimates.std(0).min() > 0.05


def test_signs_have_less_variance_than_normals():
    field, x = WaveField(8), torch.zeros(2000, 8, dtype=torch.float64)
    spread = {
        k: fm.divergence(field, 0.3, x, method=fm.Hutchinson(1, k), generator=seeded()).std()
        for k in ("rademacher", "gaussian")
    }
    assert spread["rademacher"] < 0.9 * spread["gaussian"]


def test_the_standard_error_of_a_log_prob_is_what_it_says():
    field, n = WaveField(6), 400
    row = torch.randn(1, 6, generator=seeded(), dtype=torch.float64)
    x = row.expand(n, 6).contiguous()  # one point, many independent sets of probes
    solved = _rows(field, x, method=fm.Hutchinson(16), generator=seeded(1), tol=1e-6)
    exact = _rows(field, row, tol=1e-8).log_prob
    scores = (solved.log_prob - exact) / solved.stderr
    assert scores.mean().abs() < 5 / math.sqrt(n)
    assert scores.std().item() == pytest.approx(math.sqrt(15 / 13), rel=0.2)  # Student's t with 15 degrees of freedom
    assert (solved.log_prob - exact).std().item() == pytest.approx(solved.stderr.square().mean().sqrt().item(), rel=0.2)


def test_one_probe_has_no_standard_error():
    solved = _rows(WaveField(3), torch.zeros(2, 3).double(), method=fm.Hutchinson(1), generator=seeded(), tol=1e-4)
    assert torch.isnan(solved.stderr).all()
    assert torch.isfinite(solved.log_prob).all()


def test_probes_are_kept_over_the_whole_solve():
    """The solver's right-hand side is one function: asked twice at one point it gives one answer."""
    asked = {}

    class Watched(fm.Hutchinson):
        def __call__(self, equation, t, x, tangents):
            asked.setdefault("probes", tangents.clone())
            assert torch.equal(asked["probes"], tangents)
            return super().__call__(equation, t, x, tangents)

    solved = fm.log_likelihood(WaveField(3), torch.zeros(4, 3).double(), fm.Normal(), method=Watched(2), steps=5)
    assert solved.nfe == 10


def test_probes_follow_the_samples_that_are_left():
    """Rows of unlike difficulty under error control: each keeps its own probes, so batch and alone agree."""
    field = lambda t, x: torch.sin(x) * x.abs().sum(1, keepdim=True)  # noqa: E731
    x = torch.tensor([[0.1, 0.2, 0.0], [3.0, -2.0, 4.0], [0.5, -0.3, 0.4]], dtype=torch.float64)
    z = fm.Hutchinson(2).tangents(x, seeded(4))

    class Given(fm.Hutchinson):
        def tangents(self, x, generator):
            return z[: x.shape[0]] if x.shape[0] > 1 else z[1:2]

    together = _rows(field, x, method=Given(2), tol=1e-7)
    alone = _rows(field, x[1:2], method=Given(2), tol=1e-7)
    torch.testing.assert_close(alone.log_prob[0], together.log_prob[1], rtol=1e-9, atol=1e-9)


def test_the_generator_decides():
    field, x = WaveField(4), torch.zeros(3, 4, dtype=torch.float64)
    before = torch.get_rng_state()
    a, b, c = (_rows(field, x, method=fm.Hutchinson(2), generator=seeded(s), tol=1e-4).log_prob for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


# --- gradients, graphs, types, refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [None, fm.Exact(chunk=2), fm.Exact(reverse=True), fm.Hutchinson(2), fm.Hutchinson(2, reverse=True)]
)
def test_gradients_are_those_of_finite_differences(method):
    net = random_mlp(2, scale=0.5, hidden=4, depth=1)
    flow = fm.Flow(net, event_shape=(2,))
    x = torch.randn(3, 2, generator=seeded(), dtype=torch.float64, requires_grad=True)

    def value():
        options = {"divergence": method, "generator": seeded(7), "differentiable": True}
        return flow.log_prob(x, steps=4, solver=fm.Midpoint(), **options).sum()

    leaves = [*net.parameters(), x]
    for leaf, gradient in zip(leaves, torch.autograd.grad(value(), leaves), strict=True):
        gradient = gradient.flatten()
        at = gradient.abs().argmax()
        assert gradient[at].abs() > 1e-3
        ends = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                leaf.view(-1)[at] += h
                ends.append(value().item())
                leaf.view(-1)[at] -= h
        assert gradient[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_gradients_under_error_control_are_those_of_small_steps():
    mix = torch.randn(2, 2, generator=seeded(1), dtype=torch.float64).requires_grad_()
    flow = fm.Flow(lambda t, x: torch.sin(x @ mix + 3 * t[:, None]) @ mix, event_shape=(2,))
    x = torch.randn(3, 2, generator=seeded(), dtype=torch.float64)
    by_steps, by_tolerance = (
        torch.autograd.grad(flow.log_prob(x, differentiable=True, **how).sum(), mix)[0]
        for how in ({"steps": 60, "solver": fm.RK4()}, {"rtol": 1e-8, "atol": 1e-8})
    )
    torch.testing.assert_close(by_tolerance, by_steps, rtol=1e-5, atol=1e-5)


def test_no_graph_is_kept_unless_asked_for():
    flow = fm.Flow(random_mlp(2), event_shape=(2,))
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    assert not flow.log_prob(x, steps=2).requires_grad
    assert flow.log_prob(x, steps=2, differentiable=True).requires_grad
    with torch.no_grad():
        assert flow.log_prob(x, steps=2, differentiable=True).requires_grad
        assert not flow.likelihood(x, steps=2).log_prob.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_are_integrated_in_float32(dtype):
    """Half rounds the field to three digits; the sum of its divergence over the steps must not lose the rest."""
    field = lambda t, x: 0.7 * x  # noqa: E731
    x = torch.randn(50, 8, generator=seeded()).to(dtype)
    solved = fm.log_likelihood(field, x, fm.Normal(), steps=200)
    exact = fm.log_likelihood(field, x.double(), fm.Normal(), steps=200)
    assert solved.log_prob.dtype == torch.float32
    assert solved.x0.dtype == dtype
    torch.testing.assert_close(solved.log_prob.double(), exact.log_prob, rtol=0, atol=0.1)


def test_an_empty_batch_is_scored():
    for method in (None, fm.Hutchinson(2)):
        solved = fm.log_likelihood(random_mlp(3), torch.zeros(0, 3).double(), fm.Normal(), method=method, rtol=1e-3)
        assert solved.log_prob.shape == solved.stderr.shape == (0,)
        assert solved.x0.shape == (0, 3)


def test_a_budget_that_runs_out_is_no_likelihood():
    with pytest.raises(fm.SolveError, match="max_nfe ran out"):
        fm.log_likelihood(WaveField(3), torch.zeros(2, 3).double(), fm.Normal(), rtol=1e-9, max_nfe=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fm.Exact(chunk=0), "chunk must be at least 1, got 0"),
        (lambda: fm.Hutchinson(probes=0), "probes must be at least 1, got 0"),
        (lambda: fm.Hutchinson(kind="sobol"), "kind must be 'rademacher' or 'gaussian', got 'sobol'"),
    ],
)
def test_methods_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", [None, fm.Hutchinson()])
def test_a_field_of_wrong_shape_is_refused(method):
    with pytest.raises(ValueError, match="the field returned shape"):
        fm.divergence(lambda t, x: x[:, :1], 0.5, torch.zeros(3, 2), method=method)


# --- Hutch++ ------------------------------------------------------------------------------------------------------


def _linear(spectrum, seed=0):
    """A field with a symmetric Jacobian of given eigenvalues in axes of no distinction."""
    dim = len(spectrum)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=seeded(seed), dtype=torch.float64)).Q
    matrix = axes @ torch.diag(torch.as_tensor(spectrum, dtype=torch.float64)) @ axes.T
    return lambda t, x: (x.flatten(1) @ matrix.to(x)).view_as(x)


@pytest.mark.parametrize("event", [(12,), (1, 3, 4)])
def test_hutch_plus_plus_is_exact_where_the_rank_is_no_more_than_the_sketch(event):
    field = _linear([5.0, -2.0, 1.0] + [0.0] * 9)
    x = torch.randn(20, *event, generator=seeded(), dtype=torch.float64)
    method = HutchPlusPlus(9, shift=False)
    found = method(fm.ODE(field), 0.5, x, method.tangents(x, seeded(1)))[1]
    assert found.shape == (20, 3)
    torch.testing.assert_close(found, torch.full_like(found, 4.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dim", "probes"), [(1, 3), (2, 7), (4, 12), (4, 30)])
def test_a_sketch_of_all_directions_is_exact(dim, probes):
    field, x = WaveField(dim), torch.randn(3, dim, generator=seeded(), dtype=torch.float64)
    found = fm.divergence(field, 0.3, x, method=HutchPlusPlus(probes), generator=seeded(1))
    torch.testing.assert_close(found, fm.divergence(field, 0.3, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("probes", [3, 6, 13])
def test_hutch_plus_plus_is_unbiased_within_its_own_standard_error(probes, shift):
    field, n = WaveField(2, 6), 3000
    row = torch.randn(1, 2, 6, generator=seeded(), dtype=torch.float64)
    found = fm.divergence(
        field, 0.3, row.expand(n, 2, 6).contiguous(), method=HutchPlusPlus(probes, shift), generator=seeded(1)
    )
    exact = fm.divergence(field, 0.3, row)
    assert (found - exact).mean().abs() < 4.5 * found.std() / math.sqrt(n)
    assert found.std() > 0.05


def test_hutch_plus_plus_beats_hutchinson_where_few_directions_matter_and_not_where_all_do():
    """Eigenvalues 1 / k^2: the error falls as 1 / m instead of 1 / sqrt(m). All alike: it has fewer probes left."""
    x = torch.zeros(400, 40, dtype=torch.float64)
    steep, flat = _linear([1.0 / k**2 for k in range(1, 41)]), WaveField(40)

    def error(field, method):
        exact = fm.divergence(field, 0.3, x[:1])
        return (fm.divergence(field, 0.3, x, method=method, generator=seeded(1)) - exact).square().mean().sqrt().item()

    gain = {m: error(steep, fm.Hutchinson(m)) / error(steep, HutchPlusPlus(m, shift=False)) for m in (6, 12, 24)}
    assert gain[6] > 1.8
    assert gain[12] > 1.8 * gain[6]
    assert gain[24] > 1.8 * gain[12]
    assert error(flat, HutchPlusPlus(6)) > error(flat, fm.Hutchinson(6))


def test_a_multiple_of_the_identity_costs_nothing():
    """A flow to data on a line: -c (I - one direction). Unshifted, the sketch would look where all is alike."""
    x = torch.zeros(300, 30, dtype=torch.float64)
    same = fm.divergence(lambda t, x: -7 * x, 0.5, x, method=HutchPlusPlus(6), generator=seeded())
    torch.testing.assert_close(same, torch.full_like(same, -210.0))
    line = _linear([-1.0] + [-100.0] * 29)
    found = {
        shift: (fm.divergence(line, 0.5, x, method=HutchPlusPlus(12, shift), generator=seeded(1)) + 2901).std().item()
        for shift in (True, False)
    }
    assert found[True] < 0.3 * found[False]


def test_the_standard_error_of_hutch_plus_plus_is_what_it_says():
    field, n = WaveField(8), 300
    row = torch.randn(1, 8, generator=seeded(), dtype=torch.float64)
    solved = fm.log_likelihood(
        field, row.expand(n, 8).contiguous(), fm.Normal(), method=HutchPlusPlus(20), generator=seeded(1), steps=10
    )
    exact = fm.log_likelihood(field, row, fm.Normal(), steps=10)
    miss = solved.log_prob - exact.log_prob
    assert miss.mean().abs() < 4.5 * miss.std() / math.sqrt(n)
    assert miss.std().item() == pytest.approx(solved.stderr.square().mean().sqrt().item(), rel=0.2)
    single = fm.log_likelihood(field, row, fm.Normal(), method=HutchPlusPlus(3), generator=seeded(1), steps=2)
    assert torch.isnan(single.stderr).all()


def test_one_evaluation_of_hutch_plus_plus_calls_the_field_twice():
    field, x = Counter(WaveField(6)), torch.zeros(2, 6, dtype=torch.float64)
    fm.divergence(field, 0.5, x, method=HutchPlusPlus(12), generator=seeded())
    assert field.calls == 2


@pytest.mark.parametrize("method", [fm.Hutchinson(8), HutchPlusPlus(9)])
def test_gradients_of_estimates_are_unbiased(method):
    """The mean over many sets of probes of the gradient in the weights is that of the exact divergence."""
    field, n = WaveField(6), 1500
    row = torch.randn(1, 6, generator=seeded(), dtype=torch.float64)

    def gradient(method, size):
        weight = torch.ones(size, 1, dtype=torch.float64, requires_grad=True)  # of each row, so that each has its own
        x = row.expand(size, 6).contiguous()
        value = fm.divergence(lambda t, x, w: field(t, x * w), 0.3, x, weight, method=method, generator=seeded(1))
        return torch.autograd.grad(value.sum(), weight)[0][:, 0]

    found, exact = gradient(method, n), gradient(fm.Exact(), 1)
    assert (found - exact).mean().abs() < 4.5 * found.std() / math.sqrt(n)
    assert 0.01 < found.std() < 10


def test_a_network_that_starts_at_zero_can_be_trained_with_hutch_plus_plus():
    """Its Jacobian is zero: an orthonormal basis of the sketch has no derivative there."""
    net = fm.nn.MLP(3, hidden=8)
    flow = fm.Flow(net, event_shape=(3,))
    x = torch.randn(4, 3, generator=seeded())
    flow.log_prob(x, divergence=HutchPlusPlus(6), generator=seeded(), differentiable=True, steps=2).sum().backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert net.outlet.weight.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_hutch_plus_plus_takes_any_type_and_batch(dtype, size):
    x = torch.zeros(size, 2, 3, dtype=dtype)
    solved = fm.log_likelihood(
        lambda t, x: 0.5 * x, x, fm.Normal(), method=HutchPlusPlus(18), generator=seeded(), steps=8
    )
    assert solved.log_prob.dtype == torch.float32
    torch.testing.assert_close(solved.log_prob, fm.Normal().log_prob(x) - 3, rtol=0, atol=0.05)


def test_too_few_products_are_refused():
    with pytest.raises(ValueError, match="probes must be at least 3 .* got 2"):
        HutchPlusPlus(2)


# --- memory, maximum likelihood, codes ----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "dim"), [(1, 3000), (64, 512), (3, 7), (256, 784), (4096, 1100)])
def test_a_block_of_directions_stays_within_its_bound(size, dim, monkeypatch):
    seen = []

    def watched(equation, t, x, directions):
        seen.append(directions.shape[0] * directions.shape[1] * directions.shape[2])
        return x, torch.zeros((), dtype=x.dtype).expand(directions.shape)

    monkeypatch.setattr(divergences, "directional", watched)
    fm.divergence(lambda t, x: x, 0.5, torch.zeros(1).expand(size, dim))
    assert max(seen) <= max(2**22, size * dim)
    assert sum(seen) == size * dim**2
    assert min(seen[:-1], default=seen[0]) >= size * dim * min(8, dim, max(1, 2**22 // (size * dim)))


@pytest.mark.parametrize("method", [fm.Exact(), fm.Exact(chunk=1), fm.Hutchinson(2), HutchPlusPlus(6)])
def test_maximum_likelihood_has_the_gradient_of_the_closed_form(method):
    """x' = (a - b) x gives N(0, e^{2 (a - b)}): the slope of mean log p in a is mean(x^2) e^{-2 (a - b)} - 1."""
    a, b = torch.tensor([0.3, -0.2]).double().requires_grad_(), 0.1
    x = 2 * torch.randn(200, 2, generator=seeded(), dtype=torch.float64)
    flow = fm.Flow(lambda t, x: (a - b) * x, event_shape=(2,))
    value = flow.log_prob(
        x, divergence=method, generator=seeded(1), differentiable=True, steps=20, solver=fm.RK4()
    ).mean()
    [slope] = torch.autograd.grad(value, a)
    torch.testing.assert_close(slope, (x.square().mean(0) * torch.exp(-2 * (a - b)) - 1).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [None, HutchPlusPlus(6)])
def test_training_by_maximum_likelihood_arrives(method):
    """A diagonal linear flow, Newton's method on its closed-form curvature: ends at the spread of the data."""
    a = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([2.0, 0.5]) * torch.randn(300, 2, generator=seeded(), dtype=torch.float64)
    flow = fm.Flow(lambda t, x: a * x, event_shape=(2,))
    options = {"divergence": method, "generator": seeded(1), "steps": 8, "solver": fm.RK4()}
    for _ in range(8):
        [slope] = torch.autograd.grad(flow.log_prob(x, differentiable=True, **options).mean(), a)
        with torch.no_grad():
            a += slope.clamp(-1, 1) / 2
    torch.testing.assert_close(a.exp().detach(), x.square().mean(0).sqrt(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", [fm.Hutchinson(8), fm.Hutchinson(8, "gaussian"), HutchPlusPlus(12)])
def test_on_pictures_the_mean_of_the_estimates_is_the_exact_log_density_within_its_own_standard_error(method):
    """Many sets of probes of three pictures: the standard error of the mean is had from the ones that are returned."""
    n, net = 200, Pictures()
    x = torch.randn(3, 2, 4, 3, generator=seeded(5), dtype=torch.float64)
    how = {"steps": 3, "solver": fm.Midpoint()}
    with torch.no_grad():
        exact = fm.log_likelihood(net, x, fm.Normal(), **how).log_prob
        many = fm.log_likelihood(net, x.repeat(n, 1, 1, 1), fm.Normal(), method=method, generator=seeded(6), **how)
    miss, stderr = many.log_prob.view(n, 3) - exact, many.stderr.view(n, 3)
    of_mean = stderr.square().mean(0).sqrt() / math.sqrt(n)
    assert (miss.mean(0) / of_mean).abs().max() < 4
    assert stderr.min() > 1e-3
    torch.testing.assert_close(miss.std(0), stderr.square().mean(0).sqrt(), rtol=0.25, atol=0)


def test_on_pictures_maximum_likelihood_has_the_gradient_of_finite_differences():
    net = Pictures()
    flow = fm.Flow(net, event_shape=(2, 3, 3))
    x = torch.randn(2, 2, 3, 3, generator=seeded(5), dtype=torch.float64)
    for method in (fm.Exact(chunk=4), fm.Exact(reverse=True), fm.Hutchinson(2)):
        how = {"divergence": method, "steps": 2, "differentiable": True}
        value = lambda how=how: flow.log_prob(x, generator=seeded(7), **how).mean()  # noqa: E731
        for weight, gradient in zip(net.weights, torch.autograd.grad(value(), list(net.weights)), strict=True):
            way = torch.randn(weight.shape, generator=seeded(8), dtype=torch.float64)
            ends = []
            for h in (1e-5, -1e-5):
                with torch.no_grad():
                    weight += h * way
                    ends.append(value().item())
                    weight -= h * way
            assert (gradient * way).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
            assert (gradient * way).sum().abs() > 1e-3


def test_codes_come_back_within_the_tolerance_that_was_asked_for():
    """Of a convolutional flow; an error grows on the way by the flow's own stretch, here below 10, both ways."""
    flow = fm.Flow(Pictures(), event_shape=(2, 4, 3))
    x = torch.randn(4, 2, 4, 3, generator=seeded(5), dtype=torch.float64)
    miss = {}
    for tol in (1e-3, 1e-5, 1e-7):
        code = flow.encode(x, rtol=tol, atol=tol)
        miss[tol] = (flow.decode(code, rtol=tol, atol=tol) - x).abs().max().item()
        assert miss[tol] < 20 * tol
    assert (code - x).abs().max() > 0.3
    assert miss[1e-7] < 0.01 * miss[1e-3]


@pytest.mark.parametrize(("solver", "order"), [(fm.Euler(), 1), (fm.Midpoint(), 2), (fm.RK4(), 4)])
def test_on_equal_steps_codes_come_back_with_the_order_of_the_solver(solver, order):
    flow = fm.Flow(Pictures(), event_shape=(2, 4, 3))
    x = torch.randn(4, 2, 4, 3, generator=seeded(5), dtype=torch.float64)
    miss = []
    for steps in (16, 32):
        code = flow.encode(x, steps=steps, solver=solver)
        miss.append((flow.decode(code, steps=steps, solver=solver) - x).square().mean().sqrt().item())
    assert math.log2(miss[0] / miss[1]) > order - 0.25
    assert miss[0] > 1e-12


@pytest.mark.parametrize("event", [(3,), (1, 2, 3)])
def test_codes_come_back_to_a_millionth(event):
    field = WaveField(*event)
    flow = fm.Flow(field, event_shape=event)
    x = 2 * torch.randn(5, *event, generator=seeded(), dtype=torch.float64)
    code = flow.encode(x, rtol=1e-8, atol=1e-8)
    assert (code - x).abs().max() > 0.1
    torch.testing.assert_close(flow.decode(code, rtol=1e-8, atol=1e-8), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.likelihood(x, rtol=1e-8, atol=1e-8).x0, code, rtol=0, atol=1e-6)


# --- bits a dimension ---------------------------------------------------------------------------------------------


def _levels_world(std=0.05, levels=16):
    """Normal data on [-1, 1] cut into levels as wide as the data's spread, and the true bits of each level."""
    law = fm.GaussianField(torch.zeros(1, dtype=torch.float64), std=std)
    flow = fm.Flow(law, event_shape=(1,)).double()
    level = torch.arange(levels // 2 - 3, levels // 2 + 3)[:, None]
    edges = -1 + 2 * torch.stack([level, level + 1]).double() / levels
    mass = torch.special.ndtr(edges / std).diff(dim=0)[0, :, 0]
    return flow, level, -mass.log2()


HOW = {"steps": 12, "solver": fm.RK4()}


def test_many_noises_come_to_the_true_bits_within_their_standard_error():
    flow, level, truth = _levels_world()
    found = bits_per_dim(flow, level.double(), noises=401, together=100, levels=16, generator=seeded(), **HOW)
    assert ((found.bits - truth) / found.stderr).abs().max() < 4.5
    assert found.stderr.max() < 0.2
    assert (found.bits - truth).abs().max() < 0.6
    assert found.nfe == 5 * 48


def test_more_noises_are_nearer_to_the_truth_from_above():
    """The mean bits of K noises over many draws: Jensen's gap shrinks in K and is positive for each."""
    flow, level, truth = _levels_world()
    rows, weight = level.double().repeat(300, 1), torch.exp2(-truth)
    gap = {}
    for noises in (1, 4, 16):
        found = bits_per_dim(flow, rows, noises=noises, together=4, levels=16, generator=seeded(), **HOW).bits.view(
            300, -1
        )
        each = ((found - truth) * weight).sum(1)
        gap[noises] = each.mean().item()
        assert gap[noises] > -3 * each.std().item() / math.sqrt(300)
    assert gap[1] > 0.3
    assert gap[4] < 0.5 * gap[1]
    assert gap[16] < 0.5 * gap[4]


def test_the_standard_error_of_the_bits_is_what_it_says():
    flow, level, _ = _levels_world()
    rows = level[2:3].double().expand(400, 1)
    found = bits_per_dim(flow, rows, noises=30, together=30, levels=16, generator=seeded(), **HOW)
    assert found.bits.std().item() == pytest.approx(found.stderr.square().mean().sqrt().item(), rel=0.2)
    assert torch.isnan(bits_per_dim(flow, rows[:2], noises=1, levels=16, generator=seeded(), **HOW).stderr).all()


def _mixing_world(dim=2, much=0.5):
    """x' = A x for an A without a diagonal, whose traces z^T A z are therefore all error."""
    mix = much * (1 - torch.eye(dim, dtype=torch.float64))
    flow = fm.Flow(lambda t, x: x @ mix, event_shape=(dim,)).double()
    return flow, torch.randint(6, 10, (2000, dim), generator=seeded(3)).double()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("together", [1, 6, 20])
def test_probes_leave_the_mean_of_the_bits_where_it_is_for_many_noises_too(together, reverse):
    """One probe, 20 noises: with a probe for each noise the bits are too good by log cosh 1 / (2 log 2) = 0.31."""
    flow, x = _mixing_world()
    how = {"levels": 16, "noises": 20, "together": together, "generator": seeded(), **HOW}
    exact = bits_per_dim(flow, x, divergence=fm.Exact(), **how).bits
    found = bits_per_dim(flow, x, divergence=fm.Hutchinson(1, reverse=reverse), **how).bits
    error = found - exact
    assert error.std() > 0.6  # the probes do err: by 2 |A_12| = 1 nat up or down, in two dimensions
    assert error.mean().abs() < 4 * error.std() / math.sqrt(len(x))


def test_the_error_of_probes_is_common_to_the_noises_of_a_row_and_not_in_their_standard_error():
    """A constant Jacobian: the same noises give the exact bits plus the error of the row's own probes."""
    flow, x = _mixing_world(dim=3)

    class Fixed(fm.Hutchinson):
        def tangents(self, x, generator):
            assert len(x) == len(probes)  # one set a row, whatever the noises
            return probes

    probes = torch.randn(2000, 2, 3, generator=seeded(1), dtype=torch.float64)
    mix = 0.5 * (1 - torch.eye(3, dtype=torch.float64))
    trace = ((probes @ mix) * probes).sum(2).mean(1)
    how = {"levels": 16, "noises": 5, "together": 3, **HOW}
    exact = bits_per_dim(flow, x, generator=seeded(), **how)
    found = bits_per_dim(flow, x, divergence=Fixed(2), generator=seeded(), **how)
    torch.testing.assert_close(found.bits, exact.bits + trace / (3 * math.log(2)))
    torch.testing.assert_close(found.stderr, exact.stderr)


def test_with_the_exact_divergence_the_generator_serves_the_noises_alone():
    flow, x = _mixing_world()
    found = bits_per_dim(flow, x[:9], levels=16, noises=3, generator=seeded(), **HOW).bits
    noise = torch.rand((1, 9, 2), generator=(own := seeded()), dtype=torch.float64)
    noises = [noise, *(torch.rand((1, 9, 2), generator=own, dtype=torch.float64) for _ in range(2))]
    log_prob = torch.stack([flow.log_prob(-1 + (x[:9] + noise[0]) / 8, **HOW) for noise in noises])
    want = nats_to_bits(log_prob.logsumexp(0) - math.log(3), 2, 8.0)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-1 - 1 / 255, 1 + 1 / 255), (0.0, 256.0)])
def test_a_law_that_is_uniform_on_the_cells_costs_log2_of_the_levels(low, high):
    """Whatever the scale; on [-1, 1] the offset is 7 bits for a byte."""

    class Uniform:
        log_prob = staticmethod(lambda x: torch.full(x.shape[:1], -x[0].numel() * math.log(high - low)))

    flow = fm.Flow(lambda t, x: 0 * x, event_shape=(1, 2, 3), source=Uniform())
    x = torch.randint(0, 256, (4, 1, 2, 3), generator=seeded(), dtype=torch.uint8)
    found = bits_per_dim(flow, x, noises=3, low=low, high=high, generator=seeded(), steps=1)
    torch.testing.assert_close(found.bits, torch.full((4,), 8.0))
    torch.testing.assert_close(found.stderr, torch.zeros(4), rtol=0, atol=1e-6)
    assert low != -1.0 or found.bits[0].item() == pytest.approx(
        -Uniform.log_prob(x[:1].float()).item() / (6 * math.log(2)) + 7
    )


@pytest.mark.parametrize("together", [1, 2, 5])
def test_every_noise_of_a_row_meets_the_condition_of_that_row(together):
    """x' = c x from a source that is flat on the way: the bits of a row depend on its condition alone."""

    class Flat:
        log_prob = staticmethod(lambda x: torch.zeros(x.shape[:1]))

    flow = fm.Flow(lambda t, x, c: c[:, None] * x, event_shape=(2,), source=Flat())
    cond = torch.tensor([0.0, 1.0, -2.0])
    x = torch.ones(3, 2, dtype=torch.uint8)
    found = bits_per_dim(flow, x, cond, noises=5, together=together, generator=seeded(), steps=2)
    torch.testing.assert_close(found.bits, cond / math.log(2) + 7)


def test_the_noise_covers_the_cell_of_its_level():
    seen = []

    class Watched(fm.Normal):
        def log_prob(self, x):
            seen.append(x.clone())
            return super().log_prob(x)

    flow = fm.Flow(lambda t, x: 0 * x, event_shape=(1,), source=Watched())
    x = torch.tensor([[0], [255], [100]], dtype=torch.uint8)
    bits_per_dim(flow, x, noises=300, together=7, generator=seeded(), steps=1)
    place = (torch.cat(seen).view(300, 3) + 1) * 128 - torch.tensor([0.0, 255.0, 100.0])
    assert place.min() >= 0
    assert place.max() <= 1
    assert (place.mean(0) - 0.5).abs().max() < 4.5 / math.sqrt(12 * 300)
    assert torch.corrcoef(place.T).fill_diagonal_(0).abs().max() < 4.5 / math.sqrt(300)


def test_bits_are_those_of_the_condition_and_of_the_generator():
    net = random_mlp(2, classes=3)
    flow = fm.Flow(net, event_shape=(2,))
    x, label = torch.tensor([[0, 3], [2, 1], [1, 1]]), torch.tensor([0, 1, 2])
    options = {"levels": 4, "noises": 2, "together": 2, "steps": 3, "divergence": fm.Hutchinson(2)}
    a, b, c = (bits_per_dim(flow, x, label, generator=seeded(s), **options).bits for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.dtype == torch.float64  # of the parameters
    assert not a.requires_grad
    other = bits_per_dim(flow, x, label.flip(0), generator=seeded(0), **options).bits
    assert not torch.allclose(a, other)
    assert bits_per_dim(flow, x[:0], label[:0], levels=4, steps=1).bits.shape == (0,)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (torch.tensor([[0.5]]), {}, ValueError, "whole numbers from 0 to 255, got values from 0.5 to 0.5"),
        (torch.tensor([[256]]), {}, ValueError, "whole numbers from 0 to 255, got values from 256 to 256"),
        (torch.tensor([[-1.0]]), {}, ValueError, "give the levels as they are stored"),
        (torch.tensor([[math.nan]]), {}, ValueError, "whole numbers from 0 to 255"),
        (torch.tensor([[True]]), {}, TypeError, "tensor of whole numbers from 0 to 255, got torch.bool"),
        ([[1]], {}, TypeError, "tensor of whole numbers from 0 to 255, got list"),
        (torch.tensor(3), {}, ValueError, r"x must have shape \(B, \*event\), got a scalar"),
        (torch.tensor([[1]]), {"noises": 0}, ValueError, "need noises >= 1, together >= 1, .* got noises=0"),
        (torch.tensor([[1]]), {"levels": 1}, ValueError, "need .* levels >= 2 .* levels=1"),
        (torch.tensor([[1]]), {"low": 1.0}, ValueError, "need .* low < high, .* low=1.0"),
        (torch.tensor([[1, 2]]), {"steps": 1}, ValueError, r"this flow takes x of shape \(B, 1\), got \(1, 2\)"),
    ],
)
def test_levels_that_are_none_are_refused(x, options, error, message):
    with pytest.raises(error, match=message):
        bits_per_dim(fm.Flow(lambda t, x: 0 * x, event_shape=(1,)), x, **options)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dim", [1, 12])
def test_nats_of_a_uniform_law_over_k_levels_are_log2_k_bits(levels, dim):
    as_they_are = torch.full((3,), -dim * math.log(levels), dtype=torch.float64)
    want = torch.full_like(as_they_are, math.log2(levels))
    torch.testing.assert_close(nats_to_bits(as_they_are, dim), want)
    torch.testing.assert_close(nats_to_bits(torch.zeros_like(want), dim, scale=levels), want)  # on the unit cube


def test_the_unit_of_the_model_does_not_matter_for_the_bits():
    log_prob = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    rescaled = log_prob + 4 * math.log(127.5)  # the density of x / 127.5 in four dimensions
    torch.testing.assert_close(nats_to_bits(rescaled, 4, scale=127.5), nats_to_bits(log_prob, 4))


@pytest.mark.parametrize(
    ("dim", "scale", "message"), [(0, 1.0, "dim=0"), (2, -1.0, r"scale=-1\.0"), (2, math.nan, "scale=nan")]
)
def test_no_bits_without_a_dimension_and_a_scale(dim, scale, message):
    with pytest.raises(ValueError, match=message):
        nats_to_bits(torch.zeros(1), dim, scale)
