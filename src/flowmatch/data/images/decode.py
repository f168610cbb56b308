"""One encoded image to bytes: every kind of pixel that files hold, and a reason for what cannot be read.

* **Orientation**: the EXIF tag of a camera is obeyed.
* **Animation**: the first frame.
* **Alpha**, or a transparent colour: laid over white, as a page shows it.
* **Palette, CMYK, YCbCr**: to red, green and blue; a colour profile inside the file is not applied.
* **16 bits**: ``n`` to ``n / 257`` rounded, so that 0 and 65535 are 0 and 255. Of colour images with 16 bits Pillow
  itself keeps the upper eight. Floating-point pixels have no fixed range and are refused.
* **Grey from colour**: 0.299, 0.587 and 0.114 parts of red, green and blue; colour from grey: three times the same.

Images with more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million, unless a program raises it) are refused before
they are decoded: a small file can unfold to more than there is memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowmatch.data.images.resize import Resample, draft, fit

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Damaged", "DamagedError", "decode", "natural_channels", "pillow"]

_GREY = ("1", "L", "LA", "La", "I", "F")  # and I;16 in every byte order
_ORIENTATION = 0x0112  # tag of EXIF


class Damaged(NamedTuple):
    """An image that could not be read.

    Attributes:
        name: path or place of the image in its source.
        reason: what is wrong with it.
    """

    name: str
    reason: str


class DamagedError(Exception):
    """An image cannot be read; the text is the reason."""


def pillow() -> Any:
    """The module ``PIL.Image``, or how to install it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('images need Pillow; install it with: pip install "flowmatch[images]"') from error
    return Image


def natural_channels(file: Any) -> int:
    """1 for a grey image, 3 for one in colour, by its header alone.

    Raises:
        DamagedError: the header cannot be read.
    """
    if isinstance(file, pillow().Image):  # which is opened by a copy
        return _channels_of(file.mode)
    with _opened(file) as image:
        return _channels_of(image.mode)


def decode(file: Any, channels: int, size: tuple[int, int] | None, resample: Resample) -> NDArray[np.uint8]:
    """An image as ``(C, H, W)`` bytes.

    Args:
        file: a path, an open binary file or a ``PIL.Image.Image``.
        channels: 1 or 3.
        size: height and width to crop and resize to; as it is by default.
        resample: the filter.

    Raises:
        DamagedError: it cannot be read; the text is the reason.
    """
    from PIL import ImageOps

    with _opened(file) as image:
        full = image.height, image.width
        # In a turned image the incomplete pixels at the end of a reduced one would come first.
        reduced = draft(image, size, resample) if _is_upright(image) else 1
        ImageOps.exif_transpose(image, in_place=True)
        return fit(_converted(image, channels), size, resample, reduced, full)


def _channels_of(mode: str) -> int:
    return 1 if mode in _GREY or mode.startswith("I;16") else 3


def _is_upright(image: Image.Image) -> bool:
    # Asked of JPEG only: a PNG has to be decoded for an answer.
    return image.format == "JPEG" and bool(image.getexif().get(_ORIENTATION, 1) == 1)


class _opened:
    """Context of an open image; whatever goes wrong inside is a :class:`DamagedError`."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.image: Any = None

    def __enter__(self) -> Image.Image:
        module = pillow()
        try:
            # A picture that is open already is not ours to turn or to close.
            self.image = self.file.copy() if isinstance(self.file, module.Image) else module.open(self.file)
            most, (width, height) = module.MAX_IMAGE_PIXELS, self.image.size
            if most is not None and width * height > most:
                raise DamagedError(f"{width} x {height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {most}")
        except Exception as error:
            self.__exit__(type(error), error)
            raise
        return self.image  # type: ignore[no-any-return]

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if self.image is not None and self.image is not self.file:
            self.image.close()
        # Decoders answer damaged bytes with errors of many unrelated types.
        if isinstance(error, Exception) and not isinstance(error, DamagedError | MemoryError | ImportError):
            raise DamagedError(_reason(error)) from error


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """The same picture in mode ``L`` or ``RGB``."""
    module, mode = pillow(), image.mode
    if mode == "F":
        raise DamagedError("floating-point pixels have no fixed range; store them with 8 or 16 bits")
    if mode == "I" or mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() >= 2**16:
            raise DamagedError(f"whole numbers from {wide.min()} to {wide.max()} are no pixels of 16 bits")
        image = module.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        clear = image.convert("LA" if mode == "La" else "RGBA").convert("RGBA")
        image = module.alpha_composite(module.new("RGBA", clear.size, "white"), clear).convert("RGB")
    elif mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "the content is no image that Pillow knows"
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
