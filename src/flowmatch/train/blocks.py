"""Blocks of a network that are computed again in the backward pass, by the network's own switch."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowmatch.errors import InputError

__all__ = ["checkpoint_blocks"]


def checkpoint_blocks(network: nn.Module) -> None:
    """Keep the inputs of the blocks only, not what is inside them, for the backward pass.

    Args:
        network: one with an attribute ``checkpointing``, such as :class:`flowmatch.nn.UNet` or
            :class:`flowmatch.nn.DiT`, or with a model of diffusers inside.

    Raises:
        InputError: the network has no such switch.

    Example:
        >>> import flowmatch as fm
        >>> net = fm.nn.DiT((1, 4, 4), hidden=8, depth=1, heads=1)
        >>> checkpoint_blocks(net)
        >>> net.checkpointing
        True
    """
    # A network of ours whose blocks are those of a model of diffusers inside tells both.
    inner: list[Any] = [part for part in network.modules() if getattr(part, "_supports_gradient_checkpointing", False)]
    told = isinstance(getattr(network, "checkpointing", None), bool)
    if not (inner or told):
        raise InputError(
            f"{type(network).__name__} has no switch for checkpointing; use an image network such as fm.nn.UNet or "
            "fm.nn.DiT, give the network an attribute checkpointing that it reads, or set checkpointing=False"
        )
    if told:
        network.checkpointing = True  # type: ignore[assignment]
    for part in inner:
        if not part.is_gradient_checkpointing:
            part.enable_gradient_checkpointing()
