"""Oracle 6: couplings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.correctness.table import Case, Told
from benchmarks.correctness.worlds import normal
from flowmatch.couplings import ExactOT, Sinkhorn

CASES: list[Case] = []


def _case(*about: Any) -> Case:
    CASES.append(Case(*about))
    return CASES[-1]


def _clouds(n: int, dim: int) -> tuple[Tensor, Tensor]:
    return normal(n, dim, dtype=torch.float32), 2 * normal(n, dim, seed=1, dtype=torch.float32) + 1


def _sampler(method: str, **options: Any) -> Any:
    from torchcfm.optimal_transport import OTPlanSampler

    return OTPlanSampler(method=method, **options)


def _unused(rows: Tensor, all_rows: Tensor) -> float:
    return 1 - len(torch.unique(rows, dim=0)) / len(all_rows)


once = _case(6, "exact coupling of a batch of 256 in 2 dimensions", "share of the data points left out", 0.0)


@once.call("flowmatch", "ExactOT()(x0, x1)")
def _() -> float:
    x0, x1 = _clouds(256, 2)
    return _unused(x1[ExactOT()(x0, x1)[1]], x1)


@once.call("TorchCFM", 'OTPlanSampler("exact").sample_plan(x0, x1)')
def _() -> float:
    np.random.seed(0)  # noqa: NPY002 (the library draws from the global generator)
    x0, x1 = _clouds(256, 2)
    return _unused(_sampler("exact").sample_plan(x0, x1)[1], x1)


cost = _case(6, "cost of the exact coupling of 256 points in 64 dimensions", "relative excess over POT's emd2", 1e-6)


def _optimum(x0: Tensor, x1: Tensor) -> tuple[np.ndarray, float]:
    import ot

    matrix = torch.cdist(x0.double(), x1.double()).square().numpy()
    weights = np.full(len(x0), 1 / len(x0))
    return matrix, float(ot.emd2(weights, weights, matrix))


@cost.call("flowmatch", "ExactOT()(x0, x1)")
def _() -> float:
    x0, x1 = _clouds(256, 64)
    matrix, best = _optimum(x0, x1)
    i, j = ExactOT()(x0, x1)
    return abs(matrix[i.numpy(), j.numpy()].mean() / best - 1)


@cost.call("TorchCFM", 'OTPlanSampler("exact").get_map(x0, x1)')
def _() -> float:
    x0, x1 = _clouds(256, 64)
    matrix, best = _optimum(x0, x1)
    return abs(float((_sampler("exact").get_map(x0, x1) * matrix).sum()) / best - 1)


seeds = _case(6, "the same torch seed twice, entropic coupling of 256", "share of pairs that differ", 0.0)


@seeds.call("flowmatch", "Sinkhorn()(x0, x1, generator=generator)")
def _() -> float:
    x0, x1 = _clouds(256, 2)
    a, b = (Sinkhorn()(x0, x1, generator=torch.Generator().manual_seed(0))[1] for _ in range(2))
    return (a != b).double().mean().item()


@seeds.call("TorchCFM", 'torch.manual_seed(0); OTPlanSampler("sinkhorn", reg=0.5).sample_plan(x0, x1)')
def _() -> float:
    x0, x1 = _clouds(256, 2)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(torch.cat(_sampler("sinkhorn", reg=0.5).sample_plan(x0, x1), dim=1))
    return (drawn[0] != drawn[1]).any(1).double().mean().item()


nan = _case(6, "a NaN in the data, exact coupling", "refused", 0.0)


def _refused(couple: Callable[[Tensor, Tensor], Any]) -> Told:
    x0, x1 = _clouds(32, 2)
    x1[3, 0] = torch.nan
    try:
        couple(x0, x1)
    except Exception as error:  # noqa: BLE001 (any refusal will do)
        return Told(f"refused: {type(error).__name__}", True)
    return Told("accepted", False)


@nan.call("flowmatch", "ExactOT()(x0, x1)")
def _() -> Told:
    return _refused(ExactOT())


@nan.call("TorchCFM", 'OTPlanSampler("exact").sample_plan(x0, x1)')
def _() -> Told:
    return _refused(_sampler("exact").sample_plan)


entropic = _case(
    6,
    "entropic coupling with reg = 0.05 of 256 points in 64 dimensions",
    "excess cost: 0 is exact, 1 is independent",
    0.05,
)


@entropic.call("flowmatch", "Sinkhorn(reg=0.05).plan(x0, x1)")
def _() -> float:
    x0, x1 = _clouds(256, 64)
    matrix, best = _optimum(x0, x1)
    plan = Sinkhorn(reg=0.05).plan(x0, x1).log_plan.double().exp().numpy()
    return abs(float((plan * matrix).sum()) - best) / (matrix.mean() - best)


@entropic.call("TorchCFM", 'OTPlanSampler("sinkhorn").get_map(x0, x1); 0.05 is its default')
def _() -> float:
    x0, x1 = _clouds(256, 64)
    matrix, best = _optimum(x0, x1)
    return abs(float((_sampler("sinkhorn").get_map(x0, x1) * matrix).sum()) - best) / (matrix.mean() - best)
