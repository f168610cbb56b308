r"""Softmax means over a long axis, a chunk at a time.

With a running maximum :math:`M`, the sums :math:`\sum_i e^{l_i - M}` and :math:`\sum_i e^{l_i - M} v_i` are carried
from chunk to chunk, and shrunk by :math:`e^{M_{old} - M_{new}}` when the maximum grows. So no exponential overflows,
and only one chunk is in memory.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, https://arxiv.org/abs/1805.02867.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["softmax_mean"]


def softmax_mean(blocks: Iterator[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Log of the summed exponentials ``(B,)``, and the mean under the softmax of values ``(n, D)`` or ``(B, n, D)``."""
    log, values = next(blocks)
    peak = log.amax(1)
    mass, total = _sums(log, peak, values)
    for log, values in blocks:
        top = torch.maximum(peak, log.amax(1))
        shrink, (part_mass, part) = (peak - top).exp(), _sums(log, top, values)
        peak, mass = top, mass * shrink + part_mass
        total = None if total is None or part is None else total * shrink[:, None] + part
    return peak + mass.log(), None if total is None else total / mass[:, None]


def _sums(log: Tensor, top: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # Below the root of the smallest number a weight adds nothing, but denormal numbers cost ten times the work.
    weight = (log - top[:, None]).clamp(min=0.5 * math.log(torch.finfo(log.dtype).tiny)).exp()
    if values is None:
        return weight.sum(1), None
    return weight.sum(1), weight @ values if values.ndim == 2 else torch.einsum("bn,bnd->bd", weight, values)
