r"""Semidiscrete optimal transport: from a source law to a finite data set, solved once for the whole of it.

A coupling of mini-batches is biased: it is optimal between samples, not between the laws. Between a law with a density
and ``N`` points the optimal map is known up to ``N`` numbers: there are potentials :math:`g_j` such that

.. math:: x_0 \mapsto x_1^{(j)}, \qquad j = \operatorname{argmin}_j \; |x_0 - x_1^{(j)}|^2 - g_j,

with cells of mass ``1/N`` each. They maximise the concave dual

.. math:: H(g) = \frac1N \sum_j g_j + E_{x_0} \min_j \left( |x_0 - x_1^{(j)}|^2 - g_j \right),
          \qquad \partial_j H = \frac1N - P(x_0 \in \mathrm{cell}_j),

whose gradient needs draws of the source only. Once they are learnt, a batch costs one matrix product and one minimum.

**The ascent.** A cell's boundary moves by the change of :math:`g_j`, and the next cell is away by the gap ``h`` between
the smallest and the second smallest value at a draw. So :math:`h (1 - N m_j)`, with :math:`m_j` the cell's mass, is
about one Newton step, whatever the units of the data. It starts from the entropic potentials between a draw of the
source and a part of the data, decreases as :math:`k^{-2/3}`, and the second half of the iterates is averaged.

Sources: Genevay, Cuturi, Peyre, Bach, Stochastic optimization for large-scale optimal transport, 2016 (averaged ascent
of the dual); Polyak, Juditsky, Acceleration of stochastic approximation by averaging, 1992.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowmatch.couplings.cells import Cells
from flowmatch.couplings.cost import squared_distances
from flowmatch.couplings.plan import check_positive
from flowmatch.couplings.scaling import scale
from flowmatch.randomness import randperm
from flowmatch.sources import Normal
from flowmatch.tensors import check_data, check_event, check_finite, time_dtype
from flowmatch.typing import Cond, Source

__all__ = ["SemiDiscrete"]

START = 2048  # draws and data points from which the ascent starts
DAMP, DECAY = 20, 2 / 3  # the step is (1 + k / DAMP) ** -DECAY of a Newton step


class SemiDiscrete:
    r"""The optimal map from a source law to a data set, as a coupling with the whole of it.

    Make one with :meth:`fit`; the constructor takes what an earlier fit has learnt.

    Points that occur several times share one cell, and its draws are spread over them by the generator.

    Args:
        data: the points ``(N, *event)``.
        potentials: :math:`g_j`, ``(N,)``.
        marginal_error: see below, if it is known.
        chunk: numbers held at a time, in the comparison of a batch with the data.

    Attributes:
        data: the points ``(N, *event)``.
        potentials: :math:`g_j`, ``(N,)``, with mean zero; float32 at least.
        marginal_error: root mean square of :math:`N m_j - 1`, the relative error of the masses of the cells, on draws
            that the fit has not seen. What counting alone adds is subtracted. It bounds the mean of
            :math:`|N m_j - 1|`.
        whole_data: true: this coupling is called with the data set in place of a batch of it.

    Raises:
        TypeError: data that is not floating.
        ValueError: empty data, entries that are not finite, or potentials that are not one finite number a point.

    Example:
        >>> data = torch.tensor([[-1.0], [0.5]])
        >>> coupling = SemiDiscrete.fit(data, steps=200, generator=torch.Generator().manual_seed(0))
        >>> i, j = coupling(torch.tensor([[-0.1], [0.1], [2.0]]), data)
        >>> j
        tensor([0, 1, 1])
    """

    whole_data = True

    def __init__(self, data: Tensor, potentials: Tensor, marginal_error: float = math.nan, chunk: int = 2**24) -> None:
        check_data(data)
        if potentials.shape != data.shape[:1] or not bool(torch.isfinite(potentials).all()):
            raise ValueError(f"potentials must be {data.shape[0]} finite numbers, got shape {tuple(potentials.shape)}")
        check_positive("chunk", chunk)
        self.data, self.marginal_error, self.chunk = data, marginal_error, chunk
        self.potentials = potentials.detach().to(data.device, time_dtype(data.dtype))
        self._cells = Cells(data, chunk)

    @classmethod
    def fit(
        cls,
        data: Tensor,
        source: Source | None = None,
        *,
        steps: int = 1000,
        batch: int = 1024,
        generator: torch.Generator | None = None,
        chunk: int = 2**24,
    ) -> SemiDiscrete:
        r"""Learn the potentials.

        The masses of the cells come out right to about twice the counting error of all draws,
        :math:`2 \sqrt{N / (\mathrm{steps} \cdot \mathrm{batch})}`: 6 % for 1000 points in two dimensions and the
        defaults, in 4 seconds on one core. Give more steps to more data, and read ``marginal_error``.

        Args:
            data: the points ``(N, *event)``.
            source: the law of ``x0``; standard normal by default.
            steps: of the ascent. A fourth as many batches are drawn to measure ``marginal_error``.
            batch: draws of the source in every step.
            generator: source of all randomness.
            chunk: numbers held at a time.

        Raises:
            TypeError: data that is not floating.
            ValueError: empty data or entries that are not finite, or ``steps`` or ``batch`` below 1.
        """
        check_event(data, "data")
        if steps < 1 or batch < 1:
            raise ValueError(f"steps and batch must be at least 1, got {steps} and {batch}")
        self = cls(data, torch.zeros(data.shape[0], device=data.device), chunk=chunk)
        cells = self._cells
        draws = self._draws(Normal() if source is None else source, generator)
        g = self._start(draws(START), generator)
        mean, gap = torch.zeros_like(g), 0.0
        for step in range(steps):
            x0 = draws(batch)
            if step % 10 == 0:  # it hardly changes, and costs as much as the step
                gap = cells.gap(x0, g) if step == 0 else 0.5 * (gap + cells.gap(x0, g))
            mass = cells.count(cells.nearest(x0, g)) / batch
            g = g + gap * (1 + step / DAMP) ** -DECAY * (1 - mass / cells.share)
            if step >= steps // 2:
                mean += (g - mean) / (step - steps // 2 + 1)
        self.potentials = (mean - (mean * cells.share).sum())[cells.atom]
        self.marginal_error = self._measure(draws, batch, max(1, steps // 4))
        return self

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Index tensors ``(i, j)`` of shape ``(B,)``: ``i`` counts the source points, ``j`` is in the data set.

        Args:
            x0: source points ``(B, *event)``.
            x1: the data set that was fitted, all ``N`` rows in their order.
            cond: taken no notice of.
            generator: spreads draws over points that are equal.

        Raises:
            TypeError: ``x0`` is not of the data's type.
            ValueError: ``x1`` is not the data set, or ``x0`` does not fit it or is not finite.
        """
        self._check_data(x1)
        check_event(x0, "x0")
        if x0.shape[1:] != self.data.shape[1:] or x0.device != self.data.device:
            raise ValueError(
                f"x0 must be (B, *event) with event {tuple(self.data.shape[1:])} on {self.data.device}, got "
                f"{tuple(x0.shape)} on {x0.device}"
            )
        if x0.dtype != self.data.dtype:
            raise TypeError(f"x0 and the data must have one dtype, got {x0.dtype} and {self.data.dtype}")
        check_finite(x0, "x0")
        cell = self._cells.nearest(self._cells.flat(x0), self.potentials[self._cells.first])
        return torch.arange(x0.shape[0], device=x0.device), self._cells.row(cell, generator)

    def to(self, device: torch.device | str) -> SemiDiscrete:
        """The same coupling on another device."""
        return SemiDiscrete(self.data.to(device), self.potentials.to(device), self.marginal_error, self.chunk)

    def __repr__(self) -> str:
        return f"SemiDiscrete(data {tuple(self.data.shape)}, marginal_error={self.marginal_error:.3g})"

    def _check_data(self, x1: Tensor) -> None:
        same = x1.shape == self.data.shape and x1.device == self.data.device
        if same and x1.data_ptr() == self.data.data_ptr() and x1.stride() == self.data.stride():
            return
        if not same or not torch.equal(x1, self.data):
            raise ValueError(
                f"x1 {tuple(x1.shape)} on {x1.device} is not the data {tuple(self.data.shape)} on {self.data.device} "
                "that this coupling was fitted to; it needs the whole data set in its order, not a batch of it"
            )

    def _draws(self, source: Source, generator: torch.Generator | None) -> Callable[[int], Tensor]:
        """Draws of the source, flat and centred."""
        event, device, dtype = self.data.shape[1:], self.data.device, self._cells.atoms.dtype
        return lambda n: self._cells.flat(source.sample((n, *event), generator, device, dtype))

    def _start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Entropic potentials of a part of the data, carried to all of it by their own formula."""
        atoms, share = self._cells.atoms, self._cells.share
        part = randperm(atoms.shape[0], generator, x.device)[:START]
        cost, mass = squared_distances(x, atoms[part]), share[part].to(x.dtype)
        reg = 0.01 * (cost.mean() or cost.new_ones(()))
        log_a, log_b = x.new_full((1, x.shape[0]), -math.log(x.shape[0])), (mass / mass.sum()).log()[None]
        f = reg * scale(cost[None], reg[None], log_a, log_b, tol=0.03, max_iterations=500).f[0]
        parts = atoms.split(max(1, self.chunk // x.shape[0]))
        soft = [((f[:, None] - squared_distances(x, y)) / reg).logsumexp(0) for y in parts]
        return torch.cat(soft).mul(-reg)

    def _measure(self, draws: Callable[[int], Tensor], batch: int, batches: int) -> float:
        """Root mean square of the relative errors of the masses, less what counting adds to it."""
        cells, g = self._cells, self.potentials[self._cells.first]
        count = torch.zeros_like(cells.counts)
        for _ in range(batches):
            count += cells.count(cells.nearest(draws(batch), g))
        mass = count.double() / (batch * batches)
        noise = mass * (1 - mass) / max(1, batch * batches - 1)
        square = ((mass - cells.share) ** 2 - noise) / cells.share
        return math.sqrt(max(0.0, float(square.sum())))
