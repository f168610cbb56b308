r"""Log-densities in the unit in which image models are compared.

A picture of integer levels, spread by uniform noise of one level's width (dequantisation), has a density in units of
one level. Then :math:`-\log_2 p / D` bounds from above the bits that an ideal code spends on each number.
"""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["bits_per_dim"]


def bits_per_dim(log_prob: Tensor, dim: int, scale: float = 1.0) -> Tensor:
    r"""Turn log-densities into bits a dimension.

    .. math:: b = -\frac{\log p(x)}{D \log 2} + \log_2 s \qquad \text{for } x = \text{level} / s + \text{const}

    Range: lower is better. For ``K`` integer levels, ``log2 K`` (8 for a byte) is what knowing nothing costs.

    Floor: the entropy of the data a dimension, at least 0 for integer levels, and unknown for real data. Without
    dequantisation the number has no floor and no meaning: a density may be as high as one likes at given points.

    Args:
        log_prob: log-densities of ``x`` in nats, ``(B,)``.
        dim: number of entries of an event, ``D``.
        scale: levels in one unit of ``x``: 127.5 for bytes scaled to ``[-1, 1]``, 255 for ``[0, 1]``, 1 for levels
            as they are.

    Returns:
        Bits a dimension, ``(B,)``.

    Raises:
        ValueError: ``dim < 1`` or a scale that is not positive.

    Example:
        >>> import torch
        >>> uniform = torch.full((1,), -2 * math.log(2.0))  # the density 1/4 of a uniform law on [-1, 1]^2
        >>> bits_per_dim(uniform, dim=2, scale=128.0)
        tensor([8.])
    """
    if dim < 1 or not scale > 0:
        raise ValueError(f"bits_per_dim needs dim >= 1 and scale > 0, got dim={dim} and scale={scale}")
    return -log_prob / (dim * math.log(2.0)) + math.log2(scale)
