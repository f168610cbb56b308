r"""Which Gaussian paths are linear in the data, and their coefficients.

The laws of Gaussian mixtures stay in closed form under a path of the shape

.. math:: x_t = a_t \odot x_1 + b_t + s_t \odot x_0, \qquad x_0 \sim N(0, I),

with coefficients that depend on time, and perhaps on the dimension, but not on :math:`x_1`. Every affine path is one;
a :class:`~flowmatch.GaussianPath` is one if its two functions happen to be. Nobody can read that off a function, but it
can be tried: :math:`b_t = \mu_t(0)` and :math:`a_t = \mu_t(1) - \mu_t(0)`, and then
:math:`\mu_t(y) = a_t \odot y + b_t` and :math:`\sigma_t(y) = \sigma_t(0)` must hold at points :math:`y` in general
position. A function that passes at random points without being linear would have to know them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowmatch.paths import AffinePath, ConditionalGaussianPath
from flowmatch.tensors import can_look, check_event, expand_time, shown, time_dtype

__all__ = ["Coefficients", "Form", "check_points", "check_rates", "non_linearity", "singular"]


class Coefficients(NamedTuple):
    """``x_t = scale x1 + shift + std x0``: each ``(B, 1)``, or ``(B, D)`` where it differs by dimension."""

    scale: Tensor
    shift: Tensor
    std: Tensor


def check_points(x: Tensor, event: torch.Size, device: torch.device) -> None:
    """Raise unless ``x`` is floating, of shape ``(B, *event)`` and on the field's device."""
    check_event(x)
    if x.shape[1:] != event:
        raise ValueError(f"x must have shape (B{''.join(f', {n}' for n in event)}), got {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"x is on {x.device} and the field on {device}; move one of them")


def check_rates(path: ConditionalGaussianPath, time: Tensor, *rates: Tensor) -> None:
    """Raise unless the time derivatives of a path are finite, where one may look."""
    for rate in rates:
        if can_look(rate) and not bool(rate.isfinite().all()):
            raise ValueError(
                f"{path!r} moves at infinite speed at a time asked for, {_some(time)}: its velocity has no value "
                "there; ask for times inside (0, 1), and let a schedule of your own declare its interval"
            )


class Form:
    """A path linear in the data, read through its coefficients.

    Args:
        path: the path; :func:`non_linearity` says whether it is one.
        event: shape of a point.
        even: whether ``scale`` and ``std`` are the same in every dimension.
    """

    def __init__(self, path: ConditionalGaussianPath, event: torch.Size, even: bool) -> None:
        self.path, self.even = path, even
        # An affine path takes points of any shape, so one number a row will do, and of any type.
        self.affine = isinstance(path, AffinePath)
        self.event = torch.Size([1] * len(event)) if self.affine else event

    def at(self, time: Tensor, dtype: torch.dtype) -> Coefficients:
        """Coefficients at times ``(B,)``, in ``dtype``; a user's functions are called in the type of the times."""
        zeros, ones, shaped = self._probes(time, dtype)
        (shift, std), (top, _) = self.path._mean_std(shaped, zeros), self.path._mean_std(shaped, ones)
        return self._gather(top - shift, shift, std, zeros, dtype)

    def rate(self, time: Tensor, dtype: torch.dtype) -> tuple[Coefficients, Coefficients]:
        """Coefficients at times ``(B,)`` and their time derivatives."""
        zeros, ones, shaped = self._probes(time, dtype)
        (shift, std), (shift_dot, std_dot) = self.path._mean_std_dot(shaped, zeros)
        (top, _), (top_dot, _) = self.path._mean_std_dot(shaped, ones)
        rates = self._gather(top_dot - shift_dot, shift_dot, std_dot, zeros, dtype)
        return self._gather(top - shift, shift, std, zeros, dtype), rates

    def _probes(self, time: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        kind = dtype if self.affine else time.dtype
        zeros = torch.zeros((time.shape[0], *self.event), dtype=kind, device=time.device)
        return zeros, torch.ones_like(zeros), expand_time(time.to(kind), zeros)

    def _gather(self, scale: Tensor, shift: Tensor, std: Tensor, like: Tensor, dtype: torch.dtype) -> Coefficients:
        scale, shift, std = (_rows(value, like).to(dtype) for value in (scale, shift, std))
        return Coefficients(scale[:, :1], shift, std[:, :1]) if self.even else Coefficients(scale, shift, std)


def non_linearity(path: Any, points: Tensor) -> tuple[str, bool]:
    """Why ``path`` is not linear in the data, or an empty string; and whether all dimensions have one coefficient.

    Args:
        path: the path to try.
        points: data ``(N, *event)`` in whose shape, type and device it is tried.

    Raises:
        TypeError: ``path`` is not Gaussian given ``x1``.
    """
    if not isinstance(path, ConditionalGaussianPath):
        raise TypeError(f"path must be Gaussian given x1, such as fm.AffinePath or fm.GaussianPath, got {path!r}")
    if isinstance(path, AffinePath):
        return "", True
    dtype = time_dtype(points.dtype)
    low, high = path.interval
    generator = torch.Generator().manual_seed(0)
    times = low + (high - low) * torch.tensor([0.0, 0.07, 0.31, 0.5, 0.74, 0.96, 1.0], dtype=torch.float64)
    event, form = points.shape[1:], Form(path, points.shape[1:], even=False)
    trials = 3 * torch.randn((4, times.shape[0], *event), generator=generator, dtype=torch.float64)
    tolerance = torch.finfo(dtype).eps ** 0.5
    with torch.no_grad():
        time = times.to(points.device, dtype)
        scale, shift, std = form.at(time, dtype)
        even = _constant(scale, tolerance) and _constant(std, tolerance)
        for trial in trials.to(points.device, dtype):
            mean, own_std = path._mean_std(expand_time(time, trial), trial)
            line = scale * trial.reshape(len(times), -1) + shift
            if not torch.allclose(_rows(mean, trial).expand_as(line), line, rtol=tolerance, atol=tolerance):
                return "its mean is not linear in x1, dimension by dimension", even
            if not torch.allclose(_rows(own_std, trial), std, rtol=tolerance, atol=tolerance):
                return "its std depends on x1", even
    return "", even


def singular(path: Any, time: Tensor) -> ValueError:
    """The error for a time at which the law is a sum of points."""
    return ValueError(
        f"the path's standard deviation is zero at a time asked for, {_some(time)}, on {path!r}: there the law is a "
        "sum of points and has no density, score or velocity elsewhere; use sigma_min > 0 or a time below 1"
    )


def _constant(rows: Tensor, tolerance: float) -> bool:
    return torch.allclose(rows, rows[:, :1].expand_as(rows), rtol=tolerance, atol=tolerance)


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """``value``, which broadcasts against ``like`` of ``(B, *event)``, as ``(B, 1)`` or ``(B, D)``."""
    size = like.shape[0]
    if value.ndim == 0 or math.prod(value.shape[1:]) == 1:
        return value.reshape(-1, 1).expand(size, 1)
    return value.expand(like.shape).reshape(size, math.prod(like.shape[1:]))


def _some(time: Tensor) -> str:
    return f"t = {shown(time)}" if can_look(time) else "t"
