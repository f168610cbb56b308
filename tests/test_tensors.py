"""Laws of the shared tensor helpers: a time never meets the wrong dimension, a sum is never taken in half precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmatch import randomness, tensors
from tests.problems import seeded

SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=4)


@given(size=st.integers(0, 5), event=SHAPES, scalar=st.booleans())
@settings(max_examples=100, deadline=None, database=None)
def test_a_time_scales_its_own_sample_whatever_the_shape(size, event, scalar):
    x = torch.arange(1.0, 1 + size * max(1, torch.Size(event).numel())).reshape(size, *event)
    t = torch.tensor(0.25) if scalar else torch.linspace(0, 1, size)
    scaled = tensors.expand_time(t, x) * x
    assert scaled.shape == x.shape
    for b in range(size):
        assert torch.equal(scaled[b], (t if scalar else t[b]) * x[b])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_time_without_dimensions_is_not_rounded_to_a_half_precision_state(dtype):
    x = torch.ones(3, 2, dtype=dtype)
    scaled = tensors.expand_time(torch.tensor(0.999), x) * x
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, torch.full((3, 2), 0.999))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_times_are_kept_in_float32_at_least(dtype):
    x = torch.zeros(2, 1, dtype=dtype)
    t = tensors.check_time(1 - 2**-20, x)
    assert t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert t.item() == 1 - 2**-20


@pytest.mark.parametrize("t", [0, 1, 0.5, torch.tensor(0.5), torch.tensor([0.0, 0.5, 1.0]), torch.tensor(1)])
def test_times_inside_are_taken(t):
    assert torch.equal(tensors.check_time(t, torch.zeros(3, 2)).double(), torch.as_tensor(t).double())


@pytest.mark.parametrize("t", [-1e-7, 1 + 2e-7, float("nan"), float("inf"), torch.tensor([0.1, 0.2, float("nan")])])
def test_times_outside_are_refused_with_their_values(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0.0, 1.0\] \(t=0 is the source.*got values from"):
        tensors.check_time(t, torch.zeros(3, 2))


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1,), (3, 2)])
def test_times_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(B,\) = \(3,\)"):
        tensors.check_time(torch.zeros(shape), torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bound_inside_is_compared_to_a_rounding(dtype):
    x = torch.zeros(1, 1, dtype=dtype)
    for bound in (0.1, 0.3, 0.7, 1 - 1e-5):
        at = torch.tensor(bound, dtype=dtype)
        tensors.check_time(at, x, 0.0, bound)
        tensors.check_time(at, x, bound, 1.0)
        with pytest.raises(ValueError, match="because"):
            tensors.check_time(at + 1e-6, x, 0.0, bound, "because")
        with pytest.raises(ValueError, match="because"):
            tensors.check_time(at - 1e-6, x, bound, 1.0, "because")


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, "must be a torch.Tensor"),
        (torch.zeros(2, 2, dtype=torch.long), TypeError, "must be floating point, got torch.int64"),
        (torch.zeros(2, 2, dtype=torch.cfloat), TypeError, "must be floating point"),
        (torch.tensor(1.0), ValueError, "got a scalar"),
    ],
)
def test_check_event_names_what_is_wrong(x, error, message):
    with pytest.raises(error, match=f"x1.*{message}"):
        tensors.check_event(x, "x1")


@pytest.mark.parametrize(
    ("x0", "x1", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), ValueError, r"one shape, got \(2, 3\) and \(3, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), TypeError, "one dtype, got torch.float32 and torch.float64"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), ValueError, "one device, got cpu and meta"),
    ],
)
def test_check_pair_names_what_differs(x0, x1, error, message):
    with pytest.raises(error, match=message):
        tensors.check_pair(x0, x1)


def test_check_finite_counts_and_names_the_first_row():
    x = torch.zeros(5, 2, 2)
    x[3, 1, 0], x[4] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="data has 5 entries that are NaN or infinite, the first in row 3"):
        tensors.check_finite(x, "data")
    tensors.check_finite(x[:3], "data")
    tensors.check_finite(x[:0], "data")


@pytest.mark.parametrize("reduce", [tensors.sum_event, tensors.mean_event])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3, 4, 4), (0, 5)])
def test_reductions_run_over_the_event_alone(reduce, shape):
    x = torch.randn(shape, generator=seeded())
    whole = torch.sum if reduce is tensors.sum_event else torch.mean
    expected = torch.stack([whole(row) for row in x]) if shape[0] else torch.zeros(0)
    torch.testing.assert_close(reduce(x), expected)


def test_reductions_are_taken_in_float32():
    x = torch.ones(1, 4096, dtype=torch.bfloat16) * 1.0078125
    assert tensors.sum_event(x).item() == 4096 * 1.0078125  # in bfloat16 this sum would not even be representable
    assert tensors.mean_event(x.double()).dtype == torch.float64


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_index_draws_are_in_range_and_decided_by_their_generator(n):
    weights = torch.tensor([0.0, 3.0, 1.0])
    draws = {
        "permutation": lambda g: randomness.randperm(n, g),
        "integers": lambda g: randomness.randint(3, (n,), g),
        "choice": lambda g: randomness.choose(weights, n, g),
    }
    for name, draw in draws.items():
        first = draw(seeded(1))
        assert torch.equal(first, draw(seeded(1))), name
        assert first.shape == (n,)
        assert first.dtype == torch.long
        assert n < 1000 or not torch.equal(first, draw(seeded(2)))
    assert torch.equal(draws["permutation"](seeded(1)).sort().values, torch.arange(n))
    counts = draws["choice"](seeded(1)).bincount(minlength=3)
    assert counts[0] == 0
    assert abs(counts[1] - 0.75 * n) <= 5 * (n * 0.75 * 0.25) ** 0.5


@pytest.mark.parametrize("draw", [randomness.randn, randomness.rand])
def test_draws_are_reproducible_by_their_generator_and_leave_the_global_one_alone(draw):
    before = torch.get_rng_state()
    first, second = (draw((4, 3), generator=seeded(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw((4, 3), generator=seeded(6)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2), (3,)])
def test_gaussian_log_prob_is_the_density_of_torch(shape):
    generator = seeded()
    x, mean = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    std = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    truth = torch.distributions.Normal(mean, std).log_prob(x).reshape(shape[0], -1).sum(1)
    torch.testing.assert_close(tensors.gaussian_log_prob(x, mean, std), truth, rtol=1e-12, atol=1e-12)
    half, two = torch.tensor([0.5, 2.0], dtype=torch.float64)
    plain = torch.distributions.Normal(half, two).log_prob(x).reshape(shape[0], -1).sum(1)
    torch.testing.assert_close(tensors.gaussian_log_prob(x, 0.5, 2.0), plain, rtol=1e-12, atol=1e-12)


def test_take_follows_every_tensor_of_a_tree():
    cond = {"label": torch.arange(4), "both": (torch.eye(4), [torch.arange(8.0).reshape(4, 2)]), "name": "kept"}
    index = torch.tensor([3, 3, 0])
    taken = tensors.take(cond, index)
    assert torch.equal(taken["label"], torch.tensor([3, 3, 0]))
    assert torch.equal(taken["both"][0], torch.eye(4)[index])
    assert torch.equal(taken["both"][1][0], torch.tensor([[6.0, 7.0], [6.0, 7.0], [0.0, 1.0]]))
    assert taken["name"] == "kept"
    assert tensors.take(None, index) is None
