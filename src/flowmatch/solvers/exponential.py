r"""Exponential integrators: the part of an affine path that is known is solved exactly.

In the frame of the straight path (:mod:`flowmatch.solvers.affine`), :math:`d/d\tau \, [y / (1 - \tau)] =
D / (1 - \tau)^2`. So with a polynomial through the last targets

.. math:: y_s = \frac{1 - s}{1 - t} y_t + (1 - s) \int_t^s \frac{P(\tau)}{(1 - \tau)^2} d\tau
    = y_t + (s - t) w_t + \sum_j W_j (D_j - D_t), \qquad W_j = (1 - s) \int_t^s \frac{\ell_j(\tau)}{(1 - \tau)^2} d\tau,

because the basis sums to 1. If the target does not change, this is exact for a step of any length. Noise takes the
place of the target when the path is seen from the other end, :math:`\tau \to 1 - \tau`.

**Two clocks.** The polynomial is one in :math:`\lambda = \log (\tau / (1 - \tau))`, the half log-ratio of signal to
noise, as in DPM-Solver++, or in :math:`\tau` itself, as in DEIS. Both integrals are elementary. With a step scaled to
:math:`v \in [0, 1]`, length :math:`H`, and :math:`z = (s - t) / (1 - t)`, the moments :math:`M_k` of :math:`v^k` are

.. math:: M_k = s \, E_k, \quad E_0 = 1 - e^{-H}, \; E_k = 1 - \tfrac{k}{H} E_{k-1}; \qquad
    M_k = 1 - k (1 - z) L_{k-1}, \quad L_0 = -\tfrac{\log(1 - z)}{z}, \; L_k = \tfrac{1}{z} (L_{k-1} - \tfrac1k) .

**The ends.** :math:`\lambda` is infinite where there is no signal or no noise; a step that touches such an end, or
comes so near that it is longer than 3, takes the clock :math:`\tau`, for which no place is special. No formula divides
by :math:`\alpha` or :math:`\sigma`, and the end of a solve is never evaluated.

Source: Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022,
https://arxiv.org/abs/2211.01095; Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2023,
https://arxiv.org/abs/2204.13902; Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
Diffusion Models, 2023, https://arxiv.org/abs/2302.04867.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from flowmatch.solvers.affine import AffineMultistep, AffineSchedule, Place, one_of
from flowmatch.solvers.base import ODE
from flowmatch.solvers.multistep import Known, integrate_basis
from flowmatch.typing import Kind

__all__ = ["DEIS", "DPMSolver", "Exponential", "UniPC"]

#: Longest step in the log clock: over a factor of 20 a polynomial in the log runs away, above all in the last step.
LONGEST = 3.0

Form: TypeAlias = Literal["target", "noise"]
Clock: TypeAlias = Literal["log_snr", "straight"]
First: TypeAlias = Literal["exact", "bh1", "bh2"]


class Exponential(AffineMultistep):
    r"""Exponential multistep integrator of an affine path; the named ones are choices of these arguments.

    Args:
        schedule: the path's ``alpha`` and ``sigma``; of an :class:`~flowmatch.AffinePath` it is ``path.schedule``.
        reach: number of calls that a step looks back on, this one included: 1 to 3.
        kind: what the field of the equation predicts: ``"velocity"``, ``"target"``, ``"noise"`` or ``"score"``.
        form: what the polynomial goes through: ``"target"`` or ``"noise"``.
        clock: variable of the polynomial: ``"log_snr"`` or ``"straight"``.
        correct: take every step again once the next prediction is there, with that prediction in the polynomial.
        first: weight of a slope through two nodes in :math:`\lambda`: the integral itself (``"exact"``), or half of the
            step, measured by :math:`1 - e^{-h}` (``"bh2"``) or by ``h`` (``"bh1"``).

    Raises:
        TypeError: ``schedule`` lacks one of its four functions.
        ValueError: an unknown choice.

    Example:
        >>> import torch
        >>> import flowmatch as fm
        >>> field = fm.GaussianField(torch.zeros(2), std=0.5)
        >>> solver = Exponential(fm.Linear(), reach=3, form="noise", clock="straight")
        >>> fm.solve(fm.ODE(field), torch.ones(1, 2), solver, steps=16).x.round(decimals=2)
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        schedule: AffineSchedule,
        reach: int = 3,
        kind: Kind = "velocity",
        form: Form = "target",
        clock: Clock = "log_snr",
        correct: bool = False,
        first: First = "exact",
    ) -> None:
        self._check(schedule, kind, reach)
        one_of("form", form, Form)
        one_of("clock", clock, Clock)
        one_of("first", first, First)
        self.form, self.clock, self.correct, self.first = form, clock, correct, first

    def _ask(self, equation: ODE, t: float, h: float, x: Tensor) -> Known:
        place, y, rate = self._rate(equation, t, h, x)
        if self.form == "noise":
            place, rate = place.mirrored, -rate
        return Known(place, y, rate, y + place.left * rate)

    def _rebase(self, known: Known, y: Tensor) -> Known:
        if not known.t.left:
            return known._replace(y=y)
        return known._replace(y=y, rate=(known.value - y) / known.t.left)

    def _leave(self, t: float, y: Tensor) -> Tensor:
        return y * self._straight(t)[1]

    def _place(self, t: float) -> Place:
        place = self._straight(t)[0]
        return place.mirrored if self.form == "noise" else place

    def _move(self, start: Known, end: Place, others: Sequence[Known]) -> Tensor:
        if not start.t.left:  # nothing of the other end is left to integrate from: see the step from there
            start, end, others = _mirror(start), end.mirrored, [_mirror(other) for other in others]
        return super()._move(start, end, others)

    def _weights(self, start: Place, end: Place, others: Sequence[Place]) -> tuple[float, list[float]]:
        length = end.gone - start.gone
        if not others:
            return length, []
        clock, count = self.clock, len(others) + 1
        if clock == "log_snr":
            places = [place.log_snr for place in (start, end, *others)]
            if not all(map(math.isfinite, places)) or abs(places[1] - places[0]) > LONGEST:
                clock = "straight"
        if clock == "log_snr":
            span = end.log_snr - start.log_snr
            nodes = [(p.log_snr - start.log_snr) / span for p in (start, *others)]
            moments = [end.gone * e for e in _decaying(span, count)]
            if count == 2 and self.first != "exact":
                moments[1] = 0.5 * (moments[0] if self.first == "bh2" else end.gone * span)
        else:
            nodes = [(p.gone - start.gone) / length for p in (start, *others)]
            moments = _rational(length / start.left, end.left / start.left, count)
        return length, integrate_basis(nodes, moments)[1:]


class DPMSolver(Exponential):
    r"""DPM-Solver++ as a multistep method (1, 2M, 3M): targets interpolated in the log of the signal-to-noise ratio.

    Order 1 is DDIM without noise, which is exact for a target that does not change. The first step of order 3 is
    corrected, without which the method would be of order 2.

    Args:
        schedule: the path's ``alpha`` and ``sigma``; of an :class:`~flowmatch.AffinePath` it is ``path.schedule``.
        order: 1, 2 or 3; meant for steps that are even in the log-ratio.
        kind: what the field of the equation predicts.

    Source:
        Lu et al., DPM-Solver++, 2022, Algorithm 2, and appendix for order 3, https://arxiv.org/abs/2211.01095.

    Example:
        >>> import torch
        >>> import flowmatch as fm
        >>> data = torch.tensor([[3.0, 1.0]])
        >>> net = lambda t, x: data.expand_as(x)  # a network that predicts the data, which is one point
        >>> fm.solve(fm.ODE(net), torch.ones(1, 2), DPMSolver(fm.Cosine(), kind="target"), steps=3).x
        tensor([[3., 1.]])
    """

    def __init__(self, schedule: AffineSchedule, order: int = 2, kind: Kind = "velocity") -> None:
        super().__init__(schedule, order, kind, first="bh2")


class UniPC(Exponential):
    r"""UniPC: a predictor and a corrector in the log of the signal-to-noise ratio, at one call a step.

    Args:
        schedule: the path's ``alpha`` and ``sigma``; of an :class:`~flowmatch.AffinePath` it is ``path.schedule``.
        order: number of targets of the predictor, 2 or 3; the corrector has one more.
        kind: what the field of the equation predicts.
        first: weight where two nodes meet: ``"bh1"``, ``"bh2"``, or ``"exact"`` for the integral itself.

    Source:
        Zhao et al., UniPC, 2023, Algorithms 1 and 2 and section 3.3, https://arxiv.org/abs/2302.04867.
    """

    def __init__(self, schedule: AffineSchedule, order: int = 3, kind: Kind = "velocity", first: First = "bh2") -> None:
        if order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {order!r}")
        super().__init__(schedule, order, kind, correct=True, first=first)


class DEIS(Exponential):
    r"""DEIS-tAB: noises interpolated in time, the time of the straight path.

    On :class:`~flowmatch.Linear` that is the path's own time. ``clock="log_snr"`` gives the variant in the log-ratio.

    Args:
        schedule: the path's ``alpha`` and ``sigma``; of an :class:`~flowmatch.AffinePath` it is ``path.schedule``.
        order: number of noises in the polynomial, 1 to 3.
        kind: what the field of the equation predicts.
        clock: variable of the polynomial.

    Source:
        Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2023, Eq. 14-15,
        https://arxiv.org/abs/2204.13902.
    """

    def __init__(
        self, schedule: AffineSchedule, order: int = 3, kind: Kind = "velocity", clock: Clock = "straight"
    ) -> None:
        super().__init__(schedule, order, kind, form="noise", clock=clock)


def _mirror(known: Known) -> Known:
    """The same call with the two ends of the path exchanged; target and noise differ by the rate."""
    return Known(known.t.mirrored, known.y, -known.rate, known.value - known.rate)


def _decaying(h: float, count: int) -> list[float]:
    r"""Moments :math:`h \int_0^1 v^k e^{-h (1 - v)} dv`."""
    if abs(h) < 1:  # the recursion would lose digits; the series has few terms
        return [
            math.fsum((-h) ** n * h * math.factorial(k) / math.factorial(n + k + 1) for n in range(20))
            for k in range(count)
        ]
    moments = [-math.expm1(-h)]
    for k in range(1, count):
        moments.append(1 - k / h * moments[-1])
    return moments


def _rational(z: float, rest: float, count: int) -> list[float]:
    r"""Moments :math:`z (1 - z) \int_0^1 v^k / (1 - z v)^2 dv`, where ``rest`` is ``1 - z``."""
    if abs(z) < 0.3:
        return [rest * math.fsum((n + 1) * z ** (n + 1) / (n + k + 1) for n in range(40)) for k in range(count)]
    if not rest:
        return [1.0] * count
    moments, log = [z], -math.log(rest) / z
    for k in range(1, count):
        moments.append(1 - k * rest * log)
        log = (log - 1 / k) / z
    return moments
