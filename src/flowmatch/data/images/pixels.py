r"""Bytes to numbers and back: one formula, and a round trip without an error.

A byte ``n`` is a cell of width ``1 / 128``; the 256 cells tile ``[-1, 1]``, as :func:`flowmatch.bits_per_dim` has them:

.. math:: x = \frac{n + u}{128} - 1, \qquad n = \lfloor 128 (x + 1) \rfloor .

Without noise :math:`u = 1/2`, the middle of the cell. Dequantisation draws ``u`` uniformly, which gives data a density;
its mean is the middle again. **The noise is a multiple of** :math:`2^{-16}`: then :math:`n + u` has 24 bits, every
step of both formulas is exact in float32, and the cell of ``x`` is the one it came from. A noise with more bits would
round :math:`255 + u` up to 256 once in 65536 draws.

Converters that round :math:`255 (x + 1) / 2` to the nearest whole number, as image pipelines do, read the middles
right as well: that number is :math:`n + 1/2 - (n + 1/2) / 256`, less than a half away from ``n``.

Four noises come from one 64-bit draw, three times as fast as a draw for each.

Source: Theis, van den Oord and Bethge, A Note on the Evaluation of Generative Models, 2016, section 3.1,
https://arxiv.org/abs/1511.01844.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowmatch.randomness import drawn
from flowmatch.tensors import check_event, check_finite

__all__ = ["check_levels", "dequantized", "scaled", "to_uint8"]


def check_levels(levels: Tensor, name: str = "levels") -> None:
    """Raise unless ``levels`` is a batch of images in bytes.

    Raises:
        TypeError: not a tensor of ``uint8``.
        ValueError: not ``(N, C, H, W)`` with one channel or three, or images without pixels.
    """
    if not isinstance(levels, Tensor) or levels.dtype != torch.uint8:
        found = levels.dtype if isinstance(levels, Tensor) else type(levels).__name__
        raise TypeError(f"{name} must be a torch.uint8 tensor of shape (N, C, H, W), got {found}")
    if levels.ndim != 4 or levels.shape[1] not in (1, 3) or 0 in levels.shape[1:]:
        raise ValueError(
            f"{name} must have shape (N, C, H, W) with C = 1 (grey) or 3 (colour), got {tuple(levels.shape)}"
        )


def scaled(levels: Tensor) -> Tensor:
    r"""Bytes as float32 in ``[-1, 1]``, each at the middle of its cell: :math:`(n + 1/2) / 128 - 1`.

    Example:
        >>> scaled(torch.tensor([0, 127, 255], dtype=torch.uint8))
        tensor([-0.9961, -0.0039,  0.9961])
    """
    return levels.to(torch.float32).mul_(1 / 128).sub_(255 / 256)


def dequantized(levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Bytes as float32 in ``[-1, 1)``, each spread uniformly over its cell: :math:`(n + u) / 128 - 1`.

    Args:
        levels: bytes of any shape.
        generator: where the noise comes from.

    Source:
        Theis et al. 2016, section 3.1.

    Example:
        >>> x = dequantized(torch.tensor([0, 127, 255], dtype=torch.uint8))
        >>> to_uint8(x)
        tensor([  0, 127, 255], dtype=torch.uint8)
    """
    count = levels.numel()

    def words(shape: tuple[int, ...], generator: torch.Generator | None, **where: object) -> Tensor:
        return torch.empty(shape, **where).random_(-(2**63), None, generator=generator)  # type: ignore[call-overload, no-any-return]

    noise = drawn(words, (math.ceil(count / 4),), generator, levels.device, torch.int64)
    # Signed: from -2^15 to 2^15 - 1, so that the middle of the cell is added as well.
    u = noise.view(torch.int16)[:count].view(levels.shape).to(torch.float32)
    return u.mul_(2.0**-23).add_(levels * (1 / 128)).sub_(1 - 1 / 256)


def to_uint8(x: Tensor) -> Tensor:
    r"""Numbers in ``[-1, 1]`` as bytes: :math:`\lfloor 128 (x + 1) \rfloor`, cut off at 0 and 255.

    The inverse of :func:`scaled` and of :func:`dequantized`, exact in float32 and float64. What a flow samples comes
    back as an image.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``x`` has an entry that is not finite.

    Example:
        >>> to_uint8(torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0]))
        tensor([  0,   0, 128, 255, 255], dtype=torch.uint8)
    """
    check_event(x, "x")
    check_finite(x, "x")
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    return ((wide + 1) * 128).floor_().clamp_(0, 255).to(torch.uint8)
