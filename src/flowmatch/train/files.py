"""Tensors onto the disc, one after the other: a checkpoint takes no memory beside what it saves.

The format is that of safetensors: eight bytes for the length of a JSON header with the type, shape and place of every
tensor, the header, then the numbers. The package's own writer holds all of them three times over for a moment,
which for the moments of a large network is more than training itself takes. Files are read with the package.

Source: the format, https://huggingface.co/docs/safetensors/index.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["write_tensors"]

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a file and force it onto the disc; its SHA-256.

    Raises:
        TypeError: a tensor of a type that has no place in the format, such as a complex one.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_tensors(Path(folder) / "a.safetensors", {"w": torch.arange(3)})
        ...     load_file(Path(folder) / "a.safetensors")
        {'w': tensor([0, 1, 2])}
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(tensors):
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    header, place = {}, 0
    # The widest numbers first, so that each lies at a multiple of its own size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _TYPES:
            raise TypeError(f"{name} is {tensor.dtype}, which a safetensors file cannot hold; convert it")
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if sys.byteorder == "big":
            size = tensors[name].element_size()
            flat = flat.reshape(-1, size)[:, ::-1].copy()
        yield flat.data if flat.size else b""
