r"""Paths: how a source sample and a data sample are joined, for any formula.

**The claim.** Let :math:`\phi_t(x_0, x_1)` be any function, smooth in ``t``, with
:math:`\phi_0 = x_0` and :math:`\phi_1 \approx x_1`. Draw a pair, move along the curve, and ask where
the mass at ``x`` goes *on average*:

.. math:: u_t(x) = E[\, \partial_t \phi_t(x_0, x_1) \mid \phi_t(x_0, x_1) = x \,].

Take a test function ``f``. Then
:math:`\frac{d}{dt} E f(x_t) = E[\nabla f(x_t) \cdot \partial_t \phi_t] = E[\nabla f(x_t) \cdot u_t(x_t)]`,
which is the continuity equation :math:`\partial_t p_t + \nabla \cdot (p_t u_t) = 0` in weak form. So the
flow of :math:`u_t` carries the law of :math:`x_0` to the law of :math:`x_1`: the paper's Theorem 1, for
every path.

**What training needs.** A conditional expectation is the least-squares predictor, so a network
that regresses :math:`\partial_t \phi_t` on :math:`x_t` learns :math:`u_t`: Theorem 2. Nothing but the
position is needed from the user; the velocity is its time derivative, taken here in forward
mode (one pass, exact to rounding). A closed form may be given for speed and is held against the
derivative by the tests.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Theorems 1 and 2,
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.randomness import randn
from flowmatch.tensors import check_pair, check_time, expand_time, with_rate

__all__ = ["FunctionPath", "Path", "PathSample"]


class PathSample(NamedTuple):
    """One batch on a path: where it is and where it goes. A named tuple, so tree functions reach its tensors.

    Attributes:
        t: times ``(B,)``.
        x_t: positions ``(B, *event)``.
        u_t: conditional velocities ``(B, *event)``, the target of the regression.
        x0: source samples ``(B, *event)``.
        x1: data samples ``(B, *event)``.
        z: extra noise of a stochastic path ``(B, *event)``, or ``None``.
    """

    t: Tensor
    x_t: Tensor
    u_t: Tensor
    x0: Tensor
    x1: Tensor
    z: Tensor | None = None


class Path(ABC):
    """How ``x0`` is joined to ``x1``. Subclass it with :meth:`_position` alone.

    ``interval`` is where the path is regular; training and sampling stay inside it, and a velocity asked for
    outside it is refused by name, never infinite.
    ``source_std`` is the standard deviation with which a flow on a standard normal source starts;
    it is 1 except for paths such as variance-exploding diffusion.
    """

    interval: tuple[float, float] = (0.0, 1.0)
    source_std: float = 1.0
    needs_noise: bool = False
    """Whether the position depends on ``z``, noise of the path's own; ``sample`` then draws it."""

    @abstractmethod
    def _position(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None) -> Tensor:
        """Position; ``t`` comes shaped to broadcast against ``x0`` and ``x1``."""

    def _both(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """Position and velocity. Override only for a closed form, and pin it by the contract test."""
        position, velocity = with_rate(lambda s: self._position(s, x0, x1, z), t)
        return position, velocity

    def position(self, t: Tensor | float, x0: Tensor, x1: Tensor, z: Tensor | None = None) -> Tensor:
        """Point on the path.

        Args:
            t: time in ``[0, 1]``, shape ``()`` or ``(B,)``.
            x0: source samples ``(B, *event)``.
            x1: data samples ``(B, *event)``.
            z: the noise ``(B, *event)`` of a path that needs one, standard normal.

        Returns:
            ``x_t`` of shape ``(B, *event)`` and the type of ``x1``.

        Raises:
            ValueError: shapes or devices differ, or ``t`` lies outside ``[0, 1]``.
            TypeError: integer tensors or mixed types.
        """
        self._check(x0, x1, z)
        return self._fit(self._position(expand_time(check_time(t, x1), x1), x0, x1, z), x1)

    def velocity(self, t: Tensor | float, x0: Tensor, x1: Tensor, z: Tensor | None = None) -> Tensor:
        """Conditional velocity, the time derivative of :meth:`position`; same arguments, ``t`` in ``interval``."""
        self._check(x0, x1, z)
        return self._fit(self._both(expand_time(self._regular(t, x1), x1), x0, x1, z)[1], x1)

    def sample(
        self,
        t: Tensor | float,
        x0: Tensor,
        x1: Tensor,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """Position and velocity in one pass, as training needs them.

        Args:
            t: time in ``interval``, shape ``()`` or ``(B,)``.
            x0: source samples ``(B, *event)``.
            x1: data samples ``(B, *event)``.
            generator: source of randomness of a path that needs noise.

        Returns:
            The :class:`PathSample`, with ``t`` of shape ``(B,)``.
        """
        check_pair(x0, x1)
        time = self._regular(t, x1).expand(x1.shape[:1])
        z = randn(tuple(x1.shape), generator, x1.device, x1.dtype) if self.needs_noise else None
        x_t, u_t = self._both(expand_time(time, x1), x0, x1, z)
        return PathSample(time, self._fit(x_t, x1), self._fit(u_t, x1), x0, x1, z)

    def _check(self, x0: Tensor, x1: Tensor, z: Tensor | None) -> None:
        check_pair(x0, x1)
        if self.needs_noise and (z is None or z.shape != x1.shape):
            given = "none" if z is None else f"shape {tuple(z.shape)}"
            raise ValueError(f"{self!r} needs noise z of shape {tuple(x1.shape)}, got {given}; or use path.sample")

    def _regular(self, t: Tensor | float, x: Tensor) -> Tensor:
        """``t`` beside ``x``, refused where the path has no finite velocity."""
        if self.interval == (0.0, 1.0):
            return check_time(t, x)
        return check_time(t, x, *self.interval, lambda: f"where the velocity of {self!r} is finite")

    @staticmethod
    def _fit(value: Tensor, like: Tensor) -> Tensor:
        """Round once to the type of the data; name the user's function if the shape is off."""
        if value.shape != like.shape:
            raise ValueError(
                f"the path returned shape {tuple(value.shape)} for x of shape {tuple(like.shape)}; "
                "a position has the shape of x0 and x1"
            )
        return value.to(like.dtype)


class FunctionPath(Path):
    r"""Path given by any conditional flow :math:`\phi_t(x_0, x_1)`; its velocity is derived.

    .. math:: x_t = \phi(t, x_0, x_1), \qquad u_t = \partial_t \phi(t, x_0, x_1)

    Args:
        phi: function ``(t, x0, x1) -> x_t`` of torch operations, elementwise over the batch; ``t``
            arrives shaped ``(B, 1, ..., 1)``, ready to broadcast.

    Raises:
        TypeError: ``phi`` cannot be called.

    Source:
        Lipman et al. 2023, Eq. 13-14: the velocity of a conditional flow is its time derivative.

    Example:
        A path that swerves on its way, and its velocity at the middle:

        >>> import flowmatch as fm
        >>> swerve = fm.FunctionPath(lambda t, x0, x1: (1 - t) * x0 + t * x1 + torch.sin(torch.pi * t) ** 2)
        >>> x0, x1 = torch.zeros(1, 2), torch.ones(1, 2)
        >>> swerve.velocity(0.5, x0, x1)
        tensor([[1.0000, 1.0000]])
    """

    def __init__(self, phi: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        if not callable(phi):
            raise TypeError(f"phi must be a function (t, x0, x1) -> x_t, got {type(phi).__name__}")
        self.phi = phi

    def _position(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None) -> Tensor:
        return self.phi(t, x0, x1)

    def __repr__(self) -> str:
        return f"FunctionPath({getattr(self.phi, '__name__', repr(self.phi))})"
