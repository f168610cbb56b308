"""Small runs that the tests of this folder share."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.train import Callback, TensorData, TrainConfig, Trainer

TIMINGS = ("seconds", "samples_per_second", "waiting", "memory_mib")


class Noisy(nn.Module):
    """A field with all that makes a resume hard: dropout, running statistics and a counter."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inlet, self.norm, self.outlet = nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += int(self.training)
        return self.outlet(self.drop(torch.relu(self.norm(self.inlet(torch.cat([t[:, None], x], 1))))))


class Stop(Callback):
    """Stops a run as a crash would: an exception from outside, after a line of metrics."""

    class Crash(Exception):
        pass

    def __init__(self, step: int) -> None:
        self.step = step

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        if step >= self.step:
            raise self.Crash


def points(rows: int = 100, shift: float = 0.0) -> Tensor:
    """Two-dimensional data."""
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(5)) * 0.5 + 1 + shift


def objective(**arguments: Any) -> fm.FlowMatching:
    return fm.FlowMatching(fm.AffinePath(fm.Linear()), **arguments)


def trainer(model: nn.Module | None = None, out: Path | None = None, **options: Any) -> Trainer:
    """A trainer on little data; options of the config and of the trainer alike."""
    parts = {name: options.pop(name) for name in ("callbacks", "holdout", "data", "goal") if name in options}
    defaults = {"steps": 20, "batch_size": 12, "warmup": 5, "log_every": 5, "tensorboard": False, "learning_rate": 0.01}
    goal, data = parts.pop("goal", objective()), parts.pop("data", TensorData(points()))
    torch.manual_seed(3)
    return Trainer(
        fm.nn.MLP(dim=2, hidden=16, depth=1) if model is None else model,
        goal,
        data,
        TrainConfig(**{**defaults, **options}),
        out=out,
        **parts,
    )


def noisy() -> Noisy:
    torch.manual_seed(3)
    return Noisy()


def weights(model: nn.Module) -> Tensor:
    """Everything a model holds, in one vector of float64."""
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def lines(out: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``, without what depends on the clock."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


class Labelled(fm.nn.MLP):
    """A network on vectors with an empty label, its last."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__(dim=2, hidden=16, depth=2, classes=classes + 1)
        with torch.no_grad():
            self.outlet.weight.fill_(0.1)  # so that the first gradients reach every weight

    @property
    def null(self) -> int:
        return self.classes - 1


class Shaken(TensorData):
    """Rows with noise of their own, as dequantised images have it; remembers which rows were taken."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.taken: list[Tensor] = []

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Any]:
        self.taken.append(index)
        x1, cond = super().take(index, generator)
        return x1 + 0.01 * torch.randn(x1.shape, generator=generator), cond


def launch(script: str, *arguments: Any, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script under torchrun on the loopback device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(fm.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if Path("/sys/class/net/lo").exists():
        env["GLOO_SOCKET_IFNAME"] = "lo"  # the name of the machine need not resolve
    head = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command = [*head, "--master-addr", "127.0.0.1", "--master-port", str(port), script, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def saved(out: Path, step: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    files = sorted((out / "checkpoints" / f"step_{step:08d}").glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}
