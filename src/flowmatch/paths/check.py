r"""The laws of a path, checked on the path that a user wrote.

1. **Source.** :math:`\phi_0(x_0, x_1) = \sigma_0 x_0`, where :math:`\sigma_0` is the path's ``source_std``.
2. **Data.** :math:`\phi_1(x_0, x_1) \approx x_1`, up to the noise that is meant to be left.
3. **Velocity.** It is the time derivative of the position: here held against central differences of the position in
   float64, whose own error at step ``h`` is :math:`O(h^2)` from the formula and :math:`O(\epsilon / h)` from rounding.
4. **Finite.** Position and velocity have no NaN and no infinity on the interval, its ends included.
5. **Spread.** The standard deviation of a Gaussian path is positive inside ``(0, 1)``: where it is zero, no density and
   no velocity at another point exist, and where it is negative it has passed through zero.
6. **Rows.** A sample's position depends on its own row alone. The mistake that breaks it is a time of shape ``(B,)``
   that broadcasts along the event, which no shape betrays where ``B`` equals the last dimension.

A formula that breaks one of the first two trains without complaint and samples another law than the data's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.paths.base import Path
from flowmatch.paths.gaussian import ConditionalGaussianPath
from flowmatch.randomness import randn
from flowmatch.tensors import check_finite, check_pair, check_time, expand_time

__all__ = ["PathError", "PathReport", "check_path"]

_STEP = 1e-5  # of the central difference: h^2 and eps / h are both near 1e-10


class PathError(ValueError):
    """A path breaks one of its laws; the message says which, where and by how much."""


@dataclass(frozen=True)
class PathReport:
    """What was measured, each relative to the size of the pairs.

    Attributes:
        source: distance of the position at ``t = 0`` from ``source_std * x0``, a root mean square.
        data: distance of the position at ``t = 1`` from ``x1``, a root mean square.
        velocity: largest difference of the velocity from the slope of the position.
        velocity_at: time of that difference.
        rows: largest change of a row when the others change.
    """

    source: float
    data: float
    velocity: float
    velocity_at: float
    rows: float


@torch.no_grad()
def check_path(
    path: Path,
    x0: Tensor | None = None,
    x1: Tensor | None = None,
    *,
    source_tol: float = 0.15,
    data_tol: float = 0.15,
    velocity_tol: float = 1e-5,
    times: int = 65,
    generator: torch.Generator | None = None,
) -> PathReport:
    r"""Hold a path against its laws, and raise on the first that it breaks.

    Args:
        path: the path to check.
        x0: source samples ``(B, *event)``; by default 8 draws of dimension 8, so that a time that broadcasts along the
            event is found.
        x1: data samples ``(B, *event)``.
        source_tol: how far the start may be from the source, relative to the root mean square of the pair.
        data_tol: the same for the data; ``sigma_min`` up to here passes.
        velocity_tol: the same for the velocity, relative to its own root mean square at least one.
        times: number of times looked at, equally spaced over the interval.
        generator: source of randomness of the draws.

    Returns:
        The :class:`PathReport` of a path that passed.

    Raises:
        TypeError: ``path`` is no :class:`~flowmatch.Path`.
        ValueError: fewer than 3 ``times``, or samples that are not finite or do not fit.
        PathError: a law is broken; the message names the law, the worst time, the error and the usual cause.

    Source:
        Lipman et al. 2023, section 4: the boundary conditions of a conditional flow.

    Example:
        >>> import flowmatch as fm
        >>> fm.check_path(fm.AffinePath(fm.Cosine())).data < 1e-6
        True
        >>> fm.check_path(fm.FunctionPath(lambda t, x0, x1: x0 + t * x1))
        Traceback (most recent call last):
            ...
        flowmatch.paths.check.PathError: FunctionPath(<lambda>) does not end at the data: ...
    """
    if not isinstance(path, Path):
        raise TypeError(f"path must be a flowmatch Path such as fm.FunctionPath(phi), got {type(path).__name__}")
    if times < 3:
        raise ValueError(f"times must be at least 3, for one inside the interval, got {times}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    like = x1 if x1 is not None else x0
    shape = (8, 8) if like is None else tuple(like.shape)
    x0, x1 = (
        randn(shape, generator, dtype=torch.float64) + shift if given is None else given.detach().double()
        for given, shift in ((x0, 0.0), (x1, 0.5))
    )
    check_pair(x0, x1)
    for name, given in (("x0", x0), ("x1", x1)):
        if len(given):
            check_finite(given, name)
    z = randn(shape, generator, x1.device, torch.float64)
    low, high = path.interval
    grid = torch.linspace(low, high, times, dtype=torch.float64).tolist()

    def position(t: float) -> Tensor:
        return path.position(t, x0, x1, z if path.needs_noise else None)

    scale = _rms(torch.cat([x0, x1])) or 1.0
    values = {t: position(t) for t in grid}
    velocities = {t: path.velocity(t, x0, x1, z if path.needs_noise else None) for t in grid}
    for what, found in (("position", values), ("velocity", velocities)):
        for t, value in found.items():
            if not bool(torch.isfinite(value).all()):
                raise PathError(
                    f"the {what} of {path!r} is not finite at t = {t:g}; make the formula finite there, or set "
                    "path.interval to where it is"
                )
    if isinstance(path, ConditionalGaussianPath):
        for t in grid[1:-1]:
            lowest = float(path._mean_std(expand_time(check_time(t, x1), x1), x1)[1].amin()) if x1.numel() else 1.0
            if not lowest > 0:
                raise PathError(
                    f"the standard deviation of {path!r} is {lowest:.3g} at t = {t:g}; it has to be positive for all "
                    "t inside (0, 1)"
                )
    source = _rms(position(0.0) - path.source_std * x0) / (scale * max(1.0, path.source_std))
    if source > source_tol:
        raise PathError(
            f"{path!r} does not start at the source: at t = 0 it is {source:.3g} away from {path.source_std:g} * x0, "
            f"relative to the pair (allowed {source_tol:g}); a path needs phi(0, x0, x1) = x0"
        )
    data = _rms(position(1.0) - x1) / scale
    if data > data_tol:
        raise PathError(
            f"{path!r} does not end at the data: at t = 1 it is {data:.3g} away from x1, relative to the pair (allowed "
            f"{data_tol:g}); a path needs phi(1, x0, x1) close to x1"
        )
    worst, worst_at = 0.0, low
    speed = max(1.0, max(_rms(value) for value in velocities.values()))
    for t in grid[1:-1]:
        h = min(_STEP, 0.01 * min(t, 1 - t))
        slope = (position(t + h) - position(t - h)) / (2 * h)
        # Near a singular end the slope itself is known less well: its error grows as the velocity does.
        error = _largest(velocities[t] - slope) / max(speed, _rms(velocities[t]))
        if error > worst:
            worst, worst_at = error, t
    if worst > velocity_tol:
        raise PathError(
            f"the velocity of {path!r} is not the time derivative of its position: they differ by {worst:.3g} at t = "
            f"{worst_at:g} (allowed {velocity_tol:g}); leave the closed form out and it is derived, or look for a sign"
        )
    rows = _row_dependence(path, x0, x1, z)
    if rows > 1e-9:
        raise PathError(
            f"in {path!r} a sample's position depends on other rows of the batch (change {rows:.3g}); let the time "
            "keep its shape (B, 1, ..., 1), and reduce over the event with keepdim=True"
        )
    return PathReport(source, data, worst, worst_at, rows)


def _row_dependence(path: Path, x0: Tensor, x1: Tensor, z: Tensor) -> float:
    """Largest difference between a batch with its own times and each of its rows alone."""
    low, high = path.interval
    t = torch.linspace(low + 0.2 * (high - low), low + 0.8 * (high - low), len(x0), dtype=torch.float64)
    noise = z if path.needs_noise else None
    together = path.position(t, x0, x1, noise)
    alone = [
        path.position(t[b : b + 1], x0[b : b + 1], x1[b : b + 1], None if noise is None else noise[b : b + 1])
        for b in range(len(x0))
    ]
    return _largest(together - torch.cat(alone)) / (_rms(together) or 1.0) if alone else 0.0


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
