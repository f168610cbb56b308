"""Solvers at few calls, and under error control: nothing but the solver errs.

Worlds are two mixtures with their exact marginal field (eight modes on a circle, ten in 64 dimensions) and a network
trained on 8 x 8 digits, each on the straight and on a variance-preserving path; the truth is the same start under
DOP853 at tolerances of 1e-12 (1e-10 for the network). Peers are torchdiffeq's methods, Meta's ``ODESolver`` (which has
them from torchdiffeq, on a grid of equal steps) and the schedulers of diffusers for flows. Schedulers with a memory run
on the path for which they are made, the straight one, to which the variance-preserving path is carried over: they get
the benefit of that frame too, and the better of two spacings.

Which of our solvers is used for a number of calls is decided on other starts, before those of the table are looked at;
the peer is the best of its rows on the starts of the table themselves. A learned solver is fitted on other starts too.
"""

from __future__ import annotations

import importlib
import logging
import math
import time
import warnings
from typing import Any

import torch

import flowmatch as fm
from benchmarks.solvers.control import TARGET, calls_at_target, one_stiff, wall
from benchmarks.solvers.ours import Run, ours
from benchmarks.solvers.peers import peers
from benchmarks.solvers.worlds import PATHS, WORLDS, circle, cloud, error, start_and_truth
from flowmatch.solvers import tune

__all__ = ["CALLS", "PATHS", "WORLDS", "circle", "cloud", "error", "main", "ours", "peers", "start_and_truth"]

SEEDS, CALLS, CHOOSING, FITTING = (0, 1, 2), (4, 8, 10, 16, 32), (10, 11, 12), 13
LEARNED = (8,)
PEERS = {"torchdiffeq": "torchdiffeq", "flow_matching": "flow_matching", "diffusers": "diffusers"}


def spend(name: str, calls: int, n: int) -> int | None:
    """Calls that a row makes of ``n``; ``None`` if it cannot. Heun's method of diffusers makes an odd number."""
    if name.startswith("FlowMatchHeun"):
        return n + 1 - n % 2
    return None if n % calls else n


def attempt(run: Run, field: Any, cases: list[Any], n: int) -> float:
    """Mean error over the cases; infinite where a method needs more steps to start."""
    try:
        return sum(error(run(field, x, n), truth) for x, truth in cases) / len(cases)
    except (ValueError, fm.SolveError):
        return math.inf


def learned(field: Any, cases: list[Any], mine: dict[int, float], theirs: dict[int, float]) -> None:
    """Print the errors of solvers fitted on starts of their own, beside general ones of as many and twice the calls."""
    for n in LEARNED:
        generator = torch.Generator().manual_seed(FITTING)
        event = cases[0][0].shape[1:]
        draw = lambda rows, g=generator, e=event: (torch.randn(rows, *e, generator=g, dtype=torch.float64), None)  # noqa: E731
        begun = time.perf_counter()
        solver = tune(field, draw, n, span=field.path.interval, schedule=field.path.schedule, generator=generator)
        spent = time.perf_counter() - begun
        run: Run = lambda field, x, n, solver=solver: fm.solve(fm.ODE(field), x, solver, grid=solver.grid).x  # noqa: E731
        value = attempt(run, field, cases, n)
        print(
            f"    learned with {n:2d} calls: {value:9.2e}; over ours with {n} calls {value / mine[n]:.2f}, with "
            f"{2 * n} {value / mine[2 * n]:.2f}; over the best peer {value / theirs[n]:.3f}; fitted in {spent:.0f} s",
            flush=True,
        )


def table(field: Any, world: str) -> None:
    """Print the table of one world."""
    cases = [start_and_truth(field, seed) for seed in SEEDS]
    # As many as in the table: a few starts near a parting of ways make most of the error.
    choosing = [start_and_truth(field, seed) for seed in CHOOSING]
    chosen: dict[int, tuple[float, str, Run]] = {}
    for name, calls, run in ours():
        for n in CALLS:
            if not n % calls:
                chosen[n] = min(chosen.get(n, (math.inf, "", run)), (attempt(run, field, choosing, n), name, run))
    mine = {n: attempt(run, field, cases, n) for n, (_, _, run) in chosen.items()}
    theirs: dict[int, tuple[float, str]] = {}
    print(f"\n{world}: root mean square error to the truth, mean over the seeds")
    for name, calls, run in peers():
        row = []
        for n in CALLS:
            spent = spend(name, calls, n)
            row.append(math.nan if spent is None else attempt(run, field, cases, spent))
            if spent is not None:
                theirs[n] = min(theirs.get(n, (math.inf, "")), (row[-1], name))
        print(f"  {name:44s} " + " ".join(f"{value:9.2e}" for value in row), flush=True)
    line = lambda values: " ".join(f"{value:9.2e}" for value in values)  # noqa: E731
    print(f"  {'ours, chosen on other starts':44s} " + line(mine[n] for n in CALLS))
    print(f"  {'calls':44s} " + " ".join(f"{n:9d}" for n in CALLS))
    print(f"  {'ours over the best peer':44s} " + " ".join(f"{mine[n] / theirs[n][0]:9.2f}" for n in CALLS))
    for n in CALLS:
        print(f"    at {n:2d} calls: {chosen[n][1]} against {theirs[n][1]}")
    learned(field, cases, mine, {n: theirs[n][0] for n in CALLS})
    rows = calls_at_target(field, *cases[0], field.path.interval)
    print(f"  error control, calls at an error of {TARGET:g} (of the batch, of a sample; over torchdiffeq's)")
    for name, batch, sample in rows:
        print(f"    {name:20s} {batch:7.1f} {sample:7.1f}   {batch / rows[0][1]:5.2f} {sample / rows[0][2]:5.2f}")


def main() -> None:
    """Print the tables."""
    versions = [f"torch {torch.__version__}"]
    for name, package in PEERS.items():
        try:
            importlib.import_module(name)
        except ImportError:
            raise ImportError(f"{name} is a peer of this benchmark: pip install {' '.join(PEERS.values())}") from None
        versions.append(f"{name} {importlib.import_module('importlib.metadata').version(package)}")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    print(f"{', '.join(versions)}; 256 starts, seeds {SEEDS}, float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path_name, path in PATHS.items():
            for world_name, world in WORLDS.items():
                field = world(path)
                with torch.no_grad():
                    table(field, f"{world_name} on {path_name}")
        print(f"\nwall time of error control at an error of {TARGET:g}, float32, three hidden layers of 64")
        with torch.no_grad():
            for rows in (256, 1024, 4096):
                wall(torch.nn.SiLU, rows)
            wall(torch.nn.SELU, 1024)
            one_stiff()
