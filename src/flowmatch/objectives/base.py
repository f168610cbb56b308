"""What every objective returns: one loss a sample, kept until the caller reduces it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from flowmatch.paths import PathSample
from flowmatch.typing import Cond

__all__ = ["Draw", "Loss"]


class Draw(NamedTuple):
    """One training batch with all its randomness spent: a tree of ``(B, ...)`` tensors.

    Whoever splits a batch, over devices or in time, splits a draw; so the result does not depend on
    how it was split.
    """

    sample: PathSample
    cond: Cond


@dataclass(frozen=True)
class Loss:
    """Losses of a batch.

    Attributes:
        values: loss of each sample ``(B,)``, float32 at least.
        t: time of each sample ``(B,)``, for a look at the loss over time.
    """

    values: Tensor
    t: Tensor

    def mean(self) -> Tensor:
        """The scalar to minimise."""
        return self.values.mean()
