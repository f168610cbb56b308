r"""Likelihood: the density of a flow, by the instantaneous change of variables.

Along a trajectory of :math:`\dot x = v(t, x)` the log-density changes by minus the divergence (continuity equation,
followed by the total derivative): :math:`\frac{d}{dt} \log p_t(x_t) = -\nabla \cdot v(t, x_t)`. Solve backwards from
the data,

.. math:: \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla \cdot v(t, x_t)\, dt,

with ``x_t`` and the integral in one augmented state. Under error control both must meet the tolerance, each by its own
norm: at a point where the velocity vanishes the trajectory alone would let the solver skip over the divergence.

**Exact divergence.** The diagonal of the Jacobian needs ``D`` directional derivatives. They are taken in forward mode
and vectorised: the network runs once for the value, and its linear part on a block of ``chunk`` tangents at a time.
No graph is kept, any event shape will do, and gradients reach the parameters if they are enabled.

**Hutchinson.** For random signs ``z``, :math:`E[z^T J z] = \mathrm{tr} J`. A probe is drawn once and kept over the
whole solve: a new one at each call would give the solver a random right-hand side, and its error control nothing to
hold. ``K`` probes give ``K`` integrals, whose spread is the standard error of their mean.

Source: Chen et al., Neural Ordinary Differential Equations, 2018, Theorem 1, https://arxiv.org/abs/1806.07366;
Grathwohl et al., FFJORD, 2019, section 3.1, https://arxiv.org/abs/1810.01367; Hutchinson 1990.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from flowmatch.fields.predict import own_divergence
from flowmatch.solvers import ODE, Solver, solve
from flowmatch.tensors import check_event, mean_event, rand, randn, sum_event, time_dtype
from flowmatch.typing import Cond, Field, Source

__all__ = ["Divergence", "Exact", "Hutchinson", "Likelihood", "divergence", "log_likelihood"]


class Divergence(Protocol):
    """How the divergence is had: tangents for a solve, then columns of estimates from them."""

    def tangents(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Directions kept over the whole solve, ``(B, K, *event)``, or ``None``."""

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        """Velocity ``(B, *event)`` and divergences ``(B, K)`` of the equation's field at ``(t, x)``."""


@dataclass(frozen=True)
class Exact:
    r"""Exact divergence :math:`\sum_i \partial v_i / \partial x_i`, in forward mode.

    A field that offers ``value_and_divergence(t, x, cond)``, as :class:`flowmatch.nn.MLP` does, is asked for it
    instead, unless ``chunk`` is given.

    Args:
        chunk: directions taken at a time; by default as many as keep a block below 2^22 numbers.

    Example:
        >>> _, div = Exact()(ODE(lambda t, x: x**2), 0.0, torch.tensor([[1.0, 2.0]]), None)
        >>> div
        tensor([[6.]])
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")

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

    def tangents(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (x.shape[0], self.probes, *x.shape[1:])
        if self.kind == "gaussian":
            return randn(shape, generator, x.device, time_dtype(x.dtype)).to(x.dtype)
        return torch.where(rand(shape, generator, x.device) < 0.5, -1.0, 1.0).to(x.dtype)

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        assert tangents is not None
        directions = tangents.movedim(1, 0)
        value, columns = _directional(equation, t, x, directions)
        products = (directions * columns).flatten(0, 1)
        return value, sum_event(products).view(self.probes, x.shape[0]).movedim(0, 1)


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
        method: :class:`Exact` by default, or :class:`Hutchinson`.
        generator: randomness of the probes.

    Example:
        >>> divergence(lambda t, x: -3 * x, 0.5, torch.zeros(2, 1, 4, 4))
        tensor([-48., -48.])
    """
    check_event(x)
    method = Exact() if method is None else method
    equation = ODE(field, cond)
    return method(equation, t, x, method.tangents(x, generator))[1].mean(1)


@dataclass(frozen=True)
class Likelihood:
    """Log-density of data under a flow.

    Attributes:
        log_prob: log-density in nats ``(B,)``.
        stderr: standard error of ``log_prob`` from the probes ``(B,)``; zero if exact, nan for a single probe.
        x0: the code of the data, its end in the source ``(B, *event)``.
        nfe: number of field calls.
    """

    log_prob: Tensor
    stderr: Tensor
    x0: Tensor
    nfe: int


def log_likelihood(
    field: Field,
    x: Tensor,
    source: Source,
    cond: Cond = None,
    *,
    method: Divergence | None = None,
    generator: torch.Generator | None = None,
    solver: Solver | None = None,
    span: tuple[float, float] = (1.0, 0.0),
    **steps: Any,
) -> Likelihood:
    """Log-density of ``x`` under the flow of ``field`` from ``source``.

    Args:
        field: velocity of the flow.
        x: data ``(B, *event)``.
        source: law at the end of the solve, with ``log_prob``.
        cond: condition of every sample.
        method: :class:`Exact` divergence by default, or :class:`Hutchinson`.
        generator: randomness of the probes.
        solver: how to integrate; see :func:`flowmatch.solve`.
        span: from the data's time to the source's.
        **steps: ``steps=``, ``grid=`` or ``rtol=`` and ``atol=``, ``max_nfe=``, as :func:`flowmatch.solve` takes them.

    Returns:
        The :class:`Likelihood`.

    Example:
        A field that doubles everything spreads the density over twice the length:

        >>> from flowmatch.sources import Normal
        >>> double = lambda t, x: math.log(2) * x
        >>> x = torch.zeros(1, 1)
        >>> log_likelihood(double, x, Normal(), rtol=1e-6).log_prob - Normal().log_prob(x)
        tensor([-0.6931])
    """
    check_event(x)
    method = Exact() if method is None else method
    tangents = method.tangents(x, generator)
    size, dim, kind = x.shape[0], math.prod(x.shape[1:]), time_dtype(x.dtype)

    def augmented(t: Tensor, state: Tensor, *parts: Any) -> Tensor:
        own, directions = parts[0]
        point = state[:, :dim].reshape(state.shape[0], *x.shape[1:])
        value, traces = method(ODE(field, own), t, point.to(x.dtype), directions)
        return torch.cat([value.reshape(state.shape[0], dim).to(kind), traces.to(kind)], dim=1)

    columns = 1 if tangents is None else tangents.shape[1]
    start = torch.cat([x.reshape(size, dim).to(kind), x.new_zeros(size, columns, dtype=kind)], dim=1)

    def norm(error: Tensor) -> Tensor:
        return torch.maximum(*(mean_event(part**2).sqrt() for part in error.split([dim, columns], dim=1)))

    equation = ODE(augmented, (cond, tangents), norm)
    solution = solve(equation, start, solver, span=span, **steps).whole()
    x0, traces = solution.x[:, :dim].reshape(x.shape), solution.x[:, dim:]
    # The solve ran from data to source, so the columns already hold minus the integral over [0, 1].
    mean = traces.mean(1, keepdim=True)
    # 0 / 0 for a single probe: its error is not known.
    spread = (traces - mean).square().sum(1).div(columns * (columns - 1)).sqrt()
    stderr = spread if tangents is not None else torch.zeros_like(spread)
    return Likelihood(source.log_prob(x0) + mean[:, 0], stderr, x0.to(x.dtype), solution.nfe)
