"""Small flows of every kind that can be exported, with weights drawn so that they move what they are given."""

from __future__ import annotations

from typing import Any

import torch

import flowmatch as fm
from tests.nn.networks import image_net
from tests.problems import seeded

SHAPE = (1, 8, 8)


def small(kind: str, cond: str = "plain") -> Any:
    """An image network in single precision, with weights of the size that trained ones have."""
    net = image_net(kind, cond).float()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    return net


def image_flow(kind: str, cond: str = "plain", **options: Any) -> fm.Flow:
    return fm.Flow(small(kind, cond), event_shape=SHAPE, **options)


def guided_flow(kind: str, cond: str = "labels", **options: Any) -> fm.Flow:
    net = small(kind, cond)
    return fm.Flow(fm.Guided(net, 3.0, net.null, **options), event_shape=SHAPE)


def table_flow(**options: Any) -> fm.Flow:
    """A flow on rows of two columns."""
    net = fm.nn.MLP(2, hidden=16, depth=2, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=seeded(3)))
    return fm.Flow(net, event_shape=(2,))


def told(cond: str, size: int, seed: int = 5) -> Any:
    """A condition of that many images, of the kind that :func:`small` has for the same word."""
    generator = seeded(seed)
    label = torch.randint(4, (size,), generator=generator)
    if cond in ("plain", "labels"):
        return label if cond == "labels" else None
    given = {"image": torch.randn(size, 1, 8, 8, generator=generator)}
    if cond == "image":
        return {"image": torch.randn(size, 2, 8, 8, generator=generator)}
    if cond == "mask":
        given["mask"] = torch.rand(size, 1, 8, 8, generator=generator) < 0.5
    else:
        given["noise"] = torch.rand(size, generator=generator)
    return given | {"label": label}
