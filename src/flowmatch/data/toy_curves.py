r"""Toy sets that are a plane curve with Gaussian noise; their density is a one-dimensional integral.

A point is :math:`c(s) + \sigma \epsilon` with ``s`` in ``[0, 1]`` drawn from a density ``w`` and
:math:`\epsilon \sim N(0, I)`. So

.. math:: p(x) = \int_0^1 w(s) \, N(x; c(s), \sigma^2 I) \, ds \approx \sum_j w_j \, N(x; c(s_j), \sigma^2 I)

with Gauss-Legendre nodes :math:`s_j`. Seen along the curve the integrand is a bump of width
:math:`\sigma`, and the rule converges geometrically once the nodes stand closer than that. Each set
has nodes enough for an error of :math:`\log p` below 1e-9 in float64 within eight standard deviations
of the curve, and below 1e-6 within twenty (measured against 2048 nodes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flowmatch.data.toy_base import Dice, Toy

__all__ = ["Curve", "moons", "swissroll", "two_spirals"]

_CHUNK = 2**18  # point-node pairs held at once, 2 MB of float64 a term: the fastest of 2^16 to 2^20 on a CPU

# Entropies: sums of -p log p on a square grid in float64. A step half as long changes them by less than 1e-8.
_ENTROPY_MOONS = 2.39387920
_ENTROPY_TWO_SPIRALS = 2.54061790
_ENTROPY_SWISSROLL = 2.66964617


class Curve(Toy):
    r"""Equal mixture of plane curves with Gaussian noise.

    Args:
        name: the name it is asked for by.
        curve: ``s (n,) -> points (n, arms, 2)`` for ``s`` in ``[0, 1]``.
        std: standard deviation of the noise.
        power: ``s`` has density :math:`w(s) = k s^{k-1}`; 1 is uniform.
        entropy: differential entropy in nats, if known.
        nodes: quadrature nodes along each arm; more where the arm is long beside the noise.
    """

    def __init__(
        self,
        name: str,
        curve: Callable[[Tensor], Tensor],
        std: float,
        power: int = 1,
        entropy: float | None = None,
        nodes: int = 512,
    ) -> None:
        super().__init__(name, 2, entropy)
        self.curve, self.std, self.power, self.nodes = curve, std, power, nodes

    def _draw(self, n: int, dice: Dice) -> Tensor:
        points = self.curve(dice.uniform(n) ** (1 / self.power))
        arm = dice.choose(points.shape[1], n).long()
        chosen = points[torch.arange(n, device=arm.device), arm]
        return chosen + self.std * dice.normal(n, 2)

    def _log_density(self, x: Tensor) -> Tensor:
        s, weight = (torch.as_tensor(v, device=x.device) for v in _gauss_legendre(self.nodes))
        points = self.curve(s)
        arms = points.shape[1]
        share = (weight * self.power * s ** (self.power - 1)).log() - math.log(arms * 2 * math.pi * self.std**2)
        centres = points.reshape(-1, 2).to(x.dtype)
        log_share = share.repeat_interleave(arms).to(x.dtype)
        rows = max(1, _CHUNK // centres.shape[0])
        return torch.cat([self._log_sum(part, centres, log_share) for part in x.split(rows)])

    def _log_sum(self, x: Tensor, centres: Tensor, log_share: Tensor) -> Tensor:
        # Differences before squares: expanding the square into a matrix product loses 1e-4 in float32.
        dx, dy = x[:, :1] - centres[:, 0], x[:, 1:] - centres[:, 1]
        return (log_share - (dx * dx + dy * dy) * (0.5 / self.std**2)).logsumexp(1)


@lru_cache(maxsize=8)
def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on ``[0, 1]``, float64."""
    node, weight = np.polynomial.legendre.leggauss(n)
    return (node + 1) / 2, weight / 2


def _moons(s: Tensor) -> Tensor:
    cos, sin = 2 * (math.pi * s).cos(), 2 * (math.pi * s).sin()
    upper = torch.stack([cos - 1, sin - 0.2], -1)
    lower = torch.stack([1 - cos, 0.8 - sin], -1)
    return torch.stack([upper, lower], 1)


def _two_spirals(s: Tensor) -> Tensor:
    angle = 3 * math.pi * s
    arm = torch.stack([-angle * angle.cos(), angle * angle.sin()], -1) / 3
    return torch.stack([arm, -arm], 1)


def _swissroll(s: Tensor) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * s)
    return (torch.stack([angle.cos(), angle.sin()], -1) * angle[:, None] / 5)[:, None]


def moons() -> Curve:
    """Two half circles of radius 2 that reach into each other; scikit-learn's moons at FFJORD's scale."""
    return Curve("moons", _moons, std=0.2, entropy=_ENTROPY_MOONS, nodes=128)


def two_spirals() -> Curve:
    """Two spirals of one turn and a half, one the other turned by half a turn.

    The noise is Gaussian alone; FFJORD's spirals also shift every point by a uniform draw of up to 1/6.
    """
    return Curve("two_spirals", _two_spirals, std=0.1, power=2, entropy=_ENTROPY_TWO_SPIRALS, nodes=384)


def swissroll() -> Curve:
    """The roll of scikit-learn seen from its side, at FFJORD's scale."""
    return Curve("swissroll", _swissroll, std=0.2, entropy=_ENTROPY_SWISSROLL, nodes=256)
