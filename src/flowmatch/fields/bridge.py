r"""Velocity, score and drifts of a stochastic interpolant from two regressions.

On :math:`x_t = \alpha x_1 + \sigma x_0 + \gamma z` let a model know the two conditional means

.. math:: f = E[\dot\alpha x_1 + \dot\sigma x_0 \mid x_t], \qquad \hat z = E[z \mid x_t] .

Then the velocity of the marginal flow and its score are

.. math:: v = f + \dot\gamma\, \hat z, \qquad \nabla \log p_t = -\hat z / \gamma .

**Drifts.** Adding noise of scale ``s`` while adding the drift :math:`\tfrac12 s^2 \nabla \log p_t` leaves every
:math:`p_t` as it is, since the two cancel in the Fokker-Planck equation. So
:math:`dX = (v + \tfrac12 s^2 \nabla \log p_t) dt + s\, dW` has the same marginals forwards, and with the minus sign
backwards. On a Brownian bridge of the same scale between the two ends of the entropic transport plan, the forward
process is the Schroedinger bridge: of all processes with these ends, the one nearest to Brownian motion.

Source: Albergo et al. 2023, Theorem 6 and Corollary 18, https://arxiv.org/abs/2303.08797; Tong et al. 2024, Proposition
3.4, https://arxiv.org/abs/2307.03672.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.paths import InterpolantPath
from flowmatch.solvers.sde import SDE
from flowmatch.tensors import can_look, check_event, expand_time, shown
from flowmatch.typing import Cond

__all__ = ["Bridge"]


class Bridge(nn.Module):
    r"""The fields of a stochastic interpolant; called, it is the velocity, so that every solver serves it.

    Args:
        model: module or function ``(t, x) -> (f, z)`` or ``(t, x, cond) -> (f, z)``, such as a trained
            :class:`flowmatch.nn.Pair`.
        path: the interpolant it was trained on.

    Raises:
        TypeError: ``model`` cannot be called or ``path`` is no :class:`~flowmatch.InterpolantPath`.
        ValueError: on use, a time outside the interval where the path is regular, or a score or drift asked for where
            the path has no noise.

    Source:
        Tong et al. 2024, Algorithm 1.

    Example:
        >>> import torch, flowmatch as fm
        >>> bridge = fm.Bridge(lambda t, x: (torch.ones_like(x), x), fm.BrownianBridge(sigma=2.0))
        >>> bridge.score(0.5, torch.tensor([[3.0]]))  # gamma is 1 there
        tensor([[-3.]])
    """

    def __init__(self, model: Any, path: InterpolantPath) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be a module or function (t, x) -> (f, z), got {type(model).__name__}")
        if not isinstance(path, InterpolantPath):
            raise TypeError(f"path must be a flowmatch InterpolantPath such as fm.BrownianBridge(), got {path!r}")
        self.model: Any = model
        self.path = path

    def forward(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` of the marginal flow."""
        mean, noise, _, gamma_dot = self._parts(t, x, *cond)
        return (mean + gamma_dot * noise).to(x.dtype)

    def score(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Gradient of the log-density of the marginal, ``(B, *event)``."""
        _, noise, gamma, _ = self._parts(t, x, *cond)
        self._refuse_end(gamma, t)
        return (-noise / gamma).to(x.dtype)

    def drift(self, t: Tensor | float, x: Tensor, *cond: Any, scale: float, backward: bool = False) -> Tensor:
        r"""Drift of the stochastic process with noise ``scale`` that has the same marginals.

        .. math:: b = v \pm \tfrac12 s^2 \nabla \log p_t

        Args:
            t: time ``()`` or ``(B,)``.
            x: points ``(B, *event)``.
            cond: condition, if the model takes one.
            scale: the ``s`` above; for the Schroedinger bridge the bridge's own ``sigma``.
            backward: the drift of the process run from the data to the source, with the minus sign.
        """
        mean, noise, gamma, gamma_dot = self._parts(t, x, *cond)
        self._refuse_end(gamma, t)
        sign = 0.5 if backward else -0.5
        return (mean + (gamma_dot + sign * scale**2 / gamma) * noise).to(x.dtype)

    def sde(
        self, cond: Cond = None, *, scale: float, backward: bool = False, generator: torch.Generator | None = None
    ) -> SDE:
        r"""The stochastic process with noise ``scale`` that has the same marginals, to be solved.

        Its score is learnt, so any coupling and any ends will do. Give ``solve`` a span inside the path: of
        a :class:`~flowmatch.BrownianBridge` that is ``path.interval``, of other paths such as ``(1e-3, 1 - 1e-3)``.

        Args:
            cond: condition of every sample, if the model takes one.
            scale: as for :meth:`drift`; not negative.
            backward: the process from the data to the source, on a decreasing span.
            generator: source of the noise; ``solve(..., generator=)`` sets it.

        Source:
            Tong et al. 2024, Algorithm 2; Albergo et al. 2023, Corollary 18.

        Example:
            >>> import torch, flowmatch as fm
            >>> path = fm.BrownianBridge(sigma=1.0)
            >>> bridge = fm.Bridge(lambda t, x: (torch.zeros_like(x), torch.zeros_like(x)), path)
            >>> brown, steps = bridge.sde(scale=1.0), {"steps": 4, "span": path.interval}  # no drift: Brownian motion
            >>> draws = torch.Generator().manual_seed(0)
            >>> x = fm.solve(brown, torch.zeros(2000, 1), fm.EulerMaruyama(), **steps, generator=draws).x
            >>> bool((x.std() - 1).abs() < 0.05)
            True
        """
        drift = partial(self.drift, scale=scale, backward=backward)
        return SDE(drift, cond, diffusion=scale, backward=backward, generator=generator)

    def _refuse_end(self, gamma: Tensor, t: Tensor | float) -> None:
        if can_look(gamma) and not bool((gamma > 0).all()):
            raise ValueError(
                f"{self.path!r} has no noise at t = {shown(t)}: the score there is that of the source or the data, "
                "which the model does not know; stay inside, for instance within [1e-3, 1 - 1e-3]"
            )

    def _parts(self, t: Tensor | float, x: Tensor, *cond: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_event(x)
        time = self.path._regular(t, x).expand(x.shape[:1])
        mean, noise = self.model(time, x, *cond)
        if mean.shape != x.shape or noise.shape != x.shape:
            raise ValueError(
                f"the model returned shapes {tuple(mean.shape)} and {tuple(noise.shape)} for x of shape "
                f"{tuple(x.shape)}; both have the shape of x"
            )
        gamma, gamma_dot = self.path._noise_both(time)
        return mean, noise, expand_time(gamma, x), expand_time(gamma_dot, x)

    def config(self) -> dict[str, Any]:
        """The arguments that make this field again, apart from the weights of the model."""
        return {"model": self.model, "path": self.path}

    def extra_repr(self) -> str:
        """What stands in the printed form beside the model."""
        return f"path={self.path!r}"
