r"""Embeddings of time: a number in [0, 1] as a vector that a network can tell apart at any scale.

.. math:: e(t) = [\cos(2 \pi \omega_k t), \sin(2 \pi \omega_k t)]_k, \qquad \omega_k = \tfrac14 \cdot 2^{k}

The lowest frequency turns a quarter over the whole interval, so that 0 and 1 stay apart, and each next one
doubles. The phase is computed in the type of ``t``, which is float32 at least.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["TimeEmbedding"]


class TimeEmbedding(nn.Module):
    """Sines and cosines of time at octave frequencies, ``(B,) -> (B, 2 * octaves)``.

    Args:
        octaves: number of frequencies.

    Example:
        >>> TimeEmbedding(octaves=2)(torch.zeros(1))
        tensor([[1., 1., 0., 0.]])
    """

    frequencies: Tensor

    def __init__(self, octaves: int = 8) -> None:
        super().__init__()
        self.width = 2 * octaves
        frequencies = 0.25 * 2 * math.pi * 2.0 ** torch.arange(octaves)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies.to(t)
        return torch.cat([phase.cos(), phase.sin()], dim=1)
