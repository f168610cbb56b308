r"""Weightings: how much the error at each time counts.

**One error, four names.** Let a network predict velocity, target, noise or score on an affine path, and let
:math:`\delta = \alpha\dot\sigma - \dot\alpha\sigma`. At a given point the errors of the four are one number in four
units (:meth:`flowmatch.AffinePath.convert` is linear), with

.. math:: |\hat v - v| : |\hat x_1 - x_1| : |\hat x_0 - x_0| : |\hat s - s|
    \;=\; |\delta| : \sigma : \alpha : \alpha / \sigma .

So a plain squared error in one unit is a weighted one in another: training a noise network without weights is training
a velocity network with weight :math:`\alpha^2 / \delta^2`. All weightings here are formulas on one of the four errors,
turned into the unit that the network works in.

**What a weighting cannot change.** The minimiser is the same for every positive weight, since each time has its own
field. With a network that cannot do everything, the weights say where it should be right.

Source: Kingma and Gao, Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation, 2023, sections 2-3
and appendix D, https://arxiv.org/abs/2303.00848.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from flowmatch.nn import TimeEmbedding
from flowmatch.paths import AffinePath, Kind

__all__ = ["Implied", "LearnedUncertainty", "MinSNR", "PowerSNR", "Sigmoid", "Weighting"]

_STEP = 1e-5


class Weighting(ABC):
    """Weight of the squared error at a time, whatever the network predicts.

    Subclasses give :attr:`of` and :meth:`weight`, a formula on the squared error of that kind.
    """

    of: Kind = "velocity"
    """The error that the formula is written for."""

    @abstractmethod
    def weight(self, path: AffinePath, t: Tensor) -> Tensor:
        """Factor ``(B,)`` of the squared error of kind :attr:`of`."""

    def __call__(self, values: Tensor, path: AffinePath, t: Tensor, kind: Kind) -> Tensor:
        """Weigh squared errors ``(B,)`` of a network that predicts ``kind``, made at times ``(B,)``.

        The error of a score counts in units of the noise, ``sigma * score``, which is finite where the score is not.
        """
        unit: Kind = "noise" if kind == "score" else kind
        # A step inside, since at the ends themselves a weight may be 0 times infinity.
        inside = t.clamp(_STEP, 1 - _STEP)
        ratio = error_size(path, inside, self.of) / error_size(path, inside, unit)
        return values * (self.weight(path, inside) * ratio**2).to(values.dtype)


def error_size(path: AffinePath, t: Tensor, kind: Kind) -> Tensor:
    r"""Size of one error in the unit of ``kind``, ``(B,)``: the four numbers of the module's formula."""
    schedule = path.schedule
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "velocity":
        return (alpha * schedule.sigma_dot(t) - schedule.alpha_dot(t) * sigma).abs()
    return {"target": sigma, "noise": alpha, "score": alpha / sigma}[kind]


@dataclass(frozen=True)
class Implied(Weighting):
    r"""The weighting that a plain squared error of another kind implies.

    .. math:: \ell = |\hat y - y|^2 \quad \text{for the quantity } y \text{ of kind } \mathtt{of}

    Args:
        of: ``"velocity"``, ``"target"``, ``"noise"`` or ``"score"``.

    Raises:
        ValueError: unknown kind.

    Source:
        Kingma and Gao 2023, appendix D.

    Example:
        >>> import flowmatch as fm
        >>> loss = Implied("noise")(torch.ones(1), fm.AffinePath(), torch.tensor([0.5]), "velocity")
        >>> loss  # alpha^2 / delta^2 = 0.25 / 1
        tensor([0.2500])
    """

    of: Kind = "velocity"

    def __post_init__(self) -> None:
        if self.of not in get_args(Kind):
            raise ValueError(f"of must be one of {', '.join(get_args(Kind))}, got {self.of!r}")

    def weight(self, path: AffinePath, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class PowerSNR(Weighting):
    r"""A power of the signal-to-noise ratio, on the error of the target.

    .. math:: w = \mathrm{SNR}^p, \qquad \mathrm{SNR} = \alpha^2 / \sigma^2

    ``p = 0`` is the plain error of the target, ``p = 1`` that of the noise.

    Args:
        power: the exponent ``p``.

    Raises:
        ValueError: ``power`` is not finite.

    Source:
        Salimans and Ho 2022, section 4, https://arxiv.org/abs/2202.00512.
    """

    power: float = 1.0
    of = "target"

    def __post_init__(self) -> None:
        if not math.isfinite(self.power):
            raise ValueError(f"power must be a finite number, got {self.power}")

    def weight(self, path: AffinePath, t: Tensor) -> Tensor:
        return (path.schedule.alpha(t) / path.schedule.sigma(t)) ** (2 * self.power)


@dataclass(frozen=True)
class MinSNR(Weighting):
    r"""The signal-to-noise ratio cut off from above, on the error of the target.

    .. math:: w = \min(\mathrm{SNR}, \gamma) \quad\text{or, softly,}\quad
        w = \frac{\gamma\, \mathrm{SNR}}{\gamma + \mathrm{SNR}}

    Args:
        gamma: the cut; 5 in the paper.
        soft: whether the cut is gradual.

    Raises:
        ValueError: ``gamma`` is not positive.

    Source:
        Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023, Eq. 8,
        https://arxiv.org/abs/2303.09556; the soft form: Crowson et al. 2024, https://arxiv.org/abs/2401.11605.

    Example:
        >>> import flowmatch as fm
        >>> t = torch.tensor([0.5, 1.0])  # ratios 1 and infinity
        >>> MinSNR(gamma=5.0)(torch.ones(2), fm.AffinePath(), t, "target")
        tensor([1., 5.])
    """

    gamma: float = 5.0
    soft: bool = False
    of = "target"

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be a positive number, got {self.gamma}")

    def weight(self, path: AffinePath, t: Tensor) -> Tensor:
        ratio = path.schedule.log_snr(t).exp()
        return self.gamma / (1 + self.gamma / ratio) if self.soft else ratio.clamp(max=self.gamma)


@dataclass(frozen=True)
class Sigmoid(Weighting):
    r"""A logistic function of the log signal-to-noise ratio, on the error of the noise per unit of that ratio.

    .. math:: w = \frac{\dot\lambda_t}{1 + e^{\lambda_t - b}}, \qquad \lambda = \log \mathrm{SNR}, \qquad
        \dot\lambda = 2 \Big( \frac{\dot\alpha}{\alpha} - \frac{\dot\sigma}{\sigma} \Big)

    The factor :math:`\dot\lambda` makes it the same integral over :math:`\lambda` on every schedule. It keeps the noisy
    times, where the broad shape is decided, and lets go of the nearly clean ones.

    Args:
        bias: the ``b`` above, the ratio at which the weight is one half.

    Raises:
        ValueError: ``bias`` is not finite.

    Source:
        Kingma and Gao 2023, section 2 for the form; Hoogeboom et al., Simpler Diffusion, 2024, https://arxiv.org/abs/2410.19324.
    """

    bias: float = 2.0
    of = "noise"

    def __post_init__(self) -> None:
        if not math.isfinite(self.bias):
            raise ValueError(f"bias must be a finite number, got {self.bias}")

    def weight(self, path: AffinePath, t: Tensor) -> Tensor:
        schedule = path.schedule
        rate = 2 * (schedule.alpha_dot(t) / schedule.alpha(t) - schedule.sigma_dot(t) / schedule.sigma(t))
        return rate * torch.sigmoid(self.bias - schedule.log_snr(t))


class LearnedUncertainty(Weighting, nn.Module):
    r"""A weight that is learnt with the network, so that every time contributes alike.

    .. math:: \ell' = \ell\, e^{-u(t)} + u(t)

    For a given time the best ``u`` is :math:`\log E[\ell]`, which makes the first term one: no time is drowned by
    another whose target is noisier. Its ``parameters()`` have to be trained too; the trainer does so by itself.

    Args:
        base: weighting of the loss beneath; none by default.
        octaves: number of frequencies of the features of time.

    Source:
        Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, Eq. 14-15,
        https://arxiv.org/abs/2312.02696; Kendall et al. 2018, https://arxiv.org/abs/1705.07115.

    Example:
        >>> import flowmatch as fm
        >>> LearnedUncertainty()(torch.ones(2), fm.AffinePath(), torch.tensor([0.2, 0.8]), "velocity").detach()
        tensor([1., 1.])
    """

    def __init__(self, base: Weighting | None = None, octaves: int = 6) -> None:
        nn.Module.__init__(self)
        self.base = base
        self.embed = TimeEmbedding(octaves)
        self.head = nn.Linear(self.embed.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def log_size(self, t: Tensor) -> Tensor:
        """The log of the expected loss at times ``(B,)``."""
        value: Tensor = self.head(self.embed(t).to(self.head.weight.dtype)).squeeze(-1)
        return value

    def weight(self, path: AffinePath, t: Tensor) -> Tensor:
        return (-self.log_size(t)).exp()

    def __call__(self, values: Tensor, path: AffinePath, t: Tensor, kind: Kind) -> Tensor:
        if self.base is not None:
            values = self.base(values, path, t, kind)
        log_size = self.log_size(t).to(values.dtype)
        return values * (-log_size).exp() + log_size
