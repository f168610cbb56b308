r"""Networks in forward mode: what a fused kernel or a checkpoint cannot do there, done another way.

The exact divergence, Hutchinson's and every flow map need forward mode, vectorised. Three things stand in its way:

* the fused kernels of ``scaled_dot_product_attention`` have no forward-mode derivative and no rule for ``vmap``; so
  attention is the plain product :math:`\mathrm{softmax}(Q K^T / \sqrt d)\, V`;
* the derivative of torch's group normalisation takes no tensor whose channels lie innermost, as they do behind
  attention; so it is computed from its mean and variance;
* a checkpoint cannot be taken inside a function transform; so nothing is checkpointed.

This is so inside a transform. Everywhere else the fast way is taken, and the two agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed", "differentiable", "transforming"]


def transforming() -> bool:
    """Whether a forward-mode derivative or a function transform is under way.

    Example:
        >>> seen = []
        >>> _ = torch.func.jvp(lambda x: seen.append(transforming()) or x, (torch.ones(1),), (torch.ones(1),))
        >>> seen, transforming()
        ([True], False)
    """
    if torch.compiler.is_compiling():
        return False
    # No tensor is asked: in d/dt the points have no tangent, nor has anything in a derivative by the parameters.
    level: int = forward_ad._current_level
    return level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def differentiable() -> Iterator[None]:
    """Networks inside have derivatives of every kind while a transform is under way; else nothing is changed.

    Example:
        >>> norm, x = nn.GroupNorm(2, 4).double(), torch.arange(8.0, dtype=torch.float64).view(2, 1, 4).mT
        >>> with differentiable():
        ...     torch.func.jvp(norm, (x,), (torch.ones_like(x),))[1].abs().max() < 1e-9
        tensor(True)
    """
    if not transforming():
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), _Plain():
        yield


def checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """The module's answer; what it keeps for the backward pass is made anew there, to save memory."""
    if transforming():
        return module(*inputs)
    return checkpoint(module, *inputs, use_reentrant=False)


class _Plain(TorchFunctionMode):
    """Group normalisation from its formula, everything else as it is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        called = _group_norm if func is functional.group_norm else func
        return called(*args, **(kwargs or {}))


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    size, channels = input.shape[:2]
    groups = input.reshape(size, num_groups, -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
    normed = ((groups - mean) * torch.rsqrt(variance + eps)).reshape(input.shape)
    shape = (channels, *(1,) * (input.ndim - 2))
    if weight is not None:
        normed = normed * weight.view(shape)
    return normed if bias is None else normed + bias.view(shape)
