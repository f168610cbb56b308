r"""The nouns as protocols: what a user's own object must offer to be used everywhere.

Conventions of the whole package: ``t = 0`` is the source and ``t = 1`` the data; arguments come
in the order ``(t, x, cond)``; ``t`` has shape ``()`` or ``(B,)`` and ``x`` has shape
``(B, *event)``. A condition is a tensor with leading dimension ``B``, or a tuple, list or
dict of such tensors, or ``None``.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Cond", "Coupling", "Field", "Kind", "Source", "Times"]

Cond: TypeAlias = Any
"""A tensor ``(B, ...)``, a tuple, list or dict of them, or ``None``."""

Kind: TypeAlias = Literal["velocity", "target", "noise", "score"]
"""What a network predicts: the velocity, the data ``x1``, the source ``x0``, or the score of ``p_t``."""


class Field(Protocol):
    """Velocity field ``(t, x) -> velocity`` or ``(t, x, cond) -> velocity``.

    ``t`` is ``(B,)``, ``x`` and the velocity are ``(B, *event)``. Any function or ``nn.Module`` will
    do. The condition is passed only when there is one.
    """

    def __call__(self, t: Tensor, x: Tensor, /, *cond: Any) -> Tensor: ...


@runtime_checkable
class Coupling(Protocol):
    """Who is joined to whom: index tensors ``(i, j)`` so that ``x0[i]`` goes with ``x1[j]``."""

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Times(Protocol):
    """Where training looks: ``n`` times, all inside the interval on which the path is regular."""

    def __call__(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...


@runtime_checkable
class Source(Protocol):
    """Where a flow starts. Needed for sampling; ``log_prob`` is needed for likelihoods only."""

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...

    def log_prob(self, x: Tensor) -> Tensor: ...
