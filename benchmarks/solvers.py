"""Solvers on exact marginal fields: no training, so that nothing but the solver errs.

Two mixtures (eight modes on a circle, ten in 64 dimensions) on the straight and on a variance-preserving path; the
truth is the same start under DOP853 at tolerances of 1e-12. For each number of calls the table names our best solver
and the best peer: torchdiffeq's methods, Meta's ``ODESolver`` (which has them from torchdiffeq, on a grid of equal
steps) and the schedulers of diffusers for flows. Schedulers with a memory run on the path for which they are made, the
straight one, to which the variance-preserving path is carried over: they get the benefit of that frame too, and the
better of two spacings. Under error control, tolerances are varied and calls compared at equal error: the calls of a
batch are those of its slowest sample, the calls of a sample are the mean over the batch.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flowmatch as fm
from flowmatch.solvers.embedded import BS32, DOP853, Dopri5, Tsit5
from flowmatch.solvers.exponential import DEIS, DPMSolver, UniPC
from flowmatch.solvers.grids import path_grid, uniform_grid
from flowmatch.solvers.multistep import AdamsBashforth
from flowmatch.solvers.path_adams import PathAdams
from flowmatch.solvers.runge_kutta import RK4, Euler, Heun, Kutta3, Midpoint, Ralston

STARTS, SEEDS, CALLS = 256, (0, 1, 2), (4, 8, 10, 16, 32)
TARGET = 1e-4
SPREADS = (0.5, 1.0, 2.0)
TOLERANCES = [10.0**-k for k in np.arange(2.0, 6.6, 0.5)]
PEERS = {"torchdiffeq": "torchdiffeq", "flow_matching": "flow_matching", "diffusers": "diffusers"}


def circle(path: fm.AffinePath) -> fm.MixtureField:
    """Eight modes at radius 5 with variance 0.1."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return fm.MixtureField(5 * torch.stack([angle.cos(), angle.sin()], dim=1), std=math.sqrt(0.1), path=path)


def cloud(path: fm.AffinePath) -> fm.MixtureField:
    """Ten modes in 64 dimensions."""
    means = torch.randn(10, 64, generator=torch.Generator().manual_seed(100), dtype=torch.float64)
    return fm.MixtureField(means, std=0.5, path=path)


PATHS = {"straight": fm.AffinePath(fm.Linear()), "vp": fm.AffinePath(fm.VariancePreserving())}
WORLDS = {"circle": circle, "cloud": cloud}

Run = Callable[[fm.MixtureField, Tensor, int], Tensor]


def ours() -> Iterator[tuple[str, int, Run]]:
    """Name, calls a step and a way to solve, for every general solver on its grids."""

    def run(make: Callable[[Any], fm.Solver], grid: Callable[[int, Any], Tensor], calls: int) -> Run:
        def solve(field: fm.MixtureField, x: Tensor, n: int) -> Tensor:
            schedule, solver = field.path.schedule, make(field.path.schedule)
            steps = n // calls - 2 * (isinstance(solver, AdamsBashforth) and solver.order == 4)
            return fm.solve(fm.ODE(field), x, solver, grid=grid(steps, schedule), max_nfe=n).whole().x

        return solve

    def even(steps: int, schedule: fm.Schedule) -> Tensor:
        return uniform_grid(steps, schedule.interval)

    for method in (Euler, Midpoint, Heun, Ralston, Kutta3, RK4):
        yield method.__name__, method.evaluations, run(lambda s, m=method: m(), even, method.evaluations)
    for order in (2, 3, 4):
        yield f"AdamsBashforth({order})", 1, run(lambda s, o=order: AdamsBashforth(o), even, 1)
    for spread in SPREADS:

        def turn(steps: int, schedule: fm.Schedule, spread: float = spread) -> Tensor:
            return path_grid(steps, schedule, spread)

        def line(steps: int, schedule: fm.Schedule, spread: float = spread) -> Tensor:
            return path_grid(steps, schedule, spread, "straight")

        for method in (Midpoint, Heun, Ralston):
            for name, grid in (("turn", turn), ("line", line)):
                yield f"{method.__name__} on {name} {spread:g}", 2, run(lambda s, m=method: m(), grid, 2)
        for order in (2, 3):
            for name, grid in (("turn", turn), ("line", line)):
                on = f"on {name} {spread:g}"
                yield f"DPMSolver({order}) {on}", 1, run(lambda s, o=order: DPMSolver(s, o), grid, 1)
                yield f"UniPC({order}) {on}", 1, run(lambda s, o=order: UniPC(s, o), grid, 1)
                yield f"DEIS({order}) {on}", 1, run(lambda s, o=order: DEIS(s, o), grid, 1)
                for unit in SPREADS:
                    for frame in ("angle", "straight"):
                        for again in (False, True):
                            kind = f"PathAdams({order}, {unit:g}, {frame}{', correct' if again else ''}) {on}"
                            make = lambda s, o=order, u=unit, f=frame, a=again: PathAdams(s, o, u, f, a)  # noqa: E731
                            yield kind, 1, run(make, grid, 1)


def peers() -> Iterator[tuple[str, int, Run]]:
    """The same for the peers."""
    torchdiffeq = importlib.import_module("torchdiffeq")
    meta = importlib.import_module("flow_matching.solver").ODESolver
    wrapper = importlib.import_module("flow_matching.utils").ModelWrapper
    for method, calls in (("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4)):

        def grid(field: fm.MixtureField, n: int, calls: int = calls) -> Tensor:
            return torch.linspace(*field.path.interval, n // calls + 1, dtype=torch.float64)

        def by_torchdiffeq(field: fm.MixtureField, x: Tensor, n: int, method: str = method, grid: Any = grid) -> Tensor:
            velocity = lambda t, x: field(t.clamp(*field.path.interval), x)  # noqa: E731
            return torchdiffeq.odeint(velocity, x, grid(field, n), method=method)[-1]

        def by_meta(field: fm.MixtureField, x: Tensor, n: int, method: str = method, grid: Any = grid) -> Tensor:
            class Velocity(wrapper):
                def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
                    return field(t.clamp(*field.path.interval), x)

            return meta(Velocity(None)).sample(x_init=x, step_size=None, method=method, time_grid=grid(field, n))

        yield f"torchdiffeq {method}", calls, by_torchdiffeq
        yield f"ODESolver {method}", calls, by_meta
    yield from schedulers()


def schedulers() -> Iterator[tuple[str, int, Run]]:
    """Diffusers' schedulers for flows, on the straight path."""
    diffusers = importlib.import_module("diffusers")
    importlib.import_module("diffusers.utils.logging").set_verbosity_error()
    for shift in (1.0, 3.0):
        yield (
            f"FlowMatchEuler shift {shift:g}",
            1,
            lambda field, x, n, s=shift: scheduled(
                diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), field, x, spaced(field, n, s)
            ),
        )
    yield "FlowMatchHeun", 2, lambda field, x, n: by_heun(diffusers.FlowMatchHeunDiscreteScheduler(), field, x, n)
    for shift in (0.5, 1.0, 3.0):
        for order in (2, 3):
            flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": order}
            # Their bh1 divides infinity by infinity in the last step, to noise 0.
            yield (
                f"UniPC({order}) shift {shift:g}",
                1,
                lambda field, x, n, s=shift, flow=flow: scheduled(
                    diffusers.UniPCMultistepScheduler(**flow), field, x, spaced(field, n, s)
                ),
            )
            for spacing in (spaced, by_time) if shift == 1.0 else (spaced,):
                yield (
                    f"DPM++({order}) shift {shift:g}{' own time' if spacing is by_time else ''}",
                    1,
                    lambda field, x, n, s=shift, flow=flow, spacing=spacing: scheduled(
                        diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **flow),
                        field,
                        x,
                        spacing(field, n, s),
                    ),
                )


def spaced(field: fm.MixtureField, n: int, shift: float) -> Tensor:
    """Noise shares of the flow, equal steps with a shift; the last, 0, is the scheduler's own.

    As theirs do, they start at 0.999 at most: at 1 the log of the signal-to-noise ratio is infinite.
    """
    top = min(1 - shares(field, field.path.interval[0]), 0.999)
    even = torch.linspace(1, 0, n + 1, dtype=torch.float64)[:-1]
    return top * shift * even / (1 + (shift - 1) * even)


def by_time(field: fm.MixtureField, n: int, shift: float) -> Tensor:
    """Noise shares at equal steps of the path's own time."""
    times = torch.linspace(*field.path.interval, n + 1, dtype=torch.float64)[:-1]
    return torch.tensor([1 - shares(field, float(t)) for t in times], dtype=torch.float64).clamp(max=0.999)


def shares(field: fm.MixtureField, t: float) -> float:
    """Share of the data, alpha / (alpha + sigma)."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = field.path.schedule.alpha(time), field.path.schedule.sigma(time)
    return float(alpha / (alpha + sigma))


def output(field: fm.MixtureField, sigma: float, y: Tensor) -> Tensor:
    """What a flow network of the straight path would say: noise minus data."""
    schedule = field.path.schedule
    share = torch.tensor(1 - sigma, dtype=torch.float64)
    t = schedule.inverse_log_snr(2 * share.logit()).clamp(*field.path.interval)
    x = y * (schedule.alpha(t) + schedule.sigma(t))
    target = field.posterior_mean(float(t), x)
    return field.path.convert(target, float(t), x, "target", "noise") - target if sigma else y - target


def scheduled(scheduler: Any, field: fm.MixtureField, x: Tensor, sigmas: Tensor) -> Tensor:
    """Run a scheduler with a step a call at the noise shares given."""
    scheduler.set_timesteps(len(sigmas))
    scheduler.timesteps = 1000 * sigmas
    # In float64: the peers are compared by their methods and not by their rounding.
    scheduler.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    y = x
    for i, t in enumerate(scheduler.timesteps):
        scheduler._step_index = i if i else None
        if not i:
            scheduler.set_begin_index(0)
        y = scheduler.step(output(field, float(sigmas[i]), y), t, y, return_dict=False)[0].double()
    return y


def by_heun(scheduler: Any, field: fm.MixtureField, x: Tensor, n: int) -> Tensor:
    """Heun's method of diffusers; its last step is Euler's, so it makes an odd number of calls, one less than given."""
    scheduler.set_timesteps(n // 2)
    sigmas, y = scheduler.sigmas.double() * float(1 - shares(field, field.path.interval[0])), x
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step(output(field, float(sigmas[i]), y), t, y, return_dict=False)[0].double()
    return y


def start_and_truth(field: fm.MixtureField, seed: int) -> tuple[Tensor, Tensor]:
    """Starts, and where the exact flow takes them."""
    x = torch.randn(STARTS, *field.means.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, fm.solve(fm.ODE(field), x, DOP853(), rtol=1e-12, atol=1e-12, span=field.path.interval).x


def error(y: Tensor, truth: Tensor) -> float:
    """Root mean square error; infinite for a result that is not finite."""
    value = (y.double() - truth).square().mean().sqrt().item()
    return value if math.isfinite(value) else math.inf


def adaptive(field: fm.MixtureField, x: Tensor, truth: Tensor) -> list[tuple[str, float, float]]:
    """Name, calls of the batch and mean calls of a sample at the target error."""
    torchdiffeq = importlib.import_module("torchdiffeq")
    low, high = field.path.interval
    rows = []
    counts: list[tuple[float, float, float]] = []
    for tol in TOLERANCES:
        calls = 0

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return field(t.clamp(low, high), x)

        ends = torch.tensor([low, high], dtype=torch.float64)
        y = torchdiffeq.odeint(velocity, x, ends, rtol=tol, atol=tol, method="dopri5")[-1]
        counts.append((error(y, truth), calls, calls))
    rows.append(("torchdiffeq dopri5", *at_target(counts)))
    for solver in (Tsit5(), Dopri5(), BS32(), DOP853()):
        counts = []
        for tol in TOLERANCES:
            solution = fm.solve(fm.ODE(field), x, solver, rtol=tol, atol=tol, span=(low, high))
            counts.append((error(solution.x, truth), solution.nfe, solution.nfe_per_sample.double().mean().item()))
        rows.append((type(solver).__name__, *at_target(counts)))
    return rows


def at_target(counts: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Calls at the target error, by interpolation of logarithms."""
    errors, *calls = np.log(np.array(sorted(counts))).T
    batch, sample = (float(np.exp(np.interp(math.log(TARGET), errors, row))) for row in calls)
    return batch, sample


def table(field: fm.MixtureField, world: str) -> None:
    """Print both tables of one world."""
    cases = [start_and_truth(field, seed) for seed in SEEDS]
    print(f"\n{world}: root mean square error to the truth, mean over the seeds")
    best: dict[str, dict[int, tuple[float, str]]] = {"ours": {}, "peer": {}}
    for side, all_rows in (("ours", list(ours())), ("peer", list(peers()))):
        shown = []
        for name, calls, run in all_rows:
            row = []
            for n in CALLS:
                spend = n if not name.startswith("FlowMatchHeun") else n + 1 - n % 2
                if n % calls and not name.startswith("FlowMatchHeun"):
                    row.append(math.nan)
                    continue
                try:
                    values = [error(run(field, x, spend), truth) for x, truth in cases]
                except (ValueError, fm.SolveError):  # fewer steps than the method needs to start
                    row.append(math.nan)
                    continue
                row.append(sum(values) / len(values))
                best[side][n] = min(best[side].get(n, (math.inf, "")), (row[-1], name))
            shown.append((name, row))
        winners = {name for _, name in best[side].values()}
        for name, row in shown:
            if side == "peer" or name in winners or "PathAdams" not in name and " on " not in name:
                print(f"  {side} {name:52s} " + " ".join(f"{value:9.2e}" for value in row), flush=True)
    print(f"  {'calls':57s} " + " ".join(f"{n:9d}" for n in CALLS))
    ratios = [best["ours"][n][0] / best["peer"][n][0] for n in CALLS]
    print(f"  {'our best over the best peer':57s} " + " ".join(f"{ratio:9.2f}" for ratio in ratios))
    for n in CALLS:
        print(f"    at {n:2d} calls: {best['ours'][n][1]} against {best['peer'][n][1]}")
    rows = adaptive(field, *cases[0])
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
    print(f"{', '.join(versions)}; {STARTS} starts, seeds {SEEDS}, float64")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for path_name, path in PATHS.items():
            for world_name, world in WORLDS.items():
                table(world(path), f"{world_name} on {path_name}")


if __name__ == "__main__":
    main()
