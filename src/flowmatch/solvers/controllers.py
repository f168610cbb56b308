r"""Step size control: how the next step follows from the errors of the last ones.

With the size ``e`` of the error in units of the tolerance, an estimate that falls like :math:`h^p`, and the sizes
before it, the next step is

.. math:: h_{new} = h \cdot s \; e_n^{-\beta_1 / p} \, e_{n-1}^{-\beta_2 / p} \, e_{n-2}^{-\beta_3 / p} ,

kept within a factor of ``least`` to ``most``. With :math:`\beta = (1, 0, 0)` it is the elementary controller, which
aims every step at an error of the tolerance itself. It is a digital filter: a second and a third weight make the
sequence of steps smoother where the error estimate is rough. With integral, proportional and derivative gains
:math:`k_I, k_P, k_D`, :math:`\beta_1 = k_I + k_P + k_D`, :math:`\beta_2 = -k_P - 2 k_D` and :math:`\beta_3 = k_D`.

Source: Soederlind, Digital filters in adaptive time-stepping, 2003, Eq. 26; Hairer, Norsett, Wanner, Solving Ordinary
Differential Equations I, 1993, section II.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Controller"]


@dataclass(frozen=True)
class Controller:
    r"""PID control of the step size.

    The default is the PI controller of the original Dormand-Prince code. ``Controller(0.4, 0.3)`` is
    Gustafsson's, whose steps are refused less often: on mixtures of narrow modes it needs up to a fifth fewer calls at
    one error, on smooth textbook problems some more.

    Args:
        integral: gain :math:`k_I`, positive.
        proportional: gain :math:`k_P`.
        derivative: gain :math:`k_D`.
        safety: share of the step that would just meet the tolerance, in (0, 1).
        least: smallest factor from one step to the next, in (0, 1).
        most: largest factor, above 1.

    Raises:
        ValueError: a number out of its limits.

    Source:
        Soederlind 2003, Eq. 26; Hairer, Norsett, Wanner, volume II, 1996, section IV.2, for the default; Gustafsson,
        Control theoretic techniques for stepsize selection in explicit Runge-Kutta methods, 1991.

    Example:
        >>> Controller(integral=0.3, proportional=0.4).weights(order=5)  # of the last errors, newest first
        (0.14, -0.08, 0.0)
    """

    integral: float = 0.65
    proportional: float = 0.2
    derivative: float = 0.0
    safety: float = 0.9
    least: float = 0.2
    most: float = 10.0

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.integral, self.proportional, self.derivative, self.most)))
        if not (finite and self.integral > 0 and 0 < self.safety < 1 and 0 < self.least < 1 < self.most):
            raise ValueError(f"need finite gains, integral > 0, 0 < safety < 1 and 0 < least < 1 < most, got {self}")

    def weights(self, order: int) -> tuple[float, float, float]:
        """Exponents of the last three error sizes, newest first, for an estimate of the given order."""
        i, p, d = self.integral / order, self.proportional / order, self.derivative / order
        return i + p + d, -p - 2 * d, d
