"""The hand-written loop in which every peer is trained, and how long a step takes.

AdamW in its fused kernel, linear warm-up and a cosine, clipping, and averages of the weights; nothing is done that
could be left out. All contenders have the same batch, rate and warm-up, found in short trials: with optimal pairs a
rate of 4e-3 beat 2e-3, with independent ones 1e-3 and 2e-3 were alike (``--rate`` takes another). A peer keeps two
averages of different length and the last weights; the one that scores best on the table's own samples counts.

**The same seconds.** A budget by the clock would give fewer steps to whoever is trained while the machine is busy. So
the seconds of a step are measured once: those of the network, its backward pass and the optimiser, which are the same
for all, and to them what each contender's own draw of a batch costs. The budget divided by their sum is its number of
steps.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flowmatch as fm
from benchmarks.images.world import World
from flowmatch.train import Ema
from flowmatch.train.data import Batches

__all__ = [
    "AVERAGES",
    "BATCH",
    "WARMUP",
    "Batch",
    "Draw",
    "draw_seconds",
    "rate",
    "run",
    "seconds_of",
    "step_seconds",
    "train",
    "write_atomically",
]

BATCH, WARMUP, CLIP = 64, 100, 1.0
AVERAGES = (0.98, 0.995)

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Points, times as the network is called with them, target of its answer, and weight of every sample's error."""
Draw = Callable[[Tensor], Batch]
"""What a peer makes of a batch of data."""


class Regression(nn.Module):
    """The inner network as a peer calls it: ``noise less data`` at a thousandfold noise share, or a velocity."""

    def __init__(self, field: fm.nn.UNet, velocity: bool) -> None:
        super().__init__()
        self.field, self.velocity = field, velocity

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Answer at times ``(B,)`` and points ``(B, 1, H, W)``."""
        answer: Tensor = self.field(t, x) if self.velocity else self.field.net(x, t, return_dict=False)[0]
        return answer


def rate(step: int, steps: int, peak: float, warmup: int = WARMUP) -> float:
    """Learning rate of the update that follows ``step`` others."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


class Loop:
    """One hand-written step after another."""

    def __init__(
        self,
        world: World,
        draw: Draw,
        velocity: bool,
        steps: int,
        seed: int,
        averages: tuple[float, ...] = AVERAGES,
    ) -> None:
        self.field = world.network(seed)
        self.model = Regression(self.field, velocity)
        self.draw, self.steps, self.data, self.peak = draw, steps, world.train, world.plan.rate
        self.weights = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, lr=self.peak, weight_decay=0.0, fused=True)
        self.averages = {decay: Ema(self.field, decay) for decay in averages}
        self.batches = Batches(len(world.train), BATCH, seed)
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self.draw(self.data.take(self.batches(step), self.generator)[0])

    def update(self, step: int, batch: Batch) -> Tensor:
        """One update."""
        x_t, t, target, weight = batch
        error = (self.model(t, x_t) - target).square().flatten(1).mean(1)
        loss = (weight * error).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step, self.steps, self.peak)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average in self.averages.values():
            average.update(step)
        return loss.detach()


def train(world: World, draw: Draw, velocity: bool, steps: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights by the name of their average, and what the training was like."""
    torch.manual_seed(seed)
    loop, losses = Loop(world, draw, velocity, steps, seed), []
    begun, busy = time.perf_counter(), time.process_time()
    for step in range(steps):
        losses.append(loop.update(step, loop.batch(step)))
    spent = {"steps": steps, "seconds": time.perf_counter() - begun, "cpu": time.process_time() - busy}
    spent["loss"] = float(torch.stack(losses[-max(1, steps // 10) :]).mean())
    weights = {str(decay): copy.deepcopy(average.module.state_dict()) for decay, average in loop.averages.items()}
    return weights | {"last": loop.field.state_dict()}, spent


def run(world: World, draw: Draw, steps: int) -> None:
    """A loop of so many steps with one average, for the comparison with the trainer."""
    loop = Loop(world, draw, True, steps, 0, AVERAGES[-1:])
    total = torch.zeros(())
    for step in range(steps):
        total += loop.update(step, loop.batch(step))
    total.item()


def draw_seconds(world: World, draw: Draw) -> float:
    """Seconds of a peer's draw of a batch, the taking of the images included."""
    loop = Loop(world, draw, True, 1000, 0)
    return seconds_of(lambda step=step: loop.batch(step) for step in range(world.plan.timed + 1))


def step_seconds(world: World, draw: Draw) -> float:
    """Seconds of a step without its draw: the median, after one that warms up."""
    loop = Loop(world, draw, True, 1000, 0)
    batch = loop.batch(0)
    return seconds_of((lambda: loop.update(0, batch)) for _ in range(world.plan.timed + 1))


def seconds_of(calls: Iterable[Callable[[], Any]]) -> float:
    """Median of the seconds of calls, the first left out."""
    times = []
    for call in calls:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path`` and put it in its place, so that a stop leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)
