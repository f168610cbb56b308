"""Draws: a pool larger than the batch, a thread that draws ahead, a coupling of the whole data, a learnt weighting."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import flowmatch as fm
from flowmatch.errors import InputError
from flowmatch.train import Draws, TensorData, TrainConfig
from tests.train.runs import Shaken, Stop, objective, points, trainer, weights


class Sorted:
    """Joins the smallest with the smallest: shows over how many rows it was asked."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()

    def __call__(self, x0, x1, cond=None, generator=None):
        self.sizes.append(len(x1))
        self.threads.add(threading.current_thread().name)
        return x0[:, 0].argsort(), x1[:, 0].argsort()


class Half:
    """Leaves every second row out."""

    def __call__(self, x0, x1, cond=None, generator=None):
        index = torch.arange(0, len(x1), 2)
        return index, index


class Whole:
    """Joins source points to the whole data set, as a semidiscrete coupling does."""

    whole_data = True

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, x0, x1, cond=None, generator=None):
        assert torch.equal(x1, points(self.rows))  # the very data set, in its order
        return torch.arange(len(x0)), torch.randint(self.rows, (len(x0),), generator=generator)


DATA = TensorData(points(60), cond=torch.arange(60))


def _same(a: fm.Draw, b: fm.Draw) -> bool:
    return torch.equal(a.cond, b.cond) and all(
        torch.equal(p, q) for p, q in zip(a.sample[:5], b.sample[:5], strict=True)
    )


def test_a_pool_is_joined_once_and_handed_out_in_batches():
    coupling = Sorted()
    with Draws(objective(coupling=coupling), DATA, batch_size=5, pool=20) as draws:
        batches = [draws(step) for step in range(8)]
    assert coupling.sizes == [20, 20]
    first = torch.cat([batch.sample.x0 for batch in batches[:4]])
    assert (first[:, 0].diff() >= 0).all()  # sorted over the pool, not over each batch
    rows = torch.cat([batch.cond for batch in batches])
    assert len(rows.unique()) == 40  # two thirds of an epoch: nothing twice
    assert torch.equal(torch.cat([batch.sample.x1 for batch in batches]), DATA.x1[rows])


@pytest.mark.parametrize("pool", [5, 20])
def test_ahead_changes_nothing_but_the_thread(pool):
    plain, threaded = Sorted(), Sorted()
    with (
        Draws(objective(coupling=plain), DATA, 5, pool) as now,
        Draws(objective(coupling=threaded), DATA, 5, pool, ahead=2) as ahead,
    ):
        for step in range(13):
            assert _same(now(step), ahead(step))
    assert plain.threads == {"MainThread"}
    assert threaded.threads == {"flowmatch-draws_0"}


def test_a_draw_is_a_function_of_its_number():
    with Draws(objective(), DATA, 5, 10) as draws:
        later = draws(7)
        for step in range(7):
            draws(step)
        assert _same(draws(7), later)
    with Draws(objective(), DATA, 5, 10, seed=1) as other:
        assert not _same(other(7), later)
    # The noise too, not the order of the rows alone: one row.
    first, second = (Draws(objective(), TensorData(points(1)), 1, seed=seed)(0) for seed in (0, 1))
    assert not torch.equal(first.sample.x0, second.sample.x0)


@pytest.mark.parametrize("ahead", [0, 1])
def test_what_goes_wrong_in_the_thread_is_told_in_the_step(ahead):
    def broken(x0, x1, cond=None, generator=None):
        raise ValueError("NaN in row 3")

    with Draws(objective(coupling=broken), DATA, 5, ahead=ahead) as draws, pytest.raises(ValueError, match="in row 3"):
        draws(0)


def test_the_thread_ends_with_the_context():
    with Draws(objective(), DATA, 5, ahead=3) as draws:
        draws(0)
    assert not any(thread.name.startswith("flowmatch-draws") for thread in threading.enumerate())


def test_a_run_ahead_on_a_pool_is_the_run_bit_for_bit_and_resumes(tmp_path: Path):
    options = {"pool": 24, "checkpoint_every": 7, "steps": 20}
    plain = trainer(goal=objective(coupling=fm.ExactOT()), **options).fit()
    ahead = trainer(goal=objective(coupling=fm.ExactOT()), ahead=2, **options).fit()
    assert torch.equal(weights(plain.model), weights(ahead.model))
    with pytest.raises(Stop.Crash):
        trainer(goal=objective(coupling=fm.ExactOT()), out=tmp_path, callbacks=[Stop(10)], ahead=1, **options).fit()
    assert not any(thread.name.startswith("flowmatch-draws") for thread in threading.enumerate())
    resumed = trainer(goal=objective(coupling=fm.ExactOT()), out=tmp_path, ahead=1, **options).fit(resume=True)
    assert torch.equal(weights(plain.model), weights(resumed.model))


def test_a_coupling_of_the_whole_data_is_given_it():
    run = trainer(goal=objective(coupling=Whole(100)))
    assert run.fit().step == 20
    with pytest.raises(InputError, match="no held-out loss to compare; train with holdout=None"):
        trainer(goal=objective(coupling=Whole(100)), holdout=TensorData(points(10)))
    with pytest.raises(InputError, match="takes no pool"):
        Draws(objective(coupling=Whole(60)), DATA, 5, 10)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_coupling_that_leaves_rows_out_is_shared_by_what_is_there(accumulate):
    run = trainer(goal=objective(coupling=fm.PartialOT(0.5)), accumulate=accumulate, holdout=TensorData(points(30)))
    assert run.fit().step == 20  # 6 of 12 rows, in parts of 6 or 3
    odd = trainer(goal=objective(coupling=fm.PartialOT(0.25)), accumulate=2)
    with pytest.raises(InputError, match="joined 3 of 12 rows, which 1 processes in 2 parts each cannot share"):
        odd.fit()


def test_a_path_with_weights_takes_a_pool():
    schedule = fm.Learned(4)
    goal = fm.FlowMatching(fm.AffinePath(schedule))
    assert trainer(goal=goal, pool=24).fit().step == 20
    assert schedule.weights.grad is None  # nobody trains it here


def test_two_fields_train_in_half_precision():
    pair_ = fm.nn.Pair(fm.nn.MLP(2, hidden=8, depth=1), fm.nn.MLP(2, hidden=8, depth=1))
    goal = fm.ScoreAndFlow(fm.BrownianBridge(0.5))
    assert trainer(model=pair_, goal=goal, precision="bf16").fit().step == 20


def test_a_fit_ahead_that_was_stopped_goes_on_with_the_same_trainer(tmp_path: Path):
    stop = Stop(10)
    run = trainer(out=tmp_path, ahead=1, callbacks=[stop], checkpoint_every=5)
    with pytest.raises(Stop.Crash):
        run.fit()
    stop.step = 1000
    assert run.fit(resume=True).step == 20


def test_held_out_losses_are_compared_without_the_learnt_weight():
    goal = objective(weighting=fm.LearnedUncertainty(base=fm.Implied("noise")))
    plain = goal.without_learnt()
    assert plain.weighting == fm.Implied("noise")
    assert goal.weighting is not plain.weighting
    assert objective().without_learnt().weighting is None


def test_a_learnt_weighting_is_trained_saved_and_resumed(tmp_path: Path):
    def run(out: Path, **options):
        weighting = fm.LearnedUncertainty()
        return weighting, trainer(goal=objective(weighting=weighting), out=out, checkpoint_every=7, **options)

    one, whole = run(tmp_path / "whole")
    result = whole.fit()
    assert one.head.weight.abs().max() > 0
    _, stopped = run(tmp_path / "stopped", callbacks=[Stop(10)])
    with pytest.raises(Stop.Crash):
        stopped.fit()
    two, resumed = run(tmp_path / "stopped")
    assert torch.equal(weights(resumed.fit(resume=True).model), weights(result.model))
    assert torch.equal(one.head.weight, two.head.weight)
    saved = load_file(tmp_path / "whole" / "checkpoints" / "step_00000020" / "objective.safetensors")
    assert torch.equal(saved["objective.0"], one.head.weight)
    plain = trainer(out=tmp_path / "stopped", checkpoint_every=7, steps=30)
    with pytest.raises(InputError, match="belongs to another"):
        plain.fit(resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": 7}, "pool must be a multiple of batch_size = 5, got 7"),
        ({"pool": 3}, "multiple of batch_size"),
        ({"ahead": -1}, "ahead must be at least 0, got -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Draws(objective(), DATA, 5, **options)


def test_a_coupling_that_leaves_rows_out_takes_no_pool():
    with pytest.raises(InputError, match="joined 5 of the 10 rows of a pool"):
        Draws(objective(coupling=Half()), DATA, 5, 10)(0)
    assert Draws(objective(coupling=Half()), DATA, 6)(0).sample.x1.shape == (3, 2)


def test_the_config_refuses_a_pool_that_is_no_multiple():
    with pytest.raises(InputError, match="pool 300 must be a multiple of batch_size 256"):
        TrainConfig.parse({"pool": 300})


def wide(rows: int = 60, **options) -> Shaken:
    """Rows with noise of their own that are worth cutting: four blocks of a batch of twelve."""
    return Shaken(points(rows), cond=torch.arange(rows), **options)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("flowmatch.train.draws._NUMBERS", 6)


@pytest.mark.parametrize("world", [2, 3, 4, 6, 12])
def test_independent_rows_are_drawn_by_the_process_that_needs_them(small_blocks, world):
    with Draws(objective(), wide(), 12) as draws:
        whole = [draws(step) for step in range(7)]
    for step in range(7):
        shares, taken = [], 0
        for rank in range(world):
            data = wide()
            mine = Draws(objective(), data, 12, share=(rank, world))
            shares.append(mine(step))
            assert len(shares[-1].cond) == 12 // world
            taken = max(taken, sum(len(index) for index in data.taken[1:]))  # the first take asks for the shape
        assert torch.equal(torch.cat([share.cond for share in shares]), whole[step].cond)
        for name in ("t", "x_t", "u_t", "x0", "x1"):
            parts = torch.cat([getattr(share.sample, name) for share in shares])
            assert torch.equal(parts, getattr(whole[step].sample, name))
        assert taken <= {2: 6, 3: 6, 4: 3, 6: 6, 12: 3}[world]  # whole blocks of three


def test_blocks_have_streams_of_their_own(small_blocks):
    with Draws(objective(), TensorData(points(1)), 12) as draws:
        draw = draws(0)
    assert len(draw.sample.x0.unique()) == 24
    assert len(draw.sample.t.unique()) == 12


def test_small_rows_are_drawn_in_one_piece_and_large_ones_in_blocks():
    tall = TensorData(torch.zeros(4, 3, 32, 32))
    sizes = []
    for data, batch in ((DATA, 1024), (tall, 128), (tall, 96), (tall, 11)):
        draws = Draws(objective(), data, batch)
        sizes.append(batch // draws._blocks)
    assert sizes == [1024, 8, 6, 11]


class Poster:
    """Large images that take no memory; remembers how many were taken at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __len__(self) -> int:
        return 1000

    def take(self, index, generator=None):
        self.sizes.append(len(index))
        return index.float()[:, None, None, None].expand(-1, 3, 128, 128), index


class Corner:
    """Draws for one pixel of each row alone."""

    by_row = True

    def draw(self, x1, cond=None, generator=None):
        return {"x": x1[:, 0, 0, 0] + torch.rand(len(x1), generator=generator), "cond": cond}


@pytest.mark.parametrize("world", [1, 2, 32, 128])
def test_large_images_are_decoded_several_at_a_time_by_any_number_of_processes(world):
    data = Poster()
    whole = Draws(Corner(), data, 256)(1)
    assert data.sizes == [1] + 32 * [8]  # the first asks for the shape
    assert len(whole["x"].unique()) == 256
    shares = [Draws(Corner(), Poster(), 256, share=(rank, world))(1) for rank in range(world)]
    for name in ("x", "cond"):
        assert torch.equal(torch.cat([share[name] for share in shares]), whole[name])


def test_a_coupling_of_the_batch_is_shared_by_rows_after_it_is_made():
    coupling = Sorted()
    with Draws(objective(coupling=coupling), wide(), 12) as draws:
        whole = draws(3)
    halves = [Draws(objective(coupling=Sorted()), wide(), 12, share=(rank, 2))(3) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.sample.x_t for half in halves]), whole.sample.x_t)
    assert coupling.sizes == [12]


def test_an_objective_says_whether_its_rows_are_apart(small_blocks):
    class Told(fm.FlowMatching):
        by_row = True

    assert Draws(objective(), wide(), 12).by_row
    assert not Draws(objective(coupling=Sorted()), wide(), 12).by_row
    assert Draws(Told(fm.AffinePath(), Sorted()), wide(), 12).by_row


@pytest.mark.parametrize("count", [1, 3])
def test_parts_are_the_rows_of_the_process_in_order(small_blocks, count):
    whole = Draws(objective(), wide(), 12)(5)
    parts = [part for rank in (0, 1) for part in Draws(objective(), wide(), 12, share=(rank, 2)).parts(5, count)]
    assert [len(part.cond) for part in parts] == [6 // count] * 2 * count
    assert torch.equal(torch.cat([part.cond for part in parts]), whole.cond)


def test_plain_batches_are_taken_ahead(small_blocks):
    data = wide()
    with Draws(objective(), data, 12, ahead=3) as draws:
        draws(0)
        draws(1)
        for _ in range(200):
            if sum(len(index) for index in data.taken[1:]) == 5 * 12:
                break
            threading.Event().wait(0.02)
        assert sum(len(index) for index in data.taken[1:]) == 5 * 12  # steps 0 to 4


def test_a_draw_for_a_gpu_is_pinned_by_the_worker(monkeypatch):
    pinned: list[str] = []

    def pin(tensor):
        pinned.append(threading.current_thread().name)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    with Draws(objective(), DATA, 12, ahead=1, device=torch.device("cuda")) as draws:
        draws(0)
    assert len(pinned) >= 6  # t, x_t, u_t, x0, x1 and the label
    assert set(pinned) == {"flowmatch-draws_0"}


def test_every_purpose_has_seeds_of_its_own():
    from flowmatch.train import data, draws, heldout, state

    assert len({data._ORDER, draws._DRAW, draws._CHANGE, heldout._PURPOSE, state._RANK}) == 5
