r"""Sampling with noise that keeps the marginals: any amount of it, chosen after training.

**Why it is free.** Let :math:`v` carry :math:`p_t`, so :math:`\partial_t p = -\nabla \cdot (v p)`. The law of
:math:`dX = f\, dt + g\, dW` obeys the Fokker-Planck equation
:math:`\partial_t p = -\nabla \cdot (f p) + \tfrac12 g^2 \Delta p`, and
:math:`\Delta p = \nabla \cdot (p \nabla \log p)`. So with

.. math:: f = v + \tfrac12 g(t)^2 \, \nabla \log p_t

the two new terms cancel, and every :math:`p_t` is what it was, for every :math:`g(t) \ge 0`. In reversed time the
velocity is :math:`-v` and the noise is still noise, so there the sign of the score turns:
:math:`f = v - \tfrac12 g^2 \nabla \log p_t` with steps :math:`h < 0`.

**The score comes from the velocity**, where :math:`x_0` is standard normal and independent of :math:`x_1`. Given
:math:`x_1` the point :math:`x_t = \alpha x_1 + \sigma x_0` is normal, hence :math:`\nabla \log p_t = -N / \sigma` with
:math:`N = E[x_0 | x_t]`, and ``N`` is linear in ``x`` and ``v`` (:meth:`flowmatch.AffinePath.convert`). Neither holds
for pairs from optimal transport: there :math:`x_0` given :math:`x_1` is not normal, and the same velocity goes with
another score. A coupling or a source of that kind is refused.

**Forms of the noise.** What counts is the rate :math:`r = g^2 / 2 \sigma^2` at which the noise in ``x`` is renewed
(:mod:`flowmatch.solvers.exponential_sde`). The drift has the term :math:`-r \sigma N`.

========== =============================== ======================= =======================
diffusion  :math:`g^2`                     :math:`r`               drift
========== =============================== ======================= =======================
constant   :math:`2 c`                     :math:`c / \sigma^2`    infinite at the data
sigma      :math:`2 c \sigma`              :math:`c / \sigma`      finite
linear     :math:`2 c \sigma^2`            :math:`c`               finite
matched    :math:`2 c \sigma^2 \dot\lambda` :math:`c \dot\lambda`  infinite without signal
========== =============================== ======================= =======================

Here :math:`\lambda = \log (\alpha / \sigma)`. *Matched* is the noise of the forward diffusion: the process
:math:`dx = \tfrac{d \log\alpha}{dt} x\, dt + g\, dW` that noises the data from :math:`t = 1` down to 0 has the mean
:math:`\alpha x_1`, and its variance :math:`\sigma^2` obeys
:math:`-\tfrac{d \sigma^2}{dt} = g^2 - 2 \sigma^2 \tfrac{d \log \alpha}{dt}`, so :math:`g^2 = 2 \sigma^2 \dot\lambda`:
:math:`\beta` for the variance-preserving path, :math:`-\tfrac{d \sigma^2}{dt}` for the exploding one. With
:math:`c = 1` the process is the time reversal of that diffusion, and the exponential step is ancestral sampling.

**Guided velocities.** A velocity that was pushed (:class:`~flowmatch.Guided`, :class:`~flowmatch.EnergyGuided`) is
accepted and read as any other: its "score" is then the pushed one,
:math:`s_{less} + w (s_{more} - s_{less})`, as is the custom. No family of laws has that velocity and that score, so
what comes out depends on the noise as well: the statement on marginals is one for unguided fields.

Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, 2023,
Corollary 18, https://arxiv.org/abs/2303.08797; Ma et al., SiT: Exploring Flow and Diffusion-based Generative Models
with Scalable Interpolant Transformers, 2024, Eq. 5 and section 3.4, https://arxiv.org/abs/2401.08740; Song et al.,
Score-Based Generative Modeling through Stochastic Differential Equations, 2021, Eq. 6 and 13,
https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from flowmatch.couplings import Independent
from flowmatch.paths import AffinePath
from flowmatch.solvers.exponential_sde import AffineSDE
from flowmatch.sources import Normal
from flowmatch.tensors import can_look, check_event, check_time, expand_time, shown
from flowmatch.typing import Coupling, Source

__all__ = ["Diffusion", "Form", "MarginalSDE"]

Form: TypeAlias = Literal["constant", "sigma", "linear", "matched"]
Diffusion: TypeAlias = Form | Callable[[Tensor], Tensor] | float

_ROUNDING = 4 * torch.finfo(torch.float64).eps
_POWERS = {"constant": 0, "sigma": 1, "linear": 2}  # g^2 = 2 c sigma^power


@dataclass(frozen=True)
class MarginalSDE(AffineSDE):
    r"""The equation with noise that has the marginals of a flow on an affine path.

    .. math:: dX = \big[ v(t, X) + \tfrac12 g(t)^2 \, \nabla \log p_t(X) \big] dt + g(t)\, dW

    Solve it with :class:`~flowmatch.ExponentialSDE`, from one end of the path to the other; with
    :class:`~flowmatch.EulerMaruyama` or :class:`~flowmatch.StochasticHeun` where drift and noise are finite.

    Args:
        field: velocity ``(t, x)`` or ``(t, x, cond)`` of the path; networks that predict something else are made
            velocities by :class:`~flowmatch.Predicts`.
        cond: condition of every sample, or ``None``.
        path: the affine path it was trained on.
        diffusion: form of the noise: ``"constant"``, ``"sigma"``, ``"linear"`` or ``"matched"``, a number ``g``, or a
            function ``g`` of times ``(B,) -> (B,)``.
        rate: factor ``c`` of :math:`g^2`; 0 is the flow itself.
        coupling: what the velocity was trained with: nothing or :class:`~flowmatch.Independent`.
        source: where the flow starts: nothing, or the normal that the path starts from.
        backward: the process from the data to the source, with the other sign of the score.
        generator: source of the noise; ``solve(..., generator=)`` sets it.

    Raises:
        TypeError: a path that is not affine, a form that is none.
        ValueError: a coupling or a source with which the velocity does not tell the score, a negative ``rate``, a path
            without noise; on use, a drift or noise that is not finite at a time asked for.

    Source:
        Albergo et al. 2023, Corollary 18; Ma et al. 2024, Eq. 5.

    Example:
        >>> import flowmatch as fm
        >>> field = fm.GaussianField(torch.tensor([1.0]), std=0.5)
        >>> draws = torch.Generator().manual_seed(0)
        >>> sde = fm.MarginalSDE(field, path=fm.AffinePath(), diffusion="sigma")
        >>> start = torch.randn(2000, 1, generator=draws)
        >>> x = fm.solve(sde, start, solver=fm.ExponentialSDE(order=2), steps=20, generator=draws).x
        >>> bool((x.mean() - 1).abs() < 0.03 and (x.std() - 0.5).abs() < 0.03)
        True
    """

    _: KW_ONLY
    path: AffinePath
    diffusion: Diffusion = "sigma"  # type: ignore[assignment]
    rate: float = 1.0
    coupling: Coupling | None = None
    source: Source | None = None
    #: Times for which the field answers, see :class:`~flowmatch.Predicts`; beyond, it answers for the nearest.
    inner: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, AffinePath):
            raise TypeError(
                f"path must be a flowmatch AffinePath, got {self.path!r}: of no other path does the velocity tell the "
                "score; on a stochastic interpolant learn it with fm.ScoreAndFlow and take fm.Bridge(model, path).sde()"
            )
        if isinstance(self.diffusion, str):
            if self.diffusion not in get_args(Form):
                raise ValueError(
                    f"diffusion must be one of {', '.join(get_args(Form))}, a number or a function g(t), "
                    f"got {self.diffusion!r}"
                )
        else:
            super().__post_init__()
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate must be a finite number, not negative, got {self.rate}")
        if not self.signal(sum(self.path.interval) / 2)[1] > 0:
            raise ValueError(f"{self.path!r} has no noise (sigma = 0), so its laws have no score; take fm.ODE(field)")
        if self.coupling is not None and not isinstance(self.coupling, Independent):
            raise ValueError(
                f"the velocity was trained with {self.coupling!r}: then x0 given x1 is not normal, and the velocity "
                "does not tell the score; train with fm.Independent(), or learn the score as well with fm.ScoreAndFlow "
                "and sample with fm.Bridge(model, path).sde()"
            )
        if self.inner is None:  # kept when the field is wrapped, as by a solve
            object.__setattr__(self, "inner", getattr(self.field, "_inner", None))
        own = Normal(self.path.source_std)
        known = isinstance(self.source, Normal) and math.isclose(self.source.std, own.std, rel_tol=1e-3)
        if self.source is not None and not known:
            raise ValueError(
                f"the velocity tells the score only for the source {own!r}, got {self.source!r}; take fm.ODE(field)"
            )

    def drift(self, t: Tensor | float, x: Tensor) -> Tensor:
        """The drift ``(B, *event)``; raises where it is infinite."""
        time, velocity = self._velocity(t, x)
        push = self._push(self.path._regular(t, x).expand(x.shape[:1]))
        if can_look(push) and not bool(torch.isfinite(push).all()):
            raise ValueError(
                f"with diffusion={self.diffusion!r} the drift is infinite at t = {shown(t)}: stop before it, or take "
                "solver=fm.ExponentialSDE(), which does not ask for it"
            )
        noise = self._means(time, x, velocity)[1]
        push = expand_time(push if self.backward else -push, x)
        return (velocity + push * noise).to(x.dtype)

    def ends(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        # Where the velocity is infinite, or tells nothing since the path stands still: ask a little further inside.
        check_time(t, x)
        low, high = _telling(self.path)
        time, velocity = self._velocity(min(max(t, low), high), x)
        target, noise = self._means(time, x, velocity)
        return target, noise

    def signal(self, t: float) -> tuple[float, float]:
        with torch.no_grad():
            alpha, sigma = (float(part) for part in self._signal(torch.tensor(t, dtype=torch.float64)))
        return alpha, sigma if sigma > _ROUNDING else 0.0

    def kept(self, t: float, s: float, spread: float = 0.0) -> float:
        if not self.rate:
            return 1.0
        if self.diffusion == "matched":
            ratio = self._share(min(t, s), spread) / self._share(max(t, s), spread)
            return math.pow(min(ratio, 1.0), self.rate)
        nodes, weights = _legendre()
        # At an edge it may be infinite, and then so is the integral, save where any share will do as well.
        if bool(torch.isinf(self._renewal(torch.tensor([t, s], dtype=torch.float64), spread)).any()):
            return 0.0
        return math.exp(-abs(s - t) * float(weights @ self._renewal(t + (s - t) * nodes, spread)))

    def _share(self, t: float, spread: float) -> float:
        """Signal over the width of the law, infinite where there is none."""
        alpha, sigma = self.signal(t)
        width = math.hypot(alpha * spread, sigma)
        return alpha / width if width else math.inf

    def level(self, t: Tensor) -> Tensor:
        """The scale ``g`` of the noise at times ``(B,)``."""
        if not isinstance(self.diffusion, str):
            return math.sqrt(self.rate) * super().level(t)
        if self.diffusion == "matched":
            return (2 * self._signal(t)[1] * self._push(t)).sqrt()
        return (2 * self.rate * self._signal(t)[1] ** _POWERS[self.diffusion]).sqrt()

    def _push(self, t: Tensor) -> Tensor:
        """Coefficient of the noise in the drift, ``g^2 / (2 sigma)``, at times ``(B,)``."""
        alpha, sigma = self._signal(t)
        if self.diffusion == "matched":
            schedule = self.path.schedule
            return self.rate * (schedule.alpha_dot(t) * sigma - alpha * schedule.sigma_dot(t)) / alpha
        if isinstance(self.diffusion, str):
            return self.rate * sigma ** (_POWERS[self.diffusion] - 1)
        return self.level(t) ** 2 / (2 * sigma)

    def _renewal(self, t: Tensor, spread: float) -> Tensor:
        """Rate at which the noise in ``x`` is renewed."""
        with torch.no_grad():
            alpha, sigma = self._signal(t)
            if not spread:
                return self._push(t) / sigma
            return self.level(t) ** 2 / (2 * (sigma**2 + (alpha * spread) ** 2))

    def _signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        schedule = self.path.schedule
        return schedule.alpha(t), schedule.sigma(t)

    def _velocity(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x)
        time = self.path._regular(t, x).expand(x.shape[:1]).clamp(*self._answers)
        return time, super().drift(time, x)

    @property
    def _answers(self) -> tuple[float, float]:
        return self.path.interval if self.inner is None else self.inner

    def _means(self, t: Tensor, x: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Target and noise expected at ``x``, where the field has that velocity."""
        target, noise, _ = self.path._means_form(expand_time(t, x), "velocity")
        return target[0] * x + target[1] * velocity, noise[0] * x + noise[1] * velocity


def _telling(path: AffinePath) -> tuple[float, float]:
    """The path's interval, without a thousandth at an end where it stands still."""
    (low, high), ends = path.interval, torch.tensor(path.interval, dtype=torch.float64)
    with torch.no_grad():
        schedule = path.schedule
        pace = schedule.alpha(ends) * schedule.sigma_dot(ends) - schedule.alpha_dot(ends) * schedule.sigma(ends)
    start, end = (pace.abs() < 1e-12).tolist()
    return low + 1e-3 * start, high - 1e-3 * end


@lru_cache
def _legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights of a quadrature over the unit interval."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(16))
    return 0.5 * (1 + nodes), 0.5 * weights
