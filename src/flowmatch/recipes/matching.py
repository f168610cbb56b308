"""What is learnt, whatever the data: the path, the pairs, the times and what the network predicts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flowmatch.couplings import ConditionAware, ExactOT, Independent, Sinkhorn
from flowmatch.errors import InputError
from flowmatch.fields import Predicts
from flowmatch.flow import Flow
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
from flowmatch.typing import Coupling

__all__ = ["MatchingConfig", "make_flow", "make_objective", "make_path"]


class MatchingConfig(BaseModel):
    """Path, pairs, times and prediction.

    Example:
        >>> MatchingConfig(path="cosine").path
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
        "independent", description="how noise and data are paired in a batch; within each label where there are labels"
    )
    predicts: Literal["velocity", "target", "noise"] = Field(
        "velocity", description="what the network predicts; likelihoods are best by velocity"
    )


def make_path(config: MatchingConfig) -> AffinePath:
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


def make_objective(config: MatchingConfig, classes: int = 0, cond_dim: int = 0) -> FlowMatching:
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


def make_flow(model: Any, config: MatchingConfig, path: AffinePath, shape: Sequence[int]) -> Flow:
    """The flow of a network trained under ``config``; data are centred, so that their mean is zero."""
    field = model if config.predicts == "velocity" else Predicts(model, path, config.predicts)
    return Flow(field, path, tuple(shape), independent=config.coupling == "independent").eval()
