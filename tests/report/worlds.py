"""Tables whose law is known and flows that are exact for them, so that a report can be checked without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flowmatch import Flow, GaussianField
from flowmatch.data import TableCodec
from flowmatch.report import evaluate


def normal_table(rows: int, columns: int = 2, seed: int = 0, unit: float = 1.0) -> pd.DataFrame:
    """Independent normal columns of growing spread."""
    z = np.random.default_rng(seed).standard_normal((rows, columns))
    return pd.DataFrame(unit * z * (1 + np.arange(columns)) + 5, columns=[f"c{d}" for d in range(columns)])


def exact_flow(dim: int, std: float = 1.0, shift: float = 0.0) -> Flow:
    """A flow that ends in a normal law: exact for standardised normal columns if ``std`` is 1 and ``shift`` 0."""
    return Flow(GaussianField(torch.full((dim,), shift), std=std), event_shape=(dim,))


def class_table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Two columns of whole numbers whose mean depends on a rare and a common class."""
    rng = np.random.default_rng(seed)
    kind = rng.random(rows) < 0.2
    x = rng.normal(40 * kind[:, None] + 20, 6, (rows, 2)).round().astype(np.int64)
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": np.where(kind, "rare", "common")})


def class_flow(codec: TableCodec) -> Flow:
    """Exact for :func:`class_table`, up to the rounding of the codec's statistics."""
    means = [_code(codec, kind) for kind in ("common", "rare")]
    stds = [6.01 / column.std for column in codec.columns]
    fields = [GaussianField(mean, std=float(np.mean(stds))) for mean in means]

    def field(t: Tensor, x: Tensor, cond: Tensor) -> Tensor:
        both = torch.stack([part(t, x) for part in fields])
        return both[cond, torch.arange(len(x))]

    return Flow(field, event_shape=(2,))


def _code(codec: TableCodec, kind: str) -> Tensor:
    middle = 20 if kind == "common" else 60
    x, _ = codec.encode(pd.DataFrame({"a": [middle], "b": [middle], "kind": [kind]}))
    return x[0]


def image_table(rows: int, side: int = 3, classes: int = 3, seed: int = 0) -> pd.DataFrame:
    """Small images of levels 0 to 9, one pixel of which is always 0, and a class."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 10, (rows, side * side))
    pixels[:, 0] = 0
    frame = pd.DataFrame(pixels, columns=[f"p{k}" for k in range(side * side)])
    return frame.assign(target=rng.integers(0, classes, rows))


def run(flow: Flow, frame: pd.DataFrame, heldout: pd.DataFrame, out: Path, **options: Any) -> dict[str, Any]:
    """Evaluation of a flow on a table without a condition, with few samples."""
    return evaluate(flow, TableCodec.fit(frame), frame, heldout, out, **{"samples": 200, **options})


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what a clock measured."""
    sampling = {k: v for k, v in result["sampling"].items() if k not in ("seconds", "samples_per_second")}
    return {**result, "sampling": sampling, "seconds": None}
