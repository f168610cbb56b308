r"""Bits a number that a flow needs for whole-numbered data such as the bytes of a picture.

A flow has a density and the data have none: a density on points may be as high as one likes. Give every level ``n`` of
``L`` a cell of its own, :math:`y = l + (h - l)(n + u) / L` with ``u`` in ``[0, 1)``, so that the cells tile
:math:`[l, h]`. The mass of a cell is a probability of the levels of an event,

.. math:: P(n) = \left(\frac{h - l}{L}\right)^D \int_{[0,1]^D} p(y(n, u))\, du, \qquad
    b = -\frac{\log_2 P(n)}{D},

and ``b`` is what an ideal code spends. Uniform noise samples the integral (dequantisation). For one noise the mean of
:math:`-\log p` is too large by Jensen's inequality; for ``K`` noises

.. math:: -\log \frac1K \sum_k p(y(n, u_k))

is too large as well, but less for every noise more, and tends to the truth. The volume of a cell is the offset
:math:`\log_2 (L / (h - l))`, 7 for bytes on ``[-1, 1]``.

**With an estimated divergence** every log-density carries an error ``e`` of mean 0. With probes of its own for each
noise, the mean of :math:`p e^e` over many noises would be too large by a factor :math:`E e^e`, and the bits too good by
up to half the variance of ``e`` a dimension. So the probes of a row are drawn once and serve all its noises, which lie
in one cell, where the Jacobian hardly differs. Then the error is common to them and comes out of the logarithm,

.. math:: \log \frac1K \sum_k p_k e^e = e + \log \frac1K \sum_k p_k ,

of mean 0 over the probes: the bits of a row are uncertain, those of many rows are right on average. What ``e`` differs
by from noise to noise is left. It is of the order of the change of the Jacobian within a cell.

Source: Theis, van den Oord and Bethge, A Note on the Evaluation of Generative Models, 2016, section 3.1,
https://arxiv.org/abs/1511.01844; Burda et al., Importance Weighted Autoencoders, 2016, Theorem 1,
https://arxiv.org/abs/1509.00519; Lipman et al., Flow Matching for Generative Modeling, 2023, appendix E.1,
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowmatch.likelihood.divergences import Divergence, Exact
from flowmatch.randomness import rand
from flowmatch.solvers import ODE
from flowmatch.tensors import can_look, take, time_dtype
from flowmatch.typing import Cond

if TYPE_CHECKING:
    from flowmatch.flow import Flow

__all__ = ["Bits", "bits_per_dim", "nats_to_bits"]


@dataclass(frozen=True)
class Bits:
    """Bits a dimension of whole-numbered events.

    Attributes:
        bits: bits a dimension ``(B,)``; lower is better, ``log2(levels)`` is what knowing nothing costs.
        stderr: standard error of ``bits`` from the noises ``(B,)``; nan for one noise. The error of an estimated
            divergence is common to the noises of a row and not in it: the spread of ``bits`` over many rows has both.
        nfe: number of field calls for all noises.
    """

    bits: Tensor
    stderr: Tensor
    nfe: int


@torch.no_grad()
def bits_per_dim(
    flow: Flow,
    x: Tensor,
    cond: Cond = None,
    *,
    noises: int = 1,
    together: int = 1,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    divergence: Divergence | None = None,
    generator: torch.Generator | None = None,
    **steps: Any,
) -> Bits:
    r"""Bits a dimension of whole-numbered data under a flow, with uniform dequantisation.

    .. math:: b = -\frac{1}{D \log 2} \log \frac1K \sum_{k=1}^K p(y_k) + \log_2 \frac{L}{h - l}, \qquad
        y_k = l + (h - l) \frac{x + u_k}{L}

    Args:
        flow: the flow, trained on data that were scaled alike.
        x: levels ``(B, *event)``, whole numbers from 0 to ``levels - 1``: an integer tensor such as ``uint8``, or a
            floating one, in whose type the flow is then solved.
        cond: condition of every row.
        noises: number ``K`` of noises for each row; more come closer to the true bits, from above.
        together: noises that are solved at a time; a solve has ``together`` times as many rows as ``x``.
        levels: number ``L`` of levels.
        low: lower edge of the lowest cell in the units of the flow.
        high: upper edge of the highest cell. A flow trained on ``x / 127.5 - 1`` has the levels themselves at -1 and 1,
            which are the middles of cells: ``low=-1 - 1 / 255, high=1 + 1 / 255``.
        divergence: :class:`~flowmatch.Exact` by default. The probes of an estimated one are drawn once for each row and
            shared by all its noises.
        generator: randomness of the probes, then of the noises.
        **steps: ``solver=``, ``steps=``, ``grid=``, or ``rtol=`` and ``atol=``, as for :meth:`flowmatch.Flow.log_prob`.

    Returns:
        The :class:`Bits`.

    Raises:
        TypeError: ``x`` is no tensor of numbers.
        ValueError: levels that are not whole numbers of ``[0, levels - 1]``, ``noises`` below 1, ``levels`` below 2, or
            ``low`` not below ``high``.

    Example:
        A flow that knows nothing but the scale, a normal of standard deviation 1, on two levels:

        >>> import flowmatch as fm
        >>> flow = fm.Flow(lambda t, x: 0 * x, event_shape=(1,))
        >>> noise = torch.Generator().manual_seed(0)
        >>> x, many = torch.tensor([[0], [1]]), {"noises": 1000, "together": 1000}
        >>> found = bits_per_dim(flow, x, levels=2, low=-3.0, high=3.0, generator=noise, steps=1, **many)
        >>> found.bits.round(decimals=1)
        tensor([1., 1.])
    """
    if min(noises, together) < 1 or levels < 2 or not -math.inf < low < high < math.inf:
        raise ValueError(
            f"need noises >= 1, together >= 1, levels >= 2 and low < high, got noises={noises}, together={together}, "
            f"levels={levels}, low={low} and high={high}"
        )
    start = _levels(x, levels).to(_kind(flow, x))
    width, wide = (high - low) / levels, time_dtype(start.dtype)
    method = Exact() if divergence is None else divergence
    probes = method.tangents(start, generator)
    log_probs, nfe = [], 0
    for done in range(0, noises, together):
        count = min(together, noises - done)
        noise = rand((count, *x.shape), generator, x.device, wide)
        point = (low + width * (start.to(wide) + noise)).to(start.dtype).flatten(0, 1)
        own = take(cond, torch.arange(x.shape[0], device=x.device).repeat(count))
        shared = method if probes is None else _Given(method, probes.repeat(count, *[1] * x.ndim))
        scored = flow.likelihood(point, own, divergence=shared, generator=generator, **steps)
        log_probs.append(scored.log_prob.view(count, x.shape[0]))
        nfe += scored.nfe
    stacked = torch.cat(log_probs)
    log_mean = stacked.logsumexp(0) - math.log(noises)
    share = (stacked - log_mean).exp()  # of mean 1
    # The delta method; 0 / 0 for a single noise: its error is not known.
    spread = (share - 1).square().sum(0).div(noises * (noises - 1) or math.nan).sqrt()
    dim = max(1, math.prod(x.shape[1:]))
    return Bits(nats_to_bits(log_mean, dim, 1 / width), spread / (dim * math.log(2.0)), nfe)


@dataclass(frozen=True)
class _Given:
    """A divergence with tangents that are there already."""

    method: Divergence
    given: Tensor

    @property
    def columns(self) -> int:
        return self.method.columns

    def tangents(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.given

    def __call__(self, equation: ODE, t: Tensor | float, x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.method(equation, t, x, tangents)


def nats_to_bits(log_prob: Tensor, dim: int, scale: float = 1.0) -> Tensor:
    r"""Turn log-densities into bits a dimension: a change of unit, which draws no noise and solves nothing.

    .. math:: b = -\frac{\log p(x)}{D \log 2} + \log_2 s \qquad \text{for } x = \text{level} / s + \text{const}

    Lower is better. For ``K`` whole-numbered levels, ``log2 K`` (8 for a byte) is what knowing nothing costs, and the
    entropy of the data is the floor. Of a density at the levels themselves, without dequantisation, the number has no
    floor and no meaning: a density may be as high as one likes at given points.

    Args:
        log_prob: log-densities of ``x`` in nats, ``(B,)``.
        dim: number of entries of an event, ``D``.
        scale: levels in one unit of ``x``: 127.5 for bytes scaled to ``[-1, 1]``, 255 for ``[0, 1]``, 1 for levels
            as they are.

    Returns:
        Bits a dimension, ``(B,)``.

    Raises:
        ValueError: ``dim < 1`` or a scale that is not positive and finite.

    Example:
        >>> uniform = torch.full((1,), -2 * math.log(2.0))  # the density 1/4 of a uniform law on [-1, 1]^2
        >>> nats_to_bits(uniform, dim=2, scale=128.0)
        tensor([8.])
    """
    if dim < 1 or not 0 < scale < math.inf:
        raise ValueError(f"nats_to_bits needs dim >= 1 and a finite scale > 0, got dim={dim} and scale={scale}")
    return -log_prob / (dim * math.log(2.0)) + math.log2(scale)


def _levels(x: Any, levels: int) -> Tensor:
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of whole numbers from 0 to {levels - 1}, got {found}")
    if x.ndim == 0:
        raise ValueError("x must have shape (B, *event), got a scalar; add a dimension with x[None]")
    if can_look(x):
        wide = x.double()
        if not bool(((wide == wide.round()) & (wide >= 0) & (wide < levels)).all()):
            raise ValueError(
                f"x must hold whole numbers from 0 to {levels - 1}, got values from {wide.min():g} to {wide.max():g}; "
                "give the levels as they are stored, before any scaling"
            )
    return x


def _kind(flow: Flow, x: Tensor) -> torch.dtype:
    """Type in which the flow is solved: that of ``x`` if it has one, else of the parameters."""
    if x.is_floating_point():
        return x.dtype
    return flow.home.dtype
