r"""Kernel distance of features: maximum mean discrepancy with a cubic kernel, known as KID.

The kernel :math:`k(x, y) = (\langle x, y \rangle / D + 1)^3` compares all moments up to the third. The estimate is the
unbiased one of :mod:`flowmatch.metrics.mmd`, with the diagonal left out of the means within a sample, so unlike the
Frechet distance it has no bias at any number of rows.

It is taken on blocks of rows and averaged. **Blocks that share no row** are independent, so the spread of their values
gives an honest standard error of the mean. The habit of drawing a hundred overlapping subsets gives the same mean with
a spread that says nothing about other samples of the same laws: it shrinks with the number of draws from the same rows.

Sources: Binkowski et al., Demystifying MMD GANs, 2018, section 4 (the distance); Zaremba, Gretton and Blaschko,
B-tests: Low Variance Kernel Two-Sample Tests, 2013 (blocks).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.metrics.clouds import Cloud, clouds
from flowmatch.randomness import randperm

__all__ = ["KernelDistance", "kernel_distance"]

_CHUNK = 1024  # rows of the kernel matrix formed at a time
_BLOCKS, _MOST_ROWS = 10, 1000  # of a block, by default


class KernelDistance(NamedTuple):
    """A kernel distance with what it was made from.

    Attributes:
        mean: mean over the subsets.
        error: standard error of that mean; NaN for one subset. See :func:`kernel_distance` for what it covers.
        rows: rows of each sample in a subset.
        subsets: number of subsets.
    """

    mean: float
    error: float
    rows: int
    subsets: int


def kernel_distance(
    x: Cloud,
    y: Cloud,
    rows: int | None = None,
    subsets: int | None = None,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    r"""Unbiased squared maximum mean discrepancy with a cubic kernel, averaged over subsets.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} [ k(x_i, x_j) + k(y_i, y_j) ] - \frac{2}{n^2} \sum_{ij} k(x_i, y_j),
        \qquad k(x, y) = \Big( \frac{\langle x, y \rangle}{D} + 1 \Big)^3

    Range: its expectation lies in ``[0, infinity)`` and is 0 only when all moments up to the third agree; no unit, but
    not free of the scale of the features. A single value may be negative. With Inception features it is KID.

    Floor: for two samples of one law the mean is 0 with the standard error that is returned; read a value below
    twice the error as 0.

    Args:
        x: first sample, ``(N, *event)``, at least 2 rows.
        y: second sample, ``(M, *event)``, at least 2 rows.
        rows: rows ``n`` of each sample in a subset; by default a tenth of the smaller sample, 1000 at most.
        subsets: by default both samples are cut at random into as many blocks as they hold, which share no row, and
            the error is that of the mean. A number draws so many subsets anew from all rows, as KID is often
            reported (100 of 1000 rows); the error is then that of the drawing alone.
        generator: draws the subsets. Without one they are the same in every call.

    Raises:
        ValueError: fewer than 2 rows in a subset, more than a sample has, no subset, or samples that cannot be
            compared.

    Source:
        Binkowski et al., Demystifying MMD GANs, 2018, section 4.

    Example:
        >>> x = torch.zeros(4, 1)
        >>> kernel_distance(x, x + 1, rows=2)
        KernelDistance(mean=7.0, error=0.0, rows=2, subsets=2)
    """
    a, b = clouds(x, y, least=2)
    # Cubes of close numbers are subtracted: single precision would lose the small ones.
    a, b = ((v.cpu() if v.device.type == "mps" else v).double() for v in (a, b))
    fewest = min(a.shape[0], b.shape[0])
    size = max(2, min(_MOST_ROWS, fewest // _BLOCKS)) if rows is None else rows
    if not 2 <= size <= fewest:
        raise ValueError(f"rows must be from 2 to {fewest}, the rows of the smaller sample, got {rows}")
    if subsets is not None and subsets < 1:
        raise ValueError(f"subsets must be at least 1, or None for blocks that share no row, got {subsets}")
    rng = torch.Generator().manual_seed(0) if generator is None else generator
    count = fewest // size if subsets is None else subsets
    if subsets is None:
        orders = [randperm(v.shape[0], rng, v.device)[: count * size].view(count, size) for v in (a, b)]
        picks = list(zip(*orders, strict=True))
    else:
        picks = [(randperm(len(a), rng, a.device)[:size], randperm(len(b), rng, b.device)[:size]) for _ in range(count)]
    values = torch.tensor([_unbiased(a[i], b[j]) for i, j in picks], dtype=torch.float64)
    error = float(values.std()) / math.sqrt(count) if count > 1 else math.nan
    return KernelDistance(float(values.mean()), error, size, count)


def _unbiased(a: Tensor, b: Tensor) -> float:
    n = a.shape[0]
    diagonal = sum(float(_cubic(v.square().sum(1), v.shape[1]).sum()) for v in (a, b))
    within = _kernel_sum(a, a) + _kernel_sum(b, b) - diagonal
    return within / (n * (n - 1)) - 2 * _kernel_sum(a, b) / n**2


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    return sum(float(_cubic(chunk @ b.T, a.shape[1]).sum()) for chunk in a.split(_CHUNK))


def _cubic(product: Tensor, dim: int) -> Tensor:
    return (product / dim + 1) ** 3
