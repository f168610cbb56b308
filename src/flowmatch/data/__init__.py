"""Data: toy sets with known density, tables from files with the codec between tables and tensors, images."""

from flowmatch.data.codec import TableCodec, TableData
from flowmatch.data.images import Downsampled, Images, Masked, load_images, to_uint8
from flowmatch.data.sources import Table, load_table
from flowmatch.data.toy import TOYS, Toy, toy

__all__ = [
    "TOYS",
    "Downsampled",
    "Images",
    "Masked",
    "Table",
    "TableCodec",
    "TableData",
    "Toy",
    "load_images",
    "load_table",
    "to_uint8",
    "toy",
]
