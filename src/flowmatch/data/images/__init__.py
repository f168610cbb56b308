"""Images: read from folders, data sets and arrays, kept as bytes, taken as numbers; pairs for conditional jobs."""

from flowmatch.data.images.decode import Damaged
from flowmatch.data.images.images import ImageReport, Images
from flowmatch.data.images.load import load_images
from flowmatch.data.images.pairs import Downsampled, Masked, box_holes, pixel_holes
from flowmatch.data.images.pixels import dequantized, scaled, to_uint8
from flowmatch.data.images.write import sheet, write_images

__all__ = [
    "Damaged",
    "Downsampled",
    "ImageReport",
    "Images",
    "Masked",
    "box_holes",
    "dequantized",
    "load_images",
    "pixel_holes",
    "scaled",
    "sheet",
    "to_uint8",
    "write_images",
]
