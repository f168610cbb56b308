r"""The recipe for tables: from a table's size to a path, a network and a training run.

A table of ``N`` rows and ``D`` standardised columns is learnt by conditional flow matching on straight paths with a
residual MLP. What the defaults weigh:

* width and depth grow with ``D``, and shrink for few rows, which a wide network learns by heart;
* the batch grows with ``N``; the number of steps is what two CPU cores do in one or two minutes;
* times are stratified: the same expected loss with less noise in its gradient;
* the held-out loss is watched and, for small tables, the averaged weights with the lowest one are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any, cast

import torch
from pydantic import Field

from flowmatch.flow import Flow
from flowmatch.nn import MLP
from flowmatch.paths import AffinePath
from flowmatch.recipes.matching import MatchingConfig, make_flow, make_objective
from flowmatch.train import TrainConfig, Trainer, TrainResult

__all__ = ["FlowConfig", "fit_flow", "make_model", "suggest"]


class FlowConfig(MatchingConfig):
    """What is learnt: path, pairs, times and network.

    Example:
        >>> FlowConfig(path="cosine").path
        'cosine'
    """

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
    ready: Callable[[], Any] | None = None,
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
        ready: called once all options have been checked, before anything is written.

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
    if ready is not None:
        ready()
    result = trainer.fit(resume=resume)
    return make_flow(result.model, flow, path, (dim,)), result
