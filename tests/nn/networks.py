"""Tiny image networks of every kind, with weights drawn so that nothing in them is zero."""

from __future__ import annotations

from typing import Any

import torch

from flowmatch.nn import DiT, UNet
from flowmatch.nn.images import ImageNetwork
from tests.problems import seeded

UNETS = {"channels": 8, "mults": (1, 2), "depth": 1, "attention": (4,), "head_channels": 8}
SIZES: dict[str, tuple[type[ImageNetwork], dict[str, Any]]] = {
    "unet": (UNet, UNETS),
    "unet-conv": (UNet, UNETS | {"resample": "conv", "scale_shift": False, "attention": ()}),
    "dit": (DiT, {"patch": 2, "hidden": 16, "depth": 2, "heads": 2}),
}

CONDITIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "labels": {"classes": 3},
    "image": {"image": 2},
    "mask": {"image": 1, "mask": True, "classes": 3},
    "noise": {"image": 1, "noise": True, "classes": 3},
}


def shaken(net: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> Any:
    """The network with random weights, in double precision."""
    generator = seeded(seed)
    net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net.eval()


def image_net(kind: str, cond: str = "plain", shape: tuple[int, int, int] = (1, 8, 8), **options: Any) -> Any:
    network, sizes = SIZES[kind]
    return shaken(network(shape, **sizes | CONDITIONS[cond] | options))


def image_inputs(size: int, cond: str = "plain", shape: tuple[int, int, int] = (1, 8, 8), seed: int = 1) -> list[Any]:
    """Times, images and, if there is one, the condition."""
    generator = seeded(seed)
    told = CONDITIONS[cond]
    t = torch.rand(size, generator=generator, dtype=torch.float64)
    x = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
    label = torch.randint(4, (size,), generator=generator)  # 3 is the empty label
    if not told.get("image"):
        return [t, x, label] if told else [t, x]
    image = torch.randn(size, told["image"], *shape[1:], generator=generator, dtype=torch.float64)
    given = {"image": image}
    if told.get("mask"):
        given["mask"] = torch.rand(size, 1, *shape[1:], generator=generator) < 0.5
    if told.get("noise"):
        given["noise"] = torch.rand(size, generator=generator, dtype=torch.float64)
    return [t, x, given | ({"label": label} if told.get("classes") else {})]
