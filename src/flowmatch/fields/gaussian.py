r"""The exact field of Gaussian data, and its flow map.

It is a mixture of one component (:mod:`flowmatch.fields.mixture`). In the eigenbasis of the covariance, with
:math:`s_i(t)^2 = a^2 \lambda_i + s^2`, the velocity of a coordinate about its mean is :math:`\dot s_i / s_i` times the
coordinate. Hence the exact flow map
:math:`x_t = A_t m + b_t + \sum_i e_i \frac{s_i(t)}{s_i(0)} \langle e_i, x_0 - A_0 m - b_0\rangle`.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Theorem 3 (Eq. 15),
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmatch.fields.mixture import MixtureField
from flowmatch.paths import ConditionalGaussianPath
from flowmatch.tensors import check_event

__all__ = ["GaussianField"]


class GaussianField(MixtureField):
    r"""Marginal velocity of a path from N(0, I) to one Gaussian, with its exact flow map.

    .. math::
        u_t(x) = \dot\alpha m + (\alpha\dot\alpha S + \sigma\dot\sigma I)(\alpha^2 S + \sigma^2 I)^{-1} (x - \alpha m)

    Args:
        mean: the mean, of the shape of a point.
        std: a number or a tensor of that shape.
        cov: full covariance ``(D, D)`` of the flattened event instead of ``std``.
        path: as for :class:`MixtureField`; straight lines by default.

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
        path: ConditionalGaussianPath | None = None,
    ) -> None:
        check_event(mean, "mean")
        row = std[None] if isinstance(std, Tensor) and std.ndim else std
        super().__init__(mean[None], row, None if cov is None else cov[None], path=path)

    def transport(self, x: Tensor, s: float, t: float) -> Tensor:
        """Exact flow map from time ``s`` to time ``t``, ``(B, *event) -> (B, *event)``.

        Raises:
            ValueError: a full covariance under coefficients that differ by dimension, whose flow has no closed form.
        """
        if self._dense is not None:
            raise ValueError(
                "a full covariance under a path whose coefficients differ by dimension has no closed flow map; "
                "solve it: fm.solve(fm.ODE(field), x)"
            )
        start, end = self._at(s, x), self._at(t, x)
        moved = self._offset(start, x) * (self._variance(end) / self._variance(start)).sqrt()
        if self.basis is not None:
            moved = torch.einsum("kde,bke->bkd", self.basis.to(moved.dtype), moved)
        return (end.scale * self._flat(moved.dtype) + end.shift + moved[:, 0]).reshape(x.shape).to(x.dtype)
