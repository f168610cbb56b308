"""Images written by the tests, whose pixels are known."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(n: int, height: int = 6, width: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random bytes ``(n, height, width)``, or ``(n, height, width, 3)``."""
    shape = (n, height, width) if channels == 1 else (n, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    """Write one image, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def first(array: np.ndarray) -> np.ndarray:
    """The same images with channels first."""
    return array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)


def write_idx(path: Path, array: np.ndarray, packed: bool = False) -> Path:
    """An idx file, from its definition."""
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)
    return path
