r"""A field of one affine path, read on another.

**One picture, two scales.** On the path :math:`(\alpha, \sigma)` at time ``t`` and on :math:`(\bar\alpha, \bar\sigma)`
at time ``r`` with the same signal-to-noise ratio,

.. math:: \bar x_r = \bar\alpha x_1 + \bar\sigma x_0 = c\, (\alpha x_1 + \sigma x_0) = c\, x_t, \qquad
    c = \bar\alpha_r / \alpha_t = \bar\sigma_r / \sigma_t .

The two are one random variable up to a scale, so the means of the two ends given either are the same. With
:math:`t` from :math:`\lambda(t) = \bar\lambda(r)`,

.. math:: \bar u_r(x) = \dot{\bar\alpha}_r\, \hat x_1(t, x / c) + \dot{\bar\sigma}_r\, \hat x_0(t, x / c) ,

where the two means come from the old velocity by :meth:`~flowmatch.AffinePath.convert`. The form that differentiates
``c`` and ``t(r)`` is the same on paper, but divides by :math:`\sigma \to 0` at the data; this one does not.

**Where the old path does not reach.** A diffusion covers ratios from :math:`\lambda(0) > -\infty` to
:math:`\lambda(1 - 10^{-5}) < \infty` only. Beyond, the field is asked at the nearest ratio that it knows, and its
answer is carried on to first order in what is missing:

* towards the data, in :math:`y = x / \bar\alpha` whose noise has standard deviation
  :math:`\nu = \bar\sigma / \bar\alpha`, the score is smooth, so :math:`\hat x_0 = -\nu \nabla \log p` shrinks in
  proportion to :math:`\nu` and reaches its limit 0 at the data;
* towards the source, in :math:`y = x / \bar\sigma` whose signal is :math:`\rho = \bar\alpha / \bar\sigma`, the target
  of data with mean ``m`` and covariance ``S`` is :math:`\hat x_1 = m + \rho S (y - \rho m) + O(\rho^2)`, where the
  rest vanishes for normal data. So its part beyond the mean shrinks in proportion to :math:`\rho`, at the same place
  :math:`y - \rho m` seen from the mean. The mean is the target at the mean's own place, found from :math:`y = 0` in
  two calls of the field, made in that stretch alone.

Nor does the velocity tell anything where the ratio stands still, as it does for :math:`t^2` at 0: there it is asked
0.001 further inside and carried on in the same way.

Source: the change of scheduler in Lipman et al., Flow Matching Guide and Code, 2024, section 4.6.3,
https://arxiv.org/abs/2412.06264; Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models,
2022, section 2, https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.paths import AffinePath
from flowmatch.tensors import can_look, check_event, check_shaped, expand_time
from flowmatch.typing import Field

__all__ = ["Rescheduled"]


class Rescheduled(nn.Module):
    r"""The velocity field on a new affine path, of a field that was trained on another.

    Sampling may then use the schedule that suits the solver, at no training; accurate on all of ``[0, 1]``, ends
    included. Exact where the old path covers the new one's ratios. An old path that ends with noise knows the data
    only as blurred by it: carried on to a path that ends with less, the error is of second order in that noise.

    Args:
        field: velocity field of the old path.
        path_from: the affine path that ``field`` belongs to.
        path_to: the affine path to sample on; give the same to :class:`~flowmatch.Flow`.

    Raises:
        TypeError: ``field`` cannot be called or a path is not affine.

    Source:
        Lipman et al. 2024, section 4.6.3.

    Example:
        >>> import flowmatch as fm
        >>> straight, curved = fm.AffinePath(fm.Linear()), fm.AffinePath(fm.Cosine())
        >>> field = fm.Rescheduled(fm.GaussianField(torch.zeros(2), std=2.0, path=straight), straight, curved)
        >>> truth = fm.GaussianField(torch.zeros(2), std=2.0, path=curved)
        >>> x = torch.tensor([[1.0, -1.0]])
        >>> torch.allclose(field(1.0, x), truth(1.0, x))
        True
    """

    def __init__(self, field: Field | nn.Module, path_from: AffinePath, path_to: AffinePath) -> None:
        super().__init__()
        if not callable(field):
            raise TypeError(f"field must be a module or function (t, x) -> velocity, got {type(field).__name__}")
        for name, path in (("path_from", path_from), ("path_to", path_to)):
            if not isinstance(path, AffinePath):
                raise TypeError(f"{name} must be a flowmatch AffinePath, got {path!r}; others have no schedule")
        self.field: Any = field
        self.path_from, self.path_to = path_from, path_to
        schedule, edges = path_from.schedule, torch.tensor(path_from.interval, dtype=torch.float64)
        rate = schedule.alpha(edges) * schedule.sigma_dot(edges) - schedule.alpha_dot(edges) * schedule.sigma(edges)
        (low, high), blind = path_from.interval, (rate == 0).tolist()
        self._covered = (low + 1e-3 * blind[0], high - 1e-3 * blind[1])
        ends = torch.tensor(self._covered, dtype=torch.float64)
        # rho and nu at the ends of what the old path covers; zero where it covers all.
        self._rho = (schedule.alpha(ends[0]) / schedule.sigma(ends[0])).item()
        self._nu = (schedule.sigma(ends[1]) / schedule.alpha(ends[1])).item()

    def forward(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` on the new path at times ``()`` or ``(B,)``."""
        check_event(x)
        # The clock is kept in float64: near the data one rounding of a time in float32 is a tenth of the noise left.
        new = self.path_to._regular(t, x).expand(x.shape[:1]).double()
        alpha, sigma = self.path_to.schedule.alpha(new), self.path_to.schedule.sigma(new)
        schedule = self.path_from.schedule
        old = schedule.inverse_log_snr(self.path_to.schedule.log_snr(new)).clamp(*self._covered)
        alpha_old, sigma_old = schedule.alpha(old), schedule.sigma(old)
        clear = alpha > sigma  # more signal than noise: the ratio of the larger coefficients has the digits
        scale = torch.where(clear, alpha / alpha_old, sigma / sigma_old)
        # What is left of the two means beyond what the old path covers; 1 where it covers.
        rho, nu = alpha / sigma, sigma / alpha
        early = rho < self._rho
        signal = torch.where(early, rho / (self._rho or 1.0), torch.ones_like(rho))
        spread = torch.where(nu < self._nu, nu / (self._nu or 1.0), torch.ones_like(nu))

        wide = x.to(torch.promote_types(x.dtype, torch.float32))

        def fit(value: Tensor) -> Tensor:
            """A number a sample, shaped for ``x`` and in the type in which sums are made."""
            return expand_time(value, x).to(wide.dtype)

        point, time, mean = wide / fit(scale), old.to(wide.dtype), torch.zeros_like(wide)
        if self._rho and (not can_look(early) or bool(early.any())):
            for _ in range(2):
                mean, _ = self._means(time, fit(alpha_old) * mean, *cond)
            point = point + fit(torch.where(early, alpha_old - sigma_old * rho, torch.zeros_like(rho))) * mean
        target, noise = self._means(time, point, *cond)
        target = mean + fit(signal) * (target - mean)
        noise = fit(spread) * noise
        # The point ties the two together; what the larger coefficient multiplies is had by division.
        large = fit(torch.maximum(alpha, sigma))
        which = expand_time(clear, x)
        target, noise = (
            torch.where(which, (wide - fit(sigma) * noise) / large, target),
            torch.where(which, noise, (wide - fit(alpha) * target) / large),
        )
        rates = self.path_to.schedule.alpha_dot(new), self.path_to.schedule.sigma_dot(new)
        return (fit(rates[0]) * target + fit(rates[1]) * noise).to(x.dtype)

    def _means(self, t: Tensor, x: Tensor, *cond: Any) -> tuple[Tensor, Tensor]:
        """Expected data and expected source at ``(t, x)`` of the old path."""
        velocity = self.field(t, x, *cond)
        check_shaped(velocity, x, "field", "velocity")
        target, noise, _ = self.path_from._means_form(expand_time(t, x), "velocity")
        # The data's mean, the third part of a form, counts where the path stands still, which is not asked for.
        means = (of_x * x + of_velocity * velocity for of_x, of_velocity, _ in (target, noise))
        return next(means), next(means)

    def config(self) -> dict[str, Any]:
        """The arguments that make this field again, apart from the weights of the network."""
        return {"field": self.field, "path_from": self.path_from, "path_to": self.path_to}

    def extra_repr(self) -> str:
        """What stands in the printed form beside the field."""
        return f"path_from={self.path_from!r}, path_to={self.path_to!r}"
