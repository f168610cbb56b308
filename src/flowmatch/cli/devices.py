"""Where a command computes."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch
import typer

from flowmatch.errors import InputError

__all__ = ["DeviceOption", "device_of"]

DeviceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--device", help="cpu, cuda, cuda:1, mps. (default: a GPU for images, if there is one)", show_default=False
    ),
]


def device_of(asked: str | None, images: bool) -> torch.device:
    """The device asked for; by default what there is. Tables are small, and stay on the CPU.

    Raises:
        InputError: no such device, or one for a table.
    """
    if not images:
        if asked not in (None, "cpu"):
            raise InputError(f"--device {asked} is for runs of images; a table is solved on the CPU")
        return torch.device("cpu")
    if asked is None:
        found = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
        return found if found is not None and torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {asked} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
