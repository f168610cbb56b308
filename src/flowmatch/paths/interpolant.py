r"""Stochastic interpolants: paths with noise of their own, for any two ends.

.. math:: x_t = \alpha_t x_1 + \sigma_t x_0 + \gamma_t z, \qquad z \sim N(0, I), \qquad \gamma_0 = \gamma_1 = 0.

Both ends may be data. The velocity is the time derivative with the three draws held fixed,
:math:`u_t = \dot\alpha x_1 + \dot\sigma x_0 + \dot\gamma z`, so nothing changes in the proof of Theorem 1.

**What the noise buys.** Given the ends, :math:`x_t` is normal with standard deviation :math:`\gamma_t`. Hence every
:math:`p_t` inside has a density and a score, whatever the ends are,

.. math:: \nabla \log p_t(x) = E[\nabla \log N(x; \alpha x_1 + \sigma x_0, \gamma^2 I) \mid x_t = x]
    = -E[z \mid x_t = x] / \gamma_t ,

and a network that predicts ``z`` gives it.

**Brownian bridge.** A Brownian motion of scale ``s`` that is tied to both ends has mean :math:`(1 - t) x_0 + t x_1` and
variance :math:`s^2 t (1 - t)`, so :math:`\gamma_t = s \sqrt{t (1 - t)}` has the same law at every single time. Its rate
:math:`\dot\gamma = s (1 - 2t) / (2 \sqrt{t (1 - t)})` is infinite at both ends, and its mean square over the unit
interval diverges; so the path is declared regular on ``[1e-4, 1 - 1e-4]``, where the target's standard deviation stays
below ``50 s``.

Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, 2023,
Definition 1 and Theorem 8, https://arxiv.org/abs/2303.08797; Tong et al., Simulation-free Schroedinger Bridges via
Score and Flow Matching, 2024, Eq. 8, https://arxiv.org/abs/2307.03672.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from flowmatch.paths.base import Path
from flowmatch.schedules import Linear, Schedule
from flowmatch.tensors import with_rate

__all__ = ["BrownianBridge", "InterpolantPath"]

_MARGIN = 1e-4  # of the interval, at an end where the rate of gamma is infinite


class InterpolantPath(Path):
    r"""Affine path with noise of its own that vanishes at both ends.

    .. math:: x_t = \alpha_t x_1 + \sigma_t x_0 + \gamma_t z, \qquad
        u_t = \dot\alpha_t x_1 + \dot\sigma_t x_0 + \dot\gamma_t z

    Args:
        gamma: function ``t -> gamma_t`` of torch operations, zero at both ends and positive inside; its rate is
            derived. By default :math:`\sin^2(\pi t) / 4`, whose rate is zero at both ends. Where its rate is infinite
            at an end, the interval stops 1e-4 before both.
        schedule: the functions ``alpha`` and ``sigma``; by default straight lines.

    Raises:
        TypeError: ``gamma`` cannot be called, or ``schedule`` is no :class:`~flowmatch.Schedule`.
        ValueError: ``gamma`` is not zero at both ends of the interval, or not positive in the middle.

    Source:
        Albergo et al. 2023, Definition 1.

    Example:
        >>> import flowmatch as fm
        >>> path = fm.InterpolantPath(gamma=lambda t: t * (1 - t))
        >>> x0, x1, z = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[1.0, -1.0]])
        >>> path.position(0.5, x0, x1, z)
        tensor([[0.7500, 0.2500]])
    """

    needs_noise = True

    def __init__(self, gamma: Callable[[Tensor], Tensor] | None = None, schedule: Schedule | None = None) -> None:
        self.gamma = _sine_squared if gamma is None else gamma
        if not callable(self.gamma):
            raise TypeError(f"gamma must be a function t -> gamma_t, got {type(gamma).__name__}")
        self.schedule = Linear() if schedule is None else schedule
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a flowmatch Schedule such as fm.Linear(), got {schedule!r}")
        self.interval = self.schedule.interval
        start, middle, end = self.gamma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
        if max(abs(start), abs(end)) > 1e-8 or not middle > 0:
            raise ValueError(
                f"gamma must be 0 at t = 0 and t = 1 and positive inside, got {start:g}, {end:g} and, at 0.5, "
                f"{middle:g}; noise that stays at an end belongs to the source or to sigma_min"
            )
        rates = with_rate(self.gamma, torch.tensor([0.0, 1.0], dtype=torch.float64))[1]
        if not bool(torch.isfinite(rates).all()):  # as for the root of t (1 - t)
            low, high = self.interval
            self.interval = max(low, _MARGIN), min(high, 1 - _MARGIN)

    def _noise(self, t: Tensor) -> Tensor:
        return self.gamma(t)

    def _noise_both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        value, rate = with_rate(self._noise, t)
        return value, rate

    def _position(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None) -> Tensor:
        return self.schedule.alpha(t) * x1 + self.schedule.sigma(t) * x0 + self._noise(t) * cast(Tensor, z)

    def _both(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        schedule = self.schedule
        gamma, gamma_dot = self._noise_both(t)
        noise = cast(Tensor, z)  # Path._check has seen to it
        position = schedule.alpha(t) * x1 + schedule.sigma(t) * x0 + gamma * noise
        return position, schedule.alpha_dot(t) * x1 + schedule.sigma_dot(t) * x0 + gamma_dot * noise

    def config(self) -> dict[str, Any] | None:
        """The arguments that make this path again; ``None`` if ``gamma`` is a function of the user's own."""
        return {"schedule": self.schedule} if self.gamma is _sine_squared else None

    def __repr__(self) -> str:
        return f"InterpolantPath({getattr(self.gamma, '__name__', repr(self.gamma))}, {self.schedule!r})"


class BrownianBridge(InterpolantPath):
    r"""Straight line under Brownian noise that is tied to both ends.

    .. math:: x_t = (1 - t) x_0 + t x_1 + s \sqrt{t (1 - t)}\, z

    The path of Schroedinger bridges; regular on ``[1e-4, 1 - 1e-4]``.

    Args:
        sigma: the scale ``s`` of the Brownian motion, in units of the data; positive.

    Raises:
        ValueError: ``sigma`` is not positive.

    Source:
        Tong et al. 2024, Eq. 8, https://arxiv.org/abs/2307.03672.

    Example:
        >>> BrownianBridge(sigma=2.0).position(0.5, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1))
        tensor([[1.5000]])
    """

    def __init__(self, sigma: float = 1.0) -> None:
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be a positive number, got {sigma}; without noise it is fm.AffinePath()")
        self.sigma = sigma
        super().__init__(self._bridge, Linear())

    def _bridge(self, t: Tensor) -> Tensor:
        return self.sigma * (t * (1 - t)).sqrt()

    def _noise_both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma = self._bridge(t)
        return gamma, self.sigma**2 * (0.5 - t) / gamma

    def config(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    def __repr__(self) -> str:
        return f"BrownianBridge(sigma={self.sigma})"


def _sine_squared(t: Tensor) -> Tensor:
    # The sine of the nearer end's distance, which is exactly 0 at t = 1 too.
    return 0.25 * torch.sin(math.pi * torch.minimum(t, 1 - t)) ** 2
