"""Oracles 2, 3, 4: what a path says at a time, for every shape, at both ends and in every type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm
from benchmarks.correctness.table import Case, Told
from benchmarks.correctness.worlds import column, mixture_means, normal, rates

CASES: list[Case] = []
KINDS = ("velocity", "target", "noise")


def _case(*about: Any) -> Case:
    CASES.append(Case(*about))
    return CASES[-1]


def _meta_name(given: str, to: str) -> str:
    named = {"velocity": "velocity", "target": "target", "noise": "epsilon"}
    return f"{named[given]}_to_{named[to]}"


def _meta_convert(scheduler: str, value: Tensor, t: Tensor, x: Tensor, given: str, to: str) -> Tensor:
    from flow_matching.path import AffineProbPath
    from flow_matching.path import scheduler as schedulers

    path = AffineProbPath(getattr(schedulers, scheduler)())
    argument = {"velocity": "velocity", "target": "x_1", "noise": "epsilon"}[given]
    return getattr(path, _meta_name(given, to))(**{argument: value}, x_t=x, t=t)


# --- 2: conversions -----------------------------------------------------------------------------------------------


def _conversions(name: str, shape: tuple[int, ...], batched: bool) -> None:
    case = _case(2, f"six conversions on a mixture, {name}", "largest error, of values near 1", 1e-6)
    size = shape[0]
    t = torch.linspace(0.2, 0.8, size, dtype=torch.float64) if batched else torch.tensor(0.3, dtype=torch.float64)
    x = normal(*shape)
    target, noise, speed = mixture_means("CondOT", t, x)
    truth = {"velocity": speed, "target": target, "noise": noise}

    def worst(convert: Callable[[Tensor, str, str], Tensor]) -> float:
        errors = [convert(truth[a], a, b) - truth[b] for a in KINDS for b in KINDS if a != b]
        return max(error.abs().max().item() for error in errors)

    @case.call("flowmatch", "path.convert(value, t, x, given=, to=)")
    def _() -> float:
        path = fm.AffinePath(fm.Linear())
        return worst(lambda value, a, b: path.convert(value, t, x, given=a, to=b))

    @case.call("flow_matching", "CondOTProbPath().velocity_to_target(velocity=, x_t=, t=) and the five others")
    def _() -> float:
        return worst(lambda value, a, b: _meta_convert("CondOTScheduler", value, t, x, a, b))


_conversions("one time for all", (4, 2), batched=False)
_conversions("a time for each of 8 rows of 2", (8, 2), batched=True)
_conversions("a time for each of 8 images 3 x 8 x 8", (8, 3, 8, 8), batched=True)


# --- 3: shapes ----------------------------------------------------------------------------------------------------

shapes = _case(
    3,
    "point and target for B x D, B x L x D, B x C x H x W with B equal to the last, a time a row",
    "largest error",
    1e-6,
)


def _shapes(sample: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]) -> float:
    worst = 0.0
    for shape in ((4, 4), (4, 3, 4), (4, 3, 4, 4)):
        x0, x1, t = normal(*shape, dtype=torch.float32), normal(*shape, seed=1, dtype=torch.float32), _thousandths()
        point, speed = sample(t, x0, x1)
        at = column(t, x1)
        worst = max(worst, (point - ((1 - at) * x0 + at * x1)).abs().max().item())
        if speed is not None:
            worst = max(worst, (speed - (x1 - x0)).abs().max().item())
    return worst


def _thousandths() -> Tensor:
    return torch.tensor([0.1, 0.4, 0.7, 0.9])  # diffusers knows times in a table of thousandths only


@shapes.call("flowmatch", "AffinePath(Linear()).sample(t, x0, x1)")
def _() -> float:
    return _shapes(lambda t, x0, x1: fm.AffinePath(fm.Linear()).sample(t, x0, x1)[1:3])


@shapes.call("flow_matching", "CondOTProbPath().sample(t=, x_0=, x_1=)")
def _() -> float:
    from flow_matching.path import CondOTProbPath

    def sample(t: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        drawn = CondOTProbPath().sample(t=t, x_0=x0, x_1=x1)
        return drawn.x_t, drawn.dx_t

    return _shapes(sample)


@shapes.call("TorchCFM", "ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(x0, x1, t=t)")
def _() -> float:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    matcher = ConditionalFlowMatcher(sigma=0.0)
    return _shapes(lambda t, x0, x1: matcher.sample_location_and_conditional_flow(x0, x1, t=t)[1:])


@shapes.call("diffusers", "FlowMatchEulerDiscreteScheduler().scale_noise(x1, timesteps, x0); it has no target")
def _() -> float:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()

    def sample(t: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, None]:
        near = (scheduler.timesteps[None] / 1000 - (1 - t)[:, None]).abs().argmin(1)
        return scheduler.scale_noise(x1, scheduler.timesteps[near], x0), None

    return _shapes(sample)


# --- 4: ends and types --------------------------------------------------------------------------------------------


Pick = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _targets(dtype: torch.dtype, times: tuple[float, ...], sigma_min: float, pick: Pick) -> float:
    """Largest error of the target, which is ``x1 - (1 - sigma_min) x0`` at all times."""
    errors = []
    for value in times:
        x0, x1 = normal(64, 3, dtype=dtype), normal(64, 3, seed=1, dtype=dtype)
        target, noise = pick(torch.full((64,), value, dtype=dtype), x0, x1)
        truth = x1.double() - (1 - sigma_min) * noise.double()
        errors.append(target.double() - truth)
    return _largest(errors)


def _largest(errors: list[Tensor]) -> float:
    """Largest absolute value, or NaN if there is one."""
    return torch.stack(errors).abs().max().item()


def _ours(sigma_min: float) -> Pick:
    path = fm.AffinePath(fm.Linear(sigma_min))
    return lambda t, x0, x1: (path.sample(t, x0, x1).u_t, x0)


def _metas(t: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    from flow_matching.path import CondOTProbPath

    return CondOTProbPath().sample(t=t, x_0=x0, x_1=x1).dx_t, x0


def _torchcfms(name: str, sigma: float) -> Pick:
    from torchcfm import conditional_flow_matching

    matcher = getattr(conditional_flow_matching, name)(sigma=sigma)

    def pick(t: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        _, _, target, noise = matcher.sample_location_and_conditional_flow(x0, x1, t=t, return_noise=True)
        return target, (noise if name.startswith("Target") else x0)  # Lipman's path draws a source of its own

    return pick


EPS = {torch.float64: 2**-52, torch.float32: 2**-23, torch.bfloat16: 2**-8}


def _ends(path: str, sigma_min: float, dtype: torch.dtype, bound: float) -> None:
    kind, eps = str(dtype).removeprefix("torch."), EPS[dtype]
    times = (0.99,) if dtype == torch.bfloat16 else (0.0, eps, 1 - eps, 1.0)
    when = "t = 0.99" if dtype == torch.bfloat16 else "t in 0, eps, 1 - eps, 1"
    lipman = path.startswith("Lipman")
    case = _case(4, f"training target of {path}, {kind}, {when}", "largest error, of values near 3", bound)
    case.call("flowmatch", f"AffinePath(Linear({sigma_min or ''})).sample(t, x0, x1).u_t")(
        lambda: _targets(dtype, times, sigma_min, _ours(sigma_min))
    )
    if not lipman:
        case.call("flow_matching", "CondOTProbPath().sample(t=, x_0=, x_1=).dx_t")(
            lambda: _targets(dtype, times, 0.0, _metas)
        )
    name = "TargetConditionalFlowMatcher" if lipman else "ConditionalFlowMatcher"
    case.call("TorchCFM", f"{name}(sigma={sigma_min}).sample_location_and_conditional_flow(x0, x1, t=t)")(
        lambda: _targets(dtype, times, sigma_min, _torchcfms(name, sigma_min))
    )


for dtype in EPS:
    _ends("straight paths", 0.0, dtype, 6 * EPS[dtype])
_ends("Lipman's path, sigma_min = 0.0001", 1e-4, torch.float32, 1e-4)
_ends("Lipman's path, sigma_min = 0", 0.0, torch.float32, 1e-4)
_ends("Lipman's path, sigma_min = 0", 0.0, torch.bfloat16, 6 * EPS[torch.bfloat16])

vp = _case(4, "training target of the VP path at t = 1, where its speed is infinite", "finite, or refused by name", 0.0)


def _refusal(call: Callable[[], Tensor]) -> Told:
    try:
        value = call()
    except Exception as error:  # noqa: BLE001 (any refusal will do, if it is one)
        return Told(f"refused: {type(error).__name__}", True)
    return Told("finite", True) if bool(value.isfinite().all()) else Told(f"{value.flatten()[0].item()}", False)


@vp.call("flowmatch", "AffinePath(VariancePreserving()).sample(1.0, x0, x1)")
def _() -> Told:
    return _refusal(lambda: fm.AffinePath(fm.VariancePreserving()).sample(1.0, normal(4, 2), normal(4, 2, seed=1)).u_t)


@vp.call("flow_matching", "AffineProbPath(VPScheduler()).sample(t=, x_0=, x_1=)")
def _() -> Told:
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import VPScheduler

    path = AffineProbPath(VPScheduler())
    return _refusal(lambda: path.sample(t=torch.ones(4), x_0=normal(4, 2), x_1=normal(4, 2, seed=1)).dx_t)


def _limits(schedule: str, ours: fm.Schedule, scheduler: str) -> None:
    """For normal data: at 0 the target is 0 and the noise is x; at 1 the target is x and the noise 0."""
    for end, target, noise in ((0.0, 0.0, 1.0), (1.0, 1.0, 0.0)):
        case = _case(
            4, f"six conversions on {schedule} at t = {end:g}, centred data", "largest error of the limits", 1e-6
        )
        t, x = torch.full((4,), end, dtype=torch.float64), normal(4, 4)
        _, _, alpha_dot, sigma_dot = rates(schedule, torch.tensor(end, dtype=torch.float64))
        truth = {"target": target * x, "noise": noise * x, "velocity": (alpha_dot * target + sigma_dot * noise) * x}

        def worst(convert: Callable[[Tensor, str, str], Tensor], truth: dict[str, Tensor] = truth) -> float:
            errors = [convert(truth[a], a, b) - truth[b] for a in KINDS for b in KINDS if a != b]
            return _largest(errors)

        @case.call("flowmatch", "path.convert(value, t, x, given=, to=)")
        def _(t: Tensor = t, x: Tensor = x, worst: Any = worst) -> float:
            path = fm.AffinePath(ours)
            return worst(lambda value, a, b: path.convert(value, t, x, given=a, to=b))

        @case.call(
            "flow_matching", f"AffineProbPath({scheduler}()).velocity_to_target(...) and the five others, t (B, 1)"
        )
        def _(t: Tensor = t, x: Tensor = x, worst: Any = worst) -> float:
            # Times in a column, since the case is about the ends and not about shapes.
            return worst(lambda value, a, b: _meta_convert(scheduler, value, t[:, None], x, a, b))


_limits("CondOT", fm.Linear(), "CondOTScheduler")
_limits("Cosine", fm.Cosine(), "CosineScheduler")
