"""What is evaluated: a flow with the codec of its table, and the real rows it is held against.

All numbers are made in the standard units that the model sees; the two places where the units of the data
matter, log-densities and pictures, go through the codec.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flowmatch.data import TableCodec
from flowmatch.flow import Flow
from flowmatch.likelihood import Divergence, Exact, Hutchinson

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Progress", "Rows", "Subject", "features"]

Progress = Callable[[float, str], None]
"""Called with the part of the work that is done, from 0 to 1, and what comes next."""

# The work of one call of the field stays near the size of a training batch, whatever the number of rows.
_CHUNK = 512
_PROBE_CHUNK = 128
# Up to so many columns the exact divergence costs less than good estimates of it.
_EXACT_DIM = 64
_PROBES = 8


class Rows(NamedTuple):
    """Rows as the model sees them.

    Attributes:
        x: codes ``(N, D)``.
        cond: their condition, or ``None``.
    """

    x: Tensor
    cond: Tensor | None

    def pick(self, index: Tensor) -> Rows:
        """The rows of an index."""
        return Rows(self.x[index], None if self.cond is None else self.cond[index])


def features(rows: Rows, classes: int) -> Tensor:
    """Codes and condition side by side, so that a sample under the wrong condition counts as wrong."""
    if rows.cond is None:
        return rows.x
    cond = functional.one_hot(rows.cond, classes) if classes else rows.cond
    return torch.cat([rows.x, cond.reshape(len(rows.x), -1).to(rows.x)], dim=1)


class Cost(NamedTuple):
    """What one batch of samples took: calls of the field for each of them, and seconds for all."""

    calls: Tensor
    seconds: float


@dataclass(frozen=True)
class Subject:
    """A flow under test.

    Args:
        flow: the flow.
        codec: the codec of its table.
        how: options of every solve: ``steps`` or ``rtol`` and ``atol``, and the solver.
        costs: what sampling has taken so far.
    """

    flow: Flow
    codec: TableCodec
    how: dict[str, Any]
    costs: list[Cost] = field(default_factory=list)

    def rows(self, frame: pd.DataFrame, most: int, seed: int) -> Rows:
        """At most ``most`` rows of a table, drawn by ``seed``, with noise on whole numbers."""
        if len(frame) > most:
            frame = frame.iloc[np.sort(np.random.default_rng(seed).permutation(len(frame))[:most])]
        return Rows(*self.codec.encode(frame, torch.Generator().manual_seed(seed)))

    def sample(self, n: int, cond: Tensor | None, seed: int, tick: Progress | None = None) -> Rows:
        """Samples under a condition, and what they cost."""
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for start in range(0, n, _CHUNK):
            size = min(_CHUNK, n - start)
            part = None if cond is None else cond[start : start + size]
            began = time.perf_counter()
            with torch.no_grad():
                solution = self.flow.solve(self.flow.start(size, generator), self._home(part), **self.how).whole()
            parts.append(solution.x.cpu())
            self.costs.append(Cost(solution.nfe_per_sample.cpu(), time.perf_counter() - began))
            if tick is not None:
                tick((start + size) / n, "drawing samples")
        return Rows(torch.cat(parts), cond)

    def log_prob(self, rows: Rows, seed: int, tick: Progress | None = None) -> Tensor:
        """Log-density of each row in nats, in the units of the data, ``(N,)`` in float64."""
        generator = torch.Generator().manual_seed(seed)
        size = _CHUNK if isinstance(self.divergence, Exact) else _PROBE_CHUNK
        parts = []
        for start in range(0, len(rows.x), size):
            part = rows.pick(torch.arange(start, min(start + size, len(rows.x))))
            value = self.flow.log_prob(
                self._home(part.x), self._home(part.cond), divergence=self.divergence, generator=generator, **self.how
            )
            parts.append(value.cpu().double())
            if tick is not None:
                tick(min(start + size, len(rows.x)) / len(rows.x), "reading log-densities")
        return torch.cat(parts) + self.codec.log_det

    def cost(self) -> dict[str, Any]:
        """What sampling has taken so far, and by which method."""
        calls = torch.cat([cost.calls for cost in self.costs]).double()
        seconds = sum(cost.seconds for cost in self.costs)
        solver, steps = self.how["solver"] or self.flow.solver, self.how.get("steps")
        if steps is not None:
            method = f"{_name(solver, 'Midpoint')}, {steps} step{'s' * (steps != 1)}"
        else:
            method = f"{_name(solver, 'Dopri5')}, tolerance {self.how['rtol']:g}"
        return {
            "samples": len(calls),
            "nfe": float(calls.mean()),
            "nfe_max": int(calls.max()),
            "seconds": seconds,
            "samples_per_second": len(calls) / max(seconds, 1e-9),
            "method": method,
        }

    @property
    def divergence(self) -> Divergence:
        """Exact for few columns, estimated by fixed random directions for many."""
        return Exact() if self.codec.dim <= _EXACT_DIM else Hutchinson(probes=_PROBES)

    def _home(self, value: Any) -> Any:
        """A tensor where the flow's parameters live; the type of labels stays."""
        if value is None:
            return None
        home = next(iter(self.flow.parameters()), self.flow._home)
        return value.to(home.device, home.dtype if value.is_floating_point() else None)


def _name(solver: object, default: str) -> str:
    return default if solver is None else type(solver).__name__
