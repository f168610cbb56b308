"""Label dropout: what is told to the network is dropped, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowmatch as fm
from flowmatch.errors import InputError
from flowmatch.objectives import Draw
from flowmatch.train import Draws, LabelDropout, TensorData
from tests.train.runs import Labelled, Stop, objective, points, trainer, weights

ROWS = 300
LABELS = torch.arange(ROWS) % 3


def image_net(**conditions: Any) -> fm.nn.DiT:
    return fm.nn.DiT((1, 4, 4), hidden=8, depth=1, heads=1, **conditions)


def draw_of(step: int, dropped: float = 0.0, goal: Any = None, **options: Any) -> Draw:
    change = LabelDropout(Labelled(), dropped) if dropped else None
    goal = objective() if goal is None else goal
    with Draws(goal, TensorData(points(ROWS), cond=LABELS), 60, change=change, **options) as draws:
        return draws(step)


def told(step: int, dropped: float, **options: Any) -> Tensor:
    return draw_of(step, dropped, **options).cond


def test_only_labels_change() -> None:
    plain, dropped = draw_of(3), draw_of(3, 0.4)
    assert all(torch.equal(a, b) for a, b in zip(plain.sample[:5], dropped.sample[:5], strict=True))
    changed = plain.cond != dropped.cond
    assert 0 < changed.sum() < 60
    assert (dropped.cond[changed] == 3).all()
    assert torch.equal(LABELS, torch.arange(ROWS) % 3)  # the data keep theirs


def test_share_is_what_was_asked_and_rows_are_independent() -> None:
    share, steps = 0.2, 100
    dropped = torch.stack([told(step, share) == 3 for step in range(steps)]).double()
    count, n = float(dropped.sum()), dropped.numel()
    assert abs(count - share * n) < 4 * (n * share * (1 - share)) ** 0.5
    # Per sample: the number in a batch is binomial, neither constant nor all or nothing.
    spread = float(dropped.sum(1).var())
    assert spread == pytest.approx(60 * share * (1 - share), rel=0.5)
    # A row is not always the same one, nor the place in the batch.
    assert dropped.mean(0).min() > 0


def test_draws_depend_on_seed_and_step_alone() -> None:
    assert torch.equal(told(5, 0.5), told(5, 0.5, ahead=2))
    assert not torch.equal(told(5, 0.5) == 3, told(6, 0.5) == 3)
    assert not torch.equal(told(5, 0.5) == 3, told(5, 0.5, seed=1) == 3)


@pytest.mark.parametrize("goal", [objective(), objective(coupling=fm.ExactOT())])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_what_one_drops(goal: Any, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowmatch.train.draws._NUMBERS", 32)
    whole = told(2, 0.5, goal=goal)
    assert torch.equal(torch.cat([told(2, 0.5, goal=goal, share=(rank, world)) for rank in range(world)]), whole)


def test_pairs_are_joined_by_the_true_labels() -> None:
    class Spy:
        """Notes what labels it is shown."""

        seen: list[Tensor]

        def __init__(self) -> None:
            self.seen = []

        def __call__(self, x0: Tensor, x1: Tensor, cond: Any = None, generator: Any = None) -> tuple[Tensor, Tensor]:
            self.seen.append(cond)
            return fm.ConditionAware()(x0, x1, cond, generator)

    spy = Spy()
    plain, dropped = (draw_of(1, share, goal=objective(coupling=spy)) for share in (0.0, 0.5))
    assert torch.equal(*spy.seen)
    assert spy.seen[0].max() == 2
    assert torch.equal(plain.sample.x0, dropped.sample.x0)
    assert (dropped.cond == 3).any()


def test_conditions_beside_the_label_are_left_alone() -> None:
    image, noise = torch.randn(40, 1, 4, 4), torch.rand(40)
    cond = {"image": image, "noise": noise, "label": torch.arange(40) % 5}
    draw = objective().draw(torch.randn(40, 1, 4, 4), cond=cond)
    drop = LabelDropout(image_net(classes=5, image=1, noise=True), 0.5)
    changed = drop(draw, torch.Generator().manual_seed(0))
    assert changed.cond.keys() == cond.keys()
    assert changed.cond["image"] is image
    assert changed.cond["noise"] is noise
    assert 5 < (changed.cond["label"] == 5).sum() < 35
    assert (draw.cond["label"] < 5).all()


def test_the_network_is_told_the_empty_label_in_training_and_not_in_evaluation() -> None:
    seen: dict[bool, list[Tensor]] = {True: [], False: []}

    class Watched(Labelled):
        def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
            seen[self.training].append(cond)
            return super().forward(t, x, cond)

    data = TensorData(points(ROWS), cond=LABELS)
    trainer(Watched(), data=data, holdout=data, label_dropout=0.5, steps=10).fit()
    assert 30 < (torch.cat(seen[True]) == 3).sum() < 90
    assert (torch.cat(seen[False]) < 3).all()


def test_a_stopped_run_drops_what_the_whole_one_does(tmp_path: Path) -> None:
    data = TensorData(points(ROWS), cond=LABELS)
    options = {"data": data, "label_dropout": 0.3, "checkpoint_every": 7}
    whole = trainer(Labelled(), **options).fit()
    torch.manual_seed(3)
    with pytest.raises(Stop.Crash):
        trainer(start(), tmp_path, callbacks=[Stop(10)], **options).fit()
    one = trainer(start(), **options).fit()
    assert torch.equal(weights(trainer(start(), tmp_path, **options).fit(resume=True).model), weights(one.model))
    assert whole.step == 20


def start() -> Labelled:
    torch.manual_seed(8)
    return Labelled()


@pytest.mark.parametrize("net", [fm.nn.MLP(dim=2, classes=3), fm.nn.MLP(dim=2), image_net(), image_net(image=1)])
def test_a_network_without_an_empty_label_is_refused(net: torch.nn.Module) -> None:
    with pytest.raises(
        InputError, match=r"needs a network with an empty label, and (MLP|DiT) has none; sort the images"
    ):
        trainer(net, label_dropout=0.1)


@pytest.mark.parametrize("cond", [None, torch.rand(ROWS), torch.zeros(ROWS, 2, dtype=torch.long)])
def test_data_without_labels_are_refused(cond: Tensor | None) -> None:
    with pytest.raises(InputError, match=r"whose condition is a label \(B,\), or a dict with one, got"):
        trainer(Labelled(), data=TensorData(points(ROWS), cond=cond), label_dropout=0.1).fit()
