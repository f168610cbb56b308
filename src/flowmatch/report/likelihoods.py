"""Log-likelihood of held-out and of training rows, beside what a plain model reaches."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from flowmatch.likelihood import Exact, nats_to_bits
from flowmatch.report.subject import Progress, Rows, Subject

__all__ = ["likelihoods"]


def likelihoods(
    subject: Subject, train: Rows, heldout: Rows, reference: Rows, entropy: float | None, seed: int, tick: Progress
) -> dict[str, Any]:
    """Mean log-likelihood a row in nats, in the units of the data.

    Args:
        subject: the flow.
        train: training rows to score.
        heldout: held-out rows to score.
        reference: training rows to fit the plain model to.
        entropy: entropy of the law of the data in nats, if it is known.
        seed: seed of the probes of the divergence.
        tick: told how far it is.

    Returns:
        ``heldout``, ``train``, ``gap`` and ``gaussian``, each with ``mean`` and ``stderr``; ``best`` if it is known.
    """
    total = len(train.x) + len(heldout.x)
    part = len(heldout.x) / total
    held = subject.log_prob(heldout, seed, lambda done, what: tick(done * part, what))
    seen = subject.log_prob(train, seed + 1, lambda done, what: tick(part + done * (1 - part), what))
    gaussian = _gaussian(reference.x, heldout.x) + subject.codec.log_det
    result: dict[str, Any] = {
        "heldout": _mean(held),
        "train": _mean(seen),
        "gaussian": _mean(gaussian),
        "best": None if entropy is None else -entropy,
        "divergence": "exact" if isinstance(subject.divergence, Exact) else "estimated with 8 probes",
        "unit": "nats a row, in the units of the data",
        "bits_per_dim": None,
    }
    errors = [result[name]["stderr"] for name in ("heldout", "train")]
    result["gap"] = {
        "mean": result["train"]["mean"] - result["heldout"]["mean"],
        "stderr": None if None in errors else math.hypot(*errors),
    }
    # Bits a number mean something for whole numbers alone.
    spans = [column.span for column in subject.codec.columns if column.span is not None]
    if len(spans) == subject.codec.dim:
        uniform = math.fsum(math.log2(high - low + 1) for low, high in spans) / len(spans)
        result["bits_per_dim"] = {**_mean(nats_to_bits(held, subject.codec.dim)), "uniform": uniform}
    # The difference row by row scatters less than either.
    result["above_gaussian"] = _mean(held - gaussian)
    return result


def _mean(values: Tensor) -> dict[str, Any]:
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else None
    return {"mean": float(values.mean()), "stderr": error, "rows": n}


def _gaussian(train: Tensor, heldout: Tensor) -> Tensor:
    """Log-density of held-out codes under one normal fitted to training codes, with a shrunk covariance."""
    if len(train) < 2:
        fitted = torch.zeros(train.shape[1], dtype=torch.float64), torch.eye(train.shape[1], dtype=torch.float64)
    else:
        covariance = importlib.import_module("sklearn.covariance").ledoit_wolf(train.double().numpy())[0]
        fitted = train.double().mean(0), torch.from_numpy(covariance)
    law = torch.distributions.MultivariateNormal(fitted[0], fitted[1], validate_args=False)
    density: Tensor = law.log_prob(heldout.double())
    return density
