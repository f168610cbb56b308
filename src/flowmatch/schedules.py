r"""Schedules: the two scalar functions of an affine path, :math:`x_t = \alpha_t x_1 + \sigma_t x_0`.

**Boundary.** A path that starts at the source and ends at the data needs
:math:`\alpha_0 = 0, \sigma_0 = 1` and :math:`\alpha_1 = 1, \sigma_1 = \sigma_{min}` (zero, or small).
Two classical diffusion schedules meet them only nearly, and each says how nearly:

* variance preserving: :math:`\alpha_0 = e^{-T(1)/2} = 0.0066` for the usual
  :math:`\beta \in [0.1, 20]`, where :math:`T(s) = \int_0^s \beta`;
* variance exploding: :math:`\alpha_t = 1` throughout and :math:`\sigma_0 = \sigma_{max}`, so the
  flow starts from :math:`N(0, \sigma_{max}^2 I)` and is right up to the data's own spread.

**Derivatives.** The velocity of the path is :math:`\dot\alpha_t x_1 + \dot\sigma_t x_0`. A schedule
that gives no derivative has it taken by forward-mode differentiation of ``alpha`` and
``sigma``; the closed forms below are there for speed and for the ends, and tests hold the two
against each other.

**Diffusion time runs backwards.** Papers on diffusion put the data at time 0. With
:math:`s = 1 - t`, the forward noising law :math:`N(e^{-T(s)/2} x_1, (1 - e^{-T(s)}) I)` becomes a path
from noise to data, and :math:`\dot\sigma_t = -\alpha_t \dot\alpha_t / \sigma_t` because
:math:`\alpha^2 + \sigma^2 = 1`. That derivative is infinite at ``t = 1``, so the schedule declares the
``interval`` on which it is regular, and training and sampling stay inside it.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, section 4.1,
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.tensors import with_rate

__all__ = ["Cosine", "Linear", "Polynomial", "Schedule", "VarianceExploding", "VariancePreserving"]


class Schedule(ABC):
    r"""Scalar functions ``alpha(t)`` and ``sigma(t)`` of time, with derivatives.

    Subclass it with the two functions; ``alpha_dot`` and ``sigma_dot`` follow by forward-mode
    differentiation. ``t`` may have any shape, and the result has the same.

    Example:
        >>> class Square(Schedule):
        ...     def alpha(self, t):
        ...         return t**2
        ...     def sigma(self, t):
        ...         return 1 - t
        >>> Square().alpha_dot(torch.tensor([0.5]))
        tensor([1.])
    """

    interval: tuple[float, float] = (0.0, 1.0)
    """Closed interval on which values and derivatives are finite."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the data ``x1``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the source ``x0``."""

    def alpha_dot(self, t: Tensor) -> Tensor:
        """Time derivative of ``alpha``."""
        rate: Tensor = with_rate(self.alpha, t)[1]
        return rate

    def sigma_dot(self, t: Tensor) -> Tensor:
        """Time derivative of ``sigma``."""
        rate: Tensor = with_rate(self.sigma, t)[1]
        return rate


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


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Trigonometric schedule, a quarter turn; it keeps the variance if source and data have one.

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
        return 1 - t**self.power

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha_dot(t)


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    r"""Variance-preserving diffusion with a linear noise rate, as a path from noise to data.

    .. math:: \alpha_t = e^{-T(1-t)/2}, \quad \sigma_t = \sqrt{1 - e^{-T(1-t)}}, \quad
        T(s) = \beta_{min} s + \tfrac12 (\beta_{max} - \beta_{min}) s^2

    Nearly standard normal at ``t = 0`` (:math:`\alpha_0` = 0.0066 by default), and singular in
    speed at ``t = 1``: the interval ends at ``1 - 1e-5``, as in the paper.

    Source: Lipman et al. 2023, Eq. 18-19; Song et al. 2021, https://arxiv.org/abs/2011.13456.

    Args:
        beta_min: noise rate at the data, per unit of time.
        beta_max: noise rate at the noise.

    Raises:
        ValueError: unless ``0 < beta_min <= beta_max``.

    Example:
        >>> vp = VariancePreserving()
        >>> (vp.alpha(torch.tensor(0.3)) ** 2 + vp.sigma(torch.tensor(0.3)) ** 2).round(decimals=5)
        tensor(1.)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    interval = (0.0, 1.0 - 1e-5)

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"need 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def _log_noise(self, t: Tensor) -> Tensor:
        s = 1 - t
        return self.beta_min * s + 0.5 * (self.beta_max - self.beta_min) * s**2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._log_noise(t))

    def sigma(self, t: Tensor) -> Tensor:
        # expm1 keeps all digits near the data, where 1 - exp(-T) would lose them.
        return torch.sqrt(-torch.expm1(-self._log_noise(t)))

    def alpha_dot(self, t: Tensor) -> Tensor:
        rate = self.beta_min + (self.beta_max - self.beta_min) * (1 - t)
        return 0.5 * rate * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    r"""Variance-exploding diffusion with a geometric noise scale, as a path from noise to data.

    .. math:: \alpha_t = 1, \qquad \sigma_t = \sigma_{min} (\sigma_{max}/\sigma_{min})^{1-t}

    It starts at :math:`x_1 + \sigma_{max} x_0`: a flow on it draws its start from
    :math:`N(0, \sigma_{max}^2 I)`, which is right when ``sigma_max`` is far above the data's spread.

    Source: Lipman et al. 2023, Eq. 16-17; Song and Ermon 2019, https://arxiv.org/abs/1907.05600.

    Args:
        sigma_min: noise left at ``t = 1``, in units of the data.
        sigma_max: noise at ``t = 0``, in units of the data.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max``.

    Example:
        >>> VarianceExploding(0.5, 2.0).sigma(torch.tensor([0.0, 0.5, 1.0]))
        tensor([2.0000, 1.0000, 0.5000])
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp((1 - t) * self._log_ratio)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self._log_ratio * self.sigma(t)
