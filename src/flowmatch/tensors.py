r"""The only shared tensor helpers: shapes, times, events, conditions.

Every formula of the package is elementwise in ``x`` of shape ``(B, *event)`` and has one time a
sample, ``t`` of shape ``(B,)``. Writing ``t * x`` by hand is wrong, and silently so when ``B``
equals the last dimension of ``x``. So there is one function that shapes a time for ``x``
(:func:`expand_time`), and nothing else in the package does it.

Times are kept in float32 at least: in bfloat16, 0.999 is 1, and a path evaluated there is
another path. Formulas are computed in the wider type and rounded once to the type of ``x``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = [
    "HALF_LOG_2_PI",
    "can_look",
    "check_data",
    "check_event",
    "check_finite",
    "check_kin",
    "check_pair",
    "check_shaped",
    "check_time",
    "expand_time",
    "gaussian_log_prob",
    "mean_event",
    "shown",
    "sum_event",
    "take",
    "time_dtype",
    "with_rate",
]

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def time_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which times are kept beside states of ``dtype``: float64, else float32.

    Example:
        >>> time_dtype(torch.bfloat16), time_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def can_look(x: Tensor) -> bool:
    """Whether the values of ``x`` may be read for a check.

    Not on an accelerator, where the look would stall the queue, nor while a function is compiled or transformed, where
    there are no values yet.

    Example:
        >>> can_look(torch.ones(2)), can_look(torch.ones(0))
        (True, False)
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.numel():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


def check_event(x: Tensor, name: str = "x") -> None:
    """Raise unless ``x`` is a floating tensor with a batch dimension.

    Raises:
        TypeError: not a tensor, or an integer, boolean or complex one.
        ValueError: no batch dimension.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (B, *event), got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; convert it with {name}.float()")
    if x.ndim == 0:
        raise ValueError(f"{name} must have shape (B, *event), got a scalar; add a dimension with {name}[None]")


def check_data(data: Tensor) -> None:
    """Raise unless ``data`` is a floating tensor of finite points, at least one.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: no points, or an entry that is not finite.
    """
    check_event(data, "data")
    if not data.shape[0]:
        raise ValueError("data is empty; give at least one point")
    check_finite(data, "data")


def check_pair(x0: Tensor, x1: Tensor) -> None:
    """Raise unless ``x0`` and ``x1`` are floating, of one shape, type and device.

    Raises:
        TypeError: integer tensors or two different types.
        ValueError: two shapes or two devices.
    """
    check_event(x0, "x0")
    check_event(x1, "x1")
    if x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must have one shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")
    check_kin(x0, x1)


def check_kin(x0: Tensor, x1: Tensor) -> None:
    """Raise TypeError unless ``x0`` and ``x1`` are of one type, ValueError unless they are on one device."""
    if x0.dtype != x1.dtype:
        raise TypeError(f"x0 and x1 must have one dtype, got {x0.dtype} and {x1.dtype}; convert one with .to(x1.dtype)")
    if x0.device != x1.device:
        raise ValueError(f"x0 and x1 must be on one device, got {x0.device} and {x1.device}")


def check_shaped(value: Any, x: Tensor, who: str, what: str) -> None:
    """Raise ValueError unless what a user's ``who`` returned is a tensor of the shape of ``x``, on its device."""
    if not isinstance(value, Tensor) or value.shape != x.shape:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the {who} returned {found} for x of shape {tuple(x.shape)}; a {what} has the shape of x")
    if value.device != x.device:
        raise ValueError(f"the {who} returned a tensor on {value.device} for x on {x.device}; move one to the other")


def shown(t: Tensor | float) -> float | list[float]:
    """Times for a message: a number as it is, of a tensor the first four."""
    if isinstance(t, float):
        return t
    times: list[float] = torch.as_tensor(t).detach().flatten()[:4].tolist()
    return times


def check_time(
    t: Tensor | float,
    x: Tensor,
    low: float = 0.0,
    high: float = 1.0,
    why: str | Callable[[], str] = "t=0 is the source, t=1 the data",
) -> Tensor:
    r"""Return ``t`` as a ``(B,)`` or ``()`` tensor beside ``x``; raise if it cannot be one.

    The range is checked where :func:`can_look` allows it.

    Args:
        t: a number, or a tensor of shape ``()`` or ``(B,)``.
        x: state of shape ``(B, *event)`` whose device rules.
        low: smallest time allowed.
        high: largest time allowed.
        why: what the bounds mean, for the message, or a function that says it when it is needed.

    Raises:
        ValueError: wrong shape, a time outside ``[low, high]`` or not a number.

    Example:
        >>> check_time(0.5, torch.zeros(3, 2))
        tensor(0.5000)
        >>> check_time(1.5, torch.zeros(3, 2))
        Traceback (most recent call last):
            ...
        ValueError: t must lie in [0.0, 1.0] (t=0 is the source, t=1 the data), got values from 1.5 to 1.5
    """
    time = torch.as_tensor(t, dtype=time_dtype(x.dtype), device=x.device)
    if time.ndim > 1 or (time.ndim == 1 and time.shape[0] != x.shape[0]):
        raise ValueError(
            f"t must have shape () or (B,) = ({x.shape[0]},) for x of shape {tuple(x.shape)}, got {tuple(time.shape)}"
        )
    if can_look(time):
        low_t, high_t = (v.item() for v in time.detach().aminmax())
        if not (low <= low_t and high_t <= high):
            # A bound inside (0, 1) is known to a rounding only: 0.3 is above 0.3 in float32. 0 and 1 are exact.
            slack = 4 * torch.finfo(time.dtype).eps
            if not (low - slack * (low > 0) <= low_t and high_t <= high + slack * (high < 1)):
                meaning = why if isinstance(why, str) else why()
                raise ValueError(f"t must lie in [{low}, {high}] ({meaning}), got values from {low_t:g} to {high_t:g}")
    return time


def check_finite(x: Tensor, name: str) -> None:
    """Raise ValueError if ``x`` has a NaN or an infinite entry, saying how many and the first row."""
    bad = ~torch.isfinite(x)
    if bad.any():
        rows = bad.reshape(x.shape[0], -1).any(1).nonzero().flatten()
        raise ValueError(
            f"{name} has {int(bad.sum())} entries that are NaN or infinite, the first in row {int(rows[0])}; "
            "remove or impute them"
        )


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    r"""Shape ``t`` of shape ``()`` or ``(B,)`` as ``(B, 1, ..., 1)``, to broadcast against ``x`` of ``(B, *event)``.

    A time without dimensions is spread over the batch as well: left alone it would be rounded to the type of a
    half-precision ``x``.

    Example:
        >>> expand_time(torch.zeros(4), torch.zeros(4, 3, 8, 4)).shape
        torch.Size([4, 1, 1, 1])
    """
    return t.expand(x.shape[:1]).reshape(x.shape[0], *(1,) * (x.ndim - 1))


def sum_event(x: Tensor) -> Tensor:
    """Sum over the event: ``(B, *event) -> (B,)``, reduced in float32 at least.

    Example:
        >>> sum_event(torch.ones(2, 3, 4))
        tensor([12., 12.])
    """
    wide = x.to(time_dtype(x.dtype))
    return wide.flatten(1).sum(1) if x.ndim > 1 else wide


def mean_event(x: Tensor) -> Tensor:
    """Mean over the event: ``(B, *event) -> (B,)``, reduced in float32 at least."""
    wide = x.to(time_dtype(x.dtype))
    return wide.flatten(1).mean(1) if x.ndim > 1 else wide


def gaussian_log_prob(x: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    r"""Log-density of independent normals, summed over the event: ``(B, *event) -> (B,)``.

    .. math::
        \log p(x) = -\sum_i \left[ \tfrac12 ((x_i - \mu_i)/\sigma_i)^2 + \log \sigma_i + \tfrac12 \log 2\pi \right]

    Example:
        >>> gaussian_log_prob(torch.zeros(1, 2), 0.0, 1.0)
        tensor([-1.8379])
    """
    wide = x.to(time_dtype(x.dtype))
    scale = torch.as_tensor(std, dtype=wide.dtype, device=wide.device)
    log_terms = -0.5 * ((wide - mean) / scale) ** 2 - scale.log() - HALF_LOG_2_PI
    return sum_event(log_terms.expand_as(wide))


def with_rate(function: Callable[[Tensor], Any], t: Tensor) -> tuple[Any, Any]:
    """Value of ``function`` at ``t`` and its time derivative, in one forward-mode pass.

    Example:
        >>> with_rate(lambda t: t**2, torch.tensor([3.0]))
        (tensor([9.]), tensor([6.]))
    """
    t = t.contiguous()  # forward mode takes no overlapping tensors, such as one time expanded over a batch
    value, rate = cast(tuple[Any, Any], torch.func.jvp(function, (t,), (torch.ones_like(t),)))
    return value, rate


def take(cond: Any, index: Tensor) -> Any:
    """Index every tensor of a condition along its batch dimension; ``None`` stays ``None``.

    Example:
        >>> take({"label": torch.tensor([3, 4, 5])}, torch.tensor([2, 0]))
        {'label': tensor([5, 3])}
    """
    return pytree.tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, cond)
