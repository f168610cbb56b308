"""Processes: how the ones that a launcher started find each other, and what they share.

Accelerate does the work. What it needs to be told, so that ``torchrun`` on CPUs trains one model and not several, is
here and nowhere else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.train.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["from_the_first", "join_processes", "make_accelerator"]


def join_processes() -> Accelerator:
    """Join the processes that a launcher started; call it before anything has to be done by one of them alone.

    Raises:
        InputError: Accelerate sees another number of processes than were launched.
    """
    from accelerate import Accelerator

    # Without a GPU Accelerate joins the processes of torchrun only if told that the CPU is meant; left alone it would
    # train a separate model in each. Precision is ours: it is a global there, and refuses a second value.
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(mixed_precision="no", cpu=launched > 1 and not _can_join())
    if accelerator.num_processes != launched:
        raise InputError(
            f"the launcher started {launched} processes and Accelerate found {accelerator.num_processes}; make the "
            "Trainer before any other use of Accelerate, or set ACCELERATE_USE_CPU=true to train on CPUs"
        )
    return accelerator


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The processes of a run, checked against its config.

    Raises:
        InputError: a way of sharding that is not supported, or a batch that the processes cannot share.
    """
    accelerator = join_processes()
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"):
        raise InputError(
            f"the launcher asks for {accelerator.distributed_type.value}, which this trainer does not support; "
            "launch it with torchrun, for one copy of the model in each process, or for shares of one with shard=True"
        )
    parts = accelerator.num_processes * config.accumulate
    if config.batch_size % parts:
        raise InputError(
            f"batch_size {config.batch_size} cannot be shared by {accelerator.num_processes} processes in "
            f"{config.accumulate} parts each; give a multiple of {parts}"
        )
    return accelerator


def from_the_first(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The tensor that the first process has, in every process."""
    from accelerate.utils import broadcast

    shared: Tensor = broadcast(tensor) if accelerator.num_processes > 1 else tensor
    return shared


def _can_join() -> bool:
    """Whether there is an accelerator over which processes can talk to each other."""
    if not hasattr(torch, "accelerator"):  # before torch 2.6
        return torch.cuda.is_available()
    found = torch.accelerator.current_accelerator()
    return torch.accelerator.is_available() and found is not None and found.type != "mps"
