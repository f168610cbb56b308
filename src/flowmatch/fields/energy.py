r"""Guidance by a weight on the data: what an energy does to a velocity.

Let the data carry a weight :math:`h(x_1)`, such as the likelihood of an observation or :math:`e^{-E}` of an energy.
Under the law :math:`p_1 h`, the law of :math:`x_t` is :math:`p_t(x) h_t(x)` with
:math:`h_t(x) = E[h(x_1) | x_t = x]`, so its score is shifted by :math:`\nabla \log h_t`. On an affine path with a
standard normal source, target and velocity are linear in the score (:meth:`flowmatch.AffinePath.convert`) and shift in
proportion:

.. math::
    \hat x_1 \to \hat x_1 + \frac{\sigma^2}{\alpha} \nabla \log h_t, \qquad
    v \to v + \frac{\sigma (\dot\alpha \sigma - \alpha \dot\sigma)}{\alpha} \nabla \log h_t .

This is exact. What one does not know is :math:`h_t`: it is learned on noisy states (classifier guidance), or replaced
by :math:`h(\hat x_1(t, x))`, the weight of the data that the field predicts (diffusion posterior sampling), which takes
``h`` of the mean for the mean of ``h``. The gradient then runs through the field, one backward pass a call.

**The ends.** Where :math:`\alpha = 0` the shift is :math:`0/0`, and near :math:`\sigma = 0` it may be a ratio of small
numbers. Within a margin ``m`` of such an end the field is that of the margin's edge, as for
:class:`~flowmatch.Predicts`; a sample of smooth data moves by :math:`O(m^2)` for it.

Source: Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, section 4.2,
https://arxiv.org/abs/2105.05233; Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, 2023,
Eq. 11, https://arxiv.org/abs/2209.14687.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from flowmatch.fields.predict import inner_interval
from flowmatch.paths import AffinePath
from flowmatch.tensors import check_event, check_shaped, check_time, expand_time
from flowmatch.typing import Field

__all__ = ["EnergyGuided", "Steered"]


class Steered(nn.Module):
    """A field on an affine path, its predicted data, and the velocity that a shift of the score makes."""

    def __init__(self, field: Any, path: AffinePath, scale: float, margin: float) -> None:
        super().__init__()
        if not callable(field):
            raise TypeError(f"field must be a module or function (t, x) -> velocity, got {type(field).__name__}")
        if not isinstance(path, AffinePath):
            raise TypeError(f"path must be a flowmatch AffinePath, got {path!r}; other paths have no such conversion")
        if isinstance(scale, Tensor) and scale.ndim or not math.isfinite(scale):
            raise ValueError(f"scale must be one finite number, got {scale}")
        if not 0 < margin < 0.5:
            raise ValueError(f"margin must lie in (0, 0.5), got {margin}")
        self.field: Any = field
        self.path, self.scale, self.margin = path, float(scale), margin
        self._inner = inner_interval(path, margin, source=True, data=True)

    def _plain(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity of the field itself."""
        check_event(x)
        value: Tensor = self.field(check_time(t, x).expand(x.shape[:1]), x, *cond)
        check_shaped(value, x, "field", "velocity")
        return value

    def _inside(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Times ``(B,)``, put back to the edge of a singular end."""
        check_event(x)
        return self.path._regular(t, x).expand(x.shape[:1]).clamp(*self._inner)

    def _predicted(self, time: Tensor, x: Tensor, *cond: Any) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """Predicted data, products with the transpose of its Jacobian, and the velocity, in one call of the field."""

        def target(point: Tensor) -> tuple[Tensor, Tensor]:
            velocity = self._plain(time, point, *cond)
            return self.path.convert(velocity, time, point, "velocity", "target"), velocity

        data, pull, velocity = cast(Any, torch.func.vjp(target, x, has_aux=True))
        return data, lambda cotangent: pull(cotangent.to(data.dtype))[0], velocity

    def _moved(self, velocity: Tensor, time: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """The velocity for a score that is shifted by ``scale * gradient``."""
        of_score = self.path._linear_form(expand_time(time, x), "score", "velocity")[1]
        return (velocity + self.scale * of_score * gradient).to(x.dtype)

    def extra_repr(self) -> str:
        """What stands in the printed form beside the field."""
        return f"path={self.path!r}, scale={self.scale}"


class EnergyGuided(Steered):
    r"""A velocity steered towards data of high weight ``h``, given as a log-density.

    .. math:: v + w\, \frac{\sigma (\dot\alpha\sigma - \alpha\dot\sigma)}{\alpha} \nabla_x \log h

    Args:
        field: velocity of the path.
        path: the affine path that it belongs to, from a standard normal source.
        log_density: minus an energy, ``(B,)``, known up to a constant: ``(x1)`` of the data, put on the data that the
            field predicts (``on="target"``), or ``(t, x)`` of the noisy state, such as a classifier trained on it
            (``on="state"``). Exact if it is the true :math:`\log h_t`; at the predicted data it is
            the approximation of DPS.
        scale: strength ``w``; 0 is the field alone.
        on: ``"target"`` or ``"state"``.
        margin: distance from a singular end within which the field stays as it is there.

    Raises:
        TypeError: a part that cannot be called or a path that is not affine.
        ValueError: unknown ``on``, a scale that is not finite; on use, a density of another shape than ``(B,)``.

    Source:
        Dhariwal and Nichol 2021, section 4.2; Chung et al. 2023, Eq. 11.

    Example:
        >>> import flowmatch as fm
        >>> plain = fm.GaussianField(torch.zeros(1), std=1.0)
        >>> field = EnergyGuided(plain, fm.AffinePath(), lambda x1: x1.sum(1), scale=2.0)
        >>> x = fm.solve(fm.ODE(field), torch.zeros(1, 1), steps=50).x  # exp(2 x) N(x; 0, 1) is N(x; 2, 1)
        >>> x.round(decimals=1)
        tensor([[2.]])
    """

    def __init__(
        self,
        field: Field | nn.Module,
        path: AffinePath,
        log_density: Callable[..., Tensor],
        scale: float = 1.0,
        on: Literal["target", "state"] = "target",
        margin: float = 1e-3,
    ) -> None:
        super().__init__(field, path, scale, margin)
        if not callable(log_density):
            raise TypeError(f"log_density must be a function of x1 or of (t, x), got {type(log_density).__name__}")
        if on not in ("target", "state"):
            raise ValueError(f"on must be 'target' (the predicted data) or 'state' (t and x), got {on!r}")
        self.log_density: Any = log_density
        self.on = on

    def forward(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)``; the condition is the field's."""
        if not self.scale:
            return self._plain(t, x, *cond)
        time = self._inside(t, x)
        if self.on == "state":
            gradient = self._gradient(lambda point: self.log_density(time, point), x)
            return self._moved(self._plain(time, x, *cond), time, x, gradient)
        data, pull, velocity = self._predicted(time, x, *cond)
        return self._moved(velocity, time, x, pull(self._gradient(self.log_density, data)))

    def _gradient(self, function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
        value, pull = cast(Any, torch.func.vjp(function, point))
        if value.shape != point.shape[:1]:
            raise ValueError(
                f"log_density returned shape {tuple(value.shape)} for {point.shape[0]} samples; give one number a "
                "sample, (B,)"
            )
        gradient: Tensor = pull(torch.ones_like(value))[0]
        return gradient

    def config(self) -> None:
        """``None``: the density is code of the user's own, so the field is given again on loading."""
