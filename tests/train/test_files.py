"""Files that the package safetensors reads back, written one tensor at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save

from flowmatch.train.files import write_tensors

TYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def test_what_is_written_is_read_by_the_package(tmp_path: Path) -> None:
    tied = torch.randn(3, 4)
    tensors = {name: (torch.randn(5, 3) * 3).to(getattr(torch, name)) for name in TYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": torch.randn(4, 6).T}
    tensors |= {"one": tied, "two": tied, "part": tied[1:, ::2], "grad": torch.nn.Parameter(torch.ones(2))}
    digest = write_tensors(tmp_path / "a.safetensors", tensors)
    assert digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value.detach())


def test_the_bytes_are_those_of_the_package(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.int64), "c": torch.tensor(True)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    written = (tmp_path / "a.safetensors").read_bytes()
    theirs = save(tensors)
    numbers = [content[8 + int.from_bytes(content[:8], "little") :] for content in (written, theirs)]
    assert numbers[0] == numbers[1]
    assert (8 + int.from_bytes(written[:8], "little")) % 8 == 0
    assert load(written).keys() == load(theirs).keys()


def test_no_tensors_make_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {})
    assert load_file(tmp_path / "a.safetensors") == {}


def test_what_the_format_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"weight is torch.complex64, which a safetensors file cannot hold"):
        write_tensors(tmp_path / "a.safetensors", {"weight": torch.ones(2, dtype=torch.complex64)})
