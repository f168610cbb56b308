r"""Hutch++: a divergence that is exact on the directions in which the Jacobian is large.

A Jacobian whose large singular values are few has most of its trace in few directions. A sketch
:math:`J S` of random directions ``S`` finds them; ``Q``, its orthonormal basis, splits the trace in two,

.. math:: \mathrm{tr} J = \mathrm{tr}(Q^T J Q) + \mathrm{tr}(P J P), \qquad P = I - Q Q^T,

the first exact, the second by Hutchinson on what is left. The estimate is unbiased, since ``Q`` knows nothing of the
second probes, and its error falls as :math:`1 / m` in ``m`` products for a symmetric semidefinite matrix, not as
:math:`1 / \sqrt m`.

The velocity of a flow to data near a surface is not such a matrix but :math:`-c\,(I - \text{few directions})`: all of
its singular values are large but few. Two changes serve it. The probes of the rest, normal ones, are scaled to the
length :math:`\sqrt{D - k}`, so that a multiple of the identity costs no variance; and the sketch is that of
:math:`J - a I` with ``a`` the mean eigenvalue as the sketch itself sees it. Neither makes it biased.

In 64 dimensions, the error of Hutchinson over that of Hutch++ at 6, 12 and 24 products is 2.1, 4.2 and 6.3 for
eigenvalues :math:`1 / k^2` (2.3, 5.9 and 18 unshifted), 0.7, 1.1 and 3.2 for the exact flow to data in 5 of them (0.6
at each unshifted), and 0.7, 0.7 and 1.0 for a random network. So it is the better one only where the products are some
times as many as the directions that matter.

**Gradients.** ``Q`` is held constant in a backward pass. The identity above holds for any ``Q``, so the gradient is
unbiased as the value is; and an orthonormal basis of a singular sketch, such as that of a network that starts at zero,
has no derivative to take.

Source: Meyer, Musco, Musco and Woodruff, Hutch++: Optimal Stochastic Trace Estimation, 2021, Algorithm 1,
https://arxiv.org/abs/2010.09649; Epperly, Tropp and Webber, XTrace: Making the Most of Every Sample in Stochastic Trace
Estimation, 2024, section 2.3, for the length, https://arxiv.org/abs/2301.07825.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.likelihood.divergences import directional, signs
from flowmatch.randomness import randn
from flowmatch.solvers import ODE
from flowmatch.tensors import sum_event, time_dtype

__all__ = ["HutchPlusPlus"]


@dataclass(frozen=True)
class HutchPlusPlus:
    r"""Unbiased estimates of the divergence that are exact on the directions in which the Jacobian is large.

    .. math:: \mathrm{tr}(Q^T J Q) + \frac1K \sum_j w_j^T J w_j, \qquad Q = \mathrm{orth}(J S), \;
        w_j = \sqrt{D - k} \frac{P g_j}{\|P g_j\|}, \; P = I - Q Q^T

    A third of the products each find ``Q``, use it and probe what it leaves out. An evaluation calls the field twice.

    Args:
        probes: number of products with the Jacobian, ``m``: a third of them, rounded down, for the sketch and as many
            for its trace, the rest are the ``K`` probes of the remainder; 4 or more give a standard error, that of
            the second term for the ``Q`` at hand.
        shift: whether the sketch leaves out a multiple of the identity, as flows near their data have. Without, a
            Jacobian of a rank up to a third of the products is had exactly.

    Raises:
        ValueError: ``probes`` below 3.

    Source:
        Meyer et al. 2021, Algorithm 1; Epperly et al. 2024, section 2.3.

    Example:
        A Jacobian of rank one, which a sketch of one direction finds; the diagonal is far from it:

        >>> ones = lambda t, x: x.sum(1, keepdim=True).expand_as(x)
        >>> method, x = HutchPlusPlus(probes=4, shift=False), torch.zeros(1, 5)
        >>> z = method.tangents(x, torch.Generator().manual_seed(0))
        >>> method(ODE(ones), 0.0, x, z)[1].round(decimals=4)
        tensor([[5., 5.]])
    """

    probes: int = 12
    shift: bool = True

    def __post_init__(self) -> None:
        if self.probes < 3:
            raise ValueError(f"probes must be at least 3 (sketch, its trace, remainder), got {self.probes}")

    @property
    def columns(self) -> int:
        return self.probes - 2 * self._sketch

    @property
    def _sketch(self) -> int:
        return self.probes // 3

    def tangents(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        sketch = signs((x.shape[0], self._sketch, *x.shape[1:]), x, generator)
        shape, wide = (x.shape[0], self.columns, *x.shape[1:]), time_dtype(x.dtype)
        return torch.cat([sketch, randn(shape, generator, x.device, wide).to(x.dtype)], dim=1)

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        assert tangents is not None
        size, dim = x.shape[0], math.prod(x.shape[1:])
        first, second = tangents.movedim(1, 0).split([self._sketch, self.columns])
        with torch.no_grad():
            _, seen = directional(equation, t, x.detach(), first)
            seen, first, rows = (_columns(part, x) for part in (seen, first, second))
            if self.shift:
                seen = seen - (seen * first).mean((1, 2), keepdim=True) * first  # the signs have square 1
            basis = torch.linalg.qr(seen).Q  # (B, D, min(D, sketch))
            rest = rows - basis @ (basis.mT @ rows)
            length = torch.linalg.vector_norm(rest, dim=1, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
            rest = math.sqrt(dim - basis.shape[2]) * rest / length
            directions = torch.cat([basis, rest], dim=2).permute(2, 0, 1)
        block = directions.reshape(directions.shape[0], *x.shape).to(x.dtype)
        value, columns = directional(equation, t, x, block)
        products = sum_event((block * columns).flatten(0, 1)).view(block.shape[0], size).movedim(0, 1)
        found, left = products.split([basis.shape[2], self.columns], dim=1)
        return value, found.sum(1, keepdim=True) + left


def _columns(part: Tensor, x: Tensor) -> Tensor:
    """Directions ``(K, B, *event)`` as columns ``(B, D, K)``, in float32 at least."""
    return part.to(time_dtype(x.dtype)).reshape(len(part), x.shape[0], math.prod(x.shape[1:])).permute(1, 2, 0)
