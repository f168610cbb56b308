r"""Gaussian conditional paths, and the paper's Theorem 3.

Given ``x1``, let :math:`\phi_t(x_0 | x_1) = \mu_t(x_1) + \sigma_t(x_1) x_0` with
:math:`x_0 \sim N(0, I)`. Then :math:`x_t | x_1 \sim N(\mu_t, \sigma_t^2)`. The curve through a point
``x`` at time ``t`` is the one whose noise is :math:`x_0 = (x - \mu_t)/\sigma_t`, and the velocity along
it, with that noise held fixed, is

.. math:: u_t(x | x_1) = \frac{\dot\sigma_t}{\sigma_t} (x - \mu_t) + \dot\mu_t.

That is Theorem 3. **The sign.** For the paper's choice :math:`\mu_t = t x_1`,
:math:`\sigma_t = 1 - (1 - \sigma_{min}) t`, differentiate the curve itself:

.. math:: u_t = \partial_t [ t x_1 + (1 - (1 - \sigma_{min}) t) x_0 ] = x_1 - (1 - \sigma_{min}) x_0,

with a minus: the noise is *removed* on the way. Putting :math:`x_0 = (x_t - t x_1)/\sigma_t` gives the
other form, :math:`(x_1 - (1 - \sigma_{min}) x_t) / (1 - (1 - \sigma_{min}) t)`. The two are equal on paper
only: near ``t = 1`` the second divides a difference of nearly equal numbers by nearly zero. So
training uses the first (it has ``x0`` at hand), and the second is for a point ``x`` given alone.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Theorem 3, Eq. 10-15 and 20-23,
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from flowmatch.paths.base import Path
from flowmatch.tensors import (
    can_look,
    check_pair,
    check_time,
    expand_time,
    gaussian_log_prob,
    shown,
    time_dtype,
    with_rate,
)

__all__ = ["ConditionalGaussianPath", "GaussianPath"]


class ConditionalGaussianPath(Path):
    """A path that is Gaussian given ``x1`` when ``x0`` is standard normal.

    Subclasses give :meth:`_mean_std`; Theorem 3 and the conditional log-density follow.
    """

    @abstractmethod
    def _mean_std(self, t: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation given ``x1``; ``t`` comes shaped to broadcast against it."""

    def _mean_std_dot(self, t: Tensor, x1: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """``(mean, std)`` and their time derivatives."""
        value, rate = with_rate(lambda s: self._mean_std(s, x1), t)
        return value, rate

    def _position(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None) -> Tensor:
        mean, std = self._mean_std(t, x1)
        return mean + std * x0

    def conditional_velocity(self, t: Tensor | float, x: Tensor, x1: Tensor) -> Tensor:
        r"""Velocity at a point ``x`` given the data ``x1`` it heads for.

        .. math:: u_t(x | x_1) = \frac{\dot\sigma_t}{\sigma_t} (x - \mu_t) + \dot\mu_t

        Args:
            t: time, shape ``()`` or ``(B,)``.
            x: points ``(B, *event)``.
            x1: data ``(B, *event)``.

        Returns:
            Velocity ``(B, *event)``.

        Raises:
            ValueError: the standard deviation is zero at ``t``, so that no noise explains ``x``.

        Source:
            Lipman et al. 2023, Theorem 3 (Eq. 15).

        Example:
            >>> import flowmatch as fm
            >>> path = fm.AffinePath(fm.Linear(sigma_min=0.0))
            >>> path.conditional_velocity(0.5, torch.tensor([[0.5]]), torch.tensor([[1.0]]))
            tensor([[1.]])
        """
        check_pair(x, x1)
        time = expand_time(check_time(t, x1), x1)
        (mean, std), (mean_dot, std_dot) = self._mean_std_dot(time, x1)
        _refuse_zero(std, t)
        return self._fit(std_dot / std * (x - mean) + mean_dot, x1)

    def conditional_log_prob(self, t: Tensor | float, x: Tensor, x1: Tensor) -> Tensor:
        """Log-density of ``x_t = x`` given ``x1``, in nats: ``(B,)``. Raises where std is zero."""
        check_pair(x, x1)
        time = expand_time(check_time(t, x1), x1)
        mean, std = self._mean_std(time, x1.to(time_dtype(x1.dtype)))
        _refuse_zero(std, t)
        return gaussian_log_prob(x, mean, std)


class GaussianPath(ConditionalGaussianPath):
    r"""Gaussian path from any two functions ``mean(t, x1)`` and ``std(t, x1)``.

    .. math:: x_t = \mu_t(x_1) + \sigma_t(x_1) x_0, \qquad u_t = \dot\mu_t + \dot\sigma_t x_0

    A path from the source to the data has ``mean = 0, std = 1`` at ``t = 0`` and ``mean = x1, std``
    small at ``t = 1``. ``std`` may depend on ``x1`` and differ per dimension.

    Args:
        mean: ``(t, x1) -> (B, *event)``; ``t`` arrives shaped ``(B, 1, ..., 1)``, to broadcast against ``x1``.
        std: ``(t, x1) ->`` a number, or a tensor with as many dimensions as ``x1`` that broadcasts against it;
            positive inside ``(0, 1)``.

    Raises:
        TypeError: one of the two cannot be called.
        ValueError: on use, a value with fewer dimensions than ``x1``, which would line up with the wrong ones.

    Source:
        Lipman et al. 2023, Eq. 10-11.

    Example:
        >>> import flowmatch as fm
        >>> path = fm.GaussianPath(mean=lambda t, x1: t * x1, std=lambda t, x1: 1 - 0.9 * t)
        >>> path.velocity(0.5, torch.tensor([[1.0]]), torch.tensor([[3.0]]))
        tensor([[2.1000]])
    """

    def __init__(
        self,
        mean: Callable[[Tensor, Tensor], Tensor],
        std: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        for name, function in (("mean", mean), ("std", std)):
            if not callable(function):
                raise TypeError(f"{name} must be a function (t, x1) -> tensor, got {type(function).__name__}")
        self.mean, self.std = mean, std

    def _mean_std(self, t: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        return _line_up("mean", self.mean(t, x1), t, x1), _line_up("std", self.std(t, x1), t, x1)

    def __repr__(self) -> str:
        return f"GaussianPath({_name(self.mean)}, {_name(self.std)})"


def _name(function: Callable[..., Tensor]) -> str:
    return getattr(function, "__name__", repr(function))


def _line_up(name: str, value: Tensor | float, t: Tensor, x1: Tensor) -> Tensor:
    """``value`` as a tensor; a ``(B,)`` one is refused, since where ``B = D`` it would broadcast along the event."""
    value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else t.dtype, device=x1.device)
    if value.ndim not in (0, x1.ndim):
        raise ValueError(
            f"{name}(t, x1) returned shape {tuple(value.shape)} for x1 of shape {tuple(x1.shape)}; "
            "keep every dimension, for instance with keepdim=True"
        )
    return value


def _refuse_zero(std: Tensor, t: Tensor | float) -> None:
    if can_look(std) and not bool((std > 0).all()):
        raise ValueError(
            f"the path's standard deviation is zero or negative at t = {shown(t)}: x_t then equals its mean and the "
            "velocity at another point is undefined; use sigma_min > 0 or a time below 1"
        )
