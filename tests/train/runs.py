"""Small runs that the tests of this folder share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.train import Callback, TensorData, TrainConfig, Trainer

TIMINGS = ("seconds", "samples_per_second")


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
