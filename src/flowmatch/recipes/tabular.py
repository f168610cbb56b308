r"""The recipe for tables: from a table's size to a path, a network and a training run.

A table of ``N`` rows and ``D`` standardised columns is learnt by conditional flow matching on straight paths with a
residual MLP. What the defaults weigh:

* width and depth grow with ``D``, and shrink for few rows, which a wide network learns by heart;
* the batch grows with ``N``; the number of steps is what two CPU cores do in one or two minutes;
* times are stratified: the same expected loss with less noise in its gradient;
* the held-out loss is watched and, for small tables, the averaged weights with the lowest one are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field

from flowmatch.couplings import ConditionAware, ExactOT, Independent, Sinkhorn
from flowmatch.errors import InputError
from flowmatch.fields import Predicts
from flowmatch.flow import Flow
from flowmatch.nn import MLP
from flowmatch.objectives import FlowMatching, MinSNR
from flowmatch.paths import AffinePath
from flowmatch.schedules import (
    Cosine,
    DiffusionCosine,
    Linear,
    Polynomial,
    Schedule,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from flowmatch.times import LogitNormal, Mode, Stratified, Uniform
from flowmatch.train import TrainConfig, Trainer, TrainResult
from flowmatch.typing import Coupling

__all__ = ["FlowConfig", "fit_flow", "make_model", "make_objective", "make_path", "suggest"]


class FlowConfig(BaseModel):
    """What is learnt: path, pairs, times and network.

    Example:
        >>> FlowConfig(path="cosine").path
        'cosine'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path: Literal["linear", "cosine", "polynomial", "vp", "sub-vp", "ve", "diffusion-cosine"] = Field(
        "linear", description="schedule of the path from noise to data"
    )
    sigma_min: float = Field(0.0, ge=0, lt=1, description="noise left at the data's end of the linear path")
    times: Literal["uniform", "stratified", "logit-normal", "mode"] = Field(
        "stratified", description="how training times are drawn; the last two in equal shares of their density"
    )
    coupling: Literal["independent", "ot", "sinkhorn"] = Field(
        "independent", description="how noise and rows are paired in a batch; within each label where there are labels"
    )
    predicts: Literal["velocity", "target", "noise"] = Field(
        "velocity", description="what the network predicts; likelihoods are best by velocity"
    )
    hidden: int = Field(128, ge=1, description="width of the network")
    depth: int = Field(3, ge=1, description="number of residual blocks of the network")


def suggest(rows: int, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Default options of :class:`FlowConfig` and ``TrainConfig`` for a table of ``rows`` and ``dim`` columns.

    Example:
        >>> flow, train = suggest(rows=150, dim=4)
        >>> flow["hidden"], train["steps"]
        (64, 2000)
    """
    small = rows < 1000
    flow = {"hidden": 64 if small and dim <= 16 else 128 if dim <= 16 else 256, "depth": 3 if dim <= 16 else 4}
    train = {
        "steps": 2000 if small else 6000,
        "batch_size": 128 if small else 256 if rows < 5000 or dim > 16 else 1024,
        "learning_rate": 1e-3 if small or dim > 16 else 2e-3,
        "betas": (0.9, 0.99),
        "weight_decay": 1e-2 if small else 0.0,
        "evaluate_every": 100 if small else 250,
        "select": "best" if rows < 10_000 else "last",
    }
    return flow, train


def make_path(config: FlowConfig) -> AffinePath:
    """The path that a config names."""
    schedules: dict[str, Schedule] = {
        "linear": Linear(config.sigma_min),
        "cosine": Cosine(),
        "polynomial": Polynomial(),
        "vp": VariancePreserving(),
        "sub-vp": SubVariancePreserving(),
        "ve": VarianceExploding(),
        "diffusion-cosine": DiffusionCosine(),
    }
    return AffinePath(schedules[config.path])


def make_objective(config: FlowConfig, classes: int = 0, cond_dim: int = 0) -> FlowMatching:
    """The objective that a config names; with a condition, pairs are made within or near it.

    Raises:
        InputError: entropic pairs with a numeric condition, for which there is no plan that keeps the source's law, or
            exact pairs without numba.
    """
    if cond_dim and config.coupling == "sinkhorn":
        raise InputError("coupling sinkhorn does not go with a numeric condition; use coupling ot or independent")
    if config.coupling == "ot" and find_spec("numba") is None:
        raise InputError('coupling ot needs numba; run: pip install "flowmatch[ot]"')
    path = make_path(config)
    low, high = path.interval
    laws = {"uniform": Uniform, "stratified": Stratified, "logit-normal": LogitNormal, "mode": Mode}
    times: Any = laws[config.times](low=low, high=high)
    if config.times in ("logit-normal", "mode"):
        times = Stratified(low, high, base=times)
    couplings: dict[str, Coupling] = {"independent": Independent(), "ot": ExactOT(), "sinkhorn": Sinkhorn()}
    coupling = couplings[config.coupling]
    if (classes or cond_dim) and config.coupling != "independent":
        # Plain transport would give each label a part of the source of its own.
        coupling = ConditionAware(coupling)
    # The plain error of a target hardly counts near the data, where its slope decides the likelihood.
    weighting = MinSNR() if config.predicts == "target" else None
    return FlowMatching(path, coupling, times, predicts=config.predicts, weighting=weighting)


def make_model(config: FlowConfig, dim: int, classes: int = 0, cond_dim: int = 0, seed: int = 0) -> MLP:
    """The network that a config names, its first weights fixed by ``seed``; leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(dim, config.hidden, config.depth, classes, cond_dim)


def fit_flow(
    data: Any,
    holdout: Any,
    *,
    dim: int,
    classes: int = 0,
    cond_dim: int = 0,
    flow: FlowConfig | None = None,
    train: TrainConfig | None = None,
    out: FilePath | None = None,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
) -> tuple[Flow, TrainResult]:
    """Train a flow on standardised rows.

    Args:
        data: anything with a length and ``take(index, generator) -> (x1, cond)``.
        holdout: the same, kept out of training, or ``None``.
        dim: number of columns of ``x1``.
        classes: number of classes of the condition.
        cond_dim: number of columns of a numeric condition.
        flow: path, pairs, times and network; by :func:`suggest` if not given.
        train: training options; by :func:`suggest` if not given.
        out: run folder for checkpoints and metrics, or ``None`` to write nothing.
        callbacks: told about progress; see :mod:`flowmatch.train`.
        resume: go on from the newest good checkpoint in ``out``.

    Returns:
        The flow with the averaged weights, and the trainer's account.

    Example:
        >>> from flowmatch.train import TensorData
        >>> rows = TensorData(torch.randn(64, 2))
        >>> trained, result = fit_flow(rows, None, dim=2, train=TrainConfig(steps=2, batch_size=8))
        >>> trained.sample(3, steps=2).shape
        torch.Size([3, 2])
    """
    hints_flow, hints_train = suggest(len(data), dim)
    flow = FlowConfig(**hints_flow) if flow is None else flow
    train = TrainConfig(**hints_train) if train is None else train
    objective = make_objective(flow, classes, cond_dim)
    path = cast(AffinePath, objective.path)
    model = make_model(flow, dim, classes, cond_dim, train.seed)
    trainer = Trainer(model, objective, data, config=train, holdout=holdout, out=out, callbacks=callbacks)
    result = trainer.fit(resume=resume)
    # Columns are standardised, so that their mean is zero.
    field = result.model if flow.predicts == "velocity" else Predicts(result.model, path, flow.predicts)
    return Flow(field, path, (dim,), independent=flow.coupling == "independent").eval(), result
