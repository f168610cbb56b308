r"""Guidance by a linear observation of the data: the posterior of an inverse problem.

For an observation :math:`y = A x_1 + s\, n`, take :math:`x_1 | x_t` for normal, with the mean
:math:`\hat x_1(t, x)` that the field predicts and some covariance ``C``. Then the weight of
:mod:`flowmatch.fields.energy` is

.. math:: \nabla \log h_t(x) = J^T A^T (s^2 I + A C A^T)^{-1} (y - A \hat x_1), \qquad
    J = \partial \hat x_1 / \partial x .

* :math:`C = 0` is diffusion posterior sampling (DPS), but for its own step size; far from the data it is too sure.
* :math:`C = r_t^2 I`, :math:`r_t^2 = \tau^2 \sigma^2 / (\sigma^2 + \tau^2 \alpha^2)`, is the covariance for normal data
  of standard deviation :math:`\tau` in every direction, for which it is exact. :math:`\tau = 1` is the choice of PiGDM.
* :math:`C = (\sigma^2 / \alpha) J^T` is the true covariance whatever the data (Tweedie), as in moment matching
  posterior sampling. Exact for all normal data.

None is exact for other data, and the richer covariance is not always the nearer: on three tilted normals in two
dimensions, of which one is seen with noise 0.5, samples lie at a sliced Wasserstein distance of 0.39 from the true
posterior for :math:`C = 0`, of 0.13 for :math:`\tau = 1` and of 0.23 for the true covariance, where two sets of the
truth lie at 0.05.

The inverse is taken by conjugate gradients, which need ``A`` and its transpose as functions only; the transposes of
``A`` and ``J`` are reverse-mode products. The Jacobian of a trained network is neither quite symmetric nor quite
positive: where a direction of negative curvature is met, the iteration ends with what it has.

Source: Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, 2023, Eq. 16,
https://arxiv.org/abs/2209.14687; Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, 2023; Pokle
et al., Training-free Linear Image Inverses via Flows, 2023, https://arxiv.org/abs/2310.04432; Rozet et al., Learning
Diffusion Priors from Observations by Expectation Maximization, 2024, section 4.2, https://arxiv.org/abs/2405.13712.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from flowmatch.fields.energy import Steered
from flowmatch.paths import AffinePath
from flowmatch.tensors import can_look, check_finite, expand_time, sum_event, time_dtype
from flowmatch.typing import Field

__all__ = ["Observed", "Observing"]

_Operator: TypeAlias = Callable[[Tensor], Tensor]


class Observing(Steered):
    """A field that is pulled by an observation through its predicted data; subclasses say what was observed."""

    def __init__(
        self,
        field: Any,
        path: AffinePath,
        noise: float,
        data_std: float | None,
        scale: float,
        iterations: int,
        margin: float,
    ) -> None:
        super().__init__(field, path, scale, margin)
        if not 0 <= noise < math.inf or (data_std is not None and not 0 <= data_std < math.inf):
            raise ValueError(f"noise and data_std must be finite and not negative, got {noise} and {data_std}")
        if data_std == 0 and noise == 0:
            raise ValueError("data_std=0 takes the predicted data for sure and needs noise > 0; give one of the two")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.noise, self.data_std, self.iterations = noise, data_std, iterations

    def _steer(self, operator: _Operator, y: Tensor, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity given ``y = operator(x1) + noise``."""
        if not self.scale:
            return self._plain(t, x, *cond)
        time = self._inside(t, x)
        data, pull, velocity = self._predicted(time, x, *cond)
        seen, back = cast(Any, torch.func.vjp(operator, data))
        if y.shape != seen.shape:
            raise ValueError(f"the observation has shape {tuple(y.shape)} and the operator gives {tuple(seen.shape)}")
        if can_look(y):
            check_finite(y, "the observation")
        alpha, sigma = (expand_time(part(time), x) for part in (self.path.schedule.alpha, self.path.schedule.sigma))
        prior = (self.data_std or 0.0) ** 2
        variance = prior * sigma**2 / (sigma**2 + prior * alpha**2)

        def covariance(weight: Tensor) -> Tensor:
            """Of the observation given ``x``, times ``weight``."""
            way = back(weight.to(seen.dtype))[0]
            spread = variance * way if self.data_std is not None else sigma**2 / alpha * pull(way)
            pushed: Tensor = cast(Any, torch.func.jvp(operator, (data,), (spread.to(data.dtype),)))[1]
            return self.noise**2 * weight + pushed

        # In exact arithmetic as many steps as entries are enough; one more is for the rounding.
        steps = min(self.iterations, math.prod(y.shape[1:]) + 1)
        weight = _conjugate_gradients(covariance, y - seen, steps)
        return self._moved(velocity, time, x, pull(back(weight.to(seen.dtype))[0]))


class Observed(Observing):
    r"""A velocity for data of which something linear was observed, :math:`y = A x_1 + s\, n`.

    .. math:: v + w\, \frac{\sigma (\dot\alpha\sigma - \alpha\dot\sigma)}{\alpha}
        J^T A^T (s^2 I + A C A^T)^{-1} (y - A \hat x_1)

    **The observation is the condition**: ``(t, x, y)``, or ``(t, x, (y, cond))`` for a field with one of its own. So
    one object serves every ``y``, each sample may have its own, and ``flow.given(y)`` is the posterior of one.

    Args:
        field: velocity of the path, of the data without observation.
        path: the affine path that it belongs to, from a standard normal source.
        operator: ``A``, a linear function of a batch ``(B, *event) -> (B, *observation)``, row by row. One that is not
            linear is taken by its linear part at the predicted data.
        noise: standard deviation ``s`` of the noise, 0 if there is none.
        data_std: standard deviation of the data, for the covariance ``C`` of the data given ``x``: exact for normal
            data of that spread in all directions, and 1 is PiGDM's choice. 0 is DPS's, and needs noise. ``None`` takes
            the covariance from the Jacobian of the field (moment matching): right for any covariance of the data, at a
            backward pass more an iteration.
        scale: strength ``w``; 0 is the field alone.
        iterations: most steps of the conjugate gradients. As many as there are entries observed are exact; with
            ``data_std`` one is, for an ``A`` with orthonormal rows such as a mask.
        margin: distance from a singular end within which the field stays as it is there.

    Raises:
        TypeError: a part that cannot be called or a path that is not affine.
        ValueError: numbers that are not finite or negative, no noise for ``data_std=0``; on use, no observation, one
            that is not finite, or one of another shape than ``A`` gives.

    Source:
        Chung et al. 2023, Eq. 16; Song et al. 2023 and Pokle et al. 2023, Eq. 8, for flows; Rozet et al. 2024, section
        4.2.

    Example:
        The first of two standard normal numbers is seen with noise of its own size, so half of it is believed:

        >>> import flowmatch as fm
        >>> plain = fm.GaussianField(torch.zeros(2), std=1.0)
        >>> field = Observed(plain, fm.AffinePath(), lambda x1: x1[:, :1], noise=1.0)
        >>> y = torch.full((1, 1), 3.0)
        >>> fm.solve(fm.ODE(field, y), torch.zeros(1, 2), steps=50).x.round(decimals=2) + 0.0
        tensor([[1.5000, 0.0000]])
    """

    def __init__(
        self,
        field: Field | nn.Module,
        path: AffinePath,
        operator: _Operator,
        noise: float = 0.0,
        data_std: float | None = 1.0,
        scale: float = 1.0,
        iterations: int = 16,
        margin: float = 1e-3,
    ) -> None:
        super().__init__(field, path, noise, data_std, scale, iterations, margin)
        if not callable(operator):
            raise TypeError(f"operator must be a function of x1, got {type(operator).__name__}")
        self.operator: Any = operator

    def forward(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)``, given the observation."""
        given = cond[0] if cond else None
        y, inner = (given[0], given[1:]) if isinstance(given, tuple | list) and len(given) == 2 else (given, ())
        if not isinstance(y, Tensor):
            raise ValueError(f"the condition must be the observation y, or (y, cond), got {type(given).__name__}")
        return self._steer(self.operator, y, t, x, *inner)

    def config(self) -> None:
        """``None``: the operator is code of the user's own, so the field is given again on loading."""


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve ``apply(x) = b`` row by row for a symmetric positive ``apply``; rows that have arrived stand still."""
    b = b.to(time_dtype(b.dtype))
    x, rest, way = torch.zeros_like(b), b, b
    size = sum_event(rest**2)
    floor = size * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        if can_look(size) and bool((size <= floor).all()):
            break
        image = apply(way).to(b.dtype)
        curve = sum_event(way * image)
        go = ~((size <= floor) | (curve <= 0))  # so that what is not a number stays one and is found by the solver
        step = expand_time(_ratio(go, size, curve), b)
        x, rest = x + step * way, rest - step * image
        fresh = sum_event(rest**2)
        way = rest + expand_time(_ratio(go, fresh, size), b) * way
        size = fresh
    return x


def _ratio(where: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """``above / below`` where it is asked for, else 0, without a division by zero for a gradient to meet."""
    return torch.where(where, above / torch.where(where, below, torch.ones_like(below)), torch.zeros_like(above))
