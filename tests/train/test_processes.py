"""Two processes on the loopback device give the model of one, and resume bit for bit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import flowmatch as fm
from flowmatch.train import TensorData, Trainer
from tests.train.runs import lines, noisy, objective, points, trainer
from tests.train.test_trainer import Sorted

STEPS = 20


def run_of(out: Path, accumulate: int) -> Trainer:
    """A run with a coupling over a pool, drawn ahead, a learnt weighting, a condition and an evaluation."""
    torch.manual_seed(17)
    net = fm.nn.MLP(dim=2, hidden=16, depth=1, classes=3)
    with torch.no_grad():
        net.outlet.weight.fill_(0.1)  # so that the first gradients reach every weight
    # 31 held-out rows in batches of 10 leave one row alone, which two processes cannot share.
    data, held = (TensorData(points(rows), cond=torch.arange(rows) % 3) for rows in (100, 31))
    return trainer(
        net,
        out,
        data=data,
        holdout=held,
        goal=objective(coupling=Sorted(), weighting=fm.LearnedUncertainty()),
        steps=STEPS,
        batch_size=10,
        pool=20,
        ahead=1,
        evaluate_every=8,
        accumulate=accumulate,
    )


def noisy_run(out: Path, steps: int, seed: int) -> Trainer:
    """A run with dropout, whose generator differs between the processes."""
    run = trainer(noisy(), out, steps=steps, decay="constant", checkpoint_every=7)
    torch.manual_seed(seed + run.accelerator.process_index)
    return run


SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.train.test_processes import STEPS, noisy_run, run_of

torch.set_num_threads(1)
out = Path(sys.argv[1])
run_of(out / "whole", 1).fit()
result = run_of(out / "parts", 5).fit()
assert result.step == STEPS and type(result.model).__name__ == "MLP"
noisy_run(out / "straight", STEPS, seed=1).fit()
noisy_run(out / "stopped", 14, seed=1).fit()
noisy_run(out / "stopped", STEPS, seed=500).fit(resume=True)
try:
    run_of(out / "odd", 2)
except ValueError as error:
    assert "batch_size 10 cannot be shared by 2 processes in 2 parts each; give a multiple of 4" in str(error)
else:
    raise AssertionError("an odd share was accepted")
torch.distributed.destroy_process_group()
"""


def saved(out: Path) -> dict[str, Tensor]:
    files = sorted((out / "checkpoints" / f"step_{STEPS:08d}").glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs of two processes; started once, because starting them takes seconds."""
    out, root = tmp_path_factory.mktemp("two"), Path(__file__).parents[2]
    script = out / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(root), str(Path(fm.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if Path("/sys/class/net/lo").exists():
        env["GLOO_SOCKET_IFNAME"] = "lo"  # the name of the machine need not resolve
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command = [*launch, "--master-port", str(port), str(script), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.parametrize("name", ["whole", "parts"])
def test_two_processes_give_the_model_of_one(two: Path, tmp_path: Path, name: str) -> None:
    run_of(tmp_path, 1).fit()
    one, other = saved(tmp_path), saved(two / name)
    assert one.keys() == other.keys()
    moved = 0
    for key in one:
        if not key.startswith("rng"):
            torch.testing.assert_close(
                other[key], one[key], rtol=1e-3, atol=2e-6, msg=lambda said, key=key: f"{key}: {said}"
            )
            moved += key.startswith("ema")
    assert moved > 5
    for a, b in zip(lines(tmp_path), lines(two / name), strict=True):
        assert a.keys() == b.keys()
        assert b == pytest.approx(a, rel=1e-4)


def test_two_processes_resume_bit_for_bit(two: Path) -> None:
    one, other = saved(two / "straight"), saved(two / "stopped")
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_each_process_has_its_own_generator_saved(two: Path) -> None:
    states = saved(two / "straight")["rng/cpu"]
    assert len(states) == 2
    assert not torch.equal(states[0], states[1])
