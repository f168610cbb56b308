"""A weight that lies in shards over the processes, seen as what this one holds, and as a whole.

A sharded weight is a ``DTensor``: it says the shape of the whole and holds a part. Checkpoints hold wholes, so that
they are read by another number of processes, or by one without shards. Everything here takes plain tensors as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["fill", "gathered", "is_sharded", "local", "shard_like"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor lies in shards."""
    # The class would be asked for by an import that costs more than all the rest of this room.
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory and without a graph.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> local(weight).data_ptr() == weight.data_ptr(), local(weight).requires_grad
        (True, False)
    """
    part: Any = tensor.detach()
    held: Tensor = part.to_local() if is_sharded(tensor) else part
    return held


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The tensors as wholes; of sharded ones a copy in the memory of the host, one after the other.

    Args:
        tensors: by name, the same names in every process, which all have to call this.
        keep: whether this process needs them; the others only send their shards.
    """
    wholes: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value: Any = tensor.detach()
        if is_sharded(tensor):
            value = value.full_tensor()
            value = value.cpu() if keep else None
        if keep:
            wholes[name] = value
    return wholes


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole ``value``, sharded as ``like`` is; every process gives the same value, and nothing is sent."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    where: Any = like
    return distribute_tensor(value.to(like.device), where.device_mesh, where.placements, src_data_rank=None)


@torch.no_grad()
def fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write whole ``values`` into the targets of the same names, sharded or not."""
    for name, target in targets.items():
        local(target).copy_(local(shard_like(values[name].to(target.dtype), target)))
