r"""The exponential step for equations with noise on an affine path.

On an affine path :math:`x = \alpha D + \sigma N`, with the target :math:`D = E[x_1 | x]` and the noise
:math:`N = E[x_0 | x]`, take the equation with the marginals of the path (:mod:`flowmatch.fields.stochastic`),

.. math:: f = \dot\alpha D + \dot\sigma N - \tfrac{g^2}{2 \sigma} N .

**The target held.** Hold ``D`` over a step. Then :math:`n = (x - \alpha D) / \sigma` is an Ornstein-Uhlenbeck process,

.. math:: dn = -r\, n\, dt + \sqrt{2 r}\, dW, \quad r = \frac{g^2}{2 \sigma^2}, \qquad
    x_s = \alpha_s D + \sigma_s \big( \rho N + \sqrt{1 - \rho^2}\, \xi \big), \quad \rho = e^{-| \int_t^s r |} .

Whatever the form of the noise, it comes in as one number in ``[0, 1]``: how much of the old noise is kept. Backwards it
is the same number. For data on points the step is exact once the point is known, however long it is; one that ends
where :math:`\sigma_s = 0` lands on the target, without a call there and without noise left over. With :math:`\rho = 1`
this is DDIM, with :math:`\rho = \alpha_t \sigma_s / \alpha_s \sigma_t` it is ancestral sampling.

**The centre held.** Data that are spread out by ``c`` about a centre ``m`` have the law :math:`N(\alpha m, w^2)` with
:math:`w^2 = \sigma^2 + c^2 \alpha^2`, and the score :math:`-N / \sigma = -(x - \alpha m) / w^2`. The same equation
with ``m`` held is again solved exactly, with ``w`` in the place of :math:`\sigma` everywhere:

.. math:: m = D - \frac{\alpha c^2}{\sigma} N, \qquad n = \frac{w}{\sigma} N, \qquad r = \frac{g^2}{2 w^2}, \qquad
    x_s = \alpha_s m + w_s \big( \rho\, n + \sqrt{1 - \rho^2}\, \xi \big) .

That is exact for normal data of standard deviation ``c``; :math:`c = 0` is the step above. On a smooth density it is
the better one, by far in the last steps. On data narrower than ``c`` it does as Euler's method: the last step leaves
noise of the size of :math:`g \sqrt{h}`, and noise that does not fade towards the data makes it unstable.

**The second call.** Let :math:`\rho_{r s}` be what is kept from ``r`` to ``s``. The centre enters a step as
:math:`\int m\, d(\rho_{r s} \alpha_r w_s / w_r)`. If it changes evenly from that at ``t`` to that at ``s``, found where
the first call leads with the same noise, its change counts with the weight

.. math:: x_s \leftarrow x_s + (m_s - m_t) \Big[ \alpha_s - w_s \int_0^1 \rho_{r s} \frac{\alpha_r}{w_r} d\theta \Big],
    \qquad r = t + \theta (s - t) ,

which gives the weak order 2.

Source: Song et al., Denoising Diffusion Implicit Models, 2021, Eq. 12, https://arxiv.org/abs/2010.02502, for the step
with the target held; Lu et al., DPM-Solver++, 2022, section 5, https://arxiv.org/abs/2211.01095, for exponential
integrators with noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from flowmatch.solvers.base import ODE, Step
from flowmatch.solvers.sde import SDE, Stochastic

__all__ = ["AffineSDE", "ExponentialSDE"]

#: Gauss's rule of order 6 on the unit interval.
_NODES = tuple((0.5 + 0.5 * sign * math.sqrt(0.6), (8 - 3 * abs(sign)) / 18) for sign in (-1, 0, 1))


class AffineSDE(SDE, ABC):
    """An SDE with the marginals of an affine path: known but for the target that it heads for."""

    @abstractmethod
    def ends(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Target and noise ``(B, *event)`` expected at ``(t, x)``, by one call of the field."""

    @abstractmethod
    def signal(self, t: float) -> tuple[float, float]:
        """Coefficients ``alpha`` of the target and ``sigma`` of the noise."""

    @abstractmethod
    def kept(self, t: float, s: float, spread: float = 0.0) -> float:
        """Share of the noise that is kept between two times, in ``[0, 1]``, for data spread out by ``spread``."""


class _Place(NamedTuple):
    """The law of normal data at a time: the coefficient of its centre, its standard deviation, and noise in it."""

    alpha: float
    width: float
    sigma: float


@dataclass(frozen=True)
class ExponentialSDE(Stochastic):
    r"""The step that is exact for data on points or for normal data, for noise of any form and size.

    .. math:: x_{new} = \alpha_s m + w_s \big( \rho\, n + \sqrt{1 - \rho^2}\, \xi \big)

    It solves equations with the marginals of an affine path, :class:`~flowmatch.MarginalSDE`. It starts where there is
    no signal and ends where there is no noise, and asks for nothing at the end of a solve. Order 2 asks for the target
    once more at the end of every other step.

    Args:
        order: weak order, and number of calls a step: 1 or 2.
        spread: the unit ``c`` above: 0 for data on points, surfaces or images, where the last step lands on the target;
            the standard deviation of the data or of their clusters for a smooth density, where the noise fades towards
            the data or they are nowhere narrower.

    Raises:
        TypeError: on use, an equation that is not on an affine path.
        ValueError: another order, a negative ``spread``.

    Source:
        Song et al. 2021, Eq. 12, for order 1 with ``spread=0``; the rest is derived in
        :mod:`flowmatch.solvers.exponential_sde`.

    Example:
        >>> import torch
        >>> import flowmatch as fm
        >>> field = fm.MixtureField(torch.tensor([[3.0], [-3.0]]), std=1e-6)
        >>> sde = fm.MarginalSDE(field, path=fm.AffinePath(), diffusion="constant")
        >>> fm.solve(sde, torch.randn(2, 1), ExponentialSDE(), steps=20).x.abs().round(decimals=3)
        tensor([[3.],
                [3.]])
    """

    order: int = 1
    spread: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order!r}")
        if not 0 <= self.spread < math.inf:
            raise ValueError(f"spread must be a finite number, not negative, got {self.spread}")

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """Field calls a step; order 2 saves one where the path has no noise."""
        return self.order

    def step(self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: Any) -> Step:
        sde = self.noisy(equation)
        if not isinstance(sde, AffineSDE):
            raise TypeError(
                f"ExponentialSDE needs an equation on an affine path, such as fm.MarginalSDE, got "
                f"{type(sde).__name__}; for any other take fm.StochasticHeun()"
            )
        if isinstance(t, Tensor) or isinstance(h, Tensor):
            raise TypeError("ExponentialSDE takes one step for the whole batch: t and h must be numbers")
        sde.check_way(h)
        s = t + h
        # Without noise the score is not known, so data at the start of a backward solve count as points.
        spread = self.spread if sde.signal(t)[1] else 0.0
        start, end, rho = _place(sde, t, spread), _place(sde, s, spread), sde.kept(t, s, spread)
        centre, noise = _ask(sde, t, x, start, spread)
        new = end.alpha * centre + end.width * (rho * noise + math.sqrt(1 - rho**2) * sde.noise(x))
        if self.order == 2 and start.sigma and end.sigma:
            held = sum(weight * _carried(sde, t + share * h, s, spread) for share, weight in _NODES)
            new = new + (end.alpha - end.width * held) * (_ask(sde, s, new, end, spread)[0] - centre)
        return Step(new, None)


def _place(sde: AffineSDE, t: float, spread: float) -> _Place:
    alpha, sigma = sde.signal(t)
    return _Place(alpha, math.hypot(alpha * spread, sigma), sigma)


def _ask(sde: AffineSDE, t: float, x: Tensor, place: _Place, spread: float) -> tuple[Tensor, Tensor]:
    """Centre and scaled noise at ``(t, x)``, by one call."""
    target, noise = sde.ends(t, x)
    if not spread:
        return target, noise
    return target - place.alpha * spread**2 / place.sigma * noise, place.width / place.sigma * noise


def _carried(sde: AffineSDE, r: float, s: float, spread: float) -> float:
    r"""Weight :math:`\rho_{rs} \alpha_r / w_r` of a centre met at ``r``."""
    place = _place(sde, r, spread)
    return sde.kept(r, s, spread) * place.alpha / place.width
