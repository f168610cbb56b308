r"""Schedules of flow matching: paths that start at the source and end at the data exactly.

The signal-to-noise ratio of each is inverted in closed form. With :math:`r = \alpha / \sigma = e^{\lambda/2}`:

* linear: :math:`t / (1 - (1 - \sigma_{min}) t) = r` gives :math:`t = 1 / (1/r + 1 - \sigma_{min})`;
* cosine: :math:`\tan(\pi t / 2) = r`;
* polynomial: :math:`t^n / (1 - t^n) = r` gives :math:`t^n = 1 / (1 + 1/r)`, the logistic function of
  :math:`\lambda / 2`.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, section 4.1, https://arxiv.org/abs/2210.02747;
Albergo and Vanden-Eijnden, Building Normalizing Flows with Stochastic Interpolants, 2023,
https://arxiv.org/abs/2209.15571.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.schedules.base import Schedule

__all__ = ["Cosine", "Linear", "Polynomial", "Trigonometric"]


@dataclass(frozen=True)
class Linear(Schedule):
    r"""The paper's optimal-transport schedule, straight lines at constant speed ("CondOT").

    .. math:: \alpha_t = t, \qquad \sigma_t = 1 - (1 - \sigma_{min}) t

    Source: Lipman et al. 2023, Eq. 20. With ``sigma_min=0`` it is rectified flow.

    Args:
        sigma_min: standard deviation left at ``t = 1``, in units of the data; in ``[0, 1)``.

    Raises:
        ValueError: ``sigma_min`` outside ``[0, 1)``.

    Example:
        >>> Linear(sigma_min=0.1).sigma(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.1000])
    """

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"sigma_min must lie in [0, 1), got {self.sigma_min}")

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        # Not 1 - (1 - sigma_min) t: this form is exactly sigma_min at t = 1 in every dtype.
        return (1 - t) + self.sigma_min * t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_min - 1)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._within(1 / ((-0.5 * log_snr).exp() + (1 - self.sigma_min)))


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Quarter turn, also called trigonometric; it keeps the variance if source and data have one.

    .. math:: \alpha_t = \sin(\pi t / 2), \qquad \sigma_t = \cos(\pi t / 2)

    Source: Albergo and Vanden-Eijnden, Building Normalizing Flows with Stochastic Interpolants, 2023,
    https://arxiv.org/abs/2209.15571.

    Example:
        >>> Cosine().sigma(torch.tensor([0.0, 1.0]))
        tensor([1., 0.])
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        # The sine of the complement is exactly 0 at t = 1, where the cosine is -4e-8 in float32.
        return torch.sin((1 - t) * (math.pi / 2))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self.sigma(t) * (math.pi / 2)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.alpha(t) * (-math.pi / 2)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        # Both arguments are halves of the ratio, so that neither is infinite where the other is zero.
        return self._within(torch.atan2((0.25 * log_snr).exp(), (-0.25 * log_snr).exp()) * (2 / math.pi))


#: The name of :class:`Cosine` where paths are interpolants and not diffusions.
Trigonometric = Cosine


@dataclass(frozen=True)
class Polynomial(Schedule):
    r"""Straight lines run at a changing speed.

    .. math:: \alpha_t = t^n, \qquad \sigma_t = 1 - t^n

    Args:
        power: the exponent ``n >= 1``; 1 gives :class:`Linear`.

    Raises:
        ValueError: ``power < 1``, where the speed at ``t = 0`` would be infinite.

    Example:
        >>> Polynomial(power=2.0).alpha(torch.tensor(0.5))
        tensor(0.2500)
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.power < math.inf:
            raise ValueError(f"power must be a finite number >= 1, got {self.power}")

    def alpha(self, t: Tensor) -> Tensor:
        return t**self.power

    def sigma(self, t: Tensor) -> Tensor:
        # Near t = 1 the difference 1 - t^n keeps the digits of 1 and not its own; near 0 the logarithm has no rate.
        near = 0.0 - torch.expm1(self.power * t.clamp(min=0.25).log())
        return torch.where(t < 0.5, 1 - t**self.power, near)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha_dot(t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._within(torch.sigmoid(0.5 * log_snr) ** (1 / self.power))
