r"""Affine paths :math:`x_t = \alpha_t x_1 + \sigma_t x_0` under a schedule.

With a standard normal source an affine path is the Gaussian path with :math:`\mu_t = \alpha_t x_1` and
:math:`\sigma_t(x_1) = \sigma_t`, so Theorem 3 holds for it. With any other source or coupling the
position and velocity are the same formulas, which is why data-to-data flows use it too.

**Four names for one thing.** Position and velocity are two linear forms of the two ends,

.. math:: x = \alpha x_1 + \sigma x_0, \qquad v = \dot\alpha x_1 + \dot\sigma x_0 ,

and so are their means given :math:`x_t = x`. Whoever knows ``x`` and one of velocity, target
:math:`\hat x_1 = E[x_1 | x]`, noise :math:`\hat x_0 = E[x_0 | x]` and score
:math:`\nabla \log p_t(x) = -\hat x_0 / \sigma` (for a standard normal source) knows the others. With
:math:`\delta = \alpha \dot\sigma - \dot\alpha \sigma`,

.. math::
    \hat x_1 = \frac{\dot\sigma x - \sigma v}{\delta}, \quad \hat x_0 = \frac{\alpha v - \dot\alpha x}{\delta};
    \qquad \hat x_0 = \frac{x - \alpha \hat x_1}{\sigma}; \qquad \hat x_1 = \frac{x - \sigma \hat x_0}{\alpha}.

**The ends.** Each form has a place where it says nothing beyond ``x``: the target where :math:`\sigma = 0`, the noise
where :math:`\alpha = 0`, the velocity where :math:`\delta = 0`. There the means themselves have limits. Without noise
:math:`\hat x_1 = x / \alpha` and, for data with a bounded score, :math:`\hat x_0 = -\sigma \nabla \log p \to 0`.
Without signal :math:`\hat x_0 = x / \sigma` and :math:`\hat x_1` is the mean of the data. The score where
:math:`\sigma = 0` is the data's own and can be had from none of the others: it is refused.
"""

from __future__ import annotations

from typing import TypeAlias, cast, get_args

import torch
from torch import Tensor

from flowmatch.paths.gaussian import ConditionalGaussianPath
from flowmatch.schedules import Linear, Schedule
from flowmatch.tensors import can_look, check_event, check_time, expand_time
from flowmatch.typing import Kind

__all__ = ["AffinePath", "Kind"]


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

    def convert(
        self,
        value: Tensor,
        t: Tensor | float,
        x: Tensor,
        given: Kind,
        to: Kind,
        data_mean: Tensor | float = 0.0,
    ) -> Tensor:
        r"""Turn a prediction of one kind at ``(t, x)`` into another kind; both ends included.

        Args:
            value: the prediction ``(B, *event)``.
            t: time ``()`` or ``(B,)``.
            x: the point ``(B, *event)`` at which it was made.
            given: kind of ``value``: ``"velocity"``, ``"target"``, ``"noise"`` or ``"score"``.
            to: kind wanted.
            data_mean: mean of the data, used only where :math:`\alpha_t = 0`, at which nothing else is known of the
                target; zero for standardised data.

        Returns:
            The other kind ``(B, *event)``, in the type of ``x``.

        Raises:
            ValueError: unknown kinds, shapes that differ, a time outside the interval where the velocity is finite, or
                a score asked for where :math:`\sigma_t = 0` (looked at on the CPU only).

        Source:
            Lipman et al., Flow Matching Guide and Code, 2024, section 4.8.1, https://arxiv.org/abs/2412.06264.

        Example:
            >>> import flowmatch as fm
            >>> path = fm.AffinePath(fm.Linear())
            >>> x0, x1 = torch.tensor([[1.0]]), torch.tensor([[3.0]])
            >>> path.convert(x1 - x0, 1.0, x1, given="velocity", to="noise")
            tensor([[1.]])
        """
        check_event(x)
        if value.shape != x.shape:
            raise ValueError(f"value and x must have one shape, got {tuple(value.shape)} and {tuple(x.shape)}")
        for kind in (given, to):
            if kind not in get_args(Kind):
                raise ValueError(f"a kind is one of {', '.join(get_args(Kind))}, got {kind!r}")
        if given == to:
            return value.to(x.dtype)
        time = self._regular(t, x) if "velocity" in (given, to) else check_time(t, x)
        of_x, of_value, of_mean = self._linear_form(expand_time(time, x), given, to)
        # In float32 at least: the coefficients are large near the ends, where what they multiply nearly cancels.
        return self._fit(of_x * x + of_value * value + of_mean * data_mean, x)

    def _linear_form(self, t: Tensor, given: Kind, to: Kind) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of ``x``, of the value given and of the data's mean in the kind wanted; each like ``t``."""
        target, noise, (sigma, alpha_dot, sigma_dot) = self._means_form(t, given, rates=to == "velocity")
        if to == "target":
            return target
        if to == "noise":
            return noise
        if to == "velocity":
            return cast(_Form, tuple(alpha_dot * a + sigma_dot * s for a, s in zip(target, noise, strict=True)))
        if can_look(sigma) and bool((sigma.abs() <= _nothing(t)).any()):
            raise ValueError(
                f"the score is asked for where {self!r} has no noise left (sigma = 0): there it is the data's own, "
                f"which the {given} does not tell; use a time below 1, or sigma_min > 0"
            )
        return cast(_Form, tuple(-part / sigma for part in noise))

    def _means_form(self, t: Tensor, given: Kind, rates: bool = False) -> tuple[_Form, _Form, _Form]:
        """The forms of target and noise; and ``sigma`` and the rates, zero unless asked for or needed by the given."""
        schedule = self.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        nothing = _nothing(t)
        silent, clear = alpha.abs() <= nothing, sigma.abs() <= nothing
        if rates or given == "velocity":
            alpha_dot, sigma_dot = schedule.alpha_dot(t), schedule.sigma_dot(t)
        else:
            alpha_dot = sigma_dot = zero
        if given == "velocity":
            rate = alpha * sigma_dot - alpha_dot * sigma
            blind = rate.abs() <= nothing
            target = sigma_dot / rate, -sigma / rate, zero
            noise = -alpha_dot / rate, alpha / rate, zero
        elif given == "target":
            blind = clear
            target = zero, one, zero
            noise = 1 / sigma, -alpha / sigma, zero
        else:
            blind = silent
            scale = -sigma if given == "score" else one
            target = 1 / alpha, -sigma * scale / alpha, zero
            noise = zero, scale, zero
        # The limits of the two means where the value says nothing beyond x.
        empty, clean = blind & silent, blind & ~silent
        limits = zip(target, (1 / alpha, zero, zero), (zero, zero, one), strict=True)
        target = cast(_Form, tuple(torch.where(empty, e, torch.where(clean, c, f)) for f, c, e in limits))
        limits = zip(noise, (zero, zero, zero), (1 / sigma, zero, zero), strict=True)
        noise = cast(_Form, tuple(torch.where(empty, e, torch.where(clean, c, f)) for f, c, e in limits))
        return target, noise, (sigma, alpha_dot, sigma_dot)

    def config(self) -> dict[str, Schedule]:
        """The arguments that make this path again."""
        return {"schedule": self.schedule}

    def __repr__(self) -> str:
        return f"AffinePath({self.schedule!r})"


_Form: TypeAlias = tuple[Tensor, Tensor, Tensor]


def _nothing(t: Tensor) -> float:
    """What counts as zero: the cosine of a quarter turn is not 0 but a rounding."""
    return 4 * torch.finfo(t.dtype).eps
