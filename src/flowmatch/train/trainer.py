r"""The training loop: one screen, from a laptop to a cluster.

The same script ``train.py``, which builds a :class:`Trainer` and calls :meth:`~Trainer.fit`, runs

* on one CPU or GPU: ``python train.py``
* on two processes of one machine: ``torchrun --nproc-per-node 2 train.py``
* on two machines with eight GPUs each, on each of them:
  ``torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py``

and gives the same model, up to the rounding of sums. The reason: everything random at step ``k`` is a pure function of
``(seed, k)``, whichever rows of it a process draws (:mod:`flowmatch.train.draws`). A process computes the loss on its
own share of the rows; accumulation splits that share again. With ``W`` processes and ``A`` parts of equal size, the
mean of the means is the mean of the batch,

.. math:: \frac1W \sum_w \frac1A \sum_a \frac{WA}{B} \sum_{i \in (w, a)} \ell_i = \frac1B \sum_{i=1}^B \ell_i ,

for a coupling over the whole batch too, which a draw per process would cut into ``W`` smaller problems. What lies in
the network is its own: dropout masks, and statistics over a batch, do depend on the share that a process sees.

Accelerate finds the device, joins the processes, wraps the model and sums over processes. Backward and clipping are
called directly: its own do the same, more slowly, and its ``backward`` divides by a number of parts that is shared by
all the Accelerators of a process. With ``config.shard`` every process holds a share of each weight instead of a copy
(:mod:`flowmatch.train.spread`).

A stopped run continues bit for bit: weights, moments, averages, the loss scale and PyTorch's generators come from the
checkpoint, and the order of the data needs no state at all. It may go on with another number of processes, sharded or
not, and then gives the same model up to rounding. The generators of a process, which only dropout uses, are then those
of the process of its number; one that is new is seeded by the run's seed, the step and its number, as all of them are
when a run starts. The caller's generators are put back when the run ends, however it does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.train.blocks import checkpoint_blocks
from flowmatch.train.checkpoint import Checkpoint
from flowmatch.train.config import TrainConfig
from flowmatch.train.data import Data
from flowmatch.train.draws import Draws
from flowmatch.train.ema import Ema
from flowmatch.train.heldout import HeldOut, Objective
from flowmatch.train.labels import LabelDropout
from flowmatch.train.log import Callback
from flowmatch.train.lowest import Lowest
from flowmatch.train.meter import Meter
from flowmatch.train.posthoc import WIDTHS, Posthoc
from flowmatch.train.precision import Precision
from flowmatch.train.processes import from_the_first, make_accelerator
from flowmatch.train.record import Record
from flowmatch.train.run_state import RunState
from flowmatch.train.spread import Shards, adamw, clip, spread

__all__ = ["TrainResult", "Trainer"]


class TrainResult(NamedTuple):
    """What a run leaves.

    Attributes:
        model: the averaged model, or the trained one if averaging is off; of the class that was given, whole and in
            evaluation mode.
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
        out: folder for ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/`` and ``posthoc/``; nothing is written
            without it.
        callbacks: what else happens; called on the main process alone.

    Raises:
        InputError: no rows, a batch that does not divide by processes times parts, a model without weights to train or
            without what the config asks of it (an empty label, a switch for checkpointing), options that need ``out``,
            or a way of sharding that is not supported.
        ImportError: Weights & Biases is asked for and not installed.

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
        self.record = Record(None if out is None else Path(out), config, callbacks, self.accelerator.is_main_process)
        change = LabelDropout(model, config.label_dropout) if config.label_dropout else None
        self._precision = Precision(config.precision, self.accelerator.device)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise InputError("the model has no parameter that requires a gradient, so there is nothing to train")
        # Gives every process the weights of the first.
        self._spread = spread(self.accelerator, model, config.shard)
        self.module, self.model = self._spread.module, self._spread.model
        trained = {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}
        # What an objective learns of its own, such as the sizes of the loss over time, is trained with the model.
        own = list(getattr(objective, "parameters", list)())
        self._own = {f"objective.{number}": weight for number, weight in enumerate(own)}
        for weight in own:
            weight.data = from_the_first(self.accelerator, weight.data.to(self.accelerator.device))
        if own and self._precision.scaler is not None and isinstance(self._spread, Shards):
            raise InputError(
                "weights that the objective learns cannot be scaled together with sharded ones; use precision='bf16', "
                "shard=False, or a weighting that is not learnt"
            )
        self._weights = [*trained.values(), *own]
        self.optimizer = adamw(self._weights, config)
        width = config.ema_sigma if config.ema_profile == "power" else None
        self.ema = Ema(self.module, config.ema, width, self._spread.twin()) if config.ema else None
        self._posthoc = self._make_posthoc()
        # After the copies, which are looked at and kept as they are.
        if config.checkpointing:
            checkpoint_blocks(self.module)
        if config.compile:
            self.model = torch.compile(self.model)  # type: ignore[assignment]
        share = self.accelerator.process_index, self.accelerator.num_processes
        how = (config.batch_size, config.pool, config.ahead, config.seed)
        self._draws = Draws(objective, data, *how, change, share, self.accelerator.device)
        if holdout is not None and getattr(objective, "whole_data", False):
            raise InputError(
                "a coupling of the whole training set cannot join held-out rows, so there is no held-out loss to "
                "compare; train with holdout=None"
            )
        self._heldout = None if holdout is None else HeldOut(objective, holdout, config, self.accelerator)
        self._lowest = Lowest() if config.select == "best" and self._heldout is not None else None
        self._meter = Meter(self.accelerator, config.accumulate, config.batch_size)
        self._state = RunState(
            accelerator=self.accelerator,
            module=self.module,
            optimizer=self.optimizer,
            names=[*trained, *self._own],
            own=self._own,
            ema=self.ema,
            posthoc=self._posthoc,
            lowest=self._lowest,
            precision=self._precision,
            meter=self._meter,
            seed=config.seed,
        )
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
        device = self.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return self._fit(resume)

    def _fit(self, resume: bool) -> TrainResult:
        config, field = self.config, self._precision.field(self.model)
        self._start(self.record.find(resume))
        with self.record.running(self.step), self._draws:
            self.record.started(self.step)
            for step in range(self.step, config.steps):
                self._set_rate(config.rate(step))
                with self._meter.waiting():
                    parts = self._draws.parts(step, config.accumulate)
                for number, part in enumerate(parts, start=1):
                    with self._spread.part(last=number == len(parts)):
                        loss = self.objective.loss(field, part).mean()
                        self._precision.backward(loss / len(parts) if len(parts) > 1 else loss)
                    self._meter.add(loss)
                self._share_own()
                due = self._due(step + 1)
                norm = self._clip(look=bool(due))
                self._precision.step(self.optimizer)
                self.optimizer.zero_grad()
                for average in self._averages:
                    average.update(step)
                self.step = step + 1
                if due and norm is not None:
                    self._pause(due, float(norm))
        model, selected = self._spread.seen(self._averaged()), self.step
        if self._lowest is not None:
            self._lowest.give(model)
            selected = self._lowest.step or selected
        result = TrainResult(model, self.step, self.record.history, self._meter.seconds, selected)
        self.record.ended(result)
        return result

    @property
    def _averages(self) -> list[Ema | Posthoc]:
        return [average for average in (self.ema, self._posthoc) if average is not None]

    def _averaged(self) -> nn.Module:
        """The model to look at and to keep, spread as the trained one is."""
        return self.module if self.ema is None else self.ema.module

    def _share_own(self) -> None:
        """Average the gradients of the objective's own weights over the processes, as the wrapper does the model's."""
        if self.accelerator.num_processes > 1:
            for weight in self._own.values():
                weight.grad = self.accelerator.reduce(weight.grad, "mean")

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _clip(self, look: bool) -> Tensor | None:
        """Clip the gradient; its norm before that, if it is needed."""
        self._precision.unscale(self.optimizer)
        scaled = self._precision.scaler is not None
        if not (self.config.clip or look or scaled):
            return None
        norm = clip(self._weights, self.config.clip or math.inf)
        if scaled:
            self._meter.tell(norm)
        return norm

    def _due(self, step: int) -> set[str]:
        """What to do once ``step`` updates are done; the last step does everything."""
        config = self.config
        tasks = {"log": config.log_every}
        if self._heldout is not None:
            tasks["evaluate"] = config.evaluate_every
        if config.sample_every:
            tasks["sample"] = config.sample_every
        if self._posthoc is not None:
            tasks["snapshot"] = config.posthoc_every
        if self.record.out is not None:
            tasks["save"] = config.checkpoint_every
        return {task for task, every in tasks.items() if step == config.steps or (every and step % every == 0)}

    def _pause(self, due: set[str], norm: float) -> None:
        """Read the numbers off the device, then look, log and save. The one place where training waits."""
        loss, step = self._meter.read(self.step) or (0.0, self.step)
        self._check_finite("loss", loss, step)
        self._precision.check()
        scaled = self._precision.scaler is not None
        if not scaled:  # else the step was left out
            self._check_finite("norm of the gradient", norm, self.step)
        metrics = self._meter.line(self.config.rate(self.step - 1), norm, scaled) if due & {"log", "evaluate"} else None
        if due & {"evaluate", "sample"}:
            self._look(due, self._spread.seen(self._averaged()), metrics)
            self._spread.release()
        if metrics is not None:
            self.record.log(self.step, metrics)
        if "snapshot" in due and self._posthoc is not None:
            self._posthoc.save(self.step)
        if "save" in due:
            self.record.save(self.step, *self._state.save())
        self.model.train()
        self._meter.resume()

    def _look(self, due: set[str], model: nn.Module, metrics: dict[str, float] | None) -> None:
        """Held-out loss and samples of a model in evaluation mode."""
        if "evaluate" in due and self._heldout is not None and metrics is not None:
            value = self._heldout(self._precision.field(model))
            self._check_finite("held-out loss", value, self.step)
            metrics["heldout_loss"] = value
            if self._lowest is not None:
                self._lowest.see(value, self.step, model)
            self.record.evaluated(self.step, metrics)
        if "sample" in due:
            self.record.sampled(self.step, model, self.accelerator.device)

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise InputError(
                f"the {what} became {value} at step {step}; lower learning_rate (now {self.config.learning_rate:g}), "
                f"lengthen warmup or clip harder, and look for extreme values in the data. {self.record.last_good()}"
            )

    def _start(self, found: Checkpoint | None) -> None:
        """Put back what was saved, if there is something, and start the clock."""
        if found is None:
            self._state.seed_rng(self.step)
        else:
            self._state.restore(found)
            self.step = found.step
        if self._posthoc is not None:
            self._posthoc.cut(self.step)
        self.model.train()
        self._meter.begin()

    def _make_posthoc(self) -> Posthoc | None:
        if not self.config.posthoc_every:
            return None
        if self.record.out is None:
            raise InputError("posthoc_every keeps snapshots in the folder of the run; give the Trainer out=")
        twins = [self._spread.twin() for _ in WIDTHS]
        return Posthoc(self.module, twins, self.record.out / "posthoc", self.accelerator.is_main_process)
