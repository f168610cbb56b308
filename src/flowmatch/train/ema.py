r"""An exponential moving average of the weights, which samples better than the last weights do.

.. math:: \bar\theta_{k+1} = d_k \bar\theta_k + (1 - d_k) \theta_{k+1}, \qquad
    d_k = \min\left(d, \frac{1 + k}{10 + k}\right)

Without the warm-up the average remembers the random start for ``1 / (1 - d)`` steps, which for a short run is all of
it. With it the memory grows with the run: :math:`1 / (1 - d_k) = (10 + k) / 9`, a ninth of the past.

The average is a module of its own beside the trained one, so that no save can take one for the other. Buffers are
copied: running statistics are averages already, and counters must not be averaged.

Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, section 3,
https://arxiv.org/abs/2312.02696, for the effect of the length of the average.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["Ema"]


class Ema:
    """Averaged copy of a model, of the model's own class.

    Args:
        model: the model that is trained; it is copied.
        decay: the limit ``d`` of the decay, in ``[0, 1)``.

    Attributes:
        module: the averaged model, in evaluation mode and without gradients.

    Raises:
        ValueError: ``decay`` outside ``[0, 1)``.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(net.weight)
        >>> ema = Ema(net, decay=0.999)
        >>> _ = nn.init.ones_(net.weight)
        >>> ema.update(0)
        >>> round(ema.module.weight.item(), 4)
        0.9
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average must lie in [0, 1), got {decay}")
        self.limit = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        # Lists are made once: walking a module costs more than averaging a small one.
        weights = list(zip(self.module.parameters(), model.parameters(), strict=True))
        buffers = list(zip(self.module.buffers(), model.buffers(), strict=True))
        self._mean = [mean.detach() for mean, _ in weights if mean.is_floating_point()]
        self._new = [new.detach() for _, new in weights if new.is_floating_point()]
        integers = [(mean, new) for mean, new in weights if not new.is_floating_point()]
        self._copies = [(mean, new.detach()) for mean, new in integers + buffers]

    def decay(self, step: int) -> float:
        """Decay of the update that follows ``step`` earlier ones."""
        return min(self.limit, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model's present weights, after ``step`` earlier updates."""
        torch._foreach_lerp_(self._mean, self._new, 1 - self.decay(step))
        for mean, new in self._copies:
            mean.copy_(new)
