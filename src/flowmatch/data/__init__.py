"""Data: toy sets with known density, tables from files, and the codec between tables and tensors."""

from flowmatch.data.codec import TableCodec, TableData
from flowmatch.data.sources import Table, load_table
from flowmatch.data.toy import TOYS, Toy, toy

__all__ = ["TOYS", "Table", "TableCodec", "TableData", "Toy", "load_table", "toy"]
