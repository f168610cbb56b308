"""Laws of times with a closed quantile function, or one that is a root away."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.times.base import TimesLaw, check_interval

__all__ = ["LogitNormal", "Mode", "Power"]


@dataclass(frozen=True)
class LogitNormal(TimesLaw):
    r"""Times whose log-odds are normal: the middle is looked at most, the two ends hardly.

    .. math:: t = \frac{1}{1 + e^{-z}}, \; z \sim N(m, s^2), \qquad
              p(t) = \frac{1}{s \sqrt{2 \pi}\, t (1 - t)} \exp\left(-\frac{(\log \frac{t}{1 - t} - m)^2}{2 s^2}\right)

    Mapped onto ``[low, high)``. A positive mean looks more at the data's end. **The sign**: where a paper has its noise
    at ``t = 1`` (SD3, MeanFlow), its mean is minus ours.

    Args:
        mean: of the log-odds.
        std: of the log-odds.
        low: smallest time, at least 0.
        high: largest time, at most 1.

    Raises:
        ValueError: unless ``std`` is positive and ``0 <= low < high <= 1``.

    Source:
        Esser et al., Scaling rectified flow transformers for high-resolution image synthesis, 2024, section 3.1,
        https://arxiv.org/abs/2403.03206.

    Example:
        >>> LogitNormal().density(torch.tensor([0.5]))
        tensor([1.5958])
    """

    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"LogitNormal needs a finite mean and std > 0, got mean={self.mean} and std={self.std}")

    def _quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def _density(self, t: Tensor) -> Tensor:
        inside = (t > 0) & (t < 1)
        s = torch.where(inside, t, 0.5)
        odds = s.log() - torch.log1p(-s)
        log_p = -0.5 * ((odds - self.mean) / self.std) ** 2 - s.log() - torch.log1p(-s)
        return torch.where(inside, log_p.exp() / (self.std * math.sqrt(2 * math.pi)), 0.0)


@dataclass(frozen=True)
class Mode(TimesLaw):
    r"""Times around the middle, with tails that stay positive at both ends.

    .. math:: t = Q(u) = u - s \left(\sin^2 \tfrac{\pi u}{2} - u\right), \; u \sim U(0, 1),
              \qquad p(Q(u)) = \frac{1}{1 + s - \frac{\pi s}{2} \sin \pi u}

    Mapped onto ``[low, high)``. The paper writes :math:`1 - u - s (\cos^2 \frac{\pi u}{2} - 1 + u)`, which is
    :math:`1 - Q(u)`. Since :math:`Q(1 - u) = 1 - Q(u)` the law is symmetric, and is the same whichever end is the data.
    A positive scale favours the middle, a negative one the ends, 0 is uniform.

    Args:
        scale: :math:`s`, from -1 to :math:`2/(\pi - 2) = 1.75`, both excluded: beyond them ``Q`` is not increasing.
        low: smallest time, at least 0.
        high: largest time, at most 1.

    Raises:
        ValueError: a scale out of its range, or unless ``0 <= low < high <= 1``.

    Source:
        Esser et al. 2024, section 3.1 (mode sampling with heavy tails), https://arxiv.org/abs/2403.03206.

    Example:
        >>> Mode(1.29).density(torch.tensor([0.0, 0.5]))
        tensor([0.4367, 3.7926])
    """

    scale: float = 1.29
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        if not -1 < self.scale < 2 / (math.pi - 2):
            raise ValueError(f"Mode needs a scale between -1 and 2/(pi - 2) = 1.7519, got {self.scale}")

    def _quantile(self, u: Tensor) -> Tensor:
        return u - self.scale * (torch.sin(0.5 * math.pi * u) ** 2 - u)

    def _density(self, t: Tensor) -> Tensor:
        # u from t by halving: 52 steps are the digits of a double, and the tangent may be nearly flat in the middle.
        below, above = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(52):
            middle = 0.5 * (below + above)
            left = self._quantile(middle) <= t
            below, above = torch.where(left, middle, below), torch.where(left, above, middle)
        return 1 / (1 + self.scale - 0.5 * math.pi * self.scale * torch.sin(math.pi * below))


@dataclass(frozen=True)
class Power(TimesLaw):
    r"""Times with a density that is a power: more and more looks towards the data for a positive exponent.

    .. math:: p(t) = (1 + \alpha)\, t^\alpha, \qquad t = u^{1/(1 + \alpha)}

    Mapped onto ``[low, high)``. In simulation-based inference the last part of the flow decides how sharp the posterior
    is. The FMPE paper states its prior of times as :math:`t^{1/(1 + \alpha)}`; the code of its authors draws
    :math:`u^{1/(1 + \alpha)}` with :math:`\alpha = 4`, whose density is :math:`5 t^4`. ``Power(4.0)`` is the latter.

    Args:
        exponent: :math:`\alpha`, above -1.
        low: smallest time, at least 0.
        high: largest time, at most 1.

    Raises:
        ValueError: an exponent that is not above -1, or unless ``0 <= low < high <= 1``.

    Source:
        Wildberger et al., Flow matching for scalable simulation-based inference, 2023,
        https://arxiv.org/abs/2305.17161.

    Example:
        >>> Power(1.0).density(torch.tensor([0.25, 1.0]))
        tensor([0.5000, 2.0000])
    """

    exponent: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        if not -1 < self.exponent < math.inf:
            raise ValueError(f"Power needs an exponent above -1, got {self.exponent}")

    def _quantile(self, u: Tensor) -> Tensor:
        return u ** (1 / (1 + self.exponent))

    def _density(self, t: Tensor) -> Tensor:
        return (1 + self.exponent) * t**self.exponent
