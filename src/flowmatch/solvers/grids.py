r"""Grids: where a solve stops to look. Each is a function that returns times for ``solve(grid=...)``.

A grid of ``n`` steps has ``n + 1`` times, the first and the last of the span exactly. Reversed with
``.flip(0)`` it runs the other way.

* Uniform steps suit a field that changes evenly.
* Cosine steps are small at both ends, where fields of bounded data turn fastest.
* Shifted steps, :math:`t = u / (s + (1 - s) u)`, spend more of them at the noise (``s > 1``) or at the data.
* Under a schedule, steps may be even in the frames of :class:`~flowmatch.PathAdams`, a quarter turn or the straight
  path, whatever the path's own time is.
* Under a schedule, steps may be even in the log-ratio of signal to noise, :math:`\lambda = \log (\alpha^2 / \sigma^2)`,
  or in a power of the noise level :math:`\sigma / \alpha`, as in EDM. Both are infinite at the ends of a path, so they
  run between two given values, and the ends of the path are joined on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

__all__ = ["cosine_grid", "edm_grid", "log_snr_grid", "path_grid", "shifted_grid", "uniform_grid"]


class Ratio(Protocol):
    """What a grid needs of a schedule: :class:`~flowmatch.Schedule` has it."""

    interval: tuple[float, float]

    def log_snr(self, t: Tensor, /) -> Tensor: ...

    def inverse_log_snr(self, log_snr: Tensor, /) -> Tensor: ...


def uniform_grid(steps: int, span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Equal steps.

    Example:
        >>> uniform_grid(4)
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return _stretch(_shares(steps), span)


def cosine_grid(steps: int, span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    r"""Small steps at both ends, :math:`t = (1 - \cos \pi u) / 2`: the points of Chebyshev and Clenshaw-Curtis.

    Example:
        >>> cosine_grid(4)
        tensor([0.0000, 0.1464, 0.5000, 0.8536, 1.0000], dtype=torch.float64)
    """
    return _stretch(torch.sin(_shares(steps) * (torch.pi / 2)) ** 2, span)


def shifted_grid(steps: int, shift: float = 3.0, span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    r"""Equal steps pushed to one end, :math:`t = u / (s + (1 - s) u)`: more at the noise for a shift above 1.

    Args:
        steps: number of steps.
        shift: the ``s`` above, positive; 1 is uniform.
        span: first and last time.

    Source:
        Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024, Eq. 23, with their
        time read backwards, https://arxiv.org/abs/2403.03206.

    Example:
        >>> shifted_grid(4, shift=3.0)
        tensor([0.0000, 0.1000, 0.2500, 0.5000, 1.0000], dtype=torch.float64)
    """
    if not 0 < shift < float("inf"):
        raise ValueError(f"shift must be a positive number, got {shift}")
    shares = _shares(steps)
    return _stretch(shares / (shift + (1 - shift) * shares), span)


def edm_grid(
    steps: int,
    schedule: Ratio,
    rho: float = 7.0,
    noise: tuple[float, float] = (80.0, 0.002),
    span: tuple[float, float] | None = None,
) -> Tensor:
    r"""Equal steps in a power of the noise level, between the ends of the path.

    .. math:: \frac{\sigma}{\alpha} = \Big( \nu_0^{1/\rho} + u \, (\nu_1^{1/\rho} - \nu_0^{1/\rho}) \Big)^\rho

    Args:
        steps: number of steps, at least 2.
        schedule: the path's schedule.
        rho: the power; 7 in the paper, large for even steps in the log.
        noise: noise level :math:`\sigma / \alpha` at the second time and of the last but one.
        span: first and last time; the schedule's interval by default.

    Source:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, Eq. 5,
        https://arxiv.org/abs/2206.00364.
    """
    if not 0 < rho < float("inf"):
        raise ValueError(f"rho must be a positive number, got {rho}")
    first, last = noise
    if not 0 < last < first < float("inf"):
        raise ValueError(f"noise must fall from a positive level to a lower one, got {noise}")

    def level(shares: Tensor) -> Tensor:
        root: Tensor = first ** (1 / rho) + shares * (last ** (1 / rho) - first ** (1 / rho))
        return root.log() * (-2 * rho)

    return _by_ratio(steps, schedule, level, span)


def log_snr_grid(
    steps: int,
    schedule: Ratio,
    between: tuple[float, float] = (-6.0, 6.0),
    span: tuple[float, float] | None = None,
) -> Tensor:
    r"""Equal steps in the log of the signal-to-noise ratio, between the ends of the path.

    Args:
        steps: number of steps, at least 2.
        schedule: the path's schedule.
        between: :math:`\log(\alpha^2 / \sigma^2)` at the second time and at the last but one.
        span: first and last time; the schedule's interval by default.
    """
    low, high = between
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"between must be two growing finite numbers, got {between}")
    return _by_ratio(steps, schedule, lambda shares: low + (high - low) * shares, span)


def path_grid(
    steps: int,
    schedule: Ratio,
    spread: float = 1.0,
    frame: Literal["angle", "straight"] = "angle",
    span: tuple[float, float] | None = None,
    crowd: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    r"""Steps that are equal on the quarter turn :math:`\tan\theta = c \alpha / \sigma`, or on the straight path.

    With ``crowd=(a, b)`` they are equal in ``u`` where the frame's own time, from 0 to 1, is

    .. math:: \frac{u^a}{u^a + (1 - u)^b} ,

    so a power above 1 makes the steps at that end smaller. Trained networks change fastest at both ends; for them
    ``path_grid(steps, schedule, 0.5, "straight", crowd=(1.25, 1.25))`` is a good choice at 4 to 32 calls.

    Args:
        steps: number of steps.
        schedule: the path's schedule.
        spread: the ``c`` above; below 1 steps are smaller at the data, above 1 at the noise.
        frame: ``"angle"`` or ``"straight"``, where :math:`\tau = c \alpha / (c \alpha + \sigma)`.
        span: first and last time; the schedule's interval by default.
        crowd: powers ``(a, b)`` at the noise and at the data, positive.

    Example:
        >>> from flowmatch.schedules import Cosine, Linear
        >>> path_grid(4, Cosine())  # the cosine path is a quarter turn itself
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
        >>> path_grid(2, Linear())
        tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    if not 0 < spread < float("inf"):
        raise ValueError(f"spread must be a positive number, got {spread}")
    if frame not in ("angle", "straight"):
        raise ValueError(f"frame must be angle or straight, got {frame!r}")
    if not all(0 < power < float("inf") for power in crowd):
        raise ValueError(f"crowd must hold two positive powers, got {crowd}")
    ends = torch.tensor(schedule.interval if span is None else span, dtype=torch.float64)
    shares = _shares(steps)
    first, last = crowd if ends[0] <= ends[1] else crowd[::-1]
    shares = shares**first / (shares**first + (1 - shares) ** last)
    half = 0.5 * schedule.log_snr(ends) + math.log(spread)
    if frame == "angle":
        places = torch.atan(half.exp())
        levels = _stretch(shares, (float(places[0]), float(places[1]))).tan().log()
    else:
        levels = _stretch(shares, (float(half[0].sigmoid()), float(half[1].sigmoid()))).logit()
    grid = schedule.inverse_log_snr(2 * (levels - math.log(spread))).clone()
    grid[0], grid[-1] = ends
    return grid


def _shares(steps: int) -> Tensor:
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be a whole number, at least 1, got {steps!r}")
    return torch.arange(int(steps) + 1, dtype=torch.float64) / int(steps)


def _stretch(shares: Tensor, span: tuple[float, float]) -> Tensor:
    start, end = span
    if start == end or not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"span must hold two different finite times, got {span}")
    grid: Tensor = start + (end - start) * shares
    grid[0], grid[-1] = start, end
    return grid


def _by_ratio(
    steps: int, schedule: Ratio, level: Callable[[Tensor], Tensor], span: tuple[float, float] | None
) -> Tensor:
    start, end = schedule.interval if span is None else span
    if not start < end:
        raise ValueError(f"span must run from the noise to the data, got {(start, end)}; flip the grid to go back")
    if _shares(steps).shape[0] == 2:
        return torch.tensor([start, end], dtype=torch.float64)
    shares = _shares(steps - 2) if steps > 2 else torch.tensor([0.5], dtype=torch.float64)
    inner = schedule.inverse_log_snr(level(shares))
    # Levels that the path only has beyond its ends would stand on the ends themselves.
    if not (start < float(inner[0]) and float(inner[-1]) < end and bool((inner.diff() > 0).all())):
        raise ValueError(
            f"the times between must lie inside ({start:g}, {end:g}) and grow, got {inner[0]:g} to {inner[-1]:g}: on "
            f"{schedule!r} choose levels that it has, or fewer steps"
        )
    ends = torch.tensor([start, end], dtype=torch.float64)
    return torch.cat([ends[:1], inner, ends[1:]])
