r"""The frame of an affine path: what multistep methods on it share.

**Every affine path is the straight one.** With :math:`x_t = \alpha x_1 + \sigma x_0` and data measured in a unit ``c``,

.. math:: y = \frac{x}{c \alpha + \sigma} = \tau \frac{x_1}{c} + (1 - \tau) x_0, \qquad
    \tau = \frac{c \alpha}{c \alpha + \sigma} \in [0, 1] .

In the frame :math:`(\tau, y)` the flow is :math:`\dot y = w`. The means given ``x`` of the two ends, target
:math:`D = E[x_1 | x] / c` and noise :math:`N = E[x_0 | x]`, are :math:`D = y + (1 - \tau) w` and
:math:`N = y - \tau w`. So whatever a network predicts, velocity, target, noise or score, gives
the rate ``w``:

.. math::
    w = \frac{(c \alpha + \sigma) v - (c \dot\alpha + \dot\sigma) x}{c (\dot\alpha \sigma - \alpha \dot\sigma)}
    = \frac{D - y}{1 - \tau} = \frac{y - N}{\tau} .

**Where a prediction is blind.** A target at the data, a noise at the source, a velocity where the path stands still:
there the form above is 0/0. It happens at the start of a solve only, whose last time is never asked for. The call is
then made a thousandth of the step further on, at the same ``y``.

The schedule comes in by its functions alone: solvers know no path.

Source: Lipman et al., Flow Matching Guide and Code, 2024, section 4.8, https://arxiv.org/abs/2412.06264; Karras et al.,
Elucidating the Design Space of Diffusion-Based Generative Models, 2022, section 3, for the freedom of scale and time.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from flowmatch.solvers.base import ODE
from flowmatch.solvers.multistep import Multistep
from flowmatch.typing import Kind

__all__ = ["AffineMultistep", "AffineSchedule", "Place", "one_of"]


class AffineSchedule(Protocol):
    """The functions of an affine path, as :class:`~flowmatch.Schedule` has them."""

    interval: tuple[float, float]

    def alpha(self, t: Tensor, /) -> Tensor: ...

    def sigma(self, t: Tensor, /) -> Tensor: ...

    def alpha_dot(self, t: Tensor, /) -> Tensor: ...

    def sigma_dot(self, t: Tensor, /) -> Tensor: ...


class Place(NamedTuple):
    """A point of the straight path: shares of the end it goes to and of the other, which sum to 1."""

    gone: float
    left: float

    @property
    def log_snr(self) -> float:
        """Half log-ratio of signal to noise."""
        if not self.gone or not self.left:
            return -math.inf if self.left else math.inf
        return math.log(self.gone) - math.log(self.left)

    @property
    def mirrored(self) -> Place:
        """The same place, seen from the other end."""
        return Place(self.left, self.gone)


def one_of(name: str, value: Any, known: Any) -> None:
    """Raise unless ``value`` is one of the choices of a ``Literal``."""
    if value not in get_args(known):
        raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")


class AffineMultistep(Multistep):
    """A multistep method that knows the schedule of the path; subclasses say what is interpolated."""

    schedule: AffineSchedule
    kind: Kind
    spread: float = 1.0

    def _check(self, schedule: AffineSchedule, kind: Kind, reach: int) -> None:
        for name in ("alpha", "sigma", "alpha_dot", "sigma_dot"):
            if not callable(getattr(schedule, name, None)):
                raise TypeError(
                    f"schedule must have alpha, sigma and their derivatives, such as fm.Linear(), got {schedule!r}; "
                    "of an affine path it is path.schedule"
                )
        one_of("kind", kind, Kind)
        if reach not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {reach!r}")
        self.schedule, self.kind, self.reach, self.order = schedule, kind, reach, reach

    def _straight(self, t: float) -> tuple[Place, float]:
        """Where the straight path stands at ``t``, and the scale ``c alpha + sigma``."""
        alpha, sigma = self._numbers(t)
        scale = alpha + sigma
        return Place(alpha / scale, sigma / scale), scale

    def _rate(self, equation: ODE, t: float, h: float, x: Tensor) -> tuple[Place, Tensor, Tensor]:
        """Place, ``y`` and ``w`` in the straight frame, by one call of the field."""
        place, scale = self._straight(t)
        y = x / scale
        reading = self._reading(t)
        if reading is None:
            low, high = self.schedule.interval
            t = min(max(t + 1e-3 * h, low), high)
            reading, scale = self._reading(t), self._straight(t)[1]
            if reading is None:
                raise ValueError(f"a {self.kind} does not tell where the path goes at t = {t:g}: start elsewhere")
        of_y, of_value = reading
        return place, y, of_y * y + of_value * equation(t, y * scale)

    def _numbers(self, t: float, alpha: str = "alpha", sigma: str = "sigma") -> tuple[float, float]:
        """The two functions or their rates, for data in units of ``spread``."""
        time = torch.tensor(t, dtype=torch.float64)
        with torch.no_grad():
            signal, noise = (float(getattr(self.schedule, name)(time)) for name in (alpha, sigma))
        return self.spread * signal, noise

    def _reading(self, t: float) -> tuple[float, float] | None:
        """Coefficients of ``y`` and of the prediction in the rate ``w``; ``None`` where it is blind."""
        alpha, sigma = self._numbers(t)
        scale = alpha + sigma
        if self.kind == "velocity":
            low, high = self.schedule.interval
            alpha_dot, sigma_dot = self._numbers(t, "alpha_dot", "sigma_dot") if low <= t <= high else (0.0, 0.0)
            pace = alpha_dot * sigma - alpha * sigma_dot
            form = (-scale * (alpha_dot + sigma_dot), scale) if pace else None
            return form and (form[0] / pace, form[1] / pace)
        if self.kind == "target":
            return (-scale / sigma, scale / (sigma * self.spread)) if sigma else None
        weight = -sigma if self.kind == "score" else 1.0
        return (scale / alpha, -weight * scale / alpha) if alpha else None

    def config(self) -> dict[str, Any]:
        """The arguments that make this solver again."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"
