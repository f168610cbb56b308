"""What one step of the trainer costs beside a hand-written PyTorch loop of the same model.

Both do the same work: draw a batch, conditional flow matching loss, backward, clipping, AdamW in its fused kernel, and
an average of the weights; the loss is read as rarely in both. The network is the MLP of three blocks of 128 and the
batch has 256 rows. Short runs of the two take turns, and the verdict is the median of the ratios of neighbours, so that
a machine that slows down or speeds up does so for both.

Run: ``python benchmarks/train_step.py``; the bound is 1.05.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time

import torch
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.train import TensorData, TrainConfig, Trainer

SEED, STEPS, PAIRS, BATCH, ROWS, LOG_EVERY, THREADS = 0, 100, 25, 256, 10_000, 50, 2
BOUND = 1.05


def by_hand(model: nn.Module, objective: fm.FlowMatching, x1: Tensor, steps: int = STEPS) -> list[float]:
    """The loop as one would write it, with nothing that it could do without."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    average = copy.deepcopy(model).requires_grad_(False)
    weights, means = [w.detach() for w in model.parameters()], [w.detach() for w in average.parameters()]
    total, losses = torch.zeros(()), []
    for step in range(steps):
        index = torch.randint(len(x1), (BATCH,), generator=generator)
        loss = objective(model, x1[index], generator=generator).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(means, weights, 0.001)
        total += loss.detach()
        if (step + 1) % LOG_EVERY == 0:
            losses.append(total.item() / LOG_EVERY)
            total.zero_()
    return losses


def by_trainer(model: nn.Module, objective: fm.FlowMatching, x1: Tensor, steps: int = STEPS) -> list[float]:
    """The same with the trainer; its construction is timed too."""
    config = TrainConfig(steps=steps, batch_size=BATCH, warmup=0, decay="constant", seed=SEED, log_every=LOG_EVERY)
    return [row["loss"] for row in Trainer(model, objective, TensorData(x1), config).fit().history]


def measure(pairs: int = PAIRS, steps: int = STEPS) -> tuple[list[float], list[float]]:
    """Milliseconds a step of both loops, ``pairs`` runs of each in turns."""
    torch.manual_seed(SEED)
    x1 = torch.randn(ROWS, 2)
    objective, start = fm.FlowMatching(fm.AffinePath(fm.Linear())), fm.nn.MLP(dim=2, hidden=128, depth=3)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(pairs + 1):
        order = (0, 1) if turn % 2 else (1, 0)
        for which in order:
            model = copy.deepcopy(start)
            begin = time.perf_counter()
            (by_hand, by_trainer)[which](model, objective, x1, steps)
            if turn:  # the first turn warms up
                times[which].append(1000 * (time.perf_counter() - begin) / steps)
    return times


def main() -> None:
    """Measure and print the ratio."""
    torch.set_num_threads(THREADS)
    hand, trainer = measure()
    pairs = sorted(b / a for a, b in zip(hand, trainer, strict=True))
    ratio = statistics.median(pairs)
    print(f"python {platform.python_version()}, torch {torch.__version__}, {THREADS} CPU threads, seed {SEED}")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(
        f"load of the machine {load} on {os.cpu_count()} cores; above {THREADS} the times are those of the neighbours"
    )
    print(f"MLP 3x128, batch {BATCH}, {PAIRS} runs of {STEPS} steps each, in turns")
    print(f"by hand {statistics.median(hand):.3f} ms a step, trainer {statistics.median(trainer):.3f} ms a step")
    quartiles = pairs[len(pairs) // 4], pairs[3 * len(pairs) // 4]
    print(f"median of the paired ratios {ratio:.3f}, quartiles {quartiles[0]:.3f} to {quartiles[1]:.3f}")
    print(f"bound {BOUND}: {'kept' if ratio <= BOUND else 'BROKEN'}")


if __name__ == "__main__":
    main()
