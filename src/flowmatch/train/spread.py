"""How a model lies over the processes: a copy in each, or each with a share of every weight.

**Copies.** Accelerate wraps the model in PyTorch's ``DistributedDataParallel``; alone it is left as it is.

**Shards.** ``fully_shard`` (FSDP2) cuts every weight along its first dimension. A block of the network is put together
when it is computed and taken apart after it, so that a process holds, of ``N`` weights on ``W`` processes, about
``16 N / W`` bytes of weights, gradients and moments (``20 N / W`` with an average) and one whole block. It is called
directly: Accelerate's plugin is a setting of the whole Python process, chooses the precision too, and hands out the
optimiser under names of its own, where here one line says it.

For looking at the model (a held-out loss, samples, the result) a plain copy is kept in the memory of the host, ``4 N``
bytes a process, and filled and moved to the device while it is looked at.
"""

from __future__ import annotations

import contextlib
import copy
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.train.config import TrainConfig
from flowmatch.train.processes import from_the_first
from flowmatch.train.shards import gathered, is_sharded, local

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Copies", "Shards", "adamw", "clip", "spread"]


class Copies:
    """The whole model in every process.

    Args:
        accelerator: wraps the model.
        module: the model; moved to the device.

    Attributes:
        module: the model, whose weights are trained.
        model: what is called in training.
    """

    def __init__(self, accelerator: Accelerator, module: nn.Module) -> None:
        self.module = module.to(accelerator.device)
        self._accelerator = accelerator
        self.model: nn.Module = accelerator.prepare(self.module)

    def twin(self) -> nn.Module:
        """Another model with the same weights, spread alike; to be made before training."""
        return copy.deepcopy(self.module)

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """Context of one part of a step: gradients travel between processes once, with the last part."""
        if last or self.model is self.module:
            return contextlib.nullcontext()
        waiting: AbstractContextManager[Any] = self._accelerator.no_sync(self.model)
        return waiting

    def seen(self, module: nn.Module) -> nn.Module:
        """``module`` or a plain copy of it, to be called by one process alone, in evaluation mode."""
        return module.eval()

    def release(self) -> None:
        """End of looking."""


class Shards:
    """A share of every weight in each process.

    Args:
        accelerator: the processes.
        module: the model; its weights are sharded in place, each block of its lists of blocks by itself.

    Raises:
        InputError: a weight without dimensions, which cannot be cut.
        ImportError: a PyTorch that has no FSDP2.
    """

    def __init__(self, accelerator: Accelerator, module: nn.Module) -> None:
        if torch.__version__ < "2.7":
            raise ImportError(
                f'shard=True needs PyTorch 2.7 or later, this is {torch.__version__}; run: pip install "torch>=2.7"'
            )
        single = [name for name, weight in module.named_parameters() if not weight.ndim]
        if single:
            raise InputError(
                f"the weight {single[0]} has no dimension along which it could be sharded; give it the shape (1,), or "
                "train with shard=False"
            )
        from torch.distributed.device_mesh import init_device_mesh

        self._device = accelerator.device
        self._mesh = init_device_mesh(self._device.type, (accelerator.num_processes,))
        self.module = module.to(self._device)
        with torch.no_grad():
            for value in module.state_dict().values():
                value.copy_(from_the_first(accelerator, value.clone()))
        self._plain = copy.deepcopy(module).cpu()
        self._cut(self.module)
        self._buffers = [value for value in module.state_dict().values() if not is_sharded(value)]
        if self._buffers:
            self.module.register_forward_pre_hook(self._share_buffers)
        self.model: nn.Module = self.module

    def twin(self) -> nn.Module:
        """Another model with the same weights, spread alike; to be made before training."""
        return self._cut(copy.deepcopy(self._plain).to(self._device))

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """Context of one part of a step: gradients travel between processes once, with the last part."""
        module: Any = self.module
        module.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def seen(self, module: nn.Module) -> nn.Module:
        """A plain copy of ``module``, to be called by one process alone, in evaluation mode; valid until the next."""
        self._plain.load_state_dict(gathered(module.state_dict()))
        return self._plain.to(self._device).eval()

    def release(self) -> None:
        """End of looking."""
        self._plain.cpu()

    def _cut(self, module: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        for block in _blocks(module):
            fully_shard(block, mesh=self._mesh)
        fully_shard(module, mesh=self._mesh)
        return module

    def _share_buffers(self, module: nn.Module, _: Any) -> None:
        """Running statistics of the first process for all, as the wrapper of copies does it."""
        if module.training:
            for value in self._buffers:
                torch.distributed.broadcast(value, 0)


def spread(accelerator: Accelerator, module: nn.Module, shard: bool) -> Copies | Shards:
    """``module`` over the processes; a single one holds all of it either way."""
    return Shards(accelerator, module) if shard and accelerator.num_processes > 1 else Copies(accelerator, module)


def adamw(weights: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in one fused kernel where there is one."""
    fused = all(weight.is_floating_point() and weight.device.type in ("cpu", "cuda") for weight in weights)
    # No kernel takes sharded and plain weights together: an objective's own follow the model's in a group of theirs.
    groups = [[weight for weight in weights if is_sharded(weight) == kind] for kind in (True, False)]
    return torch.optim.AdamW(
        [{"params": group} for group in groups if group],
        lr=config.rate(0),
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def clip(weights: list[nn.Parameter], limit: float) -> Tensor:
    """Clip the gradients to a norm of ``limit`` over all weights and all shards; the norm before that."""
    sharded = [local(weight.grad) for weight in weights if weight.grad is not None and is_sharded(weight)]
    if not sharded:
        norm: Tensor = nn.utils.clip_grad_norm_(weights, limit)
        return norm
    plain = [weight.grad for weight in weights if weight.grad is not None and not is_sharded(weight)]
    square = nn.utils.get_total_norm(sharded) ** 2
    torch.distributed.all_reduce(square)
    if plain:
        square += nn.utils.get_total_norm(plain) ** 2
    total = square.sqrt()
    torch._foreach_mul_(sharded + plain, (limit / (total + 1e-6)).clamp(max=1.0))
    return total


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Members of the outermost lists of modules, such as a transformer's blocks or the two sides of a U-Net."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += _blocks(child)
    return found
