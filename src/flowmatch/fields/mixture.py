r"""Exact fields of Gaussian mixtures, on every path that is linear in the data.

Let :math:`x_t = a \odot x_1 + b + s \odot x_0`, with coefficients that depend on time
(:mod:`flowmatch.fields.coefficients`), and condition on the component first. In component ``k`` everything is jointly
normal: :math:`x_1 \sim N(m, S)`, and with :math:`A = \mathrm{diag}(a)`,

.. math::
    x_t \sim N(A m + b, C), \quad C = A S A + \mathrm{diag}(s^2), \qquad
    \mathrm{cov}(x_1, x_t) = S A, \quad \mathrm{cov}(\dot x_t, x_t) = \dot A S A + \mathrm{diag}(s \dot s).

Conditional means of joint normals are linear. With the pull :math:`p = C^{-1} (x - A m - b)`,

.. math::
    \nabla \log p_t = -p, \qquad E[x_1 | x_t = x] = m + S A p, \qquad
    u_t = \dot A m + \dot b + \dot A S A p + s \dot s\, p .

No formula divides by :math:`s` or by :math:`a`, so both ends are exact: at :math:`a = 0` the posterior mean is the
data's mean, and at :math:`s = 0` score and velocity are those of the data's own density. The mixture takes the mean
of each over the components, with responsibilities
:math:`r_k \propto w_k N(x; A m_k + b, C_k)`.

Where ``a`` and ``s`` are one number, ``C`` is diagonal in the eigenbasis of ``S`` and the work is elementwise there;
a full covariance under coefficients that differ by dimension takes a Cholesky factor a call.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Theorem 1 (Eq. 8) and Theorem 3 (Eq. 15),
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowmatch.fields.coefficients import Coefficients, Form, check_points, check_rates, non_linearity
from flowmatch.paths import AffinePath, ConditionalGaussianPath
from flowmatch.randomness import choose, randn
from flowmatch.tensors import HALF_LOG_2_PI, can_look, check_event, check_finite, check_time, time_dtype

__all__ = ["MixtureField"]


class MixtureField:
    r"""Marginal velocity of a path from N(0, I) to a Gaussian mixture, with its score, density and posterior mean.

    .. math:: u_t(x) = \sum_k r_k(x, t) \Big[ \dot\alpha m_k +
        (\alpha\dot\alpha S_k + \sigma\dot\sigma I)(\alpha^2 S_k + \sigma^2 I)^{-1} (x - \alpha m_k) \Big]

    Args:
        means: centres ``(K, *event)``.
        std: standard deviation of the components: a number, ``(K,)`` or ``(K, *event)``.
        cov: full covariances ``(K, D, D)`` of the flattened event instead of ``std``.
        weights: ``(K,)``, positive; normalised here; equal by default.
        path: an :class:`~flowmatch.AffinePath`, or a :class:`~flowmatch.GaussianPath` whose mean is linear in ``x1``
            dimension by dimension and whose std does not depend on it; straight lines by default.

    Raises:
        ValueError: shapes that do not fit, a covariance that is not positive definite, a path that is not linear in
            the data, or on use a time at which the value asked for is not finite.

    Example:
        >>> field = MixtureField(torch.tensor([[-1.0], [1.0]]), std=0.5)
        >>> field(torch.tensor([0.5]), torch.zeros(1, 1))  # between two equal modes nothing moves
        tensor([[0.]])
        >>> field.posterior_mean(1.0, torch.tensor([[0.7]]))  # at the data, what one sees is what it is
        tensor([[0.7000]])
    """

    def __init__(
        self,
        means: Tensor,
        std: Tensor | float | None = None,
        cov: Tensor | None = None,
        weights: Tensor | None = None,
        path: ConditionalGaussianPath | None = None,
    ) -> None:
        check_event(means, "means")
        if not means.shape[0]:
            raise ValueError(f"means must have shape (K, *event) with K at least 1, got {tuple(means.shape)}")
        check_finite(means, "means")
        self.path: ConditionalGaussianPath = AffinePath() if path is None else path
        self.means = means
        self.variances, self.basis = _spectrum(means, std, cov)
        wide = time_dtype(means.dtype)  # shares and spreads lose their digits in half precision for no gain
        weights = torch.ones(means.shape[0]) if weights is None else weights
        weights = weights.to(means.device, wide)
        if weights.shape != means.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {means.shape[0]} positive numbers, got {weights.tolist()}")
        self.log_weights = (weights / weights.sum()).log()
        reason, even = non_linearity(self.path, means)
        if reason:
            raise ValueError(
                f"{self.path!r} keeps no mixture a mixture: {reason}. "
                "For such a path take samples of the data and fm.EmpiricalField(data, path)"
            )
        self._form = Form(self.path, means.shape[1:], even)
        # Needed only where the path's coefficients are not the same along all axes of the covariance.
        self._dense = cov.to(means.device, wide) if cov is not None and not even else None

    def __call__(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)`` and points ``(B, *event)``."""
        check_points(x, self.means.shape[1:], self.means.device)
        time = self.path._regular(t, x).expand(x.shape[:1])
        at, rate = self._form.rate(time, self._wide(time))
        check_rates(self.path, time, *rate)
        pull, share = self._pull(at, x)
        inside = _each(rate.scale) * self._spread(_each(at.scale) * pull) + _each(at.std * rate.std) * pull
        centres = share @ self._flat(share.dtype)
        return (self._mean(share, inside) + rate.scale * centres + rate.shift).reshape(x.shape).to(x.dtype)

    def score(self, t: Tensor | float, x: Tensor) -> Tensor:
        r"""Score :math:`\nabla_x \log p_t(x)`, ``(B, *event)``; at ``t = 1`` that of the data, widened by sigma."""
        pull, share = self._pull(self._at(t, x), x)
        return -self._mean(share, pull).reshape(x.shape).to(x.dtype)

    def posterior_mean(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Mean of the data end, :math:`E[x_1 | x_t = x]`, ``(B, *event)``; at ``alpha = 0`` the mean of the data."""
        at = self._at(t, x)
        pull, share = self._pull(at, x)
        moved = self._mean(share, self._spread(_each(at.scale) * pull))
        return (share @ self._flat(share.dtype) + moved).reshape(x.shape).to(x.dtype)

    def log_prob(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Log-density of :math:`x_t` in nats, ``(B, *event) -> (B,)``; at ``t = 1`` the data's, widened by sigma."""
        return self._joint(self._at(t, x), x)[1].logsumexp(dim=1)

    def sample(self, n: int, generator: torch.Generator | None = None, t: Tensor | float | None = None) -> Tensor:
        """Draw ``n`` points ``(n, *event)`` of the data's law, or of :math:`p_t` at a time ``()`` or times ``(n,)``."""
        means, component = self.means, choose(self.log_weights.exp(), n, generator)
        spread = randn((n, self.variances.shape[1]), generator, means.device, self.variances.dtype)
        spread = spread * self.variances[component].sqrt()
        if self.basis is not None:
            spread = torch.einsum("bde,be->bd", self.basis[component], spread)
        x1 = (means[component] + spread.reshape(n, *means.shape[1:])).to(means.dtype)
        if t is None:
            return x1
        return self.path.position(t, randn(tuple(x1.shape), generator, x1.device, x1.dtype), x1)

    def _at(self, t: Tensor | float, x: Tensor) -> Coefficients:
        check_points(x, self.means.shape[1:], self.means.device)
        time = check_time(t, x).expand(x.shape[:1])
        return self._form.at(time, self._wide(time))

    def _wide(self, time: Tensor) -> torch.dtype:
        return torch.promote_types(time.dtype, self.means.dtype)

    def _flat(self, dtype: torch.dtype) -> Tensor:
        return self.means.reshape(self.variances.shape).to(dtype)

    def _pull(self, at: Coefficients, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pull in the axes of each component ``(B, K, D)``, and the responsibilities ``(B, K)``."""
        pull, joint = self._joint(at, x)
        return pull, joint.softmax(dim=1)

    def _joint(self, at: Coefficients, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pull, and the log of ``w_k N(x; A m_k + b, C_k)``, ``(B, K)``."""
        offset = self._offset(at, x)
        if self._dense is not None:
            scale, cov = at.scale[:, None], self._dense.to(offset)
            matrix = scale[..., None] * cov * scale[..., None, :] + torch.diag_embed(at.std**2)[:, None]
            factor = torch.linalg.cholesky(matrix)
            pull = torch.cholesky_solve(offset[..., None], factor)[..., 0]
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            variance = self._variance(at)
            pull, log_det = offset / variance, variance.log().expand_as(offset).sum(-1)
        log_normal = -0.5 * ((offset * pull).sum(-1) + log_det) - offset.shape[-1] * HALF_LOG_2_PI
        return pull, self.log_weights.to(offset.dtype) + log_normal

    def _offset(self, at: Coefficients, x: Tensor) -> Tensor:
        """``x - A m_k - b`` in the axes in which the law of component ``k`` is diagonal, ``(B, K, D)``."""
        rows = x.reshape(x.shape[0], self.variances.shape[1]).to(at.scale.dtype)
        offset = (rows - at.shift)[:, None] - _each(at.scale) * self._flat(rows.dtype)
        if self.basis is None or self._dense is not None:
            return offset
        return torch.einsum("kde,bkd->bke", self.basis.to(rows.dtype), offset)

    def _variance(self, at: Coefficients) -> Tensor:
        """Variance along those axes, ``(B, K, D)``."""
        variance = _each(at.scale**2) * self.variances.to(at.scale.dtype) + _each(at.std**2)
        if can_look(variance) and not bool((variance > 0).all()):
            raise ValueError(f"the law of {self.path!r} is a point at a time asked for: neither x1 nor x0 is in it")
        return variance

    def _spread(self, pull: Tensor) -> Tensor:
        """Apply the data's covariance to vectors in the axes of each component."""
        if self._dense is not None:
            return torch.einsum("kde,bke->bkd", self._dense.to(pull.dtype), pull)
        return self.variances.to(pull.dtype) * pull

    def _mean(self, share: Tensor, values: Tensor) -> Tensor:
        """Mean over the components of vectors in their axes, back in ours, ``(B, D)``."""
        if self.basis is None or self._dense is not None:
            return torch.einsum("bk,bkd->bd", share, values)
        return torch.einsum("kde,bke->bd", self.basis.to(values.dtype), share[:, :, None] * values)


def _each(rows: Tensor) -> Tensor:
    """A coefficient ``(B, 1)`` or ``(B, D)`` for every component."""
    return rows[:, None]


def _spectrum(means: Tensor, std: Tensor | float | None, cov: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Variances ``(K, D)`` along the axes of each component, and the axes as columns ``(K, D, D)`` if they turn."""
    if (std is None) == (cov is None):
        raise ValueError("give std= or cov=, one of the two")
    k, d = means.shape[0], math.prod(means.shape[1:])
    if cov is not None:
        if cov.shape != (k, d, d):
            raise ValueError(f"cov must have shape {(k, d, d)}, got {tuple(cov.shape)}")
        variances, basis = torch.linalg.eigh(cov.to(means.device, time_dtype(means.dtype)))
        if not bool((variances > 0).all()):
            raise ValueError(f"cov must be positive definite, its smallest eigenvalue is {float(variances.min()):g}")
        return variances, basis
    spread = torch.as_tensor(std, dtype=time_dtype(means.dtype), device=means.device)
    shape = tuple(spread.shape)
    if spread.ndim == 1:
        spread = spread.reshape(-1, *(1,) * (means.ndim - 1))
    fits = spread.ndim in (0, means.ndim) and all(n in (1, m) for n, m in zip(spread.shape, means.shape, strict=False))
    if not fits or (spread.ndim and spread.shape[0] != k):
        raise ValueError(f"std must be a number, ({k},) or {tuple(means.shape)}, got {shape}")
    if not bool((spread > 0).all()):
        raise ValueError("std must be positive")
    return (spread**2).expand(means.shape).reshape(k, d), None
