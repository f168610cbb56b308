r"""Exact marginal fields: the truth for data whose law is known.

On a Gaussian path the velocity at ``x``, once the end ``x1`` is known, is Theorem 3's. The marginal velocity is its
mean under the posterior of ``x1`` given :math:`x_t = x`.

**Gaussian data** :math:`N(m, S)`. With :math:`x_t = \alpha x_1 + \sigma x_0` the pair :math:`(\dot x_t, x_t)` is
jointly normal, so its conditional mean is linear:

.. math::
    u_t(x) = \dot\alpha m + (\alpha\dot\alpha S + \sigma\dot\sigma I)(\alpha^2 S + \sigma^2 I)^{-1} (x - \alpha m).

In the eigenbasis of ``S``, with :math:`s_i(t)^2 = \alpha^2 \lambda_i + \sigma^2`, the coefficient is
:math:`\dot s_i / s_i`. Hence the exact flow map:
:math:`x_t = \alpha m + \sum_i e_i \frac{s_i(t)}{s_i(0)} \langle e_i, x_0 - \alpha_0 m\rangle`.

**Gaussian mixtures.** Condition on the component first: :math:`u_t = \sum_k r_k(x, t)\, u_t^{(k)}(x)`, with
responsibilities :math:`r_k \propto w_k N(x; \alpha m_k, \alpha^2 S_k + \sigma^2 I)`.

**A finite data set** is a mixture of points. The weights are a softmax over the data of the conditional
log-density, taken in chunks with a running maximum so that 10^5 points fit. As :math:`\sigma \to 0` the law
becomes a sum of points and has no velocity elsewhere: such a time raises.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Theorem 1 (Eq. 8) and Theorem 3 (Eq. 15),
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowmatch.paths import AffinePath, ConditionalGaussianPath
from flowmatch.tensors import check_event, check_time, expand_time, gaussian_log_prob, randn

__all__ = ["EmpiricalField", "GaussianField", "MixtureField"]


class MixtureField:
    r"""Marginal velocity of an affine path from N(0, I) to a Gaussian mixture.

    .. math:: u_t(x) = \sum_k r_k(x, t) \Big[ \dot\alpha m_k +
        (\alpha\dot\alpha S_k + \sigma\dot\sigma I)(\alpha^2 S_k + \sigma^2 I)^{-1} (x - \alpha m_k) \Big]

    Args:
        means: centres ``(K, D)``.
        std: standard deviation of the components: a number, ``(K,)`` or ``(K, D)``.
        cov: full covariances ``(K, D, D)`` instead of ``std``.
        weights: ``(K,)``, positive; normalised here; equal by default.
        path: an :class:`~flowmatch.AffinePath`; the linear one by default.

    Raises:
        ValueError: shapes that do not fit, or a covariance that is not positive definite.

    Example:
        >>> field = MixtureField(torch.tensor([[-1.0], [1.0]]), std=0.5)
        >>> field(torch.tensor([0.5]), torch.zeros(1, 1))  # between two equal modes nothing moves
        tensor([[0.]])
    """

    def __init__(
        self,
        means: Tensor,
        std: Tensor | float | None = None,
        cov: Tensor | None = None,
        weights: Tensor | None = None,
        path: AffinePath | None = None,
    ) -> None:
        check_event(means, "means")
        if means.ndim != 2:
            raise ValueError(f"means must have shape (K, D), got {tuple(means.shape)}")
        self.path = AffinePath() if path is None else path
        self.means = means
        self.variances, self.basis = _spectrum(means, std, cov)
        weights = means.new_ones(means.shape[0]) if weights is None else weights.to(means)
        if weights.shape != means.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {means.shape[0]} positive numbers, got {weights.tolist()}")
        self.log_weights = (weights / weights.sum()).log()

    def __call__(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, D)`` at times ``()`` or ``(B,)`` and points ``(B, D)``."""
        low, high = self.path.interval
        time = check_time(t, x, low, high, f"where the velocity of {self.path!r} is finite")
        alpha, sigma, alpha_dot, sigma_dot = self._coefficients(time, x)
        offset, variance = self._offsets(alpha, sigma, x)
        slope = (alpha * alpha_dot * self.variances + sigma * sigma_dot) / variance
        pull = slope * offset
        if self.basis is not None:
            pull = torch.einsum("kde,bke->bkd", self.basis, pull)
        velocities = alpha_dot * self.means + pull
        share = self._log_joint(offset, variance).softmax(dim=1)
        return (share[:, :, None] * velocities).sum(1).to(x.dtype)

    def log_prob(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Log-density of :math:`x_t` in nats, ``(B, D) -> (B,)``; at ``t = 1`` the data's own, widened by sigma."""
        alpha, sigma, _, _ = self._coefficients(t, x)
        return self._log_joint(*self._offsets(alpha, sigma, x)).logsumexp(dim=1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points of the data's law, ``(n, D)``."""
        home = None if generator is None else generator.device
        weights = self.log_weights.exp().to(home or self.means.device)
        component = torch.multinomial(weights, n, replacement=True, generator=generator).to(self.means.device)
        noise = randn((n, self.means.shape[1]), generator, self.means.device, self.means.dtype)
        spread = noise * self.variances[component].sqrt()
        if self.basis is not None:
            spread = torch.einsum("bde,be->bd", self.basis[component], spread)
        return self.means[component] + spread

    def _coefficients(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_event(x)
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise ValueError(f"x must have shape (B, {self.means.shape[1]}), got {tuple(x.shape)}")
        time = check_time(t, x).expand(x.shape[:1])[:, None, None]
        schedule = self.path.schedule
        return schedule.alpha(time), schedule.sigma(time), schedule.alpha_dot(time), schedule.sigma_dot(time)

    def _offsets(self, alpha: Tensor, sigma: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x - alpha m_k`` in the basis of each component and the variance there, both ``(B, K, D)``."""
        offset = x[:, None, :] - alpha * self.means
        if self.basis is not None:
            offset = torch.einsum("kde,bkd->bke", self.basis, offset)
        return offset, alpha**2 * self.variances + sigma**2

    def _log_joint(self, offset: Tensor, variance: Tensor) -> Tensor:
        log_normal = -0.5 * (offset**2 / variance + variance.log()).sum(-1)
        return self.log_weights + log_normal - 0.9189385332046727 * offset.shape[-1]


class GaussianField(MixtureField):
    r"""Marginal velocity of an affine path from N(0, I) to one Gaussian, with its exact flow map.

    .. math::
        u_t(x) = \dot\alpha m + (\alpha\dot\alpha S + \sigma\dot\sigma I)(\alpha^2 S + \sigma^2 I)^{-1} (x - \alpha m)

    Args:
        mean: ``(D,)``.
        std: a number or ``(D,)``.
        cov: full covariance ``(D, D)`` instead of ``std``.
        path: an :class:`~flowmatch.AffinePath`; the linear one by default.

    Example:
        >>> field = GaussianField(torch.zeros(1), std=2.0)
        >>> field.transport(torch.ones(1, 1), 0.0, 1.0)
        tensor([[2.]])
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor | float | None = None,
        cov: Tensor | None = None,
        path: AffinePath | None = None,
    ) -> None:
        check_event(mean, "mean")
        row = std[None] if isinstance(std, Tensor) and std.ndim == 1 else std
        super().__init__(mean[None], row, None if cov is None else cov[None], path=path)

    def transport(self, x: Tensor, s: float, t: float) -> Tensor:
        """Exact flow map from time ``s`` to time ``t``, ``(B, D) -> (B, D)``."""
        alpha_s, sigma_s, _, _ = self._coefficients(s, x)
        alpha_t, sigma_t, _, _ = self._coefficients(t, x)
        offset, variance_s = self._offsets(alpha_s, sigma_s, x)
        moved = offset * ((alpha_t**2 * self.variances + sigma_t**2) / variance_s).sqrt()
        if self.basis is not None:
            moved = torch.einsum("kde,bke->bkd", self.basis, moved)
        return (alpha_t * self.means + moved)[:, 0].to(x.dtype)


class EmpiricalField:
    r"""Marginal velocity of a Gaussian path whose data is a finite set.

    .. math:: u_t(x) = \sum_i w_i\, u_t(x | x^{(i)}), \qquad w \propto p_t(x | x^{(i)})

    Its flow carries N(0, I) to the data set itself (Theorem 1): it is what a network that trained
    perfectly on these points would do.

    Args:
        data: points ``(N, *event)``.
        path: any Gaussian path, affine or with mean and std of your own; the linear one by default.
        chunk: data points taken at a time; bounds memory at ``B * chunk * D`` numbers.

    Raises:
        ValueError: empty data, or a time at which the path's standard deviation is zero.

    Example:
        >>> field = EmpiricalField(torch.tensor([[-1.0], [1.0]]))
        >>> field(torch.tensor([0.0, 0.5]), torch.tensor([[0.0], [0.0]]))
        tensor([[0.],
                [0.]])
    """

    def __init__(self, data: Tensor, path: ConditionalGaussianPath | None = None, chunk: int = 2048) -> None:
        check_event(data, "data")
        if data.shape[0] == 0:
            raise ValueError("data is empty; give at least one point")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.path: ConditionalGaussianPath = AffinePath() if path is None else path
        self.data, self.chunk = data, chunk

    def __call__(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)`` and points ``(B, *event)``."""
        check_event(x)
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.data.shape[1:]))}), got {tuple(x.shape)}")
        time = check_time(t, x).expand(x.shape[:1])
        # In half precision a log-density of -300 is known to 2, and its exponential not at all.
        wide = x.to(time.dtype)
        peak = wide.new_full(x.shape[:1], -torch.inf)
        mass, total = torch.zeros_like(peak), torch.zeros_like(wide)
        for part in self.data.split(self.chunk):
            log_weight, velocity = self._part(time, wide, part)
            top = torch.maximum(peak, log_weight.amax(1))
            weight = (log_weight - top[:, None]).exp()
            shrink = (peak - top).exp()
            mass = mass * shrink + weight.sum(1)
            total = total * expand_time(shrink, x) + torch.einsum("bn,bn...->b...", weight, velocity)
            peak = top
        return (total / expand_time(mass, x)).to(x.dtype)

    def _part(self, time: Tensor, x: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional log-density ``(B, n)`` and velocity ``(B, n, *event)`` for a part of the data."""
        size, n = x.shape[0], part.shape[0]
        points = x[:, None].expand(size, n, *x.shape[1:]).flatten(0, 1)
        ends = part.to(x)[None].expand(size, n, *part.shape[1:]).flatten(0, 1)
        when = time[:, None].expand(size, n).flatten()
        shaped = expand_time(when, ends)
        (mean, std), (mean_dot, std_dot) = self.path._mean_std_dot(shaped, ends)
        if std.device.type == "cpu" and std.numel() and not bool((std > 0).all()):
            raise ValueError(
                "the path's standard deviation is zero at a time asked for: there the law is a sum of points and has "
                "no velocity elsewhere; use sigma_min > 0 or a time below 1"
            )
        velocity = std_dot / std * (points - mean) + mean_dot
        log_weight = gaussian_log_prob(points, mean, std)
        return log_weight.view(size, n), velocity.view(size, n, *x.shape[1:])


def _spectrum(means: Tensor, std: Tensor | float | None, cov: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Variances ``(K, D)`` along the axes of each component, and the axes as columns ``(K, D, D)`` if they turn."""
    if (std is None) == (cov is None):
        raise ValueError("give std= or cov=, one of the two")
    k, d = means.shape
    if cov is not None:
        if cov.shape != (k, d, d):
            raise ValueError(f"cov must have shape {(k, d, d)}, got {tuple(cov.shape)}")
        variances, basis = torch.linalg.eigh(cov.to(means))
    else:
        spread = torch.as_tensor(std, dtype=means.dtype, device=means.device)
        spread = spread[:, None] if spread.ndim == 1 else spread
        if spread.ndim not in (0, 2) or (spread.ndim == 2 and spread.shape not in ((k, 1), (k, d))):
            raise ValueError(f"std must be a number, ({k},) or ({k}, {d}), got {tuple(spread.shape)}")
        variances, basis = (spread**2).expand(k, d), None
        if not bool((spread > 0).all()):
            raise ValueError("std must be positive")
    if not bool((variances > 0).all()):
        raise ValueError(f"cov must be positive definite, its smallest eigenvalue is {float(variances.min()):g}")
    return variances, basis
