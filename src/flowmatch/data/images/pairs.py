r"""Images with a part of themselves as the condition: to be sharpened, or to be filled in.

Both wrap :class:`Images` and take alike; the condition is a dict of tensors that follow ``x1`` through a coupling:

* ``"image"`` ``(B, C, H, W)``: what a network sees of the answer, to be joined to ``x`` as further channels;
* ``"mask"`` ``(B, 1, H, W)``, boolean, true where the image is known, of :class:`Masked`;
* ``"noise"`` ``(B,)``: standard deviation of the noise on ``"image"``, of :class:`Downsampled` with ``noise``;
* ``"label"`` ``(B,)``: the class, if there are classes.

**Noise on the condition.** A model that sharpens another model's samples meets blemishes that real images lack. Noise
of a known strength hides them, in training as in use:

.. math:: \tilde y = y + s \epsilon, \qquad s \sim U(0, s_{max}), \quad \epsilon \sim N(0, I) .

Source: Ho et al., Cascaded Diffusion Models for High Fidelity Image Generation, 2022, conditioning augmentation,
https://arxiv.org/abs/2106.15282, with the random strength of Saharia et al., Photorealistic Text-to-Image Diffusion
Models with Deep Language Understanding, 2022, https://arxiv.org/abs/2205.11487; Saharia et al., Palette:
Image-to-Image Diffusion Models, 2022, https://arxiv.org/abs/2111.05826.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from flowmatch.data.images.images import Images
from flowmatch.data.images.pixels import check_levels, scaled
from flowmatch.data.images.resize import pool
from flowmatch.errors import InputError
from flowmatch.randomness import rand, randint, randn
from flowmatch.tensors import expand_time

__all__ = ["Downsampled", "Masked", "box_holes", "pixel_holes"]

Holes = Callable[[int, int, int, torch.Generator | None], Tensor]
"""``(n, height, width, generator) ->`` boolean ``(n, 1, height, width)``, true where an image is known."""


class Downsampled:
    """Images whose condition is a small version of themselves: super-resolution.

    The small image is the mean over ``factor x factor`` pixels, in bytes as a file would hold it, brought back to the
    full size.

    Args:
        images: the large images.
        factor: how many times smaller each side is; divides both.
        upsample: how the small image is brought to the full size.
        noise: largest standard deviation of the noise on the condition, in units of ``[-1, 1]``; 0 for none.

    Raises:
        InputError: a factor that does not divide the sides, or negative noise.

    Source:
        Ho et al. 2022 for the noise.

    Example:
        >>> images = Images(torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4))
        >>> x1, cond = Downsampled(images, 2).take(torch.tensor([0]))
        >>> x1.shape, cond["image"].shape
        (torch.Size([1, 1, 4, 4]), torch.Size([1, 1, 4, 4]))
    """

    def __init__(
        self,
        images: Images,
        factor: int,
        upsample: Literal["nearest", "bilinear", "bicubic"] = "bicubic",
        noise: float = 0.0,
    ) -> None:
        height, width = images.shape[1:]
        if not isinstance(factor, int) or factor < 2 or height % factor or width % factor:
            raise InputError(
                f"factor must be a whole number from 2 that divides height {height} and width {width}, got {factor!r}"
            )
        if upsample not in ("nearest", "bilinear", "bicubic"):
            raise InputError(f"upsample must be 'nearest', 'bilinear' or 'bicubic', got {upsample!r}")
        if not 0 <= noise < math.inf:
            raise InputError(f"noise must be a standard deviation, 0 or more, got {noise}")
        self.images, self.factor, self.upsample, self.noise = images, factor, upsample, noise
        self.shape, self.small = images.shape, (height // factor, width // factor)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Downsampled({self.images!r}, factor={self.factor}, upsample={self.upsample!r}, noise={self.noise})"

    @property
    def fingerprint(self) -> str:
        """That of the images."""
        return self.images.fingerprint

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Images ``index`` ``(B,)``, ``(B, C, H, W)``, and their conditions."""
        levels = self.images.augmented(index, generator)
        x1 = self.images.numbers(levels, generator)
        cond = self.given(pool(levels, self.small))
        if self.noise:
            strength = rand((len(levels),), generator, x1.device) * self.noise
            spread = expand_time(strength, x1) * randn(tuple(x1.shape), generator, x1.device, x1.dtype)
            cond = {"image": cond["image"] + spread, "noise": strength}
        return x1, cond | _label(self.images, index)

    def given(self, small: Tensor) -> dict[str, Tensor]:
        """The condition of small images ``(B, C, h, w)`` in bytes, to sample their large versions; without noise."""
        check_levels(small, "small")
        if tuple(small.shape[1:]) != (self.shape[0], *self.small):
            raise ValueError(
                f"small must have shape (B, {self.shape[0]}, {self.small[0]}, {self.small[1]}), got "
                f"{tuple(small.shape)}"
            )
        how: dict[str, Any] = {} if self.upsample == "nearest" else {"align_corners": False}
        image = functional.interpolate(scaled(small), size=self.shape[1:], mode=self.upsample, **how)
        return {"image": image} | ({"noise": image.new_zeros(len(image))} if self.noise else {})


class Masked:
    """Images whose condition is a part of themselves: inpainting.

    Where an image is not known its condition is 0, the middle of the range.

    Args:
        images: the whole images.
        holes: draws what is known, ``(n, height, width, generator) -> (n, 1, height, width)`` booleans;
            :func:`box_holes` by default.

    Raises:
        TypeError: on use, a mask that is not boolean.
        ValueError: on use, a mask of another shape.

    Source:
        Saharia et al. 2022 (Palette).

    Example:
        >>> images = Images(torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4))
        >>> x1, cond = Masked(images).take(torch.tensor([0]))
        >>> bool((cond["image"] == x1 * cond["mask"]).all())
        True
    """

    def __init__(self, images: Images, holes: Holes | None = None) -> None:
        self.images, self.holes, self.shape = images, box_holes if holes is None else holes, images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Masked({self.images!r}, holes={getattr(self.holes, '__name__', self.holes)})"

    @property
    def fingerprint(self) -> str:
        """That of the images."""
        return self.images.fingerprint

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Images ``index`` ``(B,)``, ``(B, C, H, W)``, and their conditions."""
        x1, _ = self.images.take(index, generator)
        known = self.holes(len(x1), x1.shape[2], x1.shape[3], generator)
        return x1, self.given(x1, known) | _label(self.images, index)

    def given(self, x: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The condition of images ``(B, C, H, W)`` of which the part ``known`` ``(B, 1, H, W)`` is to be kept."""
        wanted = (x.shape[0], 1, *x.shape[2:])
        if not isinstance(known, Tensor) or tuple(known.shape) != wanted:
            found = f"shape {tuple(known.shape)}" if isinstance(known, Tensor) else type(known).__name__
            raise ValueError(f"the mask must have shape (B, 1, H, W) = {wanted}, got {found}")
        if known.dtype != torch.bool:
            raise TypeError(f"the mask must be boolean, true where the image is known, got {known.dtype}")
        known = known.to(x.device)
        return {"image": torch.where(known, x, torch.zeros_like(x)), "mask": known}


def box_holes(n: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """One rectangle a mask is unknown, each side a quarter to three quarters of the image's, anywhere inside it.

    Example:
        >>> (~box_holes(1, 4, 4, torch.Generator().manual_seed(0))).sum()
        tensor(3)
    """
    known = []
    for side in (height, width):
        shortest, longest = max(1, side // 4), max(1, 3 * side // 4)
        length = shortest + randint(longest - shortest + 1, (n,), generator)
        # The place is uniform over those at which the rectangle lies inside.
        start = (rand((n,), generator, dtype=torch.float64) * (side - length + 1)).long()
        place = torch.arange(side)
        known.append((place < start[:, None]) | (place >= (start + length)[:, None]))
    return (known[0][:, :, None] | known[1][:, None, :])[:, None]


def pixel_holes(n: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Single pixels are unknown, each with one probability a mask, which is uniform on ``[0, 1)``."""
    share = rand((n, 1, 1, 1), generator)
    return rand((n, 1, height, width), generator) >= share


def _label(images: Images, index: Tensor) -> dict[str, Tensor]:
    return {} if images.labels is None else {"label": images.labels.index_select(0, index.cpu())}
