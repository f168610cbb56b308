r"""Options of a training run, each with its meaning, its limits and a message when they are broken.

**The learning rate is a pure function of the step**, so that a resumed run needs no state of a scheduler. With
``w`` warm-up steps out of ``S``, and :math:`p = (k - w) / (S - w)`,

.. math::
    \eta_k = \eta \cdot \begin{cases} (k + 1) / w & k < w \\ 1 & \text{constant} \\
    1 - p & \text{linear} \\ \tfrac12 (1 + \cos \pi p) & \text{cosine} \end{cases}

It is never zero: the warm-up starts at :math:`\eta / w`, and the last step has :math:`p < 1`.

Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017, Eq. 5 without restarts,
https://arxiv.org/abs/1608.03983.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flowmatch.errors import InputError
from flowmatch.train.profiles import WIDEST

__all__ = ["TrainConfig", "explain"]


class TrainConfig(BaseModel):
    """Options of a training run. Frozen; an unknown name is an error.

    The constructor raises pydantic's ``ValidationError``; :meth:`parse` says the same in one line, for options that
    come from a file or a command line.

    Example:
        >>> TrainConfig(steps=100, decay="linear", warmup=0).rate(50)
        0.0005
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(5000, ge=1, description="number of optimiser steps")
    batch_size: int = Field(256, ge=1, description="rows of one optimiser step, over all processes together")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="decay rates of AdamW's first and second moment"
    )
    warmup: int = Field(200, ge=0, description="steps of linear warm-up, at most half of all steps")
    decay: Literal["cosine", "constant", "linear"] = Field(
        "cosine", description="shape of the learning rate after the warm-up"
    )
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 turns clipping off")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights; 0 turns averaging off")
    ema_profile: Literal["exponential", "power"] = Field(
        "exponential", description="how the average forgets: by ema, or by a power of the step, as wide as ema_sigma"
    )
    ema_sigma: float = Field(
        0.1, gt=0, le=WIDEST, description="width of the power average, as a share of the steps so far"
    )
    posthoc_every: int = Field(
        0, ge=0, description="steps between two snapshots for averages chosen after training; 0 for none"
    )
    label_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the labels that training replaces by the network's empty label"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="type in which the network computes; weights and loss stay in fp32"
    )
    shard: bool = Field(
        False, description="share weights, moments and averages among the processes (FSDP2), not rows alone"
    )
    checkpointing: bool = Field(False, description="compute blocks again in the backward pass, to save memory")
    compile: bool = Field(False, description="compile the network for training")
    accumulate: int = Field(1, ge=1, description="parts in which a batch is computed, to save memory")
    pool: int | None = Field(
        None, ge=1, description="rows that are coupled together, a multiple of batch_size; the batch if not given"
    )
    ahead: int = Field(0, ge=0, description="pools that a worker thread couples before they are needed")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the batches, the times and the noise")
    evaluate_every: int = Field(500, ge=0, description="steps between two held-out losses; 0 for the end alone")
    select: Literal["last", "best"] = Field(
        "last", description="which averaged weights to keep: the last, or those with the lowest held-out loss"
    )
    checkpoint_every: int = Field(1000, ge=0, description="steps between two checkpoints; 0 for the end alone")
    keep: int = Field(3, ge=1, description="number of newest checkpoints that are kept")
    log_every: int = Field(50, ge=0, description="steps between two lines of metrics; 0 for the end alone")
    sample_every: int = Field(0, ge=0, description="steps between two looks at samples; 0 for none")
    tensorboard: bool = Field(True, description="also write TensorBoard events")
    wandb: bool = Field(False, description="also log to Weights & Biases")

    @model_validator(mode="after")
    def _check_parts(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be computed in {self.accumulate} equal parts; "
                "make batch_size a multiple of accumulate"
            )
        if self.pool is not None and self.pool % self.batch_size:
            raise ValueError(f"pool {self.pool} must be a multiple of batch_size {self.batch_size}")
        if self.ema_profile == "power" and not self.ema:
            raise ValueError("ema 0 turns averaging off, so there is no ema_profile power; leave one of the two out")
        return self

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> TrainConfig:
        """Config from options by name, as read from a file or a command line.

        Raises:
            InputError: an unknown name (with the nearest one), or a value out of its limits; every problem is named.

        Example:
            >>> TrainConfig.parse({"steps": 0})
            Traceback (most recent call last):
                ...
            flowmatch.errors.InputError: steps (number of optimiser steps): should be greater than or equal to 1, got 0
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            raise InputError("; ".join(explain(problem, cls) for problem in error.errors())) from None

    def rate(self, step: int) -> float:
        """Learning rate of the update that follows ``step`` finished ones."""
        # A short trial run should still reach its peak, so that the warm-up ends half way at the latest.
        warmup = min(self.warmup, self.steps // 2)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = min((step - warmup) / (self.steps - warmup), 1.0)
        shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return self.learning_rate * shape[self.decay]


def explain(problem: Any, model: type[BaseModel]) -> str:
    """One problem that pydantic found in ``model`` as a clause that a user can act on; configs may be nested."""
    place = [str(part) for part in problem["loc"] if isinstance(part, str)]
    name, field = place[-1] if place else "", None
    for part in place:
        known, field = model.model_fields, model.model_fields.get(part)
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"there is no option {'.'.join(place)}; {hint}"
    said = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    what = f" ({field.description})" if field is not None and field.description else ""
    # What holds between options names them itself, and its input is the whole config.
    between = problem["type"] == "value_error" and isinstance(problem["input"], dict)
    return f"{name}{what}: {said}, got {problem['input']!r}" if name and not between else str(said)
