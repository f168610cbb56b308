r"""Log-density of data under a flow, by the instantaneous change of variables.

Along a trajectory of :math:`\dot x = v(t, x)` the log-density changes by minus the divergence (continuity equation,
followed by the total derivative): :math:`\frac{d}{dt} \log p_t(x_t) = -\nabla \cdot v(t, x_t)`. Solve backwards from
the data,

.. math:: \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla \cdot v(t, x_t)\, dt,

with ``x_t`` and the integral in one augmented state. Under error control both must meet the tolerance, each by its own
norm: at a point where the velocity vanishes the trajectory alone would let the solver skip over the divergence.

**Probes.** An estimated divergence takes random directions. They are drawn once and kept over the whole solve: new ones
at each call would give the solver a random right-hand side, and its error control nothing to hold. ``K`` of them give
``K`` integrals, whose spread is the standard error of their mean.

**Training by maximum likelihood.** With gradients enabled the log-density is differentiable in ``x``, the condition and
the parameters, through every step of the solve. With probes the gradient is unbiased, as the log-density is linear in
the divergence.

Source: Chen et al., Neural Ordinary Differential Equations, 2018, Theorem 1, https://arxiv.org/abs/1806.07366;
Grathwohl et al., FFJORD, 2019, section 3.1, https://arxiv.org/abs/1810.01367.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmatch.likelihood.divergences import Divergence, Exact
from flowmatch.solvers import ODE, Solver, solve
from flowmatch.tensors import check_event, mean_event, time_dtype
from flowmatch.typing import Cond, Field, Source

__all__ = ["Likelihood", "log_likelihood"]


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
        method: :class:`~flowmatch.Exact` divergence by default, :class:`~flowmatch.Hutchinson` or
            :class:`~flowmatch.likelihood.HutchPlusPlus`.
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

    columns = method.columns
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
