r"""What a training run will take, told before it starts: parameters, memory, work and hours.

Nothing is computed: the network is built on torch's ``meta`` device, where tensors have shapes and no numbers, and one
image is sent through it. On the way the floating-point operations are counted, and the bytes that the backward pass
will want again.

* **Memory of the weights**: each is held five times in float32, as itself, its gradient, two moments of Adam and its
  average, and twice more where averages are chosen after training; sharded, each process holds its share.
* **Memory of a step**: what is kept for the backward pass of the images that a process has at a time. Autocast to 16
  bits halves most of it. Workspace of the kernels comes on top and is not counted.
* **Work**: a backward pass costs two forward ones, so that a step on ``B`` images takes :math:`3 B F` operations if one
  image takes ``F`` forwards; with checkpointing, which goes forwards twice, :math:`4 B F`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmatch.recipes.images import ImageConfig, make_image_model
from flowmatch.train import TrainConfig
from flowmatch.train.blocks import checkpoint_blocks

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        parameters: number of weights that are trained.
        flops: floating-point operations of one image forwards.
        state_bytes: memory of weights, gradients, moments and averages, in each process.
        step_bytes: memory of what a step keeps for its backward pass, in each process.
        steps_per_epoch: optimiser steps in which every image is seen once.
        epochs: how often every image is seen.
        images: images seen in all, repeats included.
        work: floating-point operations of the whole training.
    """

    parameters: int
    flops: int
    state_bytes: int
    step_bytes: int
    steps_per_epoch: float
    epochs: float
    images: int
    work: float

    def hours(self, throughput: float) -> float:
        """Hours at so many images a second, over all processes together."""
        return self.images / throughput / 3600

    def lines(self, throughput: float | None = None) -> list[str]:
        """What to tell a user."""
        told = [
            f"parameters: {self.parameters:,}",
            f"work: {self.flops / 1e9:,.1f} GFLOP an image forwards, {self.work:.2e} FLOP in all",
            f"memory: {_size(self.state_bytes)} for weights, gradients, moments and average; "
            f"{_size(self.step_bytes)} for one step in each process, workspace not counted",
            f"images: {self.images:,} in all, {self.epochs:,.1f} epochs of {self.steps_per_epoch:,.0f} steps",
        ]
        if throughput is not None:
            told.append(f"time: {self.hours(throughput):,.1f} hours at {throughput:,g} images a second")
        else:
            told.append(
                f"time: {self.work / 1e14 / 3600:,.1f} hours at 100 TFLOP a second; give --throughput, in images a "
                "second over all processes, for that of a machine"
            )
        return told


def estimate(
    config: ImageConfig, train: TrainConfig, shape: Sequence[int], images: int, classes: int = 0, processes: int = 1
) -> Estimate:
    """What training a network on images of one shape will take.

    Args:
        config: job and network.
        train: training options.
        shape: ``(C, H, W)`` of the images.
        images: their number.
        classes: number of classes, 0 for none.
        processes: number of processes that share a batch.

    Raises:
        InputError: a shape or options that the network cannot take.

    Example:
        >>> found = estimate(ImageConfig(network="dit-small"), TrainConfig(batch_size=100, steps=50), (1, 8, 8), 1000)
        >>> found.parameters, found.epochs, found.images
        (722788, 5.0, 5000)
    """
    with torch.device("meta"):
        net = make_image_model(config, shape, classes).train()
        if train.checkpointing:
            checkpoint_blocks(net)
        inputs = _inputs(net, shape)
    flops, kept = _count(net, inputs)
    parameters = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    here = math.ceil(train.batch_size / (processes * train.accumulate))
    seen = train.steps * train.batch_size
    passes = 4 if train.checkpointing else 3
    numbers = 4 + bool(train.ema) + 2 * bool(train.posthoc_every)
    return Estimate(
        parameters=parameters,
        flops=flops,
        state_bytes=4 * parameters * numbers // (processes if train.shard else 1),
        step_bytes=here * kept // (1 if train.precision == "fp32" else 2),
        steps_per_epoch=images / train.batch_size,
        epochs=seen / images,
        images=seen,
        work=float(passes * flops * seen),
    )


def _inputs(net: Any, shape: Sequence[int]) -> tuple[Any, ...]:
    """One image, with what the network is told of it, on the device of the context."""
    label = torch.zeros(1, dtype=torch.long)
    cond: Any = label if net.classes else None
    if net.image:
        cond = {"image": torch.zeros(1, net.image, *shape[1:])}
        cond |= {"mask": torch.ones(1, 1, *shape[1:], dtype=torch.bool)} if net.mask else {}
        cond |= {"noise": torch.zeros(1)} if net.noise else {}
        cond |= {"label": label} if net.classes else {}
    return torch.zeros(1), torch.zeros(1, *shape), cond


def _count(net: Any, inputs: tuple[Any, ...]) -> tuple[int, int]:
    """Operations of a forward pass, and bytes that its backward pass will need beside the weights."""
    from torch.utils.flop_counter import FlopCounterMode

    weights = {weight.untyped_storage()._cdata for weight in net.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that is freed would give its number to the next

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    # Two passes, since the counter takes kernels apart, and their parts keep more than they do.
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(*inputs)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(*inputs)
    return int(counter.get_total_flops()), sum(kept.values())


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
