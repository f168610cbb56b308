"""One, two and again one process: copies and shards give the same model, and a run goes on with another number."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowmatch as fm
from flowmatch.train import TensorData, Trainer, draws
from tests.train.runs import Labelled, Shaken, launch, lines, noisy, objective, points, saved, trainer

STEPS, HALF = 18, 9


def run_of(out: Path, steps: int = STEPS, **options: Any) -> Trainer:
    """A run with all that is random in data and draws, a learnt weighting, dropped labels, averages, snapshots."""
    torch.manual_seed(17)
    data, held = (Shaken(points(rows), cond=torch.arange(rows) % 3) for rows in (100, 31))
    defaults = {"decay": "constant", "label_dropout": 0.3, "posthoc_every": 6, "checkpoint_every": HALF}
    goal = options.pop("goal", None) or objective(weighting=fm.LearnedUncertainty())
    return trainer(
        Labelled(),
        out,
        data=data,
        holdout=held,
        goal=goal,
        **{**defaults, "steps": steps, "evaluate_every": 8, **options},
    )


def noisy_run(out: Path, steps: int, seed: int, **options: Any) -> Trainer:
    """A run with dropout, whose generator differs between the processes, and running statistics."""
    run = trainer(noisy(), out, steps=steps, warmup=3, decay="constant", checkpoint_every=7, **options)
    torch.manual_seed(seed + run.accelerator.process_index)
    return run


def transformer(out: Path | None, **options: Any) -> Trainer:
    torch.manual_seed(5)
    net = fm.nn.DiT((1, 4, 4), hidden=16, depth=2, heads=2)
    torch.nn.init.normal_(net.outlet.weight, std=0.1)
    data = TensorData(torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    return trainer(net, out, data=data, steps=6, learning_rate=1e-3, **options)


SMALL = 8
"""Numbers of a block, so that even these batches are cut, into four of three rows."""

SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from flowmatch.train import draws
from tests.train.test_ranks import SMALL, STEPS, noisy_run, run_of, transformer

torch.set_num_threads(1)
draws._NUMBERS = SMALL
out = Path(sys.argv[1])
run_of(out / "copies").fit()
result = run_of(out / "shards", shard=True).fit()
assert type(result.model).__name__ == "Labelled"
assert not any(hasattr(weight, "full_tensor") for weight in result.model.parameters())
run = run_of(out / "parts", shard=True, accumulate=3, clip=0.05)
held = sum(weight.to_local().numel() for weight in run.module.parameters())
assert held < 0.6 * sum(weight.numel() for weight in run.module.parameters())
run.fit()
for name in ("one to copies", "one to shards"):
    run_of(out / name, shard=name.endswith("shards")).fit(resume=True)
run = noisy_run(out / "straight", 14, seed=1, shard=True)
run.fit()
run.module.calls.fill_(100 * run.accelerator.process_index)
run.module(torch.rand(4), torch.randn(4, 2))
assert run.module.calls == 1  # counters and running statistics are those of the first process
noisy_run(out / "stopped", 7, seed=1, shard=True).fit()
noisy_run(out / "stopped", 14, seed=500, shard=True).fit(resume=True)
for turn in (1, 2):
    noisy_run(out / f"joined {turn}", 14, seed=1000 * turn).fit(resume=True)
transformer(out / "dit").fit()
transformer(out / "dit shards", shard=True, checkpointing=True).fit()
transformer(out / "dit fp16", shard=True, precision="fp16").fit()
run = transformer(None, shard=True, precision="fp16")
half, part = run._precision, run._draws.parts(0, 1)[0]
half.backward(run.objective.loss(half.field(run.model), part).mean())
if run.accelerator.process_index:
    run._weights[3].grad.to_local().fill_(float("inf"))  # in one shard of one process
before = [weight.to_local().clone() for weight in run._weights]
norm = run._clip(look=True)
half.step(run.optimizer)
assert norm == float("inf") and half.scaler.get_scale() == 2.0**15
assert all(torch.equal(old, new.to_local()) for old, new in zip(before, run._weights, strict=True))
try:
    run_of(out / "no", shard=True, precision="fp16")
except ValueError as error:
    assert "weights that the objective learns cannot be scaled together with sharded ones" in str(error)
else:
    raise AssertionError("scaled weights of two kinds were accepted")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
# Gloo's threads of many groups sometimes outlive the interpreter, which then aborts though all is done (torch 2.13).
os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """The same here as in the scripts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "_NUMBERS", SMALL)
        yield


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    out = tmp_path_factory.mktemp("one")
    run_of(out, STEPS).fit()
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, one: Path) -> Path:
    """Folder of the runs of two processes; started once, because starting them takes seconds."""
    out = tmp_path_factory.mktemp("two")
    for name in ("one to copies", "one to shards"):
        half_of(one, out / name)
    noisy_run(out / "joined 1", 7, seed=3).fit()
    shutil.copytree(out / "joined 1", out / "joined 2")
    script = out / "script.py"
    script.write_text(SCRIPT)
    done = launch(str(script), out)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def half_of(whole: Path, out: Path) -> None:
    """A run that stopped half way."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / f"step_{STEPS:08d}")


def assert_same(other: Path, whole: Path, step: int = STEPS) -> None:
    a, b = saved(whole, step), saved(other, step)
    assert a.keys() == b.keys()
    assert {name.split("/")[0] for name in a} >= {"model", "ema", "optimizer"}
    for name in a.keys() - {name for name in a if name.startswith("rng")}:
        torch.testing.assert_close(
            b[name], a[name], rtol=1e-3, atol=5e-6, msg=lambda said, name=name: f"{name}: {said}"
        )


def assert_equal(other: Path, whole: Path, step: int) -> None:
    a, b = saved(whole, step), saved(other, step)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("name", ["copies", "shards", "one to copies", "one to shards"])
def test_two_processes_give_the_model_of_one(two: Path, one: Path, name: str) -> None:
    assert_same(two / name, one)
    for a, b in zip(lines(one), lines(two / name), strict=True):
        assert b == pytest.approx(a, rel=1e-4)


def test_parts_and_clipping_are_right_over_shards(two: Path, tmp_path: Path) -> None:
    run_of(tmp_path, clip=0.05).fit()
    assert_same(two / "parts", tmp_path)
    norms = [[row["grad_norm"] for row in lines(out)] for out in (tmp_path, two / "parts")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert min(norms[0]) > 0.05


@pytest.mark.parametrize("name", ["copies", "shards"])
def test_one_process_goes_on_with_the_run_of_two(two: Path, one: Path, tmp_path: Path, name: str) -> None:
    half_of(two / name, tmp_path / "run")
    run_of(tmp_path / "run").fit(resume=True)
    assert_same(tmp_path / "run", one)


def test_shards_resume_bit_for_bit(two: Path) -> None:
    assert_equal(two / "stopped", two / "straight", 14)
    states = saved(two / "straight", 14)["rng/cpu"]
    assert not torch.equal(states[0], states[1])


def test_a_process_that_joins_has_a_generator_by_seed_step_and_number(two: Path) -> None:
    assert_equal(two / "joined 2", two / "joined 1", 14)  # whatever their generators were when they started
    states = saved(two / "joined 1", 14)["rng/cpu"]
    assert len(states) == 2
    assert not torch.equal(states[0], states[1])


def test_transformers_are_cut_by_blocks_and_computed_again(two: Path, tmp_path: Path) -> None:
    transformer(tmp_path).fit()
    assert_same(two / "dit", tmp_path, 6)
    assert_same(two / "dit shards", tmp_path, 6)
    whole, half = saved(tmp_path, 6), saved(two / "dit fp16", 6)
    assert all(torch.allclose(half[name], whole[name], atol=5e-3) for name in whole if name.startswith("model"))
    assert lines(two / "dit fp16")[-1]["skipped_steps"] == 0


def test_a_single_weight_cannot_be_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    class Scaled(fm.nn.MLP):
        def __init__(self) -> None:
            super().__init__(2, hidden=4, depth=1)
            self.size: Tensor = torch.nn.Parameter(torch.ones(()))

    trainer()  # Accelerate has settled on one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    with pytest.raises(ValueError, match=r"the weight size has no dimension .*give it the shape \(1,\)"):
        trainer(Scaled(), shard=True)


def test_a_pytorch_without_shards_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    trainer()  # Accelerate has settled on one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.6.0"))
    with pytest.raises(ImportError, match=r"shard=True needs PyTorch 2.7 or later, this is 2.6.0"):
        trainer(shard=True)


def test_alone_there_is_nothing_to_share(tmp_path: Path) -> None:
    run_of(tmp_path / "copies", 6).fit()
    run_of(tmp_path / "shards", 6, shard=True).fit()
    assert_equal(tmp_path / "shards", tmp_path / "copies", 6)
