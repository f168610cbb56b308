r"""A residual multilayer perceptron for vectors, the field of tables and toys.

.. math::
    h_0 = W_0 x, \qquad h_{k+1} = h_k + W_k \, s\big( (1 + a_k) \odot h_k + b_k \big), \qquad v = W_{out} s(h_{depth})

with :math:`s` the SiLU and :math:`(a_k, b_k)` an affine function of the embedded time and condition, as in FiLM. The
last layer starts at zero, so the first field is zero and the first loss is the spread of the velocities.

**Its divergence.** A direction :math:`e_i` enters as column ``i`` of :math:`W_0`, the same for every sample, and each
block maps it by :math:`T \mapsto T + W_k (g_k \odot T)` with the gain :math:`g_k = s'(\cdot)(1 + a_k)` known from the
value. The trace needs only the ``i``-th output of direction ``i``, so the last product is a dot product. This is
forward mode with the two outer layers for free, and :class:`~flowmatch.Exact` uses it; a test holds it against the
general way.

Source: Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, 2018,
https://arxiv.org/abs/1709.07871.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmatch.nn.embeddings import TimeEmbedding
from flowmatch.tensors import can_look

__all__ = ["MLP"]


class MLP(nn.Module):
    """Residual MLP field on vectors, with an optional condition.

    Args:
        dim: number of columns ``D`` of ``x``.
        hidden: width of the hidden layers.
        depth: number of residual blocks.
        classes: number of classes; the condition is then an integer label ``(B,)``.
        cond_dim: number of columns of a numeric condition ``(B, cond_dim)``.

    Raises:
        ValueError: a size below 1, or both kinds of condition at once.

    Example:
        >>> net = MLP(dim=2, classes=3)
        >>> net(torch.rand(5), torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, hidden: int = 128, depth: int = 3, classes: int = 0, cond_dim: int = 0) -> None:
        super().__init__()
        if min(dim, hidden, depth) < 1 or min(classes, cond_dim) < 0:
            raise ValueError(
                f"need dim, hidden, depth >= 1 and classes, cond_dim >= 0, got dim={dim}, hidden={hidden}, "
                f"depth={depth}, classes={classes}, cond_dim={cond_dim}"
            )
        if classes and cond_dim:
            raise ValueError("give classes= for labels or cond_dim= for numbers, not both")
        self.dim, self.hidden, self.depth, self.classes, self.cond_dim = dim, hidden, depth, classes, cond_dim
        self.time = TimeEmbedding()
        self.label = nn.Embedding(classes, hidden) if classes else None
        self.number = nn.Linear(cond_dim, hidden) if cond_dim else None
        self.embed = nn.Linear(self.time.width, hidden)
        self.film = nn.Linear(hidden, 2 * hidden * depth)
        self.inlet = nn.Linear(dim, hidden)
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
        self.outlet = nn.Linear(hidden, dim)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)

    def config(self) -> dict[str, Any]:
        """Arguments that make this network again."""
        return {name: getattr(self, name) for name in ("dim", "hidden", "depth", "classes", "cond_dim")}

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Velocity ``(B, D)`` at times ``(B,)`` and points ``(B, D)``, under the condition."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"this network takes x of shape (B, {self.dim}), got {tuple(x.shape)}")
        scales, shifts = self._modulation(t.expand(x.shape[:1]), cond, x.shape[0])
        h = self.inlet(x)
        for block, scale, shift in zip(self.blocks, scales, shifts, strict=True):
            h = h + block(functional.silu(torch.addcmul(shift, h, scale)))
        velocity: Tensor = self.outlet(functional.silu(h))
        return velocity

    def value_and_divergence(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Velocity ``(B, D)`` and its exact divergence ``(B,)``; arguments as :meth:`forward`."""
        size = x.shape[0]
        scales, shifts = self._modulation(t.expand(size), cond, size)
        h, gains = self.inlet(x), []
        for block, scale, shift in zip(self.blocks, scales, shifts, strict=True):
            u = torch.addcmul(shift, h, scale)
            active, slope = _silu_and_slope(u)
            gains.append(scale * slope)
            h = h + block(active)
        active, last_gain = _silu_and_slope(h)
        # On a CPU, as many rows and directions at a time as stay in cache: 3 x faster at 4096 rows of width 128.
        rows = max(1, 2**16 // self.hidden) if x.device.type == "cpu" else max(1, size)
        parts = zip(*(gain.split(rows) for gain in (*gains, last_gain)), strict=True)
        traces = [self._trace(part[:-1], part[-1]) for part in parts]
        return self.outlet(active), torch.cat(traces) if traces else last_gain.sum(1)

    def _trace(self, gains: tuple[Tensor, ...], last_gain: Tensor) -> Tensor:
        """Trace of the Jacobian ``(B,)`` from the gains ``(B, hidden)`` of the blocks and of the last layer."""
        size = last_gain.shape[0]
        chunk = max(1, 2**19 // max(1, size * self.hidden)) if last_gain.device.type == "cpu" else self.dim
        weights = [cast(nn.Linear, block).weight for block in self.blocks]
        gathered = torch.zeros_like(last_gain)
        # Without a graph two buffers serve all blocks: fresh memory for each product costs more than the products.
        fresh = torch.is_grad_enabled()
        shape = (min(chunk, self.dim), size, self.hidden)
        spare = () if fresh else (last_gain.new_empty(shape), last_gain.new_empty(shape))
        for entry, exit_ in zip(self.inlet.weight.T.split(chunk), self.outlet.weight.split(chunk), strict=True):
            if fresh:
                gathered = gathered + self._through(entry, exit_, gains, weights)
                continue
            tangents, product = (part[: len(entry)] for part in spare)
            tangents.copy_(entry[:, None, :].expand_as(tangents))
            for weight, gain in zip(weights, gains, strict=True):
                torch.mul(tangents, gain, out=product)
                tangents.view(-1, self.hidden).addmm_(product.view(-1, self.hidden), weight.T)
            gathered += torch.mul(tangents, exit_[:, None], out=product).sum(0)
        return (gathered * last_gain).sum(1)

    def _through(self, entry: Tensor, exit_: Tensor, gains: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
        """Directions ``(C, hidden)`` through the blocks and onto their own exits, summed, with a graph."""
        tangents = entry[:, None, :].expand(-1, gains[0].shape[0], -1)
        for weight, gain in zip(weights, gains, strict=True):
            product = (tangents * gain).reshape(-1, self.hidden)
            tangents = torch.addmm(tangents.reshape(-1, self.hidden), product, weight.T).view(tangents.shape)
        return (tangents * exit_[:, None]).sum(0)

    def _modulation(self, t: Tensor, cond: Tensor | None, size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        embedded = self.embed(self.time(t).to(self.embed.weight.dtype))
        if self.label is not None or self.number is not None:
            embedded = embedded + self._embed_cond(cond, size)
        elif cond is not None:
            raise ValueError("this network has no condition, got one; build it with classes= or cond_dim=")
        scale, shift = self.film(functional.silu(embedded)).chunk(2, dim=1)
        return (1 + scale).chunk(self.depth, dim=1), shift.chunk(self.depth, dim=1)

    def _embed_cond(self, cond: Tensor | None, size: int) -> Tensor:
        expected = (
            f"integer labels of shape ({size},)" if self.classes else f"numbers of shape ({size}, {self.cond_dim})"
        )
        shape = (size,) if self.classes else (size, self.cond_dim)
        if cond is None or tuple(cond.shape) != shape:
            got = "none" if cond is None else f"shape {tuple(cond.shape)}"
            raise ValueError(f"this network needs a condition, {expected}, got {got}")
        if self.label is not None:
            if cond.is_floating_point():
                raise TypeError(f"class labels must be integers, got {cond.dtype}")
            if can_look(cond) and not (int(cond.min()) >= 0 and int(cond.max()) < self.classes):
                raise ValueError(
                    f"class labels must lie in 0..{self.classes - 1}, got {int(cond.min())} to {int(cond.max())}"
                )
            embedded: Tensor = self.label(cond)
            return embedded
        assert self.number is not None
        numbers: Tensor = self.number(cond.to(self.number.weight.dtype))
        return numbers


def _silu_and_slope(u: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(u)
    active = u * s
    return active, s + active * (1 - s)
