"""Guidance towards a condition and away from a weaker model: its formula, what it costs, and that one is neutral."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from flowmatch.fields import AutoGuided, Guided
from tests.problems import SCHEDULES, pair, random_mlp, seeded
from tests.solvers.test_fixed import Counter

TIMES = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Tree:
    """A field whose condition is a pair of a label and a dict of numbers, so that every leaf counts."""

    def __call__(self, t, x, cond):
        label, more = cond
        return torch.sin(x + label[:, None]) * t[:, None] + more["shift"]


def _numbers(n=6):
    return torch.randn(n, 2, generator=seeded(5), dtype=torch.float64)


#: name: (field, null, condition, the empty condition of a whole batch)
WORLDS = {
    "an extra class": (random_mlp(2, classes=4), 3, LABELS, torch.full((6,), 3)),
    "one number for a vector": (random_mlp(2, cond_dim=2), 0.0, _numbers(), torch.zeros(6, 2).double()),
    "a vector": (
        random_mlp(2, cond_dim=2),
        torch.tensor([0.5, -1.0]),
        _numbers(),
        _numbers() * 0 + torch.tensor([0.5, -1]),
    ),
    "a list of numbers": (random_mlp(2, cond_dim=2), [0.5, -1.0], _numbers(), _numbers() * 0 + torch.tensor([0.5, -1])),
    "a tree": (
        Tree(),
        (7, {"shift": torch.tensor([1.0, 2.0])}),
        (LABELS, {"shift": _numbers()}),
        (torch.full((6,), 7), {"shift": _numbers() * 0 + torch.tensor([1.0, 2.0])}),
    ),
}
EACH_WORLD = pytest.mark.parametrize("world", WORLDS)


def _points():
    return pair(6, 2)[0]


# --- the formula --------------------------------------------------------------------------------------------------


@EACH_WORLD
@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.7, 4.0])
def test_guidance_goes_from_the_empty_through_the_given_condition(world, scale):
    field, null, cond, empty = WORLDS[world]
    x = _points()
    strong, weak = field(TIMES, x, cond), field(TIMES, x, empty)
    assert (strong - weak).abs().min() > 1e-6
    torch.testing.assert_close(Guided(field, scale, null)(TIMES, x, cond), weak + scale * (strong - weak))


def test_without_an_empty_condition_the_field_is_called_without_any():
    field = lambda t, x, *c: x + (c[0][:, None] if c else 0)  # noqa: E731
    cond, x = torch.arange(6.0).double(), _points()
    torch.testing.assert_close(Guided(field, 3.0, None)(TIMES, x, cond), x + 3 * cond[:, None])


@pytest.mark.parametrize("name", ["linear-min", "cosine", "vp", "ve-mild"])
def test_it_is_the_velocity_of_the_extrapolated_score(name):
    """Of two exact laws on any affine path: scores and velocities are extrapolated alike."""
    path = fm.AffinePath(SCHEDULES[name])
    given, none = (
        fm.GaussianField(torch.full((2,), m).double(), std=s, path=path) for m, s in ((1.0, 0.5), (0.0, 1.3))
    )
    x, scale = _points(), 2.5
    score = scale * given.score(TIMES, x) + (1 - scale) * none.score(TIMES, x)
    truth = path.convert(score, TIMES, x, "score", "velocity")
    guided = Guided(lambda t, x, *c: given(t, x) if c else none(t, x), scale, None)
    torch.testing.assert_close(guided(TIMES, x, LABELS), truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(AutoGuided(given, none, scale)(TIMES, x), truth, rtol=1e-9, atol=1e-9)


def test_autoguidance_passes_the_condition_to_both():
    strong, weak = random_mlp(2, classes=3), random_mlp(2, seed=1, hidden=4, classes=3)
    x = _points()
    one, other = strong(TIMES, x, LABELS), weak(TIMES, x, LABELS)
    torch.testing.assert_close(AutoGuided(strong, weak, 2.2)(TIMES, x, LABELS), other + 2.2 * (one - other))


# --- neutral at one, and what it costs ------------------------------------------------------------------------------


@EACH_WORLD
def test_a_scale_of_one_is_the_field_itself_at_the_price_of_one(world):
    field, null, cond, _ = WORLDS[world]
    watched = Counter(field)
    assert torch.equal(Guided(watched, 1.0, null)(TIMES, _points(), cond), field(TIMES, _points(), cond))
    assert watched.calls == 1


def test_a_scale_of_one_is_known_without_a_look_at_the_batch():
    watched = Counter(lambda t, x, *c: x)
    Guided(watched, 1.0, None)(0.5, torch.zeros(0, 2), torch.zeros(0))
    assert watched.calls == 1


def test_at_one_the_weak_model_is_not_called():
    field, weak = random_mlp(2), Counter(random_mlp(2, seed=1))
    assert torch.equal(AutoGuided(field, weak, 1)(TIMES, _points()), field(TIMES, _points()))
    assert weak.calls == 0


class Rows:
    """Remembers the size of every batch that it is called with."""

    def __init__(self, field):
        self.field, self.sizes = field, []

    def __call__(self, t, x, *cond):
        self.sizes.append(len(x))
        assert len(t) == len(x)
        return self.field(t, x, *cond)


@pytest.mark.parametrize(("null", "sizes"), [(3, [12]), (None, [6, 6])])
def test_both_are_had_in_one_call_where_there_is_an_empty_condition(null, sizes):
    field = Rows(lambda t, x, *c: x)
    Guided(field, 2.0, null)(TIMES, _points(), LABELS)
    assert field.sizes == sizes


# --- where and how much ---------------------------------------------------------------------------------------------


def test_it_acts_inside_its_interval_only_row_by_row():
    field, null, cond, _ = WORLDS["an extra class"]
    x = _points()
    kept = Guided(field, 3.0, null, interval=(0.3, 0.6))(TIMES, x, cond)
    inside = (TIMES >= 0.3) & (TIMES <= 0.6)
    assert 0 < int(inside.sum()) < len(TIMES)
    torch.testing.assert_close(kept[~inside], field(TIMES, x, cond)[~inside], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(kept[inside], Guided(field, 3.0, null)(TIMES, x, cond)[inside])


@pytest.mark.parametrize(("t", "sizes"), [(0.1, [6]), (0.3, [12]), (0.6, [12]), (0.9, [6])])
def test_outside_its_interval_it_costs_nothing(t, sizes):
    field = Rows(lambda t, x, c: x)
    Guided(field, 3.0, 0, interval=(0.3, 0.6))(t, _points(), LABELS)
    assert field.sizes == sizes


def test_a_scale_of_each_sample_comes_with_its_condition():
    field, null, cond, _ = WORLDS["an extra class"]
    x, scale = _points(), torch.tensor([1.0, 0.0, 2.0, -1.0, 3.5, 1.0], dtype=torch.float64)
    found = Guided(field, None, null)(TIMES, x, (cond, scale))
    for i in range(6):
        alone = Guided(field, scale[i].item(), null)(TIMES[i : i + 1], x[i : i + 1], cond[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone)
    weak = random_mlp(2, seed=1, classes=4)
    found = AutoGuided(field, weak, None)(TIMES, x, (cond, scale))
    one, other = field(TIMES, x, cond), weak(TIMES, x, cond)
    torch.testing.assert_close(found, other + scale[:, None] * (one - other))


def test_a_scale_of_each_sample_needs_no_condition_for_autoguidance():
    found = AutoGuided(lambda t, x: x, lambda t, x: 0 * x, None)(
        0.5, torch.ones(2, 1), (None, torch.tensor([2.0, 3.0]))
    )
    assert torch.equal(found, torch.tensor([[2.0], [3.0]]))


def test_scales_stay_with_their_samples_when_others_have_left_the_batch():
    """Under error control rows finish at their own time; each must keep its own scale to the end."""
    field = lambda t, x, c: torch.sin(6 * x) * c[:, None] + c[:, None]  # noqa: E731
    flow = fm.Flow(Guided(field, None, 0.0), event_shape=(2,))
    cond = torch.tensor([0.1, 4.0, 1.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    x0 = pair(3, 2)[0]
    together = flow.decode(x0, (cond, scale), rtol=1e-7)
    for i in range(3):
        alone = flow.decode(x0[i : i + 1], (cond[i : i + 1], scale[i : i + 1]), rtol=1e-7)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)
    one = flow.given((cond[1], scale[1])).sample(4, generator=seeded(), steps=20, solver=fm.RK4())
    other = fm.Flow(Guided(field, 3.0, 0.0), event_shape=(2,)).given(cond[1])
    torch.testing.assert_close(one, other.sample(4, generator=seeded(), steps=20, solver=fm.RK4()))


# --- likelihood, types, weights -------------------------------------------------------------------------------------


def _both(kind, scale, interval=(0.0, 1.0)):
    net = random_mlp(3, classes=4)
    weak = random_mlp(3, seed=1, hidden=5, classes=4)
    return Guided(net, scale, 3, interval) if kind == "guided" else AutoGuided(net, weak, scale, interval)


@pytest.mark.parametrize("kind", ["guided", "auto"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.6)])
def test_the_divergence_of_an_mlp_stays_in_closed_form(kind, scale, interval):
    field, x = _both(kind, scale, interval), pair(6, 3)[0]
    closed = fm.divergence(field, TIMES, x, LABELS)
    general = fm.divergence(lambda t, x, c: field(t, x, c), TIMES, x, LABELS)
    torch.testing.assert_close(closed, general, rtol=1e-9, atol=1e-9)
    assert field.value_and_divergence is not None


def test_without_a_closed_divergence_the_general_one_is_taken():
    assert Guided(lambda t, x, c: x, 2.0, 0).value_and_divergence is None
    assert AutoGuided(random_mlp(2), lambda t, x: x, 2.0).value_and_divergence is None
    found = fm.divergence(
        Guided(lambda t, x, c: c[:, None] * x, 2.0, 1.0), 0.5, torch.ones(2, 3), torch.tensor([3.0, 5.0])
    )
    torch.testing.assert_close(found, torch.tensor([15.0, 27.0]))  # (1 + 2 (c - 1)) times three dimensions


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(2,), (3, 4, 2), ()])
@pytest.mark.parametrize("size", [0, 1, 4])
def test_any_shape_and_type(dtype, event, size):
    column = lambda c: c.reshape(-1, *(1,) * len(event))  # noqa: E731
    x = torch.randn(size, *event, generator=seeded()).to(dtype)
    cond, scale = torch.arange(float(size)).to(dtype), torch.full((size,), 3.0)
    for field, given in (
        (Guided(lambda t, x, c: x * column(c), 3.0, 0), cond),
        (Guided(lambda t, x, c: x * column(c), None, 0, interval=(0.2, 0.8)), (cond, scale)),
        (AutoGuided(lambda t, x, c: x * column(c), lambda t, x, c: 0 * x, 3.0), cond),
    ):
        found = field(torch.full((size,), 0.5), x, given)
        assert found.dtype == dtype
        torch.testing.assert_close(found, (3 * x.float() * column(cond.float())).to(dtype), rtol=0.02, atol=0.02)


def test_gradients_reach_both_networks():
    field = _both("auto", 2.0)
    field(TIMES, pair(6, 3)[0], LABELS).square().sum().backward()
    grads = [p.grad for name, p in field.named_parameters() if "outlet" in name]
    assert len(grads) == 4
    assert all(grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize("make", [lambda: _both("guided", 2.0, (0.1, 0.5)), lambda: _both("auto", None)])
def test_it_is_made_again_from_its_arguments(make):
    field = make()
    again = type(field)(**field.config())
    assert repr(again) == repr(field)
    again.load_state_dict(field.state_dict())
    for null in (2.0, torch.tensor([1.0, -1.0]), [[1.0], [2.0]], None):
        field = Guided(lambda t, x, c: x, 2.0, null)
        again = Guided(**field.config())
        assert again.config()["null"] == field.config()["null"]
        assert torch.equal(getattr(again, "null_0", torch.ones(1)), getattr(field, "null_0", torch.ones(1)))
    assert Guided(lambda t, x, c: x, 2.0, (1, 2)).config() is None


def test_a_guided_flow_is_saved_and_loaded(tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra train")
    flow = fm.Flow(_both("guided", 2.0, (0.1, 0.5)), event_shape=(3,))
    flow.save(tmp_path)
    again, x = fm.Flow.load(tmp_path), pair(6, 3)[0]
    assert torch.equal(again.field(TIMES, x, LABELS), flow.field(TIMES, x, LABELS))


def test_a_label_stays_whole_in_a_network_of_another_type():
    field = _both("guided", 2.0).float().to(torch.bfloat16)
    assert field.null_0.dtype == torch.int64
    assert field(0.5, torch.zeros(6, 3, dtype=torch.bfloat16), LABELS).dtype == torch.bfloat16


# --- refusals -------------------------------------------------------------------------------------------------------

PLAIN = lambda t, x, *c: x  # noqa: E731


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Guided(1.0, 2.0, None), TypeError, "field must be a module or function"),
        (lambda: Guided(PLAIN, float("nan"), None), ValueError, "scale must be a finite number.* got nan"),
        (lambda: Guided(PLAIN, float("inf"), None), ValueError, "scale must be a finite number.* got inf"),
        (
            lambda: Guided(PLAIN, torch.ones(3), None),
            ValueError,
            r"got shape \(3,\); for a scale of each .* scale=None",
        ),
        (lambda: Guided(PLAIN, 2.0, None, interval=(0.5, 0.5)), ValueError, "interval must be two times"),
        (lambda: Guided(PLAIN, 2.0, None, interval=(-0.1, 0.5)), ValueError, "interval must be two times"),
        (lambda: Guided(PLAIN, 2.0), TypeError, "missing 1 required positional argument: 'null'"),
        (lambda: Guided(PLAIN, 2.0, "empty"), TypeError, "null must be None, a number, a tensor, .* got 'empty'"),
        (lambda: Guided(PLAIN, 2.0, (1, None)), TypeError, "null must be None, a number, a tensor"),
        (lambda: AutoGuided(PLAIN, 1.0, 2.0), TypeError, "weak must be a module or function"),
    ],
)
def test_wrong_parts_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("field", "cond", "error", "message"),
    [
        (Guided(PLAIN, 2.0, 0), (), ValueError, "guidance needs a condition, got none"),
        (Guided(PLAIN, 1.0, 0), (), ValueError, "guidance needs a condition, got none"),
        (Guided(PLAIN, None, 0), ((None, torch.ones(6)),), ValueError, "guidance needs a condition, got none"),
        (Guided(PLAIN, None, 0), (LABELS,), ValueError, r"must be a pair \(cond, scale\) .* \(6,\), got Tensor"),
        (Guided(PLAIN, None, 0), ((LABELS, 2.0),), ValueError, r"must be a pair \(cond, scale\)"),
        (Guided(PLAIN, None, 0), ((LABELS, torch.ones(5)),), ValueError, r"scale must have shape \(B,\) = \(6,\), got"),
        (Guided(PLAIN, None, 0), ((LABELS, torch.full((6,), torch.inf)),), ValueError, "scale must be finite"),
        (
            Guided(PLAIN, 2.0, torch.zeros(3)),
            (torch.zeros(6, 2),),
            ValueError,
            r"a null of shape \(3,\) stands for one",
        ),
        (Guided(PLAIN, 2.0, (0, 0)), (LABELS,), ValueError, "null has the form .* the two must be alike"),
        (Guided(PLAIN, 2.0, 0.5), (LABELS,), TypeError, "null is torch.float32 and the condition torch.int64"),
        (Guided(lambda t, x, c: x[:, :1], 2.0, 0), (LABELS,), ValueError, r"the field returned shape \(12, 1\)"),
        (AutoGuided(PLAIN, lambda t, x: x[:, :1], 2.0), (), ValueError, r"the field returned shape \(6, 1\)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(field, cond, error, message):
    with pytest.raises(error, match=message):
        field(TIMES, _points(), *cond)
