r"""Score and flow matching: two regressions on one stochastic path.

A stochastic interpolant :math:`x_t = \alpha x_1 + \sigma x_0 + \gamma z` has the velocity
:math:`\dot\alpha x_1 + \dot\sigma x_0 + \dot\gamma z`, whose last term is unbounded near the ends of a Brownian bridge:
:math:`\dot\gamma^2` has no finite integral, and a regression on it has a target without a variance. But
:math:`\dot\gamma` is known. What has to be learnt are two means of bounded things,

.. math:: \ell = \frac1d |f_\theta(t, x_t) - (\dot\alpha x_1 + \dot\sigma x_0)|^2
    + \frac{w}{d} |\hat z_\theta(t, x_t) - z|^2 ,

and :class:`~flowmatch.Bridge` puts velocity, score and drifts together from them.

**Schroedinger bridge.** Let the pairs be drawn from the entropic transport plan
:math:`\min_P \langle P, |x_0 - x_1|^2 \rangle + 2 s^2\, \mathrm{KL}(P | p_0 \otimes p_1)` and joined by Brownian
bridges of scale ``s``. A Brownian motion of scale ``s`` started at :math:`x_0` is at :math:`x_1` after one unit of time
with log-density :math:`-|x_0 - x_1|^2 / 2 s^2` up to a constant, so that plan is the law of the two ends which is
nearest to the Brownian one, and the mixture of bridges is the Schroedinger bridge (Foellmer). The strength of the
entropy and the noise of the path are one number; :meth:`ScoreAndFlow.schroedinger` ties them.

Source: Tong et al., Simulation-free Schroedinger Bridges via Score and Flow Matching, 2024, Proposition 3.4 and Eq. 9,
https://arxiv.org/abs/2307.03672; Albergo et al. 2023, Theorem 7, https://arxiv.org/abs/2303.08797.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from flowmatch.couplings import Sinkhorn
from flowmatch.objectives.base import Draw, Loss
from flowmatch.objectives.matching import FlowMatching
from flowmatch.paths import BrownianBridge, InterpolantPath
from flowmatch.tensors import expand_time, mean_event, time_dtype
from flowmatch.typing import Coupling, Source, Times

__all__ = ["ScoreAndFlow"]


class ScoreAndFlow(FlowMatching):
    r"""Learns velocity and score of a stochastic interpolant together ([SF]2M).

    The model returns a pair, the two means; :class:`flowmatch.nn.Pair` makes one of two networks.

    Args:
        path: the interpolant.
        coupling: who is joined to whom; independent pairs by default.
        times: where training looks; uniform on the path's regular interval by default.
        source: where ``x0`` comes from when none is given; standard normal by default.
        weight: weight ``w`` of the second regression.

    Raises:
        TypeError: ``path`` is no :class:`~flowmatch.InterpolantPath`.
        ValueError: ``weight`` is not positive; on use, a model that does not return two tensors shaped like ``x``.

    Source:
        Tong et al. 2024, Eq. 9.

    Example:
        >>> import torch, flowmatch as fm
        >>> objective = fm.ScoreAndFlow.schroedinger(sigma=1.0)
        >>> model = fm.nn.Pair(fm.nn.MLP(dim=2), fm.nn.MLP(dim=2))
        >>> x0, x1 = torch.zeros(8, 2), torch.ones(8, 2)
        >>> objective(model, x1, x0, generator=torch.Generator().manual_seed(0)).values.shape
        torch.Size([8])
    """

    def __init__(
        self,
        path: InterpolantPath,
        coupling: Coupling | None = None,
        times: Times | None = None,
        source: Source | None = None,
        weight: float = 1.0,
    ) -> None:
        if not isinstance(path, InterpolantPath):
            raise TypeError(f"path must be a flowmatch InterpolantPath such as fm.BrownianBridge(), got {path!r}")
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight must be a positive number, got {weight}")
        super().__init__(path, coupling, times, source)
        self.weight = weight

    @classmethod
    def schroedinger(
        cls, sigma: float, times: Times | None = None, source: Source | None = None, **sinkhorn: Any
    ) -> ScoreAndFlow:
        r"""The Schroedinger bridge with a Brownian motion of scale ``sigma``: path and coupling tied by it.

        Args:
            sigma: scale of the noise, in units of the data.
            times: where training looks.
            source: where ``x0`` comes from when none is given.
            sinkhorn: other options of :class:`~flowmatch.Sinkhorn`, such as ``tol``.
        """
        return cls(BrownianBridge(sigma), Sinkhorn(reg=2 * sigma**2, **sinkhorn), times, source)

    def loss(self, model: Any, draw: Draw) -> Loss:
        """Loss of ``model`` on a draw, both regressions together."""
        sample, cond = draw
        given = (sample.t, sample.x_t) if cond is None else (sample.t, sample.x_t, cond)
        result = model(*given)
        if not isinstance(result, tuple) or len(result) != 2 or any(r.shape != sample.x_t.shape for r in result):
            shapes = [tuple(r.shape) for r in result] if isinstance(result, tuple) else type(result).__name__
            raise ValueError(
                f"the model must return two tensors of shape {tuple(sample.x_t.shape)}, the means of drift and noise, "
                f"got {shapes}; make one with fm.nn.Pair(net, net)"
            )
        mean, noise = result
        wide = time_dtype(mean.dtype)
        schedule = cast(InterpolantPath, self.path).schedule
        time = expand_time(sample.t, sample.x_t)
        drift = schedule.alpha_dot(time) * sample.x1 + schedule.sigma_dot(time) * sample.x0
        drift_error = mean.to(wide) - drift.to(wide)
        noise_error = noise.to(wide) - cast(Tensor, sample.z).to(wide)
        return Loss(mean_event(drift_error**2) + self.weight * mean_event(noise_error**2), sample.t)
