"""Error control: calls, and time beside the network's own, at one error; and a batch with one stiff sample.

Wall time is that of the same small network (three hidden layers of 64) under torchdiffeq and under ours, tolerances
varied and times read at equal error by interpolation of logarithms; runs are interleaved and medians taken. What the
network's calls alone cost is measured by making the very calls of a solve again. A sample's calls are the mean over the
batch, the batch's those of its slowest sample.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.data import toy
from flowmatch.solvers import BS32, DOP853, Dopri5, Tsit5

TARGET = 1e-4
TOLERANCES = [10.0**-k for k in np.arange(2.0, 6.6, 0.5)]
REPEATS = 9


class Recorder:
    """A field that counts its calls and, if asked, keeps what it was called with."""

    def __init__(self, field: Any, span: tuple[float, float] = (0.0, 1.0), keep: bool = False) -> None:
        self.field, self.span, self.keep = field, span, keep
        self.calls = 0
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        if self.keep:
            self.seen.append((t.clone(), x.clone()))
        velocity: Tensor = self.field(t.clamp(*self.span), x)
        return velocity


def calls_at_target(field: Any, x: Tensor, truth: Tensor, span: tuple[float, float]) -> list[tuple[str, float, float]]:
    """Name, calls of the batch and mean calls of a sample at the target error."""
    torchdiffeq = importlib.import_module("torchdiffeq")
    counts: list[tuple[float, ...]] = []
    for tol in TOLERANCES:
        counted = Recorder(field, span)
        ends = torch.tensor(span, dtype=torch.float64)
        y = torchdiffeq.odeint(counted, x, ends, rtol=tol, atol=tol, method="dopri5")[-1]
        counts.append((_rmse(y, truth), counted.calls, counted.calls))
    rows = [("torchdiffeq dopri5", *_at_target(counts))]
    for solver in (Tsit5(), Dopri5(), BS32(), DOP853()):
        counts = []
        for tol in TOLERANCES:
            solution = fm.solve(fm.ODE(field), x, solver, rtol=tol, atol=tol, span=span)
            mean = solution.nfe_per_sample.double().mean().item()
            counts.append((_rmse(solution.x, truth), solution.nfe, mean))
        rows.append((type(solver).__name__, *_at_target(counts)))
    return rows


@cache
@torch.enable_grad()
def network(activation: type[nn.Module]) -> nn.Module:
    """Three hidden layers of 64, trained on two moons."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(3, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation()]
        net = _Small(nn.Sequential(*layers, nn.Linear(64, 2)))
    objective, optimizer = fm.FlowMatching(fm.AffinePath()), torch.optim.Adam(net.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        x1 = toy("moons").sample(256, generator=generator)
        optimizer.zero_grad()
        objective(net, x1, generator=generator).mean().backward()
        optimizer.step()
    return net.requires_grad_(False)


class _Small(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        velocity: Tensor = self.body(torch.cat([x, t.expand(x.shape[0])[:, None]], dim=1))
        return velocity


def wall(activation: type[nn.Module], rows: int) -> None:
    """Print time over that of the calls alone, and over torchdiffeq's at the target error."""
    torchdiffeq = importlib.import_module("torchdiffeq")
    net = network(activation)
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))
    exact = net.double()
    truth = fm.solve(fm.ODE(exact), x.double(), DOP853(), rtol=1e-10, atol=1e-10).x
    net.float()
    ends = torch.tensor([0.0, 1.0])

    def theirs(field: Any, tol: float) -> Tensor:
        return torchdiffeq.odeint(field, x, ends, rtol=tol, atol=tol, method="dopri5")[-1]

    def by(solver: fm.Solver) -> Callable[[Any, float], Tensor]:
        return lambda field, tol: fm.solve(fm.ODE(field), x, solver, rtol=tol, atol=tol).x

    ways = {"torchdiffeq": theirs, "Dopri5": by(Dopri5()), "Tsit5": by(Tsit5())}
    tolerances = [1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6]
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for tol in tolerances:
        runs: list[Callable[[], Any]] = []
        records = []
        for solve in ways.values():
            record = Recorder(net, keep=True)
            records.append((_rmse(solve(record, tol), truth), record.calls))
            runs.append(lambda solve=solve, tol=tol: solve(net, tol))
            runs.append(lambda seen=record.seen: [net(t, y) for t, y in seen])
        seconds = _medians(runs)
        for i, name in enumerate(ways):
            results[name].append((*records[i], seconds[2 * i], seconds[2 * i] / seconds[2 * i + 1]))
    base = None
    for name, table in results.items():
        calls, spent, over = _at_target(table)
        base = spent if base is None else base
        print(
            f"    {activation.__name__:5s} {rows:5d} {name:12s} {calls:6.1f} calls {1e3 * spent:8.2f} ms, over its "
            f"calls alone {over:5.2f}, over torchdiffeq {spent / base:5.2f}",
            flush=True,
        )


def one_stiff(rows: int = 256) -> None:
    """Print the field evaluations of a batch in which one sample is stiff."""
    torchdiffeq = importlib.import_module("torchdiffeq")
    rate = torch.ones(rows, 1, dtype=torch.float64)
    rate[0] = 300.0

    def field(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return rate * (torch.cos(3 * t.expand(len(x)))[:, None] - x)

    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counted = Recorder(lambda t, x: field(t, x, rate))
    torchdiffeq.odeint(counted, x, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-5, atol=1e-5)
    solution = fm.solve(fm.ODE(field, rate), x, rtol=1e-5, atol=1e-5)
    evaluations = int(solution.nfe_per_sample.sum())
    print(
        f"  one stiff sample of {rows}, tolerance 1e-5: torchdiffeq {counted.calls * rows} evaluations of samples, "
        f"ours {evaluations} (x {evaluations / (counted.calls * rows):.3f}); calls {counted.calls} and {solution.nfe}"
    )


def _rmse(y: Tensor, truth: Tensor) -> float:
    return (y.double() - truth).square().mean().sqrt().item()


def _medians(functions: list[Callable[[], Any]]) -> list[float]:
    """Median time of each, the runs interleaved so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(REPEATS + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat:  # the first warms up
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def _at_target(counts: list[tuple[float, ...]]) -> tuple[float, ...]:
    """What stands beside the target error, by interpolation of logarithms."""
    errors, *others = np.log(np.array(sorted(counts))).T
    return tuple(float(np.exp(np.interp(math.log(TARGET), errors, row))) for row in others)
