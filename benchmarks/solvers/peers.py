"""What peers make of the same number of calls: torchdiffeq, flow_matching and the schedulers of diffusers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm
from benchmarks.solvers.ours import Run


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
