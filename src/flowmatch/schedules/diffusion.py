r"""Diffusion schedules, read as paths from noise to data.

**Diffusion time runs backwards.** Papers on diffusion put the data at time 0. With :math:`s = 1 - t`, the
variance-preserving noising law :math:`N(e^{-T(s)/2} x_1, (1 - e^{-T(s)}) I)`, where :math:`T(s) = \int_0^s \beta`,
becomes a path from noise to data, and :math:`\dot\sigma_t = -\alpha_t \dot\alpha_t / \sigma_t` because
:math:`\alpha^2 + \sigma^2 = 1`. That derivative is infinite at ``t = 1``, so such a schedule declares the
``interval`` on which it is regular, and training and sampling stay inside it.

**What the ends miss.** Two statements of the boundary hold only nearly:

* variance preserving and sub-variance preserving: :math:`\alpha_0 = e^{-T(1)/2} = 0.0066` for the usual
  :math:`\beta \in [0.1, 20]`;
* variance exploding: :math:`\alpha_t = 1` throughout and :math:`\sigma_0 = \sigma_{max}`, so the flow starts from
  :math:`N(0, \sigma_{max}^2 I)` and is right up to the data's own spread.

**The inverse of the signal-to-noise ratio.** For linear rates, :math:`T` is known from :math:`\lambda`, and ``s`` is
the positive root of :math:`\tfrac12 (\beta_{max} - \beta_{min}) s^2 + \beta_{min} s = T`, written so that nothing
cancels: :math:`s = 2 T / (\beta_{min} + \sqrt{\beta_{min}^2 + 2 (\beta_{max} - \beta_{min}) T})`.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Eq. 16-19, https://arxiv.org/abs/2210.02747;
Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021, section 3.4 and
appendix B, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.schedules.base import Schedule

__all__ = ["DiffusionCosine", "SubVariancePreserving", "VarianceExploding", "VariancePreserving"]


class _LinearRate(Schedule):
    """Shared by the schedules whose noise rate is linear in diffusion time ``s = 1 - t``."""

    beta_min: float
    beta_max: float

    def _check(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"need 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def _log_noise(self, t: Tensor) -> Tensor:
        s = 1 - t
        return self.beta_min * s + 0.5 * (self.beta_max - self.beta_min) * s**2

    def _rate(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * (1 - t)

    def _time(self, log_noise: Tensor) -> Tensor:
        """Inverse of :meth:`_log_noise`."""
        # Divided by T, so that an infinite one (no signal) gives the end and not inf / inf.
        inverse = 1 / log_noise
        root = ((self.beta_min * inverse) ** 2 + 2 * (self.beta_max - self.beta_min) * inverse).sqrt()
        return self._within(1 - 2 / (self.beta_min * inverse + root))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._log_noise(t))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self._rate(t) * self.alpha(t)


@dataclass(frozen=True)
class VariancePreserving(_LinearRate):
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
        self._check()

    def sigma(self, t: Tensor) -> Tensor:
        # expm1 keeps all digits near the data, where 1 - exp(-T) would lose them.
        return torch.sqrt(-torch.expm1(-self._log_noise(t)))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        # e^-T / (1 - e^-T) is the ratio, so T = log(1 + 1 / ratio).
        return self._time(torch.nn.functional.softplus(-log_snr, threshold=60.0))


@dataclass(frozen=True)
class SubVariancePreserving(_LinearRate):
    r"""Sub-variance-preserving diffusion with a linear noise rate: less noise than VP at the same signal.

    .. math:: \alpha_t = e^{-T(1-t)/2}, \quad \sigma_t = 1 - e^{-T(1-t)} = 1 - \alpha_t^2, \quad
        T(s) = \beta_{min} s + \tfrac12 (\beta_{max} - \beta_{min}) s^2

    Unlike VP it is regular at ``t = 1``: :math:`\dot\sigma_t = -2 \alpha_t \dot\alpha_t` is finite there.

    Source: Song et al. 2021, Eq. 29, https://arxiv.org/abs/2011.13456.

    Args:
        beta_min: noise rate at the data, per unit of time.
        beta_max: noise rate at the noise.

    Raises:
        ValueError: unless ``0 < beta_min <= beta_max``.

    Example:
        >>> sub = SubVariancePreserving()
        >>> (sub.alpha(torch.tensor(0.3)) ** 2 + sub.sigma(torch.tensor(0.3))).round(decimals=5)
        tensor(1.)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        self._check()

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._log_noise(t))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -2 * self.alpha(t) * self.alpha_dot(t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        # r = a / (1 - a^2) is a quadratic in a; sigma = a / r is what T needs where there is little noise.
        ratio = (0.5 * log_snr).exp()
        sigma = 2 / (1 + (1 + 4 * ratio**2).sqrt())
        little = -torch.log1p(-sigma.clamp(max=0.75))
        much = -2 * (ratio * sigma).log()
        return self._time(torch.where(sigma < 0.75, little, much))


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

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._within(1 - (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio)


@dataclass(frozen=True)
class DiffusionCosine(Schedule):
    r"""The cosine schedule of improved diffusion: a quarter turn that stops short of the data by an offset.

    .. math::
        \alpha_t = \frac{\cos\theta_s}{\cos\theta_0}, \quad \sigma_t = \sqrt{1 - \alpha_t^2}, \quad
        \theta_s = \frac{\pi}{2} \frac{s + o}{1 + o}, \quad s = 1 - t

    For ``offset = 0`` it would be :class:`~flowmatch.Cosine`. The offset gives the noise a sudden start at the data,
    :math:`\sigma_t \propto \sqrt{1 - t}`, so the interval ends at ``1 - 1e-5``.

    Source: Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, Eq. 17,
    https://arxiv.org/abs/2102.09672.

    Args:
        offset: the ``o`` above; 0.008 in the paper.

    Raises:
        ValueError: ``offset`` is not a positive number.

    Example:
        >>> DiffusionCosine().alpha(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """

    offset: float = 0.008
    interval = (0.0, 1.0 - 1e-5)

    def __post_init__(self) -> None:
        if not 0 < self.offset < math.inf:
            raise ValueError(f"offset must be a positive number, got {self.offset}; without one it is fm.Cosine()")

    @property
    def _turn(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    @property
    def _start(self) -> float:
        return self._turn * self.offset

    def alpha(self, t: Tensor) -> Tensor:
        # cos(theta) as the sine of the complement, which is exactly 0 at t = 0.
        return torch.sin(self._turn * t) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        # cos^2(theta_0) - cos^2(theta) as a product, which keeps all digits near the data.
        gone = self._turn * (1 - t)
        return (torch.sin(gone) * torch.sin(gone + 2 * self._start)).sqrt() / math.cos(self._start)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self._turn * torch.cos(self._turn * t) / math.cos(self._start)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._within(torch.asin(math.cos(self._start) * torch.sigmoid(log_snr).sqrt()) / self._turn)
