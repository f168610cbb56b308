r"""A schedule with weights: any pair of monotone functions with exact ends.

A Bernstein polynomial of degree ``n`` with coefficients :math:`c_0 \le c_1 \le \dots \le c_n`,

.. math:: G(t) = \sum_{k=0}^n c_k \binom{n}{k} t^k (1 - t)^{n-k}, \qquad
    \dot G(t) = n \sum_{k=0}^{n-1} (c_{k+1} - c_k) \binom{n-1}{k} t^k (1 - t)^{n-1-k},

is monotone, has :math:`G(0) = c_0` and :math:`G(1) = c_n` exactly, and comes near any monotone function as ``n``
grows. With increments that are a softmax of free weights, :math:`c_0 = 0` and :math:`c_n = 1` hold whatever the
weights are; equal weights give :math:`G(t) = t`, so training starts on the straight path.

**What to train it on.** The regression loss itself must not choose the path it is measured on: it can shrink by
making the target small where the network looks. What one can ask for is the kinetic energy of the *marginal* flow,

.. math:: E(\alpha, \sigma) = \int_0^1 E|u_t(x_t)|^2 dt,

which a trained field or an exact one gives, and which is least for the path that carries mass at constant speed.

Source: Shaul et al., On Kinetic Optimal Probability Paths for Generative Models, 2023,
https://arxiv.org/abs/2306.06626; Farouki, The Bernstein polynomial basis: a centennial retrospective, 2012, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.schedules.base import Schedule

__all__ = ["Learned"]


class Learned(Schedule, nn.Module):
    r"""Schedule of two trainable monotone polynomials.

    .. math:: \alpha_t = G_a(t), \qquad \sigma_t = \sigma_{min} + (1 - \sigma_{min}) (1 - G_b(t))

    Its ``parameters()`` go to an optimiser of the caller's; a path made of it passes gradients through positions and
    velocities.

    Args:
        degree: degree of the polynomials, at least 1; 1 is always the straight path.
        sigma_min: standard deviation left at ``t = 1``; in ``[0, 1)``.
        weights: two lists of ``degree`` logits of the increments of ``G_a`` and ``G_b``; equal ones by default.

    Raises:
        ValueError: ``degree`` below 1, ``sigma_min`` outside ``[0, 1)`` or weights of another number.

    Example:
        >>> schedule = Learned(degree=4)
        >>> schedule.alpha(torch.tensor([0.0, 0.25, 1.0])).detach()
        tensor([0.0000, 0.2500, 1.0000])
        >>> len(list(schedule.parameters()))
        1
    """

    def __init__(
        self, degree: int = 8, sigma_min: float = 0.0, weights: Sequence[Sequence[float]] | None = None
    ) -> None:
        nn.Module.__init__(self)
        if degree < 1:
            raise ValueError(f"degree must be at least 1, got {degree}")
        if not 0 <= sigma_min < 1:
            raise ValueError(f"sigma_min must lie in [0, 1), got {sigma_min}")
        start = torch.zeros(2, degree) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        if start.shape != (2, degree):
            raise ValueError(f"weights must be two lists of degree = {degree} numbers, got shape {tuple(start.shape)}")
        self.degree, self.sigma_min = degree, sigma_min
        self.weights = nn.Parameter(start)

    def alpha(self, t: Tensor) -> Tensor:
        return _bernstein(t, self._coefficients(t)[0])

    def sigma(self, t: Tensor) -> Tensor:
        # The polynomial of 1 - c, not 1 minus the polynomial: exactly sigma_min at t = 1.
        return _bernstein(t, self.sigma_min + (1 - self.sigma_min) * (1 - self._coefficients(t)[1]))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return _bernstein(t, self.degree * self._increments(t)[0])

    def sigma_dot(self, t: Tensor) -> Tensor:
        return _bernstein(t, (self.sigma_min - 1) * self.degree * self._increments(t)[1])

    def config(self) -> dict[str, Any]:
        """The arguments that make this schedule again, weights included."""
        return {"degree": self.degree, "sigma_min": self.sigma_min, "weights": self.weights.detach().tolist()}

    def _increments(self, t: Tensor) -> Tensor:
        return self.weights.to(t).softmax(dim=1)

    def _coefficients(self, t: Tensor) -> Tensor:
        """Coefficients ``(2, degree + 1)``; the ends are 0 and 1 themselves, not sums that round to them."""
        increments = self._increments(t)
        ends = increments.new_zeros(2, 1), increments.new_ones(2, 1)
        return torch.cat([ends[0], increments.cumsum(dim=1)[:, :-1], ends[1]], dim=1)

    def __repr__(self) -> str:
        return f"Learned(degree={self.degree}, sigma_min={self.sigma_min})"


def _bernstein(t: Tensor, coefficients: Tensor) -> Tensor:
    """Polynomial with the coefficients given, by de Casteljau's averages: stable, and exact at both ends."""
    rows = [coefficients[k] for k in range(coefficients.shape[0])]
    rest = 1 - t
    while len(rows) > 1:
        rows = [rest * left + t * right for left, right in zip(rows, rows[1:], strict=False)]
    return rows[0].expand_as(t) if rows[0].ndim == 0 else rows[0]
