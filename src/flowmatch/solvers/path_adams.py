r"""Adams methods in a frame where an affine path is easy.

A solver errs where the velocity changes. The frame of the equation, scale and time, can be chosen so that it changes
little. With data measured in a unit ``c`` there are two frames, the straight path and the quarter turn,

.. math:: y = \frac{x}{c \alpha + \sigma} = \tau \frac{x_1}{c} + (1 - \tau) x_0, \qquad
    z = \frac{x}{\sqrt{c^2 \alpha^2 + \sigma^2}} = \sin\theta \, \frac{x_1}{c} + \cos\theta \, x_0, \qquad
    \tan\theta = \frac{c \alpha}{\sigma} .

In the second :math:`dz / d\theta = \cos\theta \, D - \sin\theta \, N` is zero for normal data of standard deviation
``c`` about the origin, so there any step is exact; for data in clusters of that width it is what moves the clusters.
Both are regular at both ends of the path and change nothing but numbers: the polynomial through the last rates is
that of Adams-Bashforth, and with ``correct`` every step is taken again with the rate found at its end, which costs no
call.

Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 1993, section III.1, for the methods; Karras
et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, section 3, for scale and time as free
choices of a solver, https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from flowmatch.solvers.affine import AffineMultistep, AffineSchedule, one_of
from flowmatch.solvers.base import ODE
from flowmatch.solvers.multistep import Known, adams_weights
from flowmatch.typing import Kind

__all__ = ["PathAdams"]

Frame: TypeAlias = Literal["angle", "straight"]


class PathAdams(AffineMultistep):
    r"""Adams method of one call a step in the frame of a quarter turn or of the straight path.

    Args:
        schedule: the path's ``alpha`` and ``sigma``; of an :class:`~flowmatch.AffinePath` it is ``path.schedule``.
        order: number of rates in the predictor's polynomial, 1 to 3.
        spread: the unit ``c`` of the data, positive: about the standard deviation of the data, or of their clusters.
        frame: ``"angle"`` or ``"straight"``.
        correct: take every step again once the next rate is there.
        kind: what the field of the equation predicts: ``"velocity"``, ``"target"``, ``"noise"`` or ``"score"``.

    Raises:
        TypeError: ``schedule`` lacks one of its four functions.
        ValueError: an unknown choice, or a ``spread`` that is not positive.

    Example:
        >>> import torch
        >>> import flowmatch as fm
        >>> field = fm.GaussianField(torch.zeros(2), std=2.0)
        >>> fm.solve(fm.ODE(field), torch.ones(1, 2), PathAdams(fm.Linear(), spread=2.0), steps=3).x
        tensor([[2., 2.]])
    """

    def __init__(
        self,
        schedule: AffineSchedule,
        order: int = 3,
        spread: float = 1.0,
        frame: Frame = "angle",
        correct: bool = True,
        kind: Kind = "velocity",
    ) -> None:
        self._check(schedule, kind, order)
        one_of("frame", frame, Frame)
        if not 0 < spread < math.inf:
            raise ValueError(f"spread must be a positive number, got {spread}")
        self.spread, self.frame, self.correct = spread, frame, correct

    def _ask(self, equation: ODE, t: float, h: float, x: Tensor) -> Known:
        place, y, rate = self._rate(equation, t, h, x)
        if self.frame == "angle":
            # y = z * length and w = rate: cos D - sin N with D = y + left w, N = y - gone w
            length = math.hypot(place.gone, place.left)
            sine, cosine = place.gone / length, place.left / length
            rate = (cosine - sine) * y + (cosine * place.left + sine * place.gone) * rate
            y = y / length
        return Known(self._place(t), y, rate, rate)

    def _place(self, t: float) -> float:
        """Time in the frame."""
        place = self._straight(t)[0]
        return place.gone if self.frame == "straight" else math.atan2(place.gone, place.left)

    def _leave(self, t: float, y: Tensor) -> Tensor:
        place, scale = self._straight(t)
        return y * (scale if self.frame == "straight" else scale * math.hypot(place.gone, place.left))

    def _weights(self, start: float, end: float, others: Sequence[float]) -> tuple[float, list[float]]:
        return adams_weights(start, end, others)
