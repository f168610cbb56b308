from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.errors import InputError
from flowmatch.objectives import Draw, Loss
from flowmatch.train import Callback, TensorData, TrainConfig, Trainer, TrainResult
from tests.train.runs import Stop, noisy, objective, points, trainer, weights


class Sorted:
    """A coupling over the whole batch, so that a share of the rows cannot be drawn alone."""

    def __call__(self, x0: Tensor, x1: Tensor, cond: Any = None, generator: Any = None) -> tuple[Tensor, Tensor]:
        return x0[:, 0].argsort(), x1[:, 0].argsort()


class Remembered:
    """An objective that keeps what it was asked, around a real one."""

    def __init__(self) -> None:
        self.inner, self.draws = objective(), list[Draw]()
        self.velocities, self.types = set[torch.dtype](), set[torch.dtype]()

    def draw(self, *arguments: Any, **named: Any) -> Draw:
        self.draws.append(self.inner.draw(*arguments, **named))
        return self.draws[-1]

    def loss(self, model: Any, draw: Draw) -> Loss:
        def watched(t: Tensor, x: Tensor, *cond: Any) -> Tensor:
            velocity = model(t, x, *cond)
            self.velocities.add(velocity.dtype)
            return velocity

        loss = self.inner.loss(watched, draw)
        self.types.add(loss.values.dtype)
        return loss


class Typed(nn.Module):
    """Remembers the type in which its matrix product was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = nn.Linear(2, 2), set[torch.dtype]()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        velocity = self.inner(x)
        self.seen.add(velocity.dtype)
        return velocity


def test_training_lowers_the_held_out_loss() -> None:
    run = trainer(steps=300, holdout=TensorData(points()), evaluate_every=50)
    losses = [row["heldout_loss"] for row in run.fit().history if "heldout_loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("coupling", [None, Sorted()])
@pytest.mark.parametrize("accumulate", [2, 3, 12])
def test_accumulation_gives_the_model_of_the_whole_batch(accumulate: int, coupling: Any) -> None:
    whole = trainer(goal=objective(coupling=coupling)).fit()
    parts = trainer(goal=objective(coupling=coupling), accumulate=accumulate).fit()
    torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=0, atol=2e-6)
    for a, b in zip(whole.history, parts.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], abs=1e-4)


def test_draws_depend_on_seed_and_step_alone() -> None:
    first, second, other = Remembered(), Remembered(), Remembered()
    trainer(goal=first, steps=6).fit()
    torch.rand(7)  # the global generator is in another place now
    trainer(goal=second, steps=4, model=noisy(), ema=0.0).fit()
    trainer(goal=other, steps=4, seed=1).fit()
    for a, b in zip(first.draws[:4], second.draws, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.sample[:5], b.sample[:5], strict=True))
    assert not torch.equal(first.draws[0].sample.x0, other.draws[0].sample.x0)
    assert len({float(draw.sample.x0[0, 0]) for draw in first.draws}) == 6


def test_global_generator_is_left_alone() -> None:
    run = trainer(holdout=TensorData(points()))
    before = torch.get_rng_state()
    run.fit()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_governed_by_the_seed_of_the_run() -> None:
    """Wherever the global generator was when a fresh run began, and it is put back after."""
    ends = []
    for shift in (1, 7):
        run = trainer(model=noisy())
        torch.manual_seed(shift)
        before = torch.get_rng_state()
        ends.append(weights(run.fit().model))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*ends)


def test_the_masks_of_dropout_differ_from_seed_to_seed() -> None:
    """On one row, without noise, where nothing else is random."""

    class Still:
        def draw(self, x1: Tensor, cond: Any = None, generator: Any = None) -> Tensor:
            return x1

        def loss(self, model: Any, draw: Tensor) -> Loss:
            t = torch.zeros(len(draw))
            return Loss((model(t, draw) ** 2).mean(1), t)

    ones = TensorData(torch.ones(24, 2))
    one, same, other = (weights(trainer(noisy(), goal=Still(), data=ones, seed=s).fit().model) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("resume", [False, True])
def test_global_generator_is_left_alone_by_a_run_that_fails_or_goes_on(tmp_path: Path, resume: bool) -> None:
    with pytest.raises(Stop.Crash):
        trainer(noisy(), tmp_path / "a", callbacks=[Stop(10)], checkpoint_every=5).fit()
    run = trainer(noisy(), tmp_path / ("a" if resume else "b"), callbacks=[Stop(15)], checkpoint_every=5)
    before = torch.get_rng_state()
    with pytest.raises(Stop.Crash):
        run.fit(resume=resume)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("coupling", [None, Sorted()])
@pytest.mark.parametrize("accumulate", [1, 3, 12])
def test_held_out_rows_meet_the_network_in_parts_as_those_of_training(accumulate: int, coupling: Any) -> None:
    """The draw stays whole, as a coupling depends on it: the same mean."""
    sizes: dict[bool, list[int]] = {True: [], False: []}

    class Watched(fm.nn.MLP):
        def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
            sizes[self.training].append(len(x))
            return super().forward(t, x, cond)

    def value(model: nn.Module, **options: Any) -> float:
        how = {"steps": 1, "holdout": TensorData(points(31)), "goal": objective(coupling=coupling), "ema": 0.0}
        loss: float = trainer(model, **how, **options).fit().history[-1]["heldout_loss"]
        return loss

    torch.manual_seed(0)
    whole = value(fm.nn.MLP(dim=2, hidden=16, depth=1))
    torch.manual_seed(0)
    assert value(Watched(dim=2, hidden=16, depth=1), accumulate=accumulate) == pytest.approx(whole, rel=1e-5)
    assert max(sizes[False]) == max(sizes[True]) == 12 // accumulate
    assert sum(sizes[False]) == 4 * 31
    assert min(sizes[False]) > 0


def test_held_out_loss_depends_on_the_weights_alone() -> None:
    goal = Remembered()
    frozen = trainer(steps=6, evaluate_every=2, holdout=TensorData(points(30)), learning_rate=1e-30, goal=goal)
    values = {row["heldout_loss"] for row in frozen.fit().history if "heldout_loss" in row}
    assert len(values) == 1  # nothing moved, so nothing changed
    assert len(goal.draws) == 6 + 3 * 4 * 3  # steps; evaluations of four draws in three batches of 12, 12 and 6


def test_held_out_loss_is_the_mean_over_rows_and_draws() -> None:
    goal = Remembered()
    run = trainer(steps=1, batch_size=12, holdout=TensorData(points(30)), goal=goal, evaluate_every=0)
    result = run.fit()
    held = goal.draws[1:]
    values = torch.cat([goal.inner.loss(result.model, draw).values for draw in held])
    assert len(values) == 4 * 30
    assert result.history[-1]["heldout_loss"] == pytest.approx(values.mean().item(), rel=1e-5)


def test_held_out_loss_is_taken_in_evaluation_mode_and_training_goes_on() -> None:
    for ema in (0.0, 0.99):
        net = noisy()
        run = trainer(model=net, steps=9, evaluate_every=2, holdout=TensorData(points(30)), ema=ema)
        result = run.fit()
        assert net.calls.item() == 9  # it counts calls in training mode
        assert not result.model.training
        assert type(result.model) is type(net)
        assert (result.model is net) == (ema == 0)


def test_averaged_weights_follow_the_law() -> None:
    net = noisy()

    def learned(model: nn.Module) -> Tensor:
        return torch.cat([weight.detach().double().flatten() for weight in model.parameters()])

    mean, news = learned(net), []

    class Watch(Callback):
        def on_log(self, step: int, metrics: dict[str, float]) -> None:
            news.append(learned(net))

    result = trainer(model=net, steps=8, log_every=1, ema=0.3, callbacks=[Watch()]).fit()
    for k, new in enumerate(news):
        decay = min(0.3, (1 + k) / (10 + k))
        mean = decay * mean + (1 - decay) * new
    torch.testing.assert_close(learned(result.model), mean, rtol=1e-5, atol=1e-6)


def test_callbacks_hear_everything_in_order() -> None:
    heard: list[tuple[str, int]] = []

    class Listen(Callback):
        def on_log(self, step: int, metrics: dict[str, float]) -> None:
            known = {"loss", "lr", "grad_norm", "samples_per_second", "waiting", "memory_mib", "seconds"}
            assert set(metrics) - {"heldout_loss"} == known
            assert 0 <= metrics["waiting"] <= 1
            assert metrics["memory_mib"] > 50  # of a process that has loaded PyTorch
            assert all(math.isfinite(value) for value in metrics.values())
            heard.append(("log", step))

        def on_evaluate(self, step: int, metrics: dict[str, float]) -> None:
            assert "heldout_loss" in metrics
            heard.append(("evaluate", step))

        def on_end(self, result: TrainResult) -> None:
            heard.append(("end", result.step))

    run = trainer(steps=10, log_every=4, evaluate_every=6, holdout=TensorData(points()), callbacks=[Listen()])
    result = run.fit()
    logs, last = [("log", 4), ("evaluate", 6), ("log", 6), ("log", 8)], [("evaluate", 10), ("log", 10), ("end", 10)]
    assert heard == logs + last
    assert [row["step"] for row in result.history] == [4, 6, 8, 10]
    assert [row["lr"] for row in result.history] == [run.config.rate(step - 1) for step in (4, 6, 8, 10)]


def test_a_callback_hears_of_the_start_once_the_run_is_known_to_go_on(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []

    class Listen(Callback):
        def on_start(self, step: int) -> None:
            heard.append(("start", step))

        def on_log(self, step: int, metrics: dict[str, float]) -> None:
            heard.append(("log", step))
            if len(heard) == 3:
                raise Stop.Crash

    def run(out: str, model: nn.Module | None = None) -> Trainer:
        return trainer(model, tmp_path / out, callbacks=[Listen()], checkpoint_every=5, log_every=5)

    with pytest.raises(Stop.Crash):
        run("a").fit()
    assert heard == [("start", 0), ("log", 5), ("log", 10)]
    for refused in (
        lambda: run("a", fm.nn.MLP(dim=2, hidden=8, depth=1)).fit(resume=True),
        lambda: run("a").fit(),
        lambda: run("b").fit(resume=True),
    ):
        with pytest.raises(InputError):
            refused()
    assert len(heard) == 3
    run("a").fit(resume=True)
    assert heard[3:] == [("start", 5), ("log", 10), ("log", 15), ("log", 20)]


def test_logged_loss_is_the_mean_since_the_last_line() -> None:
    each = [row["loss"] for row in trainer(log_every=1).fit().history]
    some = [row["loss"] for row in trainer(log_every=8).fit().history]
    assert some == pytest.approx([sum(each[:8]) / 8, sum(each[8:16]) / 8, sum(each[16:]) / 4])


def test_clipping_bounds_the_step_and_reports_the_norm_before_it() -> None:
    free = trainer(clip=0.0, log_every=1).fit().history
    bound = trainer(clip=1e-3, log_every=1).fit().history
    assert free[0]["grad_norm"] == pytest.approx(bound[0]["grad_norm"])
    assert free[0]["grad_norm"] > 1e-3


def test_both_precisions_train_in_one_process() -> None:
    plain, half = Typed(), Typed()
    goals = Remembered(), Remembered()
    first = trainer(model=plain, goal=goals[0], precision="fp32")
    second = trainer(model=half, goal=goals[1], precision="bf16", steps=200)  # both alive
    before = weights(plain)
    first.fit()
    losses = [row["loss"] for row in second.fit().history]
    assert plain.seen == {torch.float32}
    assert half.seen == {torch.bfloat16}
    for goal in goals:
        assert goal.velocities == goal.types == {torch.float32}
    assert {value.dtype for value in half.state_dict().values()} == {torch.float32}
    assert not torch.equal(weights(plain), before)
    assert losses[-1] < losses[0]


def test_conditions_reach_the_model() -> None:
    data = TensorData(points(), cond=torch.arange(100) % 3)
    run = trainer(model=fm.nn.MLP(dim=2, hidden=8, classes=3), data=data, holdout=data, accumulate=2, precision="bf16")
    before = run.module.label.weight.detach().clone()
    run.fit()
    assert not torch.equal(run.module.label.weight, before)


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_little_data_is_enough(rows: int) -> None:
    assert trainer(data=TensorData(points(rows)), holdout=TensorData(points(1))).fit().step == 20


def test_frozen_weights_stay() -> None:
    net = noisy()
    net.inlet.requires_grad_(False)
    before, free = net.inlet.weight.clone(), net.outlet.weight.clone()
    trainer(model=net, weight_decay=0.5).fit()
    assert torch.equal(net.inlet.weight, before)
    assert not torch.equal(net.outlet.weight, free)


def test_tensorboard_shows_every_line(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(out=tmp_path, tensorboard=True, holdout=TensorData(points())).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 15, 20]
    assert [event.step for event in events.Scalars("heldout_loss")] == [20]


def test_nothing_is_printed_and_nothing_written_without_a_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(tensorboard=True, holdout=TensorData(points())).fit()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": TensorData(torch.zeros(0, 2))}, "training data has no rows"),
        ({"holdout": TensorData(torch.zeros(0, 2))}, "held-out data has no rows"),
        ({"model": nn.Linear(2, 2).requires_grad_(False)}, "no parameter that requires a gradient"),
    ],
)
def test_useless_input_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        trainer(**options)


def test_another_count_of_processes_than_the_batch_allows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    trainer()  # Accelerate has settled on one process
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 5))
    with pytest.raises(InputError, match=r"batch_size 12 .*by 5 processes in 2 parts each; give a multiple of 10"):
        trainer(accumulate=2)


def test_processes_that_did_not_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer()  # Accelerate has settled on one process
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="launcher started 3 processes and Accelerate found 1"):
        trainer()


def test_sharded_training_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator, DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.FSDP))
    with pytest.raises(InputError, match="FSDP, which this trainer does not support; .*with torchrun.*shard=True"):
        trainer()


def test_defaults_train() -> None:
    run = Trainer(fm.nn.MLP(dim=2, hidden=4, depth=1), objective(), TensorData(points()))
    assert run.config == TrainConfig()
