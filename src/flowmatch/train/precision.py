r"""The type in which the network computes, and the scale that half precision needs.

Weights, moments, averages and the loss are in float32 always; under ``"bf16"`` and ``"fp16"`` the network runs inside
autocast, and what it returns is brought back to the type of ``x`` before the loss. bfloat16 has the range of float32.
float16 has not: gradients below :math:`6 \cdot 10^{-8}` vanish. So the loss is multiplied by a scale before the
backward pass and the gradients are divided by it after; a step whose gradients overflowed is left out and the scale
halved, and after 2000 good steps it is doubled (Micikevicius et al. 2018, section 3.2). The same runs on a CPU, some
nine times slower than float32 there: good for a test, not for work.

Source: Micikevicius et al., Mixed Precision Training, 2018, https://arxiv.org/abs/1710.03740.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flowmatch.errors import InputError
from flowmatch.typing import Field

__all__ = ["Precision"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOWEST = 2.0**-10  # a scale that needs to be lower hides a network that overflows by itself


class Precision:
    """Runs a network in a type, and an optimiser on the gradients that come out.

    Args:
        name: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        device: where the network is.

    Example:
        >>> net, half = nn.Linear(2, 2), Precision("bf16", torch.device("cpu"))
        >>> half.field(lambda t, x: net(x))(torch.zeros(1), torch.ones(1, 2)).dtype
        torch.float32
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        self._dtype, self._device = _TYPES.get(name), device
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def field(self, model: nn.Module) -> Field:
        """``model`` in this type; what comes out has the type of ``x``, so the loss is fp32."""
        if self._dtype is None:
            return model

        def field(t: Tensor, x: Tensor, *cond: Any) -> Any:
            with torch.autocast(self._device.type, dtype=self._dtype):
                result = model(t, x, *cond)
            return pytree.tree_map(lambda value: value.to(x.dtype), result)  # a pair of fields, for some objectives

        return field

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``, in units of the scale."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients to their own size, before they are clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An update, left out if a gradient overflowed."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def check(self) -> None:
        """Raise InputError if no scale keeps the gradients finite."""
        if self.scaler is not None and self.scaler.get_scale() < _LOWEST:
            raise InputError(
                f"the gradients overflow float16 even at a loss scale of {self.scaler.get_scale():.2g}; use "
                "precision='bf16' or 'fp32', or look for extreme values in the data"
            )

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps."""
        return None if self.scaler is None else self.scaler.state_dict()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put back what :meth:`state` gave; a run that had no scale until now starts it here."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
