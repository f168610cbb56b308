r"""Toy sets whose density is a formula: mixtures, one twist of the plane, and the funnel.

**Rings.** A point on the circle of radius :math:`R`, at a uniform angle, with Gaussian noise of
standard deviation :math:`\sigma` added. Integrating the angle out gives a Bessel function,

.. math:: p(x) = \frac{1}{2\pi\sigma^2} e^{-(r^2 + R^2)/2\sigma^2} I_0(rR/\sigma^2)
    = \frac{1}{2\pi\sigma^2} e^{-(r - R)^2/2\sigma^2} \, [e^{-rR/\sigma^2} I_0(rR/\sigma^2)],

with :math:`r = |x|`; the bracket is ``torch.special.i0e``, so nothing overflows.

**Pinwheel.** Turn every point by an angle that depends on its distance from the origin alone. In
polar coordinates that is :math:`(r, \phi) \mapsto (r, \phi - a(r))`, whose Jacobian is triangular with ones
on the diagonal: it keeps area. So the density at ``y`` is the density of the five straight blades
at the point turned back, and the entropy of the pinwheel is that of its blades.

Scales follow FFJORD (Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367), which most pictures of
these sets use. FFJORD's pinwheel turns by the first coordinate instead of the radius; the two
look alike, and only the radius keeps area.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowmatch.data.toy_base import Dice, Toy
from flowmatch.tensors import gaussian_log_prob

__all__ = ["Checkerboard", "EightGaussians", "Funnel", "Pinwheel", "Rings"]

# Sums of -p log p on a square grid in float64. A step half as long changes them by less than 1e-10.
_ENTROPY_8GAUSSIANS = 2.831880406
_ENTROPY_RINGS = 2.623182770
_ENTROPY_PINWHEEL = 2.320588485


class EightGaussians(Toy):
    """Eight equal normals on a circle of radius 4/1.414 with standard deviation 0.5/1.414."""

    RADIUS, STD = 4 / 1.414, 0.5 / 1.414

    def __init__(self) -> None:
        super().__init__("8gaussians", 2, _ENTROPY_8GAUSSIANS)

    def _draw(self, n: int, dice: Dice) -> Tensor:
        centre = dice.choose(8, n)
        return _on_circle(centre / 8) * self.RADIUS + self.STD * dice.normal(n, 2)

    def _log_density(self, x: Tensor) -> Tensor:
        centres = self.RADIUS * _on_circle(torch.arange(8, device=x.device, dtype=x.dtype) / 8)
        terms = -0.5 * ((x[:, None] - centres) / self.STD).square().sum(-1)
        return terms.logsumexp(1) - math.log(8 * 2 * math.pi * self.STD**2)


class Checkerboard(Toy):
    """Uniform on the 8 cells of one colour of a 4 x 4 board on ``[-4, 4)^2``: density 1/32 there, 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__("checkerboard", 2, math.log(32))

    def _draw(self, n: int, dice: Dice) -> Tensor:
        column = dice.choose(4, n)
        row = 2 * dice.choose(2, n) + column % 2
        # Rounding may lift a point that is nearly on an upper edge onto it, which is the next cell.
        inside = dice.uniform(n, 2).clamp(max=1 - 4 * torch.finfo(dice.dtype).eps)
        return 2 * (torch.stack([column, row], 1) - 2 + inside)

    def _log_density(self, x: Tensor) -> Tensor:
        cell = (x / 2).floor()
        inside = ((cell >= -2) & (cell < 2)).all(1) & (cell.sum(1) % 2 == 0)
        log_p = x.new_full(inside.shape, -math.inf).masked_fill(inside, -math.log(32))
        return log_p.masked_fill(x.isnan().any(1), math.nan)


class Rings(Toy):
    """Four equal rings of radius 0.75, 1.5, 2.25 and 3 with Gaussian noise of standard deviation 0.08."""

    RADII, STD = (0.75, 1.5, 2.25, 3.0), 0.08

    def __init__(self) -> None:
        super().__init__("rings", 2, _ENTROPY_RINGS)

    def _draw(self, n: int, dice: Dice) -> Tensor:
        radius = 0.75 * (1 + dice.choose(4, n))
        turn = dice.uniform(n)
        return radius[:, None] * _on_circle(turn) + self.STD * dice.normal(n, 2)

    def _log_density(self, x: Tensor) -> Tensor:
        radii = torch.tensor(self.RADII, device=x.device, dtype=x.dtype)
        r: Tensor = torch.linalg.vector_norm(x, dim=1)[:, None]
        bessel: Tensor = torch.special.i0e(r * radii / self.STD**2)
        terms = bessel.log() - 0.5 * ((r - radii) / self.STD).square()
        return terms.logsumexp(1) - math.log(4 * 2 * math.pi * self.STD**2)


class Pinwheel(Toy):
    """Five blades, each a long thin normal, twisted clockwise by an angle that grows with the radius."""

    BLADES, LENGTH, WIDTH, RATE, SCALE = 5, 0.3, 0.1, 0.25, 2.0

    def __init__(self) -> None:
        super().__init__("pinwheel", 2, _ENTROPY_PINWHEEL)

    def _draw(self, n: int, dice: Dice) -> Tensor:
        blade = dice.choose(self.BLADES, n)
        spread = torch.tensor([self.LENGTH, self.WIDTH], device=dice.device, dtype=dice.dtype)
        straight = dice.normal(n, 2) * spread
        straight = straight + torch.tensor([1.0, 0.0], device=dice.device, dtype=dice.dtype)
        return self.SCALE * self._twist(_turn(straight, 2 * math.pi / self.BLADES * blade), -1)

    def _log_density(self, x: Tensor) -> Tensor:
        return self._blades(self._twist(x / self.SCALE, 1)) - 2 * math.log(self.SCALE)

    def _twist(self, x: Tensor, sign: int) -> Tensor:
        # No sample lies 20 standard deviations out; the cap keeps the exponential finite for a point given there.
        radius = torch.linalg.vector_norm(x, dim=-1).clamp(max=7.0)
        return _turn(x, sign * self.RATE * radius.exp())

    def _blades(self, x: Tensor) -> Tensor:
        angles = -2 * math.pi / self.BLADES * torch.arange(self.BLADES, device=x.device, dtype=x.dtype)
        along, across = _turn(x[:, None], angles).unbind(-1)
        terms = -0.5 * (((along - 1) / self.LENGTH).square() + (across / self.WIDTH).square())
        return terms.logsumexp(1) - math.log(self.BLADES * 2 * math.pi * self.LENGTH * self.WIDTH)


class Funnel(Toy):
    r"""Neal's funnel: :math:`x_1 \sim N(0, 3^2)` and nine more, each :math:`N(0, e^{x_1})` given :math:`x_1`.

    Its entropy is :math:`\tfrac{10}{2} \log 2\pi e + \log 3 + \tfrac92 E[x_1]`, and the last term is zero.

    Source:
        Neal, Slice sampling, 2003, section 8.
    """

    def __init__(self) -> None:
        super().__init__("funnel", 10, 5 * math.log(2 * math.pi * math.e) + math.log(3))

    def _draw(self, n: int, dice: Dice) -> Tensor:
        z = dice.normal(n, self.dim)
        neck = 3 * z[:, :1]
        return torch.cat([neck, z[:, 1:] * (neck / 2).exp()], 1)

    def _log_density(self, x: Tensor) -> Tensor:
        neck = x[:, :1]
        # Scaling before the square keeps the narrow end: exp(-neck) alone overflows float32 at neck = -89.
        rest = x[:, 1:] * (-neck / 2).exp()
        volume = 0.5 * (self.dim - 1) * neck[:, 0]
        return gaussian_log_prob(neck, 0.0, 3.0) + gaussian_log_prob(rest, 0.0, 1.0) - volume


def _on_circle(turn: Tensor) -> Tensor:
    """Points of the unit circle at ``turn`` full turns: ``(n,) -> (n, 2)``."""
    angle = 2 * math.pi * turn
    return torch.stack([angle.cos(), angle.sin()], -1)


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate ``(..., 2)`` counter-clockwise by ``angle`` of shape ``(...)``, broadcasting."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([x[..., 0] * cos - x[..., 1] * sin, x[..., 0] * sin + x[..., 1] * cos], -1)
