r"""Schedules: the two scalar functions of an affine path, :math:`x_t = \alpha_t x_1 + \sigma_t x_0`.

**Boundary.** A path that starts at the source and ends at the data needs
:math:`\alpha_0 = 0, \sigma_0 = 1` and :math:`\alpha_1 = 1, \sigma_1 = \sigma_{min}` (zero, or small). Some classical
diffusion schedules meet them only nearly; each says how nearly.

**Derivatives.** The velocity of the path is :math:`\dot\alpha_t x_1 + \dot\sigma_t x_0`. A schedule that gives no
derivative has it taken by forward-mode differentiation of ``alpha`` and ``sigma``. Closed forms are there for speed
and for the ends; tests hold the two against each other.

**Signal to noise.** Two schedules at the same ratio :math:`\alpha_t / \sigma_t` show the same picture up to a scale,
so the ratio is the clock by which one path is read on another:

.. math:: \lambda_t = \log \frac{\alpha_t^2}{\sigma_t^2} = 2 \log \frac{\alpha_t}{\sigma_t} .

It grows with ``t`` wherever the path loses noise, so it has an inverse. A schedule that gives none has it found by
bisection: 60 halvings of the interval leave less than one rounding of float64.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, section 4.1, https://arxiv.org/abs/2210.02747;
Kingma et al., Variational Diffusion Models, 2021, section 3.2, https://arxiv.org/abs/2107.00630.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flowmatch.tensors import with_rate

__all__ = ["Schedule"]


class Schedule(ABC):
    r"""Scalar functions ``alpha(t)`` and ``sigma(t)`` of time, with derivatives and signal-to-noise ratio.

    Subclass it with the two functions; ``alpha_dot`` and ``sigma_dot`` follow by forward-mode
    differentiation, ``inverse_log_snr`` by bisection. ``t`` may have any shape, and the result has the same.

    Example:
        >>> class Square(Schedule):
        ...     def alpha(self, t):
        ...         return t**2
        ...     def sigma(self, t):
        ...         return 1 - t
        >>> Square().alpha_dot(torch.tensor([0.5]))
        tensor([1.])
        >>> Square().inverse_log_snr(torch.tensor([0.0])).round(decimals=4)  # where t^2 = 1 - t
        tensor([0.6180])
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

    def log_snr(self, t: Tensor) -> Tensor:
        r"""Log of the signal-to-noise ratio, :math:`\log(\alpha_t^2 / \sigma_t^2)`; infinite where one of them is zero.

        Source:
            Kingma et al. 2021, Eq. 3, https://arxiv.org/abs/2107.00630.
        """
        # A rounding below zero at an end is zero.
        return 2 * (self.alpha(t).clamp(min=0).log() - self.sigma(t).clamp(min=0).log())

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        """Time at which :meth:`log_snr` has a value; the nearer end of ``interval`` where it never has it.

        Found by bisection, which takes the ratio to grow with time; not differentiable.
        """
        with torch.no_grad():
            wanted = log_snr.double()
            low, high = (torch.full_like(wanted, end) for end in self.interval)
            for _ in range(60):
                middle = 0.5 * (low + high)
                above = self.log_snr(middle) > wanted
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            # The last halves meet in one number save at the ends, which halving never reaches.
            start, end = self.interval
            t = torch.where(high >= end, high, low)
            return torch.where(low <= start, low, t).to(log_snr.dtype)

    def _within(self, t: Tensor) -> Tensor:
        """Closed forms of the inverse run past the ends; times do not."""
        return t.clamp(*self.interval)
