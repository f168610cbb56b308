r"""Ours: what the trainer is given beside the network, and the general solvers among which a setting is chosen.

``RECIPES`` holds what won in short trials (``ours``), what won by the distance alone (``ours-logit``) or without other
times (``ours-uniform``), and the two plain ones that show the paper's ordering. The trials: 500 batches of 64 on one
core, one seed; Frechet distance of 1000 samples (8 calls of ``UniPC(2)``) to the training images, whose floor at that
size is about 0.6, and bits a dimension of 16 test images:

======================================================= ==== ===== =====
pairs and times                                         rate value bits
======================================================= ==== ===== =====
independent, uniform                                    1e-3 6.05
independent, uniform                                    2e-3 6.09
optimal in a batch (``ExactOT``), uniform               2e-3 5.21  3.897
optimal in a pool of 1024, uniform                      2e-3 4.92
optimal in a pool of 1024, uniform                      4e-3 4.62
optimal in a pool of 4096, uniform                      2e-3 4.82  3.873
optimal in a pool of 1024, ``LogitNormal()``            2e-3 4.50  4.464
======================================================= ==== ===== =====

Bits are decided next to the data, where logit-normal times hardly look. Of 140 batches, pairs optimal in a pool of
1024, a rate of 3e-3 and 700 samples: uniform times 12.31 and 4.722 bits (of 10 images, at a tolerance of 1e-3), 0.7
logit-normal and 0.3 of density :math:`5 t^4` 11.75 and 4.604. So the mixture is taken.

A pool of 4096 costs 12 ms a batch on one core, one of 1024 costs 1.3 ms, beside 280 ms of the network. What did not
help: the network as a correction of the exact field of a Gaussian with the data's covariance (6.57 against 6.13), an
earlier network as a guide (6.31 for twice the calls), averages of the weights (0.05 to 0.11 worse than the last),
bfloat16 and compilation (no quicker step).

Solvers of second order differ by 4 % on even steps, but the steps matter: after 480 s of ``ours``, 800 samples of 8
calls of ``UniPC(2)`` are at 1.56 from the training images on even steps, at 1.45, 1.40, 1.31 and 1.30 on
:func:`flowmatch.shifted_grid` of shift 1.4, 2, 3 and 4, and at 1.74 of shift 0.7.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import flowmatch as fm
from benchmarks.images.loop import AVERAGES, BATCH, WARMUP
from benchmarks.images.peers import Sampler
from benchmarks.images.world import World
from flowmatch.train import Draws, TrainConfig, Trainer

__all__ = ["RECIPES", "Recipe", "draw_seconds", "objective_of", "path_of", "samplers", "train"]


@dataclass(frozen=True)
class Recipe:
    """How a network of ours is trained.

    Attributes:
        coupling: who is joined to whom.
        times: where training looks.
        path: how they are joined.
        pool: batches that are joined together.
        average: decay of the average of the weights; it or the last weights are chosen.
    """

    coupling: Callable[[], Any] = fm.Independent
    times: Callable[[], Any] | None = None
    path: Callable[[], fm.AffinePath] = fm.AffinePath
    pool: int = 1
    average: float = AVERAGES[-1]


RECIPES = {
    "ours": Recipe(fm.ExactOT, lambda: fm.Mixed([fm.LogitNormal(), fm.Power(4.0)], [0.7, 0.3]), pool=64),
    "ours-logit": Recipe(fm.ExactOT, fm.LogitNormal, pool=64),
    "ours-uniform": Recipe(fm.ExactOT, pool=64),
    "condot": Recipe(),
    "vp": Recipe(path=lambda: fm.AffinePath(fm.VariancePreserving())),
}


def path_of(name: str) -> fm.AffinePath:
    """The path on which a contender's network was trained; peers' is the straight one."""
    return RECIPES[name].path() if name in RECIPES else fm.AffinePath()


def objective_of(recipe: Recipe) -> fm.FlowMatching:
    """The loss of a recipe."""
    times = None if recipe.times is None else recipe.times()
    return fm.FlowMatching(recipe.path(), coupling=recipe.coupling(), times=times)


def trainer_of(world: World, model: nn.Module, recipe: Recipe, steps: int, seed: int) -> Trainer:
    """The trainer of a recipe."""
    config = TrainConfig(
        steps=steps,
        batch_size=BATCH,
        learning_rate=world.plan.rate,
        warmup=WARMUP,
        ema=recipe.average,
        pool=recipe.pool * BATCH,
        ahead=int(recipe.pool > 1),
        seed=seed,
        log_every=50,
        tensorboard=False,
    )
    return Trainer(model, objective_of(recipe), world.train, config)


def train(world: World, name: str, steps: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights by the name of their average, and what the training was like."""
    torch.manual_seed(seed)
    net, recipe = world.network(seed), RECIPES[name]
    trainer = trainer_of(world, net, recipe, steps, seed)
    begun, busy = time.perf_counter(), time.process_time()
    result = trainer.fit()
    spent = {"steps": steps, "seconds": time.perf_counter() - begun, "cpu": time.process_time() - busy}
    late = [row["loss"] for row in result.history if row["step"] > 0.9 * steps]
    spent["loss"] = sum(late) / max(1, len(late))
    spent["waiting"] = statistics.fmean(row["waiting"] for row in result.history)
    return {str(recipe.average): result.model.state_dict(), "last": net.state_dict()}, spent


def draw_seconds(world: World, recipe: Recipe) -> float:
    """Mean seconds of the draw of a batch: images, noise, their pairs and times; after a pool that warms up."""
    counted = 1 if recipe.pool == 1 else 3
    with Draws(objective_of(recipe), world.train, BATCH, recipe.pool * BATCH, 0, 0) as draws:
        draws(0)
        steps = range(recipe.pool, recipe.pool * (counted + 1) if recipe.pool > 1 else 1 + world.plan.timed)
        begun = time.perf_counter()
        for step in steps:
            draws(step)
        return (time.perf_counter() - begun) / len(steps)


def samplers(schedule: fm.Schedule, calls: int) -> dict[str, Sampler]:
    """General solvers on grids that suit them, with so many calls."""
    grids: dict[str, Callable[[int], Tensor]] = {
        "even": lambda n: fm.uniform_grid(n, schedule.interval),
        "path_grid(0.5, straight, crowd 1.25)": lambda n: fm.path_grid(
            n, schedule, 0.5, "straight", crowd=(1.25, 1.25)
        ),
        "path_grid(0.5, angle)": lambda n: fm.path_grid(n, schedule, 0.5, "angle"),
    }
    methods: dict[str, Callable[[], fm.Solver]] = {
        "Midpoint": fm.Midpoint,
        "UniPC(2)": lambda: fm.UniPC(schedule, 2),
        "DPMSolver(2)": lambda: fm.DPMSolver(schedule, 2),
        "PathAdams(2, 0.5, straight)": lambda: fm.PathAdams(schedule, 2, 0.5, "straight"),
    }
    shifted: dict[str, Callable[[int], Tensor]] = {
        f"shifted_grid({shift:g})": lambda n, shift=shift: fm.shifted_grid(n, shift, schedule.interval)
        for shift in (1.5, 2.0, 3.0)
    }
    found: dict[str, Sampler] = {}
    for on, grid in {**grids, **shifted}.items():
        for method, make in methods.items():
            if on in shifted and method in ("Midpoint", "DPMSolver(2)"):
                continue
            solver = make()
            steps, left = divmod(calls, getattr(solver, "evaluations", 1) if method == "Midpoint" else 1)
            if steps and not left:
                found[f"{method} on {on}"] = _run(solver, grid(steps))
    return found


def _run(solver: fm.Solver, grid: Tensor) -> Sampler:
    def sample(net: fm.nn.UNet, x0: Tensor) -> Tensor:
        return fm.solve(fm.ODE(net), x0, solver, grid=grid).whole().x

    return sample


def step_seconds(world: World, bare: Callable[[int], Any], steps: int, pairs: int) -> tuple[float, float, float]:
    """Seconds of a step of our plain trainer and of the bare loop, and the median ratio of neighbouring runs."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(pairs + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            trainer = trainer_of(world, world.network(0), RECIPES["condot"], steps, 0)
            begun = time.perf_counter()
            bare(steps) if which else trainer.fit()
            if turn:  # the first warms up
                times[which].append((time.perf_counter() - begun) / steps)
    ratio = statistics.median(mine / other for mine, other in zip(*times, strict=True))
    return statistics.median(times[0]), statistics.median(times[1]), ratio
