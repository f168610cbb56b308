"""Everything of a run that a checkpoint holds: weights, moments, averages, scale, generators, half a line of metrics.

What is not here is a function of the seed and the step: batches, times, noise, dropped labels, the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowmatch.train.checkpoint import Checkpoint, check_fit
from flowmatch.train.ema import Ema
from flowmatch.train.lowest import Lowest
from flowmatch.train.meter import Meter
from flowmatch.train.posthoc import Posthoc
from flowmatch.train.precision import Precision
from flowmatch.train.state import (
    load_model,
    load_optimizer,
    load_rng,
    model_tensors,
    optimizer_tensors,
    rng_tensors,
    seed_rng,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["RunState"]


@dataclass(frozen=True)
class RunState:
    """The parts of a run that change as it goes; those that it does not have are ``None``.

    Attributes:
        accelerator: the processes; all of them save and restore together.
        module: the trained model.
        optimizer: its optimiser.
        names: of the optimiser's weights, in order.
        own: weights that the objective learns.
        ema: the average.
        posthoc: the averages for snapshots.
        lowest: the best average so far.
        precision: with the scale of the loss.
        meter: with the losses since the last line.
        seed: of the run.
    """

    accelerator: Accelerator
    module: nn.Module
    optimizer: torch.optim.Optimizer
    names: Sequence[str]
    own: Mapping[str, nn.Parameter]
    ema: Ema | None
    posthoc: Posthoc | None
    lowest: Lowest | None
    precision: Precision
    meter: Meter
    seed: int

    def save(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Groups of whole tensors, empty where this process does not write, and what is no tensor."""
        keep = self.accelerator.is_main_process
        groups = {
            "model": model_tensors(self.module, keep),
            "optimizer": optimizer_tensors(self.optimizer, self.names, keep),
            "rng": rng_tensors(self.accelerator),
        }
        if self.own:
            groups["objective"] = {name: weight.data for name, weight in self.own.items()}
        if self.ema is not None:
            groups["ema"] = model_tensors(self.ema.module, keep)
        if self.posthoc is not None:
            groups["posthoc"] = self.posthoc.tensors()
        lowest = None if self.lowest is None else self.lowest.state()
        if self.lowest is not None and lowest is not None:
            groups["lowest"] = self.lowest.tensors
        return groups, {"meter": self.meter.state(), "lowest": lowest, "scaler": self.precision.state()}

    def seed_rng(self, step: int) -> None:
        """Seed this process's generators for a run that starts at ``step`` without a checkpoint."""
        seed_rng(self.accelerator, self.seed, step)

    def restore(self, found: Checkpoint) -> None:
        """Put back what :meth:`save` gave, by any number of processes, sharded or not.

        Raises:
            InputError: it belongs to another model, optimiser or objective.
        """
        tensors = found.tensors
        check_fit(tensors["model"], self.module.state_dict(), "model", found.path)
        load_model(self.module, tensors["model"])
        load_optimizer(self.optimizer, self.names, tensors["optimizer"], found.path)
        own = {name: weight.data for name, weight in self.own.items()}
        check_fit(tensors.get("objective", {}), own, "objective", found.path)
        for name, weight in own.items():
            weight.copy_(tensors["objective"][name])
        if self.ema is not None:
            # A run that had no average until now starts it here.
            load_model(self.ema.module, tensors.get("ema", tensors["model"]))
        if self.posthoc is not None:
            self.posthoc.restore(tensors.get("posthoc"), found.path)
        if self.lowest is not None:
            self.lowest.restore(found.state.get("lowest"), tensors.get("lowest", {}))
        load_rng(self.accelerator, tensors["rng"], self.seed, found.step)
        self.precision.restore(found.state.get("scaler"))
        self.meter.restore(found.state["meter"])
