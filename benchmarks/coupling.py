"""Exact couplings: milliseconds a batch against TorchCFM, POT and SciPy at equal cost; entropic ones against POT.

Ours and TorchCFM's are whole calls, from two batches of points to the pairs. POT's ``emd`` and SciPy's
``linear_sum_assignment`` are given their cost matrix and timed without it. The rounds are interleaved, each with
points of its own that all four share. The cost is taken in float64 and held against the optimum there.
"""

from __future__ import annotations

import importlib
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowmatch.couplings.cost import squared_distances
from flowmatch.couplings.exact import ExactOT

BATCHES, DIMS, SEED = (128, 256, 512, 1024), (2, 64), 0
ROUNDS = {128: 25, 256: 15, 512: 9, 1024: 5}
PEERS = {"torchcfm": "torchcfm", "ot": "pot", "scipy": "scipy"}
# Relative to the mean cost; the first is easy, the second is the package's own choice.
EPSILONS, TOLERANCE, SINKHORN_BATCH, SINKHORN_ROUNDS = (0.05, 0.005), 1e-3, 1024, 3


def peers() -> tuple[Any, Any, Any]:
    """TorchCFM's plan sampler, POT and SciPy's optimisers; a missing one fails the run."""
    missing = []
    for module, package in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise SystemExit(f"the coupling benchmark compares with {', '.join(missing)}: pip install {' '.join(missing)}")
    sampler = importlib.import_module("torchcfm.optimal_transport").OTPlanSampler("exact")
    return sampler, importlib.import_module("ot"), importlib.import_module("scipy.optimize")


def points(batch: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """A standard normal, and in the plane eight Gaussians on a circle of radius 5, else a mixture of ten Gaussians."""
    generator = torch.Generator().manual_seed(seed)
    x0, z = torch.randn(2, batch, dim, generator=generator)
    if dim == 2:
        angle = torch.randint(0, 8, (batch,), generator=generator) * (torch.pi / 4)
        return x0, 5.0 * torch.stack((angle.cos(), angle.sin()), 1) + z
    centres = 2.0 * torch.randn(10, dim, generator=torch.Generator().manual_seed(SEED))
    return x0, centres[torch.randint(0, 10, (batch,), generator=generator)] + z


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """How long one call takes, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def exact_row(batch: int, dim: int, sampler: Any, ot: Any, optimize: Any) -> None:
    """Print one row of the exact table."""
    times: dict[str, list[float]] = {name: [] for name in ("ours", "torchcfm", "emd", "lsa")}
    excess, agreement, used = [], [], []
    weight = np.full(batch, 1 / batch)
    for turn in range(ROUNDS[batch] + 1):
        x0, x1 = points(batch, dim, SEED + turn)
        np.random.seed(SEED + turn)  # noqa: NPY002 (TorchCFM draws its pairs from the global generator)
        cost = squared_distances(x0.double(), x1.double()).numpy()
        ours, (i, j) = seconds(lambda x0=x0, x1=x1: ExactOT()(x0, x1))
        theirs, pairs = seconds(lambda x0=x0, x1=x1: sampler.sample_plan(x0, x1))
        emd, plan = seconds(lambda cost=cost: ot.emd(weight, weight, cost))
        lsa, (rows, columns) = seconds(lambda cost=cost: optimize.linear_sum_assignment(cost))
        if turn == 0:  # warms up
            continue
        for name, taken in zip(times, (ours, theirs, emd, lsa), strict=True):
            times[name].append(1e3 * taken)
        best = cost[rows, columns].sum()
        excess.append(cost[i.numpy(), j.numpy()].sum() / best - 1)
        agreement.append(batch * (plan * cost).sum() / best - 1)
        used.append((len(j.unique()) / batch, len(pairs[1].unique(dim=0)) / batch))
    ours, theirs, emd, lsa = (statistics.median(taken) for taken in times.values())
    mine, usual = (statistics.mean(part) for part in zip(*used, strict=True))
    print(
        f"{batch:5d} {dim:3d}  {ours:8.2f}  {theirs:8.2f} {theirs / ours:5.1f}x  {emd:8.2f} {emd / ours:5.1f}x  "
        f"{lsa:8.2f} {lsa / ours:5.1f}x  {max(map(abs, excess)):8.1e} {max(map(abs, agreement)):8.1e}  "
        f"{mine:6.1%} {usual:6.1%}",
        flush=True,
    )


def masses_error(plan: Tensor) -> float:
    """By how much the masses of a plan are wrong, summed over both sides."""
    wide = plan.double()
    return sum((wide.sum(side) - 1 / plan.shape[side - 1]).abs().sum().item() for side in (0, 1))


def entropic_rows(dim: int, ot: Any) -> None:
    """Print the entropic table of one dimension: all solvers run to the same error of the masses."""
    from flowmatch.couplings.sinkhorn import Sinkhorn

    batch = SINKHORN_BATCH
    x0, x1 = points(batch, dim, SEED)
    cost = squared_distances(x0, x1)
    i, j = ExactOT()(x0, x1)
    exact = cost[i, j].double().mean().item()
    wide, weight = cost.double().numpy(), np.full(batch, 1 / batch)
    # POT stops by the Euclidean norm of one side's error, which bounds the sum by the square root of the batch.
    options = {"stopThr": TOLERANCE / batch**0.5, "numItermax": 5000, "log": True}
    for epsilon in EPSILONS:
        reg = epsilon * cost.mean().item()
        even = torch.full((batch,), 1 / batch)

        def ours(epsilon: float = epsilon) -> tuple[Tensor, int]:
            plan = Sinkhorn(epsilon=epsilon, tol=TOLERANCE).plan(x0, x1)
            return plan.log_plan.exp(), plan.iterations

        def pot_torch(reg: float = reg, even: Tensor = even) -> tuple[Tensor, int]:
            plan, log = ot.bregman.sinkhorn_log(even, even, cost, reg, **options)
            return plan, log["niter"]

        def pot_numpy(reg: float = reg) -> tuple[Tensor, int]:
            plan, log = ot.sinkhorn(weight, weight, wide, reg, method="sinkhorn_log", **options)
            return torch.from_numpy(plan), log["niter"]

        solvers = {"ours": ours, "POT, torch float32": pot_torch, "POT, NumPy float64": pot_numpy}
        taken: dict[str, list[float]] = {name: [] for name in solvers}
        plans = {}
        for turn in range(SINKHORN_ROUNDS):
            for name, solver in solvers.items():
                if name == "POT, NumPy float64" and turn:  # tens of seconds: once will do
                    continue
                spent, plans[name] = seconds(solver)
                taken[name].append(spent)
        for name, (plan, iterations) in plans.items():
            time_ms = 1e3 * statistics.median(taken[name])
            ratio = statistics.median(taken[name]) / statistics.median(taken["ours"])
            above = (plan.double() * cost.double()).sum().item() / exact - 1
            print(
                f"{batch:5d} {dim:3d} {epsilon:6.3f}  {name:19s} {time_ms:9.1f} {ratio:6.1f}x {iterations:6d}  "
                f"{masses_error(plan):8.1e}  {above:7.2%}",
                flush=True,
            )


def main() -> None:
    """Print both tables."""
    sampler, ot, optimize = peers()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", *PEERS.values()))
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{packages}, Python {platform.python_version()}")
    print(f"{torch.get_num_threads()} torch threads on {affinity} {platform.machine()} cores, seeds from {SEED}")
    first, _ = seconds(lambda: ExactOT()(*points(16, 2, SEED)))
    print(f"first call, with numba's import and its compilation unless kept from before: {first:.1f} s\n")
    print("exact: median ms a batch and how many times ours; largest relative cost above the optimum; data points used")
    print("batch   d      ours  torchcfm           POT emd         SciPy LSA            ours  POT emd    ours torchcfm")
    for dim in DIMS:
        for batch in BATCHES:
            exact_row(batch, dim, sampler, ot, optimize)
    print(f"\nentropic: error of the masses at most {TOLERANCE:g}, epsilon relative to the mean cost; cost above exact")
    print("batch   d    eps  solver                     ms          steps     error    above")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT warns where it does not converge; the error says it here
        for dim in DIMS:
            entropic_rows(dim, ot)


if __name__ == "__main__":
    main()
