r"""Power-function averages of the weights: how they are updated, how wide they are, how two of them overlap.

An average over the steps ``1 .. K`` weighs the weights after step ``k`` by the profile

.. math:: p(\tau) = \frac{\gamma + 1}{K^{\gamma + 1}} \tau^\gamma, \qquad
    w_k = \int_{k-1}^{k} p(\tau) d\tau = \frac{k^{\gamma + 1} - (k - 1)^{\gamma + 1}}{K^{\gamma + 1}} .

The sum telescopes to one, and ``w`` at ``K`` is ``w`` at ``K - 1`` times :math:`\beta_K`, so that a running update
keeps it up:

.. math:: \bar\theta_k = \beta_k \bar\theta_{k-1} + (1 - \beta_k) \theta_k, \qquad
    \beta_k = \left( 1 - \frac1k \right)^{\gamma + 1} .

The random start has no weight (:math:`\beta_1 = 0`), and the length grows with the run: no decay has to be tuned to its
length. The width is told by the standard deviation of the profile as a share of ``K``,

.. math:: \sigma_{rel}^2 = \frac{\gamma + 1}{(\gamma + 2)^2 (\gamma + 3)} ,

which falls from :math:`1 / \sqrt{12}` at :math:`\gamma = 0`, the plain mean of all steps, towards zero.

**Overlap.** For two profiles, ``a`` that ends at ``s`` and ``b`` that ends at ``t >= s``,

.. math:: \langle p_a, p_b \rangle = \int_0^s p_a p_b \, d\tau
    = \frac{(a + 1)(b + 1)}{a + b + 1} \, \frac{s^b}{t^{b + 1}} .

**Any width afterwards.** A sum of stored averages with factors ``x`` that sum to one is an average again, whose profile
is the sum of the profiles. The factors nearest to a wanted profile in the square norm solve a small linear system in
these overlaps, so that the length of the average is chosen after training.

Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, section 3,
https://arxiv.org/abs/2312.02696. That the factors sum to one is our own condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["WIDEST", "Profile", "exponent", "factors", "power_decay", "relative_error"]

WIDEST = 12**-0.5
"""Relative width of the plain mean of all steps; no power average with a growing profile is wider."""


class Profile(NamedTuple):
    """A power average: its exponent ``gamma`` and the number of steps it covers."""

    gamma: float
    steps: int


def exponent(sigma_rel: float) -> float:
    r"""Exponent :math:`\gamma \ge 0` of the profile with relative width ``sigma_rel``.

    Raises:
        ValueError: a width outside ``(0, 1 / sqrt(12)]``.

    Example:
        >>> round(exponent(0.05), 2), round(exponent(0.10), 2)
        (16.97, 6.94)
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(
            f"the relative width of an average must lie in (0, 1 / sqrt(12) = {WIDEST:.4f}], got {sigma_rel}"
        )
    # (g + 2)^2 (g + 3) sigma^2 = g + 1 has one root that is not negative: the width falls with g.
    share = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - share, 12.0 - share])
    return max(0.0, float(roots[np.abs(roots.imag) < 1e-9].real.max()))


def power_decay(gamma: float, step: int) -> float:
    """Decay of the update that follows ``step`` earlier ones: 0 for the first.

    Example:
        >>> power_decay(1.0, 0), power_decay(1.0, 1)
        (0.0, 0.25)
    """
    return float((1 - 1 / (step + 1)) ** (gamma + 1))


def factors(stored: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """Factors that sum to one, with which the stored averages come nearest to the wanted one.

    Raises:
        ValueError: nothing is stored.

    Example:
        >>> factors([Profile(16.97, 10), Profile(6.94, 10), Profile(6.94, 20)], Profile(6.94, 10)).round(6) + 0.0
        array([0., 1., 0.])
    """
    if not stored:
        raise ValueError("no averages are stored, so there is none to make another one of")
    # In units of its own norm every profile counts alike, which keeps the system well conditioned.
    sizes = np.sqrt(np.array([_overlap(profile, profile) for profile in stored]))
    gram = np.array([[_overlap(a, b) for b in stored] for a in stored]) / np.outer(sizes, sizes)
    aim = np.array([_overlap(a, wanted) for a in stored]) / sizes
    count = len(stored)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count], system[:count, count], system[count, :count] = gram, 1 / sizes, 1 / sizes
    solution: NDArray[np.float64] = np.linalg.lstsq(system, np.append(aim, 1.0), rcond=None)[0][:count] / sizes
    # What rounding left of the condition.
    return np.asarray(solution / solution.sum())


def relative_error(stored: Sequence[Profile], wanted: Profile, found: NDArray[np.float64]) -> float:
    """Norm of the difference between the wanted profile and that of ``found``, in units of the wanted one's norm."""
    gram = np.array([[_overlap(a, b) for b in stored] for a in stored])
    aim = np.array([_overlap(a, wanted) for a in stored])
    own = _overlap(wanted, wanted)
    return float(np.sqrt(max(0.0, found @ gram @ found - 2 * found @ aim + own) / own))


def _overlap(one: Profile, other: Profile) -> float:
    early, late = sorted((one, other), key=lambda profile: profile.steps)
    a, b = early.gamma, late.gamma
    overlap: float = (a + 1) * (b + 1) / (a + b + 1) * (early.steps / late.steps) ** b / late.steps
    return overlap
