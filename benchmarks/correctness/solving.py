"""Oracles 1, 5, 7, 10: solves of exact fields, changes of path, grids, batches, stochastic sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm
from benchmarks.correctness.table import Case
from benchmarks.correctness.worlds import SPREAD, as_meta, mixture_means, normal, std, velocity

CASES: list[Case] = []


def _case(*about: Any) -> Case:
    CASES.append(Case(*about))
    return CASES[-1]


def _rmse(x: Tensor, y: Tensor) -> float:
    return (x.double() - y.double()).square().mean().sqrt().item()


def _meta(field: Any, x: Tensor, grid: list[float], **options: Any) -> Tensor:
    from flow_matching.solver import ODESolver

    model = field if isinstance(field, torch.nn.Module) else as_meta(field)
    return ODESolver(velocity_model=model).sample(x_init=x, time_grid=torch.tensor(grid, dtype=x.dtype), **options)


def _diffusers(field: Callable[..., Tensor], x: Tensor, sigmas: list[float], **config: Any) -> Tensor:
    """The loop of a pipeline: time is 1 - sigma, and the model predicts noise minus data."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=sigmas)
    for timestep in scheduler.timesteps:
        output = -field(1 - timestep.double() / 1000, x)
        x = scheduler.step(output, timestep, x, generator=torch.Generator().manual_seed(1), return_dict=False)[0]
    return x


# --- 1: the Gaussian flow -----------------------------------------------------------------------------------------

euler = _case(
    1, "Euler on the CondOT field of N(0, 4), 100 steps, float32", "largest distance from Euler in float64", 1e-5
)


def _by_hand() -> tuple[Tensor, Tensor]:
    x, field = normal(64, 2, dtype=torch.float32), velocity("CondOT")
    y = x.double()
    for k in range(100):
        y = y + field(torch.tensor(k / 100), y) / 100
    return x, y


@euler.call("flowmatch", "solve(ODE(field), x, Euler(), steps=100)")
def _() -> float:
    x, y = _by_hand()
    return (fm.solve(fm.ODE(velocity("CondOT")), x, fm.Euler(), steps=100).x - y).abs().max().item()


@euler.call("flow_matching", 'ODESolver(model).sample(x, step_size=0.01, method="euler")')
def _() -> float:
    x, y = _by_hand()
    return (_meta(velocity("CondOT"), x, [0, 1], step_size=0.01, method="euler") - y).abs().max().item()


@euler.call("diffusers", "FlowMatchEulerDiscreteScheduler().set_timesteps(sigmas=[1, ..., 0.01]); step(...)")
def _() -> float:
    x, y = _by_hand()
    return (_diffusers(velocity("CondOT"), x, [1 - k / 100 for k in range(100)]) - y).abs().max().item()


adaptive = _case(1, "adaptive solve of the same at tolerance 1e-6", "rms error of the exact end", 1e-5)


@adaptive.call("flowmatch", "solve(ODE(field), x, rtol=1e-6, atol=1e-6)")
def _() -> float:
    x = normal(64, 2)
    return _rmse(fm.solve(fm.ODE(velocity("CondOT")), x, rtol=1e-6, atol=1e-6).x, SPREAD * x)


@adaptive.call("flow_matching", 'ODESolver(model).sample(x, step_size=None, method="dopri5", rtol=1e-6, atol=1e-6)')
def _() -> float:
    x = normal(64, 2)
    end = _meta(velocity("CondOT"), x, [0, 1], step_size=None, method="dopri5", rtol=1e-6, atol=1e-6)
    return _rmse(end, SPREAD * x)


# --- 1: another path at sampling time -----------------------------------------------------------------------------

OURS = {"CondOT": fm.Linear(), "Cosine": fm.Cosine(), "VP": fm.VariancePreserving()}
END = {"CondOT": 1.0, "Cosine": 1.0, "VP": 1 - 1e-5}  # the speed of VP is infinite at 1
SCHEMES = {"midpoint": (fm.Midpoint(), "midpoint"), "Heun": (fm.Heun(), "heun2"), "RK4": (fm.RK4(), "rk4")}


def _change(old: str, new: str, scheme: str) -> None:
    case = _case(
        1,
        f"field trained on {old}, sampled on {new}, {scheme}, 20 steps",
        "rms error over that of the native field (or 1e-6)",
        10.0,
    )
    ours, meta = SCHEMES[scheme]
    end, x = END[new], normal(64, 2)
    truth = std(new, end) / std(new, 0.0) * x
    written = {"VP": "VPScheduler", "CondOT": "CondOTScheduler", "Cosine": "CosineScheduler"}

    def ratio(solve: Callable[[Any], Tensor], changed: Any) -> float:
        return _rmse(solve(changed), truth) / max(_rmse(solve(velocity(new)), truth), 1e-6)

    @case.call(
        "flowmatch", f"solve(ODE(Rescheduled(field, {old} path, {new} path)), x, {type(ours).__name__}(), steps=20)"
    )
    def _() -> float:
        paths = fm.AffinePath(OURS[old]), fm.AffinePath(OURS[new])
        changed = fm.fields.Rescheduled(velocity(old), *paths)
        return ratio(lambda field: fm.solve(fm.ODE(field), x, ours, steps=20, span=(0.0, end)).x, changed)

    @case.call(
        "flow_matching",
        f"ODESolver(ScheduleTransformedModel(model, {written[old]}(), {written[new]}()))"
        f'.sample(x, step_size=0.05, method="{meta}")',
    )
    def _() -> float:
        from flow_matching.path import scheduler

        pair = (getattr(scheduler, written[name])() for name in (old, new))
        changed = scheduler.ScheduleTransformedModel(as_meta(velocity(old)), *pair)
        return ratio(lambda field: _meta(field, x, [0, end], step_size=0.05, method=meta), changed)


for pair in (("CondOT", "Cosine"), ("Cosine", "CondOT"), ("CondOT", "VP"), ("VP", "CondOT")):
    for scheme in SCHEMES:
        _change(*pair, scheme)


# --- 5: grids -----------------------------------------------------------------------------------------------------


def _grid(name: str, grid: list[float], steps: int, sigmas: list[float] | None) -> None:
    case = _case(5, f"unit velocity {name}", "error of the distance gone", 1e-6)
    x = torch.zeros(2, 3)
    way = grid[-1] - grid[0]
    unit = lambda t, x: torch.ones_like(x)  # noqa: E731

    @case.call("flowmatch", f"solve(ODE(field), x, Midpoint(), steps={steps}, span={tuple(grid)})")
    def _() -> float:
        end = fm.solve(fm.ODE(unit), x, fm.Midpoint(), steps=steps, span=(grid[0], grid[-1])).x
        return (end - way).abs().max().item()

    @case.call("flow_matching", f"ODESolver(model).sample(x, step_size={abs(way) / steps:g}, time_grid={grid})")
    def _() -> float:
        return (_meta(unit, x, grid, step_size=abs(way) / steps, method="midpoint") - way).abs().max().item()

    if sigmas:

        @case.call("diffusers", f"set_timesteps(sigmas={sigmas}); step(...)")
        def _() -> float:
            return (_diffusers(unit, x, sigmas) - way).abs().max().item()


_grid("from 0.5 to 1 in five steps", [0.5, 1.0], 5, [0.5, 0.4, 0.3, 0.2, 0.1])
_grid("from 1 to 0 in five steps", [1.0, 0.0], 5, None)
_grid("from 0 to 1 in one step", [0.0, 1.0], 1, [1.0])


# --- 7: batches ---------------------------------------------------------------------------------------------------

alone = _case(7, "adaptive solve at 1e-3, a sample alone and beside an outlier", "largest change of the sample", 1e-6)


def _alone(solve: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> float:
    field = lambda t, x: mixture_means("CondOT", torch.as_tensor(t, dtype=torch.float64), x)[2]  # noqa: E731
    x, far = normal(1, 2), torch.tensor([[40.0, -40.0]], dtype=torch.float64)
    return (solve(field, x) - solve(field, torch.cat([x, far]))[:1]).abs().max().item()


@alone.call("flowmatch", "solve(ODE(field), x, rtol=1e-3, atol=1e-3)")
def _() -> float:
    return _alone(lambda field, x: fm.solve(fm.ODE(field), x, rtol=1e-3, atol=1e-3).x)


@alone.call("flow_matching", 'ODESolver(model).sample(x, step_size=None, method="dopri5", rtol=1e-3, atol=1e-3)')
def _() -> float:
    return _alone(lambda field, x: _meta(field, x, [0, 1], step_size=None, method="dopri5", rtol=1e-3, atol=1e-3))


# --- 10: stochastic sampling --------------------------------------------------------------------------------------

stochastic = _case(
    10, "stochastic sampling of N(0, 4) with its exact field, 100 steps", "relative error of the std at the end", 0.02
)


@stochastic.call("flowmatch", "Flow.sample(n, steps=100, diffusion=form), the worst of four forms")
def _() -> float:
    flow, worst = fm.Flow(fm.GaussianField(torch.zeros(1), std=SPREAD), event_shape=(1,)), 0.0
    for form in ("constant", "sigma", "linear", "matched"):
        x = flow.sample(50_000, steps=100, diffusion=form, generator=torch.Generator().manual_seed(1))
        worst = max(worst, abs(x.std().item() / SPREAD - 1))
    return worst


@stochastic.call("diffusers", "FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)")
def _() -> float:
    x = normal(50_000, 1, dtype=torch.float32)
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler, generator = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), torch.Generator().manual_seed(1)
    scheduler.set_timesteps(sigmas=[1 - k / 100 for k in range(100)])
    for timestep in scheduler.timesteps:
        output = -velocity("CondOT")(1 - timestep.double() / 1000, x)
        x = scheduler.step(output, timestep, x, generator=generator, return_dict=False)[0]
    return abs(x.std().item() / SPREAD - 1)
