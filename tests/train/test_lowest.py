"""The weights with the lowest held-out loss are the ones that come back, after a stop too."""

from __future__ import annotations

import shutil

import torch

import flowmatch as fm
from flowmatch.train import TensorData, TrainConfig, Trainer


def run(out=None, resume=False, select="best"):
    """Few rows and a large network: the held-out loss turns upwards early."""
    rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = fm.nn.MLP(dim=4, hidden=64, depth=2)
    config = TrainConfig(
        steps=400, batch_size=64, learning_rate=1e-2, evaluate_every=20, checkpoint_every=200, select=select, ema=0.9
    )
    objective = fm.FlowMatching(fm.AffinePath())
    trainer = Trainer(net, objective, TensorData(rows[:20]), config, holdout=TensorData(rows[20:]), out=out)
    return trainer, trainer.fit(resume=resume)


def test_the_best_average_comes_back() -> None:
    trainer, result = run()
    losses = {row["step"]: row["heldout_loss"] for row in result.history if "heldout_loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert result.selected == best
    assert best < result.step == 400, "the law is empty unless the held-out loss turns"
    assert trainer._heldout(result.model) == losses[best]
    assert run(select="last")[1].selected == 400


def test_a_resumed_run_returns_the_same_weights(tmp_path) -> None:
    _, whole = run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000400")
    _, resumed = run(tmp_path / "run", resume=True)
    assert resumed.selected == whole.selected
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
