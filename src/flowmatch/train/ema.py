r"""A moving average of the weights, which samples better than the last weights do.

.. math:: \bar\theta_{k+1} = d_k \bar\theta_k + (1 - d_k) \theta_{k+1}, \qquad
    d_k = \min\left(d, \frac{1 + k}{10 + k}\right)

Without the warm-up the average remembers the random start for ``1 / (1 - d)`` steps, which for a short run is all of
it. With it the memory grows with the run: :math:`1 / (1 - d_k) = (10 + k) / 9`, a ninth of the past. The other profile
is a power of the step, see :mod:`flowmatch.train.profiles`: :math:`d_k = (1 - 1 / (k + 1))^{\gamma + 1}`.

The average is a module of its own beside the trained one, so that no save can take one for the other. Buffers are
copied: running statistics are averages already, and counters must not be averaged. It costs four bytes a parameter, of
a sharded model the share of each process.

Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, section 3,
https://arxiv.org/abs/2312.02696, for the effect of the length of the average.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from flowmatch.train.profiles import exponent, power_decay
from flowmatch.train.shards import local

__all__ = ["Ema"]


class Ema:
    """Averaged copy of a model, of the model's own class.

    Args:
        model: the model that is trained; it is copied.
        decay: the limit ``d`` of the decay, in ``[0, 1)``.
        sigma_rel: relative width of a power average instead of an exponential one; ``decay`` then counts for nothing.
        module: the copy, if there is one already, such as a sharded one of a sharded model.

    Attributes:
        module: the averaged model, in evaluation mode and without gradients.

    Raises:
        ValueError: ``decay`` outside ``[0, 1)``, or ``sigma_rel`` outside ``(0, 1 / sqrt(12)]``.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(net.weight)
        >>> ema = Ema(net, decay=0.999)
        >>> _ = nn.init.ones_(net.weight)
        >>> ema.update(0)
        >>> round(ema.module.weight.item(), 4)
        0.9
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.999, sigma_rel: float | None = None, module: nn.Module | None = None
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average must lie in [0, 1), got {decay}")
        self.limit, self.gamma = decay, None if sigma_rel is None else exponent(sigma_rel)
        self.module = (copy.deepcopy(model) if module is None else module).eval().requires_grad_(False)
        # Lists are made once: walking a module costs more than averaging a small one.
        weights = [
            (local(mean), local(new)) for mean, new in zip(self.module.parameters(), model.parameters(), strict=True)
        ]
        buffers = [(local(mean), local(new)) for mean, new in zip(self.module.buffers(), model.buffers(), strict=True)]
        self._mean = [mean for mean, _ in weights if mean.is_floating_point()]
        self._new = [new for _, new in weights if new.is_floating_point()]
        self._copies = [(mean, new) for mean, new in weights if not new.is_floating_point()] + buffers

    def decay(self, step: int) -> float:
        """Decay of the update that follows ``step`` earlier ones."""
        if self.gamma is not None:
            return power_decay(self.gamma, step)
        return min(self.limit, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model's present weights, after ``step`` earlier updates."""
        torch._foreach_lerp_(self._mean, self._new, 1 - self.decay(step))
        for mean, new in self._copies:
            mean.copy_(new)
