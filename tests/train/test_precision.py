"""Half precision with a scaled loss, checkpointed blocks and compiled networks: the same training, cheaper."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.errors import InputError
from flowmatch.train import TensorData
from flowmatch.train.blocks import checkpoint_blocks
from tests.train.runs import Stop, lines, points, saved, trainer, weights
from tests.train.test_trainer import Remembered, Typed

SCALE = 2.0**8


class Brittle(nn.Module):
    """A field whose gradient overflows in float16 at chosen calls in training, at the first scale."""

    def __init__(self, *calls: int) -> None:
        super().__init__()
        self.inner, self.calls, self.seen = nn.Linear(2, 2), calls, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.seen += self.training
        y = self.inner(x)
        return _Spiked.apply(y) if self.seen in self.calls and self.training else y


class _Spiked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * float("inf")


def test_half_precision_computes_in_it_and_keeps_the_loss_in_float32() -> None:
    half, goal = Typed(), Remembered()
    run = trainer(model=half, goal=goal, precision="fp16", steps=120)
    losses = [row["loss"] for row in run.fit().history]
    assert half.seen == {torch.float16}
    assert goal.velocities == goal.types == {torch.float32}
    assert {value.dtype for value in half.state_dict().values()} == {torch.float32}
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip": 0.0}, {"clip": 0.05}])
def test_the_scale_leaves_no_trace_in_the_gradient(options: dict[str, Any]) -> None:
    plain = trainer(nn_(), log_every=1, **options).fit()
    half = scaled(trainer(nn_(), precision="fp16", log_every=1, **options)).fit()
    assert half.history[-1]["skipped_steps"] == 0
    norms = [[row["grad_norm"] for row in result.history] for result in (plain, half)]
    assert norms[1] == pytest.approx(norms[0], rel=0.03)
    torch.testing.assert_close(weights(half.model), weights(plain.model), rtol=0.02, atol=5e-3)


def scaled(run: Any) -> Any:
    """A run with a first scale at which these networks do not overflow."""
    run._precision.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return run


def nn_() -> nn.Module:
    torch.manual_seed(1)
    return Typed()


def test_a_step_that_overflows_is_left_out_and_counted(tmp_path: Path) -> None:
    net = Brittle(4, 5, 11)
    before: list[Tensor] = []
    run = scaled(trainer(net, tmp_path, precision="fp16", log_every=1, steps=12))
    original = run.optimizer.step

    def step(*arguments: Any, **named: Any) -> Any:
        before.append(net.inner.weight.detach().clone())
        return original(*arguments, **named)

    run.optimizer.step = step  # type: ignore[method-assign]
    history = run.fit().history
    assert [row["skipped_steps"] for row in history] == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3]
    assert ["grad_norm" in row for row in history] == [k not in (4, 5, 11) for k in range(1, 13)]
    before.append(net.inner.weight.detach().clone())
    moved = [not torch.equal(a, b) for a, b in zip(before, before[1:], strict=False)]
    assert moved == [k not in (4, 5, 11) for k in range(1, 13)]
    assert run._precision.scaler.get_scale() == SCALE / 8
    assert float(saved(tmp_path, 12)["optimizer/inner.weight.step"]) == 9


def test_a_stopped_run_keeps_its_scale(tmp_path: Path) -> None:
    options = {"precision": "fp16", "checkpoint_every": 7, "log_every": 3, "steps": 18}
    torch.manual_seed(1)
    scaled(trainer(Brittle(4, 9), tmp_path / "whole", **options)).fit()
    torch.manual_seed(1)
    with pytest.raises(Stop.Crash):
        scaled(trainer(Brittle(4, 9), tmp_path / "stopped", callbacks=[Stop(12)], **options)).fit()
    net = Brittle(4, 9)
    net.seen = 7
    trainer(net, tmp_path / "stopped", **options).fit(resume=True)
    one, other = saved(tmp_path / "whole", 18), saved(tmp_path / "stopped", 18)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert lines(tmp_path / "whole") == lines(tmp_path / "stopped")
    assert lines(tmp_path / "whole")[-1]["skipped_steps"] == 2


def test_gradients_that_no_scale_can_keep_end_the_run() -> None:
    with pytest.raises(InputError, match="overflow float16 even at a loss scale of .*use precision='bf16' or 'fp32'"):
        trainer(Brittle(*range(1, 100)), precision="fp16", steps=60).fit()


NETWORKS = {
    "DiT": lambda: fm.nn.DiT((1, 4, 4), hidden=16, depth=2, heads=2),
    "UNet": lambda: fm.nn.UNet((1, 4, 4), channels=8, mults=(1, 2), depth=1, head_channels=8),
}


def image_run(name: str, **options: Any) -> Any:
    torch.manual_seed(4)
    net = NETWORKS[name]()
    data = TensorData(torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(2)))
    return trainer(net, data=data, **{"steps": 4, "log_every": 2, **options})


def kept(run: Any) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    held: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = run.module.train()(torch.rand(24), torch.randn(24, 1, 4, 4)).sum()
    loss.backward()
    return sum(held.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointed_blocks_give_the_same_weights_from_less_memory(name: str) -> None:
    plain, saving = image_run(name), image_run(name, checkpointing=True)
    assert torch.equal(weights(plain.fit().model), weights(saving.fit().model))
    assert not saving.ema.module.checkpointing  # what is kept is plain
    assert kept(saving) < 0.6 * kept(plain)


def test_a_model_of_diffusers_has_the_switch_too() -> None:
    net = NETWORKS["UNet"]().to_diffusers()
    checkpoint_blocks(net)
    assert net.is_gradient_checkpointing


def test_a_network_without_the_switch_is_refused() -> None:
    with pytest.raises(InputError, match="MLP has no switch for checkpointing; use an image network"):
        trainer(checkpointing=True)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """Compilation without a C++ compiler: the graph is captured and run as it is."""
    compiled: list[nn.Module] = []
    real = torch.compile

    def compile_(model: nn.Module) -> Any:
        compiled.append(model)
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_)
    yield compiled
    torch._dynamo.reset()


def test_a_compiled_network_trains_and_stays_plain_outside(tmp_path: Path, eager: list[nn.Module]) -> None:
    whole = trainer(out=tmp_path / "plain", checkpoint_every=7, holdout=TensorData(points(20))).fit()
    run = trainer(out=tmp_path / "compiled", checkpoint_every=7, compile=True, holdout=TensorData(points(20)))
    result = run.fit()
    assert eager == [run.module]
    assert type(result.model) is fm.nn.MLP
    torch.testing.assert_close(weights(result.model), weights(whole.model), rtol=0, atol=1e-6)
    one, other = saved(tmp_path / "plain", 20), saved(tmp_path / "compiled", 20)
    assert one.keys() == other.keys()
    assert not any("_orig_mod" in name for name in other)
    # Compiled today, plain tomorrow.
    (tmp_path / "compiled" / "checkpoints" / "step_00000020").rename(tmp_path / "gone")
    again = trainer(out=tmp_path / "compiled", checkpoint_every=7, holdout=TensorData(points(20))).fit(resume=True)
    torch.testing.assert_close(weights(again.model), weights(whole.model), rtol=0, atol=1e-6)


INDUCTOR = """
import sys
from pathlib import Path
import torch
from tests.train.runs import trainer, weights

torch.set_num_threads(1)
plain, compiled = (trainer(compile=on, steps=10).fit() for on in (False, True))
torch.testing.assert_close(weights(compiled.model), weights(plain.model), rtol=0, atol=1e-5)
"""


@pytest.mark.slow
def test_the_default_compiler_gives_the_weights_of_the_plain_network() -> None:
    if not (shutil.which("g++") or shutil.which("clang++") or os.environ.get("CXX")):
        pytest.skip("there is no C++ compiler, which torch.compile needs on a CPU")
    # In a process of its own, because the compiler leaves workers and settings behind.
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(fm.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", INDUCTOR], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
