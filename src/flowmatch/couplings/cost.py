r"""The cost of joining two points, :math:`c(x_0, x_1) = |x_0 - x_1|^2`, for all pairs of two batches.

Squares of differences are taken through the Gram matrix, :math:`|a|^2 + |b|^2 - 2 a \cdot b`, which is one matrix
product. That form loses the digits of a common offset, so the clouds are centred first: a shift of both changes no
distance. Half precision is widened, since a product of sums needs the digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowmatch.tensors import check_event, check_finite, check_kin, time_dtype

__all__ = ["check_clouds", "squared_distances"]


def check_clouds(x0: Tensor, x1: Tensor, *, same_size: bool = False) -> None:
    """Raise unless the two batches are floating, finite, and of one event shape, type and device.

    Args:
        x0: source points ``(N, *event)``.
        x1: data points ``(M, *event)``.
        same_size: whether ``N`` must equal ``M``.

    Raises:
        TypeError: integer tensors or two different types.
        ValueError: two event shapes, two devices, two sizes where one is needed, or an entry that is not finite.
    """
    check_event(x0, "x0")
    check_event(x1, "x1")
    if x0.shape[1:] != x1.shape[1:]:
        raise ValueError(
            f"x0 and x1 must have one event shape, got {tuple(x0.shape)} and {tuple(x1.shape)} as (B, *event)"
        )
    if same_size and x0.shape[0] != x1.shape[0]:
        raise ValueError(f"x0 and x1 must have one number of rows, got {x0.shape[0]} and {x1.shape[0]}")
    check_kin(x0, x1)
    check_finite(x0, "x0")
    check_finite(x1, "x1")


def squared_distances(x0: Tensor, x1: Tensor) -> Tensor:
    """Squared Euclidean distances of all pairs, ``(N, *event)`` and ``(M, *event)`` to ``(N, M)``, float32 at least.

    Example:
        >>> squared_distances(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]]))
        tensor([[9.],
                [4.]])
    """
    wide = time_dtype(x0.dtype)
    a, b = (x.detach().to(wide).reshape(x.shape[0], math.prod(x.shape[1:])) for x in (x0, x1))
    if not a.numel() or not b.numel():
        return a.new_zeros(a.shape[0], b.shape[0])
    centre = 0.5 * (a.mean(0) + b.mean(0))
    a, b = a - centre, b - centre
    squares = torch.addmm(b.square().sum(1), a, b.T, alpha=-2.0)
    return squares.add_(a.square().sum(1)[:, None]).clamp_(min=0.0)
