"""The weights with the lowest held-out loss so far: an early stop that needs no guess of when.

On a small table the held-out loss falls, turns and rises again while the training loss still falls. The held-out draws
are the same at every evaluation, so the lowest point is a property of the weights and not of luck in the draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flowmatch.train.state import model_tensors

__all__ = ["Lowest"]


class Lowest:
    """Keeps a copy of the best weights seen.

    Attributes:
        value: their held-out loss.
        step: number of updates that had made them.
        tensors: the weights by name, empty before the first look.

    Example:
        >>> lowest, net = Lowest(), nn.Linear(1, 1)
        >>> lowest.see(0.5, 10, net), lowest.see(0.7, 20, net), lowest.step
        (None, None, 10)
    """

    def __init__(self) -> None:
        self.value, self.step = math.inf, 0
        self.tensors: dict[str, Tensor] = {}

    def see(self, value: float, step: int, module: nn.Module) -> None:
        """Keep the weights of ``module`` if ``value`` is the lowest yet."""
        if value < self.value:
            self.value, self.step = value, step
            self.tensors = {name: tensor.detach().clone() for name, tensor in model_tensors(module).items()}

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps beside the tensors."""
        return {"value": self.value, "step": self.step} if self.tensors else None

    def restore(self, state: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> None:
        """Put back what a checkpoint kept."""
        if state is not None:
            self.value, self.step, self.tensors = float(state["value"]), int(state["step"]), dict(tensors)

    def give(self, module: nn.Module) -> None:
        """Load the best weights into ``module``, if there are any."""
        if self.tensors:
            module.load_state_dict(self.tensors)
