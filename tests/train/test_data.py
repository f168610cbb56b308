from __future__ import annotations

import pytest
import torch

from flowmatch.errors import InputError
from flowmatch.train import TensorData
from flowmatch.train.data import Batches, mix


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (10, 10), (7, 20), (1, 5), (12, 4)])
def test_every_epoch_shows_every_row_once(rows: int, size: int) -> None:
    batches = Batches(rows, size, seed=4)
    seen = torch.cat([batches(step) for step in range(rows)])  # rows * size places, that is ``size`` epochs
    assert torch.equal(seen.reshape(size, rows).sort().values, torch.arange(rows).expand(size, rows))


def test_a_batch_depends_on_its_step_alone() -> None:
    forward = [Batches(10, 4, seed=1)(step) for step in range(12)]
    again = Batches(10, 4, seed=1)
    for step in (11, 3, 4, 0, 7):
        assert torch.equal(again(step), forward[step])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    epochs = {tuple(Batches(30, 30, seed)(step).tolist()) for seed in range(5) for step in range(5)}
    assert len(epochs) == 25


def test_no_rows_is_an_error() -> None:
    with pytest.raises(InputError, match="no rows"):
        Batches(0, 4, seed=0)


def test_mix_spreads_every_bit() -> None:
    # Flipping one bit of the input flips half of the 63 bits of the output: mean 31.5, standard error 4/sqrt(126).
    flips = [bin(mix(9, 1234) ^ mix(9, 1234 ^ (1 << bit))).count("1") for bit in range(63)]
    flips += [bin(mix(9, 1234) ^ mix(9 ^ (1 << bit), 1234)).count("1") for bit in range(63)]
    assert abs(sum(flips) / len(flips) - 31.5) < 4 * 4 / len(flips) ** 0.5
    assert len({mix(seed, purpose, step) for seed in range(10) for purpose in range(4) for step in range(500)}) == 20000


def test_mix_gives_seeds_that_torch_takes() -> None:
    seeds = [mix(2**63 - 1, 2, step) for step in range(100)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(seeds[0])


def test_rows_keep_their_conditions() -> None:
    x1 = torch.arange(6.0).reshape(6, 1)
    data = TensorData(x1, cond={"label": torch.arange(6), "size": x1 * 10})
    rows, cond = data.take(torch.tensor([4, 0]))
    assert rows.flatten().tolist() == [4.0, 0.0]
    assert cond["label"].tolist() == [4, 0]
    assert cond["size"].flatten().tolist() == [40.0, 0.0]
    assert TensorData(x1).take(torch.tensor([1]))[1] is None


@pytest.mark.parametrize(
    ("x1", "cond", "error", "said"),
    [
        (torch.zeros(3, 2), torch.zeros(4), ValueError, "one entry a row of x1, 3, got Tensor with 4 rows"),
        (torch.zeros(3, 2), torch.tensor(1), ValueError, "one entry a row"),
        (torch.zeros(3, 2), [1, 2, 3], ValueError, "got int"),
        (torch.zeros(3, dtype=torch.int64), None, TypeError, "floating point"),
        (torch.tensor([[1.0], [float("nan")]]), None, ValueError, "NaN or infinite, the first in row 1"),
    ],
)
def test_bad_tensors_are_named(x1: torch.Tensor, cond: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        TensorData(x1, cond)
