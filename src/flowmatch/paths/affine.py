r"""Affine paths :math:`x_t = \alpha_t x_1 + \sigma_t x_0` under a schedule.

With a standard normal source an affine path is the Gaussian path with :math:`\mu_t = \alpha_t x_1` and
:math:`\sigma_t(x_1) = \sigma_t`, so Theorem 3 holds for it. With any other source or coupling the
position and velocity are the same formulas, which is why data-to-data flows use it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmatch.paths.gaussian import ConditionalGaussianPath
from flowmatch.schedules import Linear, Schedule

__all__ = ["AffinePath"]


class AffinePath(ConditionalGaussianPath):
    r"""Affine path between a source and a data sample.

    .. math:: x_t = \alpha_t x_1 + \sigma_t x_0, \qquad u_t = \dot\alpha_t x_1 + \dot\sigma_t x_0

    Args:
        schedule: the functions ``alpha`` and ``sigma``; by default the paper's straight lines.

    Raises:
        TypeError: ``schedule`` is not a :class:`~flowmatch.Schedule`.

    Source:
        Lipman et al. 2023, Eq. 20-23 for the linear schedule.

    Example:
        >>> import flowmatch as fm
        >>> path = fm.AffinePath(fm.Linear())
        >>> path.position(torch.tensor([0.5]), torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.schedule = Linear() if schedule is None else schedule
        if not isinstance(self.schedule, Schedule):
            raise TypeError(
                f"schedule must be a flowmatch Schedule such as fm.Linear(), got {schedule!r}; "
                "for a formula of your own use fm.FunctionPath(phi) or subclass fm.Schedule"
            )
        self.interval = self.schedule.interval
        start = self.schedule.sigma(torch.tensor(self.interval[0], dtype=torch.float64))
        # VP starts at sigma = 1 - 2e-5: a rounding of the same standard normal, not another source.
        self.source_std = 1.0 if abs(start.item() - 1) < 1e-3 else start.item()

    def _mean_std(self, t: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.alpha(t) * x1, self.schedule.sigma(t)

    def _mean_std_dot(self, t: Tensor, x1: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        rate = self.schedule.alpha_dot(t) * x1, self.schedule.sigma_dot(t)
        return self._mean_std(t, x1), rate

    def _both(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        schedule = self.schedule
        position = schedule.alpha(t) * x1 + schedule.sigma(t) * x0
        velocity = schedule.alpha_dot(t) * x1 + schedule.sigma_dot(t) * x0
        return position, velocity

    def __repr__(self) -> str:
        return f"AffinePath({self.schedule!r})"
