r"""The training loop: one screen, from a laptop to a cluster.

The same script ``train.py``, which builds a :class:`Trainer` and calls :meth:`~Trainer.fit`, runs

* on one CPU or GPU: ``python train.py``
* on two processes of one machine: ``torchrun --nproc-per-node 2 train.py``
* on two machines with eight GPUs each, on each of them:
  ``torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py``

and gives the same model, up to the rounding of sums. The reason: everything random at step ``k`` is a pure function of
``(seed, k)``. Every process draws the *whole* batch of the step (rows, coupling, times and noise, which cost little
beside the network) and computes the loss on its own share of the rows; accumulation splits that share again. With
``W`` processes and ``A`` parts of equal size, the mean of the means is the mean of the batch,

.. math:: \frac1W \sum_w \frac1A \sum_a \frac{WA}{B} \sum_{i \in (w, a)} \ell_i = \frac1B \sum_{i=1}^B \ell_i ,

for a coupling over the whole batch too, which a draw per process would cut into ``W`` smaller problems. What lies in
the network is its own: dropout masks, and statistics over a batch, do depend on the share that a process sees.

Accelerate finds the device, joins the processes, wraps the model and sums over processes. Backward and clipping are
called directly: without loss scaling its own do the same, more slowly, and its ``backward`` divides by a number of
parts that is shared by all the Accelerators of a process.

A stopped run continues bit for bit: weights, moments, averages and PyTorch's generators come from the checkpoint, and
the order of the data needs no state at all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flowmatch.errors import InputError
from flowmatch.train.checkpoint import Checkpoint, check_fit
from flowmatch.train.config import TrainConfig
from flowmatch.train.data import Data
from flowmatch.train.draws import Draws
from flowmatch.train.ema import Ema
from flowmatch.train.heldout import HeldOut, Objective, rows_in, rows_of
from flowmatch.train.log import Callback
from flowmatch.train.lowest import Lowest
from flowmatch.train.meter import Meter
from flowmatch.train.processes import from_the_first, make_accelerator
from flowmatch.train.record import Record
from flowmatch.train.state import load_optimizer, load_rng, model_tensors, optimizer_tensors, rng_tensors
from flowmatch.typing import Field

if TYPE_CHECKING:
    pass

__all__ = ["TrainResult", "Trainer"]


class TrainResult(NamedTuple):
    """What a run leaves.

    Attributes:
        model: the averaged model, or the trained one if averaging is off; of the class that was given, in evaluation
            mode.
        step: number of updates done.
        history: the lines of ``metrics.jsonl``, oldest first.
        seconds: time spent, earlier parts of a resumed run included.
        selected: number of updates that made the weights of ``model``; below ``step`` if ``config.select`` is
            ``"best"`` and an earlier average had a lower held-out loss.
    """

    model: nn.Module
    step: int
    history: list[dict[str, Any]]
    seconds: float
    selected: int


class Trainer:
    """Trains a field by an objective on data, and can be stopped at any moment.

    Args:
        model: the field, trained in place and moved to the device that is found.
        objective: a :class:`~flowmatch.FlowMatching` or the like.
        data: what to learn, such as a :class:`TensorData`.
        config: the options.
        holdout: rows to compute the held-out loss on.
        out: folder for ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``; nothing is written without it.
        callbacks: what else happens; called on the main process alone.

    Raises:
        InputError: no rows, a batch that does not divide by processes times parts, a model without weights to train,
            or a way of sharding that is not supported.

    Example:
        >>> import flowmatch as fm
        >>> objective = fm.FlowMatching(fm.AffinePath(fm.Linear()))
        >>> from flowmatch.train import TensorData
        >>> config = TrainConfig(steps=20, batch_size=16, log_every=10)
        >>> trainer = Trainer(fm.nn.MLP(dim=2, hidden=8), objective, TensorData(torch.ones(50, 2)), config)
        >>> [row["step"] for row in trainer.fit().history]
        [10, 20]
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Data,
        config: TrainConfig | None = None,
        holdout: Data | None = None,
        out: Path | str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.objective, self.data = objective, data
        self.config = config = TrainConfig() if config is None else config
        self.accelerator = make_accelerator(config)
        self.module = model.to(self.accelerator.device)
        self.model: nn.Module = self.accelerator.prepare(self.module)
        trained = {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}
        if not trained:
            raise InputError("the model has no parameter that requires a gradient, so there is nothing to train")
        # What an objective learns of its own, such as the sizes of the loss over time, is trained with the model.
        own = list(getattr(objective, "parameters", list)())
        self._own = {f"objective.{number}": weight for number, weight in enumerate(own)}
        for weight in own:
            weight.data = from_the_first(self.accelerator, weight.data.to(self.accelerator.device))
        self._names, self._weights = [*trained, *self._own], [*trained.values(), *own]
        self.optimizer = _adamw(self._weights, config)
        # After the preparation, which gives every process the weights of the first.
        self.ema = Ema(self.module, config.ema) if config.ema else None
        self.record = Record(None if out is None else Path(out), config, callbacks, self.accelerator.is_main_process)
        self._draws = Draws(objective, data, config.batch_size, config.pool, config.ahead, config.seed)
        if holdout is not None and getattr(objective, "whole_data", False):
            raise InputError(
                "a coupling of the whole training set cannot join held-out rows, so there is no held-out loss to "
                "compare; train with holdout=None"
            )
        self._heldout = None if holdout is None else HeldOut(objective, holdout, config, self.accelerator)
        self._lowest = Lowest() if config.select == "best" and self._heldout is not None else None
        self._meter = Meter(self.accelerator, config.accumulate, config.batch_size)
        self.step = 0

    def fit(self, resume: bool = False) -> TrainResult:
        """Train until ``config.steps`` updates are done.

        Args:
            resume: continue from the newest whole checkpoint in ``out``. Without it a folder that has checkpoints is
                refused, so that no run is overwritten.

        Raises:
            InputError: nothing to resume, a foreign checkpoint, a run in the way, a disc that is full, or a loss that
                is not finite. The checkpoints that are there stay.
        """
        config, field = self.config, self._field(self.model)
        self._start(self.record.find(resume))
        with self.record.running(self.step), self._draws:
            for step in range(self.step, config.steps):
                self._set_rate(config.rate(step))
                parts = self._draw(step)
                for number, part in enumerate(parts, start=1):
                    # Gradients travel between processes once, with the last part.
                    with contextlib.nullcontext() if number == len(parts) else self.accelerator.no_sync(self.model):
                        loss = self.objective.loss(field, part).mean()
                        (loss / len(parts) if len(parts) > 1 else loss).backward()
                    self._meter.add(loss)
                self._share_own()
                due = self._due(step + 1)
                norm = self._clip() if config.clip or due else None
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.ema is not None:
                    self.ema.update(step)
                self.step = step + 1
                if due and norm is not None:
                    self._pause(due, float(norm))
        model, selected = self._best(), self.step
        if self._lowest is not None:
            self._lowest.give(model)
            selected = self._lowest.step or selected
        result = TrainResult(model, self.step, self.record.history, self._meter.seconds, selected)
        self.record.ended(result)
        return result

    def _draw(self, step: int) -> list[Any]:
        """Parts of this process's share of the batch of ``step``; their randomness is spent."""
        config, accelerator = self.config, self.accelerator
        draw = self._draws(step)
        parts = accelerator.num_processes * config.accumulate
        if parts == 1 and accelerator.device.type == "cpu":
            return [draw]
        size, left = divmod(rows_in(draw), parts)
        if left:
            raise InputError(
                f"the coupling joined {rows_in(draw)} of {config.batch_size} rows, which {accelerator.num_processes} "
                f"processes in {config.accumulate} parts each cannot share; use a coupling of all rows, or one part"
            )
        first = accelerator.process_index * config.accumulate * size
        starts = range(first, first + config.accumulate * size, size)
        return [rows_of(draw, start, start + size, accelerator.device) for start in starts]

    def _share_own(self) -> None:
        """Average the gradients of the objective's own weights over the processes, as the wrapper does the model's."""
        if self.accelerator.num_processes > 1:
            for weight in self._own.values():
                weight.grad = self.accelerator.reduce(weight.grad, "mean")

    def _field(self, model: nn.Module) -> Field:
        """``model`` in the precision of the config; what comes out has the type of ``x``, so the loss is fp32."""
        if self.config.precision == "fp32":
            return model
        device = self.accelerator.device.type

        def field(t: Tensor, x: Tensor, *cond: Any) -> Any:
            with torch.autocast(device, dtype=torch.bfloat16):
                result = model(t, x, *cond)
            return pytree.tree_map(lambda value: value.to(x.dtype), result)  # a pair of fields, for some objectives

        return field

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _clip(self) -> Tensor:
        """Clip the gradient; its norm before that."""
        norm: Tensor = nn.utils.clip_grad_norm_(self._weights, self.config.clip or math.inf)
        return norm

    def _due(self, step: int) -> set[str]:
        """What to do once ``step`` updates are done; the last step does everything."""
        config = self.config
        tasks = {"log": config.log_every}
        if self._heldout is not None:
            tasks["evaluate"] = config.evaluate_every
        if self.record.out is not None:
            tasks["save"] = config.checkpoint_every
        return {task for task, every in tasks.items() if step == config.steps or (every and step % every == 0)}

    def _pause(self, due: set[str], norm: float) -> None:
        """Read the numbers off the device, then evaluate, log and save. The one place where training waits."""
        loss, step = self._meter.read(self.step) or (0.0, self.step)
        self._check_finite("loss", loss, step)
        self._check_finite("norm of the gradient", norm, self.step)
        if due & {"log", "evaluate"}:
            metrics = self._meter.line(self.config.rate(self.step - 1), norm)
            if "evaluate" in due and self._heldout is not None:
                value = self._heldout(self._field(self._best()))
                self._check_finite("held-out loss", value, self.step)
                metrics["heldout_loss"] = value
                if self._lowest is not None:
                    self._lowest.see(value, self.step, self._best())
                self.record.evaluated(self.step, metrics)
            self.record.log(self.step, metrics)
        if "save" in due:
            self._save()
        self.model.train()
        self._meter.resume()

    def _best(self) -> nn.Module:
        """The model to look at and to keep, in evaluation mode."""
        return self.module.eval() if self.ema is None else self.ema.module

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise InputError(
                f"the {what} became {value} at step {step}; lower learning_rate (now {self.config.learning_rate:g}), "
                f"lengthen warmup or clip harder, and look for extreme values in the data. {self.record.last_good()}"
            )

    def _start(self, found: Checkpoint | None) -> None:
        """Put back what :meth:`_save` saved, if there is something, and start the clock."""
        if found is not None:
            tensors, module = found.tensors, self.module
            check_fit(tensors["model"], model_tensors(module), "model", found.path)
            module.load_state_dict(tensors["model"])
            load_optimizer(self.optimizer, self._names, tensors["optimizer"], found.path)
            own = {name: weight.data for name, weight in self._own.items()}
            check_fit(tensors.get("objective", {}), own, "objective", found.path)
            for name, weight in own.items():
                weight.copy_(tensors["objective"][name])
            if self.ema is not None:
                # A run that had no average until now starts it here.
                self.ema.module.load_state_dict(tensors.get("ema", tensors["model"]))
            if self._lowest is not None:
                self._lowest.restore(found.state.get("lowest"), tensors.get("lowest", {}))
            load_rng(self.accelerator, tensors["rng"])
            self._meter.restore(found.state["meter"])
            self.step = found.step
        self.model.train()
        self._meter.begin()

    def _save(self) -> None:
        groups = {
            "model": model_tensors(self.module),
            "optimizer": optimizer_tensors(self.optimizer, self._names),
            "rng": rng_tensors(self.accelerator),  # of every process, so that all of them come here
        }
        if self._own:
            groups["objective"] = {name: weight.data for name, weight in self._own.items()}
        if self.ema is not None:
            groups["ema"] = model_tensors(self.ema.module)
        lowest = None if self._lowest is None else self._lowest.state()
        if self._lowest is not None and lowest is not None:
            groups["lowest"] = self._lowest.tensors
        self.record.save(self.step, groups, {"meter": self._meter.state(), "lowest": lowest})


def _adamw(weights: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in one fused kernel where there is one."""
    fused = all(weight.is_floating_point() and weight.device.type in ("cpu", "cuda") for weight in weights)
    return torch.optim.AdamW(
        weights, lr=config.rate(0), betas=config.betas, weight_decay=config.weight_decay, fused=fused
    )
