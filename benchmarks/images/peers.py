"""Peers: how TorchCFM, Meta's flow_matching and diffusers train the network, and every way in which they sample.

Each draws its batch with its own code, as its examples do. Ways to sample are those that the library has or names for
the purpose: torchdiffeq's methods on equal steps and on those of diffusers' shift for TorchCFM, the same through
``ODESolver`` for Meta, and the schedulers for flows of diffusers with their shifts. A scheduler of Heun's method makes
an odd number of calls; it is given one more than the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm
from benchmarks.images.loop import Batch, Draw

__all__ = ["DRAWS", "PACKAGES", "Sampler", "samplers_of", "versions"]

PACKAGES = {
    "torchcfm": "torchcfm",
    "flow_matching": "flow_matching",
    "diffusers": "diffusers",
    "torchdiffeq": "torchdiffeq",
    "ot": "POT",
}
METHODS = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4}
SHIFTS = (1.0, 3.0)

Sampler = Callable[[fm.nn.UNet, Tensor], Tensor]


def versions() -> dict[str, str]:
    """Version of every peer.

    Raises:
        ImportError: a peer is missing, so that there is nothing to compare with.
    """
    found = {}
    for name, package in PACKAGES.items():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"{name} is a peer of this benchmark and cannot be imported ({error}); the head of "
                "benchmarks/peers.txt says how to install all of them"
            ) from error
        found[package] = importlib.import_module("importlib.metadata").version(package)
    importlib.import_module("diffusers.utils.logging").set_verbosity_error()
    return found


def _torchcfm(kind: str) -> Draw:
    matcher = getattr(importlib.import_module("torchcfm.conditional_flow_matching"), kind)(sigma=0.0)

    def draw(x1: Tensor) -> Batch:
        t, x_t, target = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        return x_t, t, target, torch.ones(len(x1))

    return draw


def _meta() -> Draw:
    scheduler = importlib.import_module("flow_matching.path.scheduler").CondOTScheduler()
    path = importlib.import_module("flow_matching.path").AffineProbPath(scheduler)

    def draw(x1: Tensor) -> Batch:
        sample = path.sample(t=torch.rand(len(x1)), x_0=torch.randn_like(x1), x_1=x1)
        return sample.x_t, sample.t, sample.dx_t, torch.ones(len(x1))

    return draw


def _diffusers(scheme: str) -> Draw:
    scheduler = importlib.import_module("diffusers").FlowMatchEulerDiscreteScheduler(shift=1.0)
    tools = importlib.import_module("diffusers.training_utils")

    def draw(x1: Tensor) -> Batch:
        noise, rows = torch.randn_like(x1), len(x1)
        u = tools.compute_density_for_timestep_sampling(scheme, rows, logit_mean=0.0, logit_std=1.0, mode_scale=1.29)
        place = (u * scheduler.config.num_train_timesteps).long()
        share = scheduler.sigmas[place]
        wide = share.view(-1, 1, 1, 1)
        weight = tools.compute_loss_weighting_for_sd3(scheme, share)
        return (1 - wide) * x1 + wide * noise, scheduler.timesteps[place], noise - x1, weight

    return draw


#: By name: how a batch is drawn, and whether the answer is a velocity in our direction of time.
DRAWS: dict[str, tuple[Callable[[], Draw], bool]] = {
    "torchcfm": (lambda: _torchcfm("ConditionalFlowMatcher"), True),
    "torchcfm-ot": (lambda: _torchcfm("ExactOptimalTransportConditionalFlowMatcher"), True),
    "meta": (_meta, True),
    "diffusers": (lambda: _diffusers("none"), False),
    "diffusers-logit": (lambda: _diffusers("logit_normal"), False),
}


def samplers_of(name: str, calls: int) -> dict[str, Sampler]:
    """Ways in which a peer can sample with so many calls."""
    if name.startswith("diffusers"):
        return _schedulers(calls)
    via = _by_meta if name == "meta" else _by_torchdiffeq
    return {
        f"{method}, shift {shift:g}": via(method, fm.shifted_grid(calls // own, shift).float())
        for method, own in METHODS.items()
        for shift in SHIFTS
        if not calls % own
    }


def _by_torchdiffeq(method: str, times: Tensor) -> Sampler:
    odeint = importlib.import_module("torchdiffeq").odeint

    def sample(field: fm.nn.UNet, x0: Tensor) -> Tensor:
        velocity = lambda t, x: field(t.expand(len(x)), x)  # noqa: E731
        return odeint(velocity, x0, times, method=method)[-1]

    return sample


def _by_meta(method: str, times: Tensor) -> Sampler:
    solver = importlib.import_module("flow_matching.solver").ODESolver
    wrapper = importlib.import_module("flow_matching.utils").ModelWrapper

    class Velocity(wrapper):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return self.model(t.expand(len(x)), x)

    def sample(field: fm.nn.UNet, x0: Tensor) -> Tensor:
        return solver(Velocity(field)).sample(x_init=x0, step_size=None, method=method, time_grid=times)

    return sample


def _schedulers(calls: int) -> dict[str, Sampler]:
    diffusers = importlib.import_module("diffusers")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    found: dict[str, Sampler] = {}
    for shift in SHIFTS:
        found[f"FlowMatchEuler, shift {shift:g}"] = _scheduled(
            lambda s=shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=s), calls
        )
        found[f"FlowMatchHeun, shift {shift:g}"] = _scheduled(
            lambda s=shift: diffusers.FlowMatchHeunDiscreteScheduler(shift=s), calls // 2 + 1
        )
        for order in (2, 3):
            found[f"UniPC({order}), shift {shift:g}"] = _scheduled(
                lambda s=shift, o=order: diffusers.UniPCMultistepScheduler(flow_shift=s, solver_order=o, **flow), calls
            )
        found[f"DPM++(2), shift {shift:g}"] = _scheduled(
            lambda s=shift: diffusers.DPMSolverMultistepScheduler(
                algorithm_type="dpmsolver++", flow_shift=s, solver_order=2, **flow
            ),
            calls,
        )
    return found


def _scheduled(make: Callable[[], Any], steps: int) -> Sampler:
    def sample(field: fm.nn.UNet, x0: Tensor) -> Tensor:
        scheduler, x = make(), x0
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            answer = field.net(x, t.float().expand(len(x)), return_dict=False)[0]
            x = scheduler.step(answer, t, x, return_dict=False)[0]
        return x

    return sample
