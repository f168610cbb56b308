r"""Centre crop and resize, without aliasing.

The largest centred rectangle of the wanted shape is cut out, then brought to size by a filter that widens as the image
shrinks, so that each new pixel is a weighted mean of all the old ones that it covers:

* ``"lanczos"``: Pillow's windowed sinc over three lobes; the sharpest. A JPEG that is six times too large or more is
  decoded at a half, a quarter or an eighth of its size first, never below three times the wanted one: the means over
  blocks that this takes hardly show after the filter.
* ``"bicubic"``: Pillow's cubic over two lobes, a little softer.
* ``"box"``: the plain mean. Where the old size is a multiple of the new one this is mean pooling, rounded once, a half
  upwards: :math:`n = \lfloor (\sum_i n_i + k/2) / k \rfloor` for ``k`` pixels. Pillow rounds after the rows and after
  the columns, so the mean is taken here.

Source: Turkowski, Filters for Common Resampling Tasks, Graphics Gems, 1990, for the windowed sinc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmatch.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Resample", "check_size", "cropped", "draft", "fit", "gray", "pool", "resized"]

Resample = Literal["lanczos", "bicubic", "box"]

_DRAFT = 3  # a JPEG is never decoded below this many times the wanted size


def check_size(size: int | tuple[int, int] | None, resample: str) -> tuple[int, int] | None:
    """Height and width from what a user gives.

    Raises:
        InputError: not positive whole numbers, or an unknown filter.

    Example:
        >>> check_size(14, "box")
        (14, 14)
    """
    if resample not in ("lanczos", "bicubic", "box"):
        raise InputError(f"resample must be 'lanczos', 'bicubic' or 'box', got {resample!r}")
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise InputError(f"size must be a positive whole number or (height, width), got {size!r}")
    return sides[0], sides[1]


def cropped(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest centred rectangle of ``old`` that has the shape of ``new``.

    Example:
        >>> cropped((100, 200), (32, 32))
        (0, 50, 100, 100)
    """
    scale = min(old[0] / new[0], old[1] / new[1])
    height, width = (min(side, max(1, round(want * scale))) for side, want in zip(old, new, strict=True))
    return (old[0] - height) // 2, (old[1] - width) // 2, height, width


def pool(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean pooling of bytes ``(..., H, W)`` to ``(..., h, w)``, rounded once; ``H`` and ``W`` are multiples of these.

    Example:
        >>> pool(torch.tensor([[[0, 1, 10, 10], [1, 0, 10, 10]]], dtype=torch.uint8), (1, 2))
        tensor([[[ 1, 10]]], dtype=torch.uint8)
    """
    high, wide = levels.shape[-2] // size[0], levels.shape[-1] // size[1]
    cells = levels.unflatten(-1, (size[1], wide)).unflatten(-3, (size[0], high))
    mean: Tensor = cells.sum((-3, -1), dtype=torch.int32).add_(high * wide // 2) // (high * wide)
    return mean.to(torch.uint8)


def gray(levels: Tensor) -> Tensor:
    """Luminance ``(..., 1, H, W)`` of colours ``(..., 3, H, W)``: 0.299, 0.587 and 0.114 parts, as Pillow has it."""
    red, green, blue = levels.to(torch.int32).unbind(-3)
    luminance: Tensor = (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16
    return luminance.to(torch.uint8).unsqueeze(-3)


def fit(
    image: Image.Image,
    size: tuple[int, int] | None,
    resample: Resample,
    reduced: int = 1,
    full: tuple[int, int] = (0, 0),
) -> NDArray[np.uint8]:
    """An ``L`` or ``RGB`` image as ``(C, H, W)`` bytes, cropped and brought to ``size``.

    Args:
        image: the image.
        size: height and width; as it is by default.
        resample: the filter.
        reduced: how many times smaller it was decoded.
        full: height and width before that.
    """
    if size is None:
        return _channels_first(image)
    if reduced > 1:
        # Cut where the crop of the whole image is, which may lie between two pixels of the small one.
        top, left, height, width = (side / reduced for side in cropped(full, size))
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        return _channels_first(image.resize((size[1], size[0]), _filter(resample), box=box))
    top, left, height, width = cropped((image.height, image.width), size)
    if (height, width) != (image.height, image.width):
        image = image.crop((left, top, left + width, top + height))
    return resized(image, size, resample)


def resized(image: Image.Image, size: tuple[int, int], resample: Resample) -> NDArray[np.uint8]:
    """An ``L`` or ``RGB`` image as ``(C, H, W)`` bytes, brought to ``size`` as a whole."""
    if (image.height, image.width) == size:
        return _channels_first(image)
    if resample == "box" and not (image.height % size[0] or image.width % size[1]):
        return np.asarray(pool(torch.from_numpy(_channels_first(image)), size).numpy())
    return _channels_first(image.resize((size[1], size[0]), _filter(resample)))


def draft(image: Any, size: tuple[int, int] | None, resample: Resample) -> int:
    """Let a JPEG file be decoded smaller, where the filter makes good what that loses; how many times."""
    if size is None or resample != "lanczos" or image.format != "JPEG":
        return 1
    width: int = image.width
    image.draft(None, (_DRAFT * max(size),) * 2)
    reduced: int = round(width / image.width)
    return reduced


def _channels_first(image: Image.Image) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = np.array(image, dtype=np.uint8)  # a copy: what Pillow shares cannot be written
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _filter(resample: Resample) -> Any:
    from PIL.Image import Resampling

    return {"lanczos": Resampling.LANCZOS, "bicubic": Resampling.BICUBIC, "box": Resampling.BOX}[resample]
