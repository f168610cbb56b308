r"""Stochastic equations and their solvers.

.. math:: dX = f(t, X)\, dt + g(t)\, dW

Noise that depends on time alone is the easy case: there is no correction to the drift, and Euler's method has the
strong order 1 instead of one half. One normal draw a step is enough for the weak order 2 of Heun's method.

**Which way.** A forward process run from its end to its start is another equation (Anderson 1982), so an equation says
which way its time runs. Backwards means a step :math:`h < 0`, a drift that is still one for positive time, and noise
of variance :math:`g^2 |h|`: :math:`X_{t + h} = X_t + h f + g \sqrt{|h|}\, \xi`.

Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, 1992, sections 10.2 and 14.1-2;
Anderson, Reverse-Time Diffusion Equation Models, 1982, for time that runs backwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from flowmatch.randomness import randn
from flowmatch.solvers.base import ODE, Solver, Step
from flowmatch.tensors import can_look, expand_time, shown, time_dtype

__all__ = ["SDE", "EulerMaruyama", "Stochastic", "StochasticHeun"]


@dataclass(frozen=True)
class SDE(ODE):
    r"""The equation :math:`dX = f(t, X, c)\, dt + g(t)\, dW`.

    Solve it with :class:`EulerMaruyama` or :class:`StochasticHeun`; a solver of ODEs refuses it.

    Args:
        field: the drift ``(t, x) -> (B, *event)``, or ``(t, x, cond)`` when there is a condition.
        cond: condition of every sample, or ``None``.
        norm: as for :class:`ODE`.
        diffusion: the scale ``g`` of the noise, not negative: a number, or a function of times ``(B,) -> (B,)``.
        backward: whether its time runs from the data to the source, on a decreasing grid.
        generator: source of the noise; ``solve(..., generator=)`` sets it.

    Raises:
        TypeError: ``diffusion`` is neither a number nor a function; on use, a solver of ODEs.
        ValueError: a negative ``diffusion``; on use, a grid that runs the other way.

    Example:
        >>> from flowmatch.solvers import solve
        >>> decay = SDE(lambda t, x: -x, diffusion=0.5)
        >>> start, draws = torch.ones(1000, 1), torch.Generator().manual_seed(0)
        >>> x = solve(decay, start, EulerMaruyama(), steps=50, span=(0.0, 5.0), generator=draws).x
        >>> bool((x.std() - 0.5 / 2**0.5).abs() < 0.02)  # stationary variance g^2 / 2
        True
    """

    _: KW_ONLY
    diffusion: Callable[[Tensor], Tensor] | float
    backward: bool = False
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if isinstance(self.diffusion, bool | str) or not (
            callable(self.diffusion) or isinstance(self.diffusion, float | int)
        ):
            raise TypeError(f"diffusion must be a number or a function g(t), got {self.diffusion!r}")
        if not callable(self.diffusion) and not 0 <= self.diffusion < math.inf:
            raise ValueError(f"diffusion must be a finite number, not negative, got {self.diffusion}")

    def __call__(self, t: Tensor | float, x: Tensor) -> NoReturn:
        """Refuse: what a solver of ODEs asks for is not all that there is."""
        raise TypeError(
            f"{type(self).__name__} has noise, which a solver of ODEs would leave out: give solver=fm.EulerMaruyama(), "
            "fm.StochasticHeun() or, on an affine path, fm.ExponentialSDE()"
        )

    def drift(self, t: Tensor | float, x: Tensor) -> Tensor:
        """The drift ``(B, *event)`` at ``(t, x)``."""
        return super().__call__(t, x)

    def level(self, t: Tensor) -> Tensor:
        """The scale ``g`` of the noise at times ``(B,)``."""
        if not callable(self.diffusion):
            return torch.full_like(t, self.diffusion)
        g = self.diffusion(t)
        if not isinstance(g, Tensor) or g.shape not in (t.shape, torch.Size([])):
            found = f"shape {tuple(g.shape)}" if isinstance(g, Tensor) else type(g).__name__
            raise ValueError(f"diffusion must return a tensor of the shape of t, {tuple(t.shape)}, got {found}")
        return g.to(t.dtype).expand(t.shape)

    def spread(self, t: Tensor | float, x: Tensor) -> Tensor:
        """The scale of the noise at ``t``, checked and shaped ``(B, 1, ..., 1)`` for ``x``."""
        g = self.level(torch.as_tensor(t, dtype=time_dtype(x.dtype), device=x.device).expand(x.shape[:1]))
        if can_look(g) and not bool(((g >= 0) & torch.isfinite(g)).all()):
            raise ValueError(f"the noise must be finite and not negative, got g = {g[0]:g} at t = {shown(t)}")
        return expand_time(g, x)

    def noise(self, x: Tensor) -> Tensor:
        """Fresh standard normal draws, shaped like ``x``."""
        return randn(tuple(x.shape), self.generator, x.device, x.dtype)

    def check_way(self, h: Tensor | float) -> None:
        """Raise ValueError unless a step goes the way that time runs here."""
        if not isinstance(h, Tensor) or can_look(h):
            wrong = (torch.as_tensor(h) < 0) != self.backward
            if bool(wrong.any()):
                runs = "decreasing" if self.backward else "increasing"
                raise ValueError(
                    f"this {type(self).__name__} runs on {runs} times (backward={self.backward}): the process the "
                    f"other way has another drift; make it with backward={not self.backward}"
                )


class Stochastic(Solver):
    """What stochastic solvers share: they refuse an equation without noise, and take one step for the batch."""

    def init(self, equation: ODE, t: Tensor | float, x: Tensor) -> Any:
        self.noisy(equation)
        return None

    def noisy(self, equation: ODE) -> SDE:
        if not isinstance(equation, SDE):
            raise TypeError(
                f"{type(self).__name__} solves equations with noise, got {type(equation).__name__}: make a flow one "
                "with fm.MarginalSDE, or take a solver of ODEs such as fm.Heun()"
            )
        return equation


@dataclass(frozen=True)
class EulerMaruyama(Stochastic):
    r"""Euler's method with noise: one call a step, strong and weak order 1.

    .. math:: x_{new} = x + h f(t, x) + g(t) \sqrt{|h|}\, \xi

    It never looks at the end of a step. It is not stable where the drift is steep for the step, as for constant noise
    near the end of a path whose data are narrow: there :class:`~flowmatch.ExponentialSDE` is the one to take.

    Source:
        Kloeden and Platen 1992, section 10.2: of strong order 1 for noise that depends on time alone.
    """

    order = 1
    evaluations = 1

    def step(self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: Any) -> Step:
        sde = self.noisy(equation)
        sde.check_way(h)
        length = _column(h, x)
        kick = sde.spread(t, x) * length.abs().sqrt() * sde.noise(x)
        return Step((x + length * sde.drift(t, x) + kick).to(x.dtype), None)


@dataclass(frozen=True)
class StochasticHeun(Stochastic):
    r"""Heun's method with noise: two calls a step, weak order 2, strong order 1.

    .. math:: \hat x = x + h f(t, x) + \Delta, \qquad x_{new} = x + \tfrac{h}{2} [f(t, x) + f(t + h, \hat x)] + \Delta,
        \qquad \Delta = \sqrt{\tfrac{|h|}{2} (g(t)^2 + g(t + h)^2)}\; \xi

    It asks for the drift and the noise at the end of every step, so both must be finite there.

    Source:
        Kloeden and Platen 1992, section 14.2, Eq. 2.4 with additive noise; section 15.1.
    """

    order = 2
    evaluations = 2

    def step(self, equation: ODE, t: Tensor | float, h: Tensor | float, x: Tensor, state: Any) -> Step:
        sde = self.noisy(equation)
        sde.check_way(h)
        length, end = _column(h, x), t + h
        kick = (0.5 * length.abs() * (sde.spread(t, x) ** 2 + sde.spread(end, x) ** 2)).sqrt() * sde.noise(x)
        slope = sde.drift(t, x)
        ahead = sde.drift(end, (x + length * slope + kick).to(x.dtype))
        return Step((x + 0.5 * length * (slope + ahead) + kick).to(x.dtype), None)


def _column(h: Tensor | float, x: Tensor) -> Tensor:
    """A step as ``(B, 1, ..., 1)`` beside ``x``."""
    return expand_time(torch.as_tensor(h, dtype=time_dtype(x.dtype), device=x.device), x)
