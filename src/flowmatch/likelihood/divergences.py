r"""The divergence of a velocity: exact, or estimated from products of its Jacobian with a few directions.

Every way takes products :math:`J z` of the Jacobian of the velocity with directions, in forward mode and vectorised:
the network runs once for the value, and its linear part on a block of directions at a time. Any event shape will do,
no graph is kept, and gradients reach the point and the parameters if they are enabled. (The exact one may be had from
the transpose, by vectorised backward passes, instead.)

**Exact.** The trace of ``J`` needs all ``D`` directions. They go in blocks, so that a block holds no more than a stated
number of entries; with gradients enabled the graph of every block is kept, as the loss needs all of them.

**Hutchinson.** For independent entries of mean 0 and variance 1, :math:`E[z^T J z] = \mathrm{tr} J`. With random signs
the variance is :math:`2 \|\bar J - \mathrm{diag}\, \bar J\|_F^2` for :math:`\bar J` the symmetric part.

**Hutch++** is in :mod:`flowmatch.likelihood.hutch_plus_plus`.

Source: Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines, 1990;
Grathwohl et al., FFJORD, 2019, section 3.1, https://arxiv.org/abs/1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from flowmatch.fields.predict import own_divergence
from flowmatch.randomness import rand, randn
from flowmatch.solvers import ODE
from flowmatch.tensors import check_event, sum_event, time_dtype
from flowmatch.typing import Cond, Field

__all__ = ["Divergence", "Exact", "Hutchinson", "directional", "divergence", "signs"]


_CUT_OFF = (
    "the field's velocity is cut off from x, for instance by torch.no_grad() or .detach() inside it, or does not "
    "depend on x; reverse=True needs its gradient: leave it out, to go forward"
)


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
    r"""Exact divergence :math:`\sum_i \partial v_i / \partial x_i`.

    A field that offers ``value_and_divergence(t, x, cond)``, as :class:`flowmatch.nn.MLP` does, is asked for it
    instead, unless ``chunk`` or ``reverse`` is given.

    Args:
        chunk: directions taken at a time; by default as many as keep a block within 2^22 numbers (16 MiB in float32),
            at least one, and on a CPU as many as roughly stay in cache. What the network keeps inside is as many times
            larger as its layers are wider than the event, so a wide network on images may need a smaller one.
        reverse: products with the transpose of the Jacobian, by backward passes that are vectorised in the same blocks.
            For networks with operations that have no forward mode, and for plain perceptrons on a CPU 1.6 to 2 x
            faster. The field must let gradients through: what it computes without them counts as constant.

    Raises:
        ValueError: ``chunk`` below 1; on use in reverse mode, a velocity that is cut off from ``x``.

    Example:
        >>> _, div = Exact()(ODE(lambda t, x: x**2), 0.0, torch.tensor([[1.0, 2.0]]), None)
        >>> div
        tensor([[6.]])
    """

    chunk: int | None = None
    reverse: bool = False

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
        if own is not None and self.chunk is None and not self.reverse:
            time = torch.as_tensor(t, dtype=time_dtype(x.dtype), device=x.device).expand(x.shape[:1])
            value, trace = own(time, x) if equation.cond is None else own(time, x, equation.cond)
            return value, trace[:, None]
        size, dim = x.shape[0], math.prod(x.shape[1:])
        chunk = self.chunk or _chunk(x, size, dim)
        axes = torch.eye(dim, dtype=x.dtype, device=x.device).view(dim, 1, *x.shape[1:])
        trace = x.new_zeros(size, dtype=time_dtype(x.dtype))
        value, pull = _pullback(equation, t, x) if self.reverse else (x, None)
        for start in range(0, dim, chunk):
            block = axes[start : start + chunk].expand(-1, size, *x.shape[1:])
            if pull is None:
                value, products = directional(equation, t, x, block)
            else:
                products = torch.func.vmap(pull)(block)
            rows = products.reshape(block.shape[0], size, dim)
            trace = trace + rows.diagonal(start, dim1=0, dim2=2).sum(-1)
        return value, trace[:, None]


@dataclass(frozen=True)
class Hutchinson:
    r"""Unbiased estimates :math:`z_k^T J z_k` of the divergence from ``K`` random directions.

    Args:
        probes: number ``K`` of directions; two or more give a standard error.
        kind: ``"rademacher"`` (random signs, the least variance) or ``"gaussian"``.
        reverse: :math:`z^T J` by one backward pass a probe, and the same estimate. For image networks, whose
            convolutions and attention go forwards the slow way: one probe of the small U-Net costs 2 calls so, and 7
            forwards. The field must let gradients through.

    Raises:
        ValueError: ``probes`` below 1 or an unknown kind; on use in reverse mode, a velocity that is cut off from
            ``x``.

    Example:
        >>> probe = Hutchinson(probes=2)
        >>> x = torch.ones(1, 3)
        >>> z = probe.tangents(x, torch.Generator().manual_seed(0))
        >>> probe(ODE(lambda t, x: 2 * x), 0.0, x, z)[1]  # signs square to one: exact for a diagonal Jacobian
        tensor([[6., 6.]])
    """

    probes: int = 8
    kind: str = "rademacher"
    reverse: bool = False

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
        return signs(shape, x, generator)

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        assert tangents is not None
        directions = tangents.movedim(1, 0)
        if self.reverse:
            value, columns = _backward(equation, t, x, directions)
        else:
            value, columns = directional(equation, t, x, directions)
        products = (directions * columns).flatten(0, 1)
        return value, sum_event(products).view(self.probes, x.shape[0]).movedim(0, 1)


def _chunk(x: Tensor, size: int, dim: int) -> int:
    """Directions at a time."""
    row = max(1, size * dim)
    most = max(1, min(dim, 2**22 // row))
    if x.device.type != "cpu":
        return most
    # What stays in cache is up to 1.7 x faster, and convolutions widen an entry more than layers do; but each block
    # makes the value anew, so it has no less than 8.
    return min(most, max(8, (2**19 if x.ndim < 3 else 2**16) // row))


def signs(shape: tuple[int, ...], x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random signs in the type of ``x``."""
    return torch.where(rand(shape, generator, x.device) < 0.5, -1.0, 1.0).to(x.dtype)


def directional(equation: ODE, t: Tensor | float, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Value at ``x`` and directional derivatives ``(K, B, *event)``; the value is computed once."""

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], torch.func.jvp(lambda point: equation(t, point), (x,), (direction,)))

    value, columns = torch.func.vmap(along, out_dims=cast(Any, (None, 0)))(directions)
    return value, columns


def _backward(equation: ODE, t: Tensor | float, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Value at ``x``, and products of directions ``(K, B, *event)`` with the Jacobian, by plain backward passes.

    No function transform is entered, in which attention and normalisation would have to go the slow way.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if keep and x.requires_grad else x.detach().requires_grad_()
        value = equation(t, point)
        if not value.requires_grad and x.numel():
            raise ValueError(_CUT_OFF)
        if not x.numel():
            return value, directions.to(value.dtype)
        how: dict[str, Any] = {"retain_graph": True, "create_graph": keep, "allow_unused": True}
        products = [torch.autograd.grad(value, point, direction.to(value.dtype), **how)[0] for direction in directions]
    if any(product is None for product in products):  # a gradient there is, of the weights alone
        raise ValueError(_CUT_OFF)
    columns = torch.stack(products)
    return (value, columns) if keep else (value.detach(), columns)


def _pullback(equation: ODE, t: Tensor | float, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Value at ``x``, and products with the transpose of its Jacobian; the value is computed once."""
    tracked = True

    def velocity(point: Tensor) -> Tensor:
        nonlocal tracked
        out = equation(t, point)
        tracked = out.requires_grad
        return out

    value, pull = cast(Any, torch.func.vjp(velocity, x))
    if not tracked and x.numel():
        raise ValueError(_CUT_OFF)
    return value, lambda weight: pull(weight.to(value.dtype))[0]


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
        method: :class:`Exact` by default, or :class:`Hutchinson` or :class:`~flowmatch.HutchPlusPlus`.
        generator: randomness of the probes.

    Example:
        >>> divergence(lambda t, x: -3 * x, 0.5, torch.zeros(2, 1, 4, 4))
        tensor([-48., -48.])
    """
    check_event(x)
    method = Exact() if method is None else method
    equation = ODE(field, cond)
    return method(equation, t, x, method.tangents(x, generator))[1].mean(1)
