r"""The divergence of a velocity: exact, or estimated from products of its Jacobian with a few directions.

Every way takes products :math:`J z` of the Jacobian of the velocity with directions, in forward mode and vectorised:
the network runs once for the value, and its linear part on a block of directions at a time. Any event shape will do,
no graph is kept, and gradients reach the point and the parameters if they are enabled.

**Exact.** The trace of ``J`` needs all ``D`` directions. They go in blocks, so that a block holds no more than a stated
number of entries; with gradients enabled the graph of every block is kept, as the loss needs all of them.

**Hutchinson.** For independent entries of mean 0 and variance 1, :math:`E[z^T J z] = \mathrm{tr} J`. With random signs
the variance is :math:`2 \|\bar J - \mathrm{diag}\, \bar J\|_F^2` for :math:`\bar J` the symmetric part.

**Hutch++.** A Jacobian whose large singular values are few has most of its trace in few directions. A sketch
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

Source: Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines, 1990;
Grathwohl et al., FFJORD, 2019, section 3.1, https://arxiv.org/abs/1810.01367; Meyer, Musco, Musco and Woodruff,
Hutch++: Optimal Stochastic Trace Estimation, 2021, Algorithm 1, https://arxiv.org/abs/2010.09649; Epperly, Tropp and
Webber, XTrace: Making the Most of Every Sample in Stochastic Trace Estimation, 2024, section 2.3, for the length,
https://arxiv.org/abs/2301.07825.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from flowmatch.fields.predict import own_divergence
from flowmatch.randomness import rand, randn
from flowmatch.solvers import ODE
from flowmatch.tensors import check_event, sum_event, time_dtype
from flowmatch.typing import Cond, Field

__all__ = ["Divergence", "Exact", "HutchPlusPlus", "Hutchinson", "divergence"]


class Divergence(Protocol):
    """How the divergence is had: tangents for a solve, then columns of estimates from them.

    Attributes:
        columns: number ``K`` of independent estimates that one call returns.
    """

    @property
    def columns(self) -> int: ...

    def tangents(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Directions kept over the whole solve, ``(B, M, *event)``, or ``None``."""

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        """Velocity ``(B, *event)`` and divergences ``(B, K)`` of the equation's field at ``(t, x)``."""


@dataclass(frozen=True)
class Exact:
    r"""Exact divergence :math:`\sum_i \partial v_i / \partial x_i`, in forward mode.

    A field that offers ``value_and_divergence(t, x, cond)``, as :class:`flowmatch.nn.MLP` does, is asked for it
    instead, unless ``chunk`` is given.

    Args:
        chunk: directions taken at a time; by default as many as keep a block within 2^22 numbers (16 MiB in float32),
            at least one. What the network keeps inside is as many times larger as its layers are wider than the event,
            so a wide network on images may need a smaller one.

    Example:
        >>> _, div = Exact()(ODE(lambda t, x: x**2), 0.0, torch.tensor([[1.0, 2.0]]), None)
        >>> div
        tensor([[6.]])
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")

    @property
    def columns(self) -> int:
        return 1

    def tangents(self, x: Tensor, generator: torch.Generator | None) -> None:
        return None

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        own = own_divergence(equation.field)
        if own is not None and self.chunk is None:
            time = torch.as_tensor(t, dtype=time_dtype(x.dtype), device=x.device).expand(x.shape[:1])
            value, trace = own(time, x) if equation.cond is None else own(time, x, equation.cond)
            return value, trace[:, None]
        size, dim = x.shape[0], math.prod(x.shape[1:])
        chunk = self.chunk or max(1, min(dim, 2**22 // max(1, size * dim)))
        axes = torch.eye(dim, dtype=x.dtype, device=x.device).view(dim, 1, *x.shape[1:])
        trace = x.new_zeros(size, dtype=time_dtype(x.dtype))
        value = x
        for start in range(0, dim, chunk):
            block = axes[start : start + chunk]
            value, columns = _directional(equation, t, x, block.expand(-1, size, *x.shape[1:]))
            rows = columns.reshape(block.shape[0], size, dim)
            trace = trace + rows.diagonal(start, dim1=0, dim2=2).sum(-1)
        return value, trace[:, None]


@dataclass(frozen=True)
class Hutchinson:
    r"""Unbiased estimates :math:`z_k^T J z_k` of the divergence from ``K`` random directions.

    Args:
        probes: number ``K`` of directions; two or more give a standard error.
        kind: ``"rademacher"`` (random signs, the least variance) or ``"gaussian"``.

    Raises:
        ValueError: ``probes`` below 1 or an unknown kind.

    Example:
        >>> probe = Hutchinson(probes=2)
        >>> x = torch.ones(1, 3)
        >>> z = probe.tangents(x, torch.Generator().manual_seed(0))
        >>> probe(ODE(lambda t, x: 2 * x), 0.0, x, z)[1]  # signs square to one: exact for a diagonal Jacobian
        tensor([[6., 6.]])
    """

    probes: int = 8
    kind: str = "rademacher"

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")
        if self.kind not in ("rademacher", "gaussian"):
            raise ValueError(f"kind must be 'rademacher' or 'gaussian', got {self.kind!r}")

    @property
    def columns(self) -> int:
        return self.probes

    def tangents(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (x.shape[0], self.probes, *x.shape[1:])
        if self.kind == "gaussian":
            return randn(shape, generator, x.device, time_dtype(x.dtype)).to(x.dtype)
        return _signs(shape, x, generator)

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        assert tangents is not None
        directions = tangents.movedim(1, 0)
        value, columns = _directional(equation, t, x, directions)
        products = (directions * columns).flatten(0, 1)
        return value, sum_event(products).view(self.probes, x.shape[0]).movedim(0, 1)


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
        sketch = _signs((x.shape[0], self._sketch, *x.shape[1:]), x, generator)
        shape, wide = (x.shape[0], self.columns, *x.shape[1:]), time_dtype(x.dtype)
        return torch.cat([sketch, randn(shape, generator, x.device, wide).to(x.dtype)], dim=1)

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        assert tangents is not None
        size, dim = x.shape[0], math.prod(x.shape[1:])
        first, second = tangents.movedim(1, 0).split([self._sketch, self.columns])
        with torch.no_grad():
            _, seen = _directional(equation, t, x.detach(), first)
            seen, first, rows = (_columns(part, x) for part in (seen, first, second))
            if self.shift:
                seen = seen - (seen * first).mean((1, 2), keepdim=True) * first  # the signs have square 1
            basis = torch.linalg.qr(seen).Q  # (B, D, min(D, sketch))
            rest = rows - basis @ (basis.mT @ rows)
            length = torch.linalg.vector_norm(rest, dim=1, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
            rest = math.sqrt(dim - basis.shape[2]) * rest / length
            directions = torch.cat([basis, rest], dim=2).permute(2, 0, 1)
        block = directions.reshape(directions.shape[0], *x.shape).to(x.dtype)
        value, columns = _directional(equation, t, x, block)
        products = sum_event((block * columns).flatten(0, 1)).view(block.shape[0], size).movedim(0, 1)
        found, left = products.split([basis.shape[2], self.columns], dim=1)
        return value, found.sum(1, keepdim=True) + left


def _columns(part: Tensor, x: Tensor) -> Tensor:
    """Directions ``(K, B, *event)`` as columns ``(B, D, K)``, in float32 at least."""
    return part.to(time_dtype(x.dtype)).reshape(len(part), x.shape[0], math.prod(x.shape[1:])).permute(1, 2, 0)


def _signs(shape: tuple[int, ...], x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.where(rand(shape, generator, x.device) < 0.5, -1.0, 1.0).to(x.dtype)


def _directional(equation: ODE, t: Tensor | float, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Value at ``x`` and directional derivatives ``(K, B, *event)``; the value is computed once."""

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], torch.func.jvp(lambda point: equation(t, point), (x,), (direction,)))

    value, columns = torch.func.vmap(along, out_dims=cast(Any, (None, 0)))(directions)
    return value, columns


def divergence(
    field: Field,
    t: Tensor | float,
    x: Tensor,
    cond: Cond = None,
    method: Divergence | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Divergence :math:`\nabla \cdot v(t, x)` of a field, ``(B,)``.

    Args:
        field: the velocity; each sample's velocity may depend on that sample only.
        t: time, ``()`` or ``(B,)``.
        x: points ``(B, *event)``.
        cond: condition of every sample.
        method: :class:`Exact` by default, or :class:`Hutchinson` or :class:`HutchPlusPlus`.
        generator: randomness of the probes.

    Example:
        >>> divergence(lambda t, x: -3 * x, 0.5, torch.zeros(2, 1, 4, 4))
        tensor([-48., -48.])
    """
    check_event(x)
    method = Exact() if method is None else method
    equation = ODE(field, cond)
    return method(equation, t, x, method.tangents(x, generator))[1].mean(1)
