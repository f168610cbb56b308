"""Truths in closed form, written down once and without the help of any of the libraries."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SPREAD", "column", "mixture_means", "normal", "product_slope", "rates", "std", "velocity"]

SPREAD = 2.0
"""Standard deviation of the Gaussian data; the source has 1."""

VP_BETA = (0.1, 20.0)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def column(t: Tensor, x: Tensor) -> Tensor:
    """Times shaped to broadcast against ``x``."""
    return t.expand(x.shape[0]).reshape(-1, *(1,) * (x.ndim - 1))


def rates(name: str, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``alpha, sigma, alpha', sigma'`` of a schedule, with the data at ``t = 1``."""
    if name == "CondOT":
        return t, 1 - t, torch.ones_like(t), -torch.ones_like(t)
    if name == "Cosine":
        h = math.pi / 2
        return (h * t).sin(), (h * (1 - t)).sin(), h * (h * (1 - t)).sin(), -h * (h * t).sin()
    low, high = VP_BETA
    s = 1 - t
    noise, speed = low * s + 0.5 * (high - low) * s**2, low + (high - low) * s
    alpha, sigma = (-0.5 * noise).exp(), (-torch.expm1(-noise)).sqrt()
    return alpha, sigma, 0.5 * speed * alpha, -0.5 * speed * alpha**2 / sigma


def product_slope(name: str, t: Tensor) -> Tensor:
    """``sigma sigma'``, finite where ``sigma'`` is not."""
    alpha, sigma, alpha_dot, sigma_dot = rates(name, t)
    return -alpha * alpha_dot if name == "VP" else sigma * sigma_dot


def std(name: str, t: float) -> float:
    """Standard deviation of ``x_t`` for Gaussian data: the exact flow scales by its ratio."""
    alpha, sigma, _, _ = rates(name, torch.tensor(t, dtype=torch.float64))
    return float((alpha**2 * SPREAD**2 + sigma**2).sqrt())


def velocity(name: str) -> Callable[..., Tensor]:
    """Exact marginal velocity ``(t, x)`` for data ``N(0, SPREAD^2 I)``."""

    def field(t: Tensor, x: Tensor) -> Tensor:
        at = column(torch.as_tensor(t, dtype=torch.float64), x)
        alpha, sigma, alpha_dot, _ = rates(name, at)
        gain = (alpha * alpha_dot * SPREAD**2 + product_slope(name, at)) / (alpha**2 * SPREAD**2 + sigma**2)
        return (gain * x).to(x.dtype)

    return field


def mixture_means(name: str, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of data, source and velocity given ``x_t = x``, for three Gaussians of standard deviation 0.5."""
    centres = _centres(*x.shape[1:])
    alpha, sigma, alpha_dot, sigma_dot = rates(name, column(t, x)[:, None])
    offset = x[:, None] - alpha * centres
    variance = 0.25 * alpha**2 + sigma**2
    log_share = (-0.5 * offset**2 / variance).flatten(2).sum(-1)
    share = log_share.softmax(1).reshape(*log_share.shape, *(1,) * (x.ndim - 1))
    target = (share * (centres + 0.25 * alpha / variance * offset)).sum(1)
    noise = (share * (sigma / variance * offset)).sum(1)
    return target, noise, alpha_dot[:, 0] * target + sigma_dot[:, 0] * noise


@functools.cache  # drawn outside the transforms under which fields are called
def _centres(*event: int) -> Tensor:
    return 1.5 * normal(3, *event, seed=7)


def as_meta(field: Callable[..., Tensor]) -> Any:
    """A field ``(t, x)`` as the model of flow_matching, which calls ``(x=, t=)`` with a scalar time."""
    from flow_matching.utils import ModelWrapper

    class Wrapped(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return field(t, x)

    return Wrapped(torch.nn.Identity())
