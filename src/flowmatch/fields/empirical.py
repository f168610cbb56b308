r"""Exact fields of a finite data set, on every Gaussian path.

The law at time ``t`` is a mixture with one component a data point, :math:`N(\mu_t(x^{(i)}), \sigma_t(x^{(i)})^2)`. The
posterior over the points is a softmax of their log-densities at ``x``, and every field is a mean under it: of
:math:`x^{(i)}` itself, of Theorem 3's velocity, of the score :math:`-(x - \mu_t)/\sigma_t^2`. As
:math:`\sigma \to 0` the law becomes a sum of points and has none of them elsewhere: such a time raises.

**Paths linear in the data**, :math:`x_t = a x_1 + b + s x_0`, need the posterior mean :math:`m(x)` alone, since both
other fields are linear in :math:`x_1`:

.. math:: \nabla \log p_t = (a m + b - x) / s^2, \qquad u_t = \dot a m + \dot b + (\dot s / s)(x - a m - b),

and the log-densities come from one matrix product a chunk,
:math:`|z - a y|^2 = |z|^2 - 2 a \langle z, y \rangle + a^2 |y|^2` with data and points centred. That form is wrong by
about :math:`\epsilon R^2 / s^2` nats for data of radius ``R`` in a type of precision :math:`\epsilon`. So float32 is
used while that stays below 1e-5, then float64, and where even that is too coarse the differences themselves.

**Memory.** Chunks of the data are taken with a running maximum, so that no more than a block of one number a pair of
point and data (``D`` numbers a pair where the product cannot be used) is ever held.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Theorem 1 (Eq. 8) and Theorem 3 (Eq. 15),
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from flowmatch.fields.chunks import softmax_mean
from flowmatch.fields.coefficients import Coefficients, Form, check_points, check_rates, non_linearity, singular
from flowmatch.paths import AffinePath, ConditionalGaussianPath
from flowmatch.randomness import choose, randint, randn
from flowmatch.tensors import HALF_LOG_2_PI, check_data, check_time, expand_time, gaussian_log_prob, time_dtype

__all__ = ["EmpiricalField"]

BLOCK = 2**18
"""Numbers in one block of the work: larger ones leave the cache, and float32 loses digits in longer sums."""


class EmpiricalField:
    r"""Marginal velocity of a Gaussian path whose data is a finite set, with its score, density and posterior mean.

    .. math:: u_t(x) = \sum_i r_i\, u_t(x | x^{(i)}), \qquad r_i \propto w_i\, p_t(x | x^{(i)})

    Its flow carries N(0, I) to the data set itself (Theorem 1): it is what a network that trained
    perfectly on these points would do.

    Args:
        data: points ``(N, *event)``.
        path: any Gaussian path, affine or with mean and std of your own; straight lines by default.
        weights: shares ``(N,)`` of the points, positive; normalised here; equal by default.
        chunk: data points taken at a time; by default as many as keep a block of the work below 2^18 numbers.

    Raises:
        ValueError: data that is empty or not finite, weights that are not positive, or on use a time at which the
            path's standard deviation is zero.

    Example:
        >>> field = EmpiricalField(torch.tensor([[-1.0], [1.0]]))
        >>> field(torch.tensor([0.0, 0.5]), torch.tensor([[0.0], [0.0]]))
        tensor([[0.],
                [0.]])
        >>> field.posterior_mean(0.9, torch.tensor([[0.5]]))  # close to the end it is the nearest point
        tensor([[1.]])
    """

    def __init__(
        self,
        data: Tensor,
        path: ConditionalGaussianPath | None = None,
        chunk: int | None = None,
        weights: Tensor | None = None,
    ) -> None:
        check_data(data)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.path: ConditionalGaussianPath = AffinePath() if path is None else path
        self.data, self.chunk = data, chunk
        self._log_weights = None if weights is None else _log_shares(weights, data)
        reason, even = non_linearity(self.path, data)
        self._form = None if reason else Form(self.path, data.shape[1:], even)
        wide = _widest(data)
        rows = data.reshape(data.shape[0], -1)
        # Rounded, so that it is the same number in both types and a shift by it is exact in neither or in both.
        self._centre = rows.mean(0, dtype=wide).float().to(wide)
        self._radius = max(float((part - self._centre).square().sum(1).max()) for part in rows.split(4096)) ** 0.5

    def __call__(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)`` and points ``(B, *event)``."""
        time = self._time(t, x)
        if self._form is None:
            return self._expectation(time, x, _velocity)
        at, rate = self._form.rate(time, _widest(x))
        mean, offset, _ = self._posterior(time, at, x)
        check_rates(self.path, time, *rate)
        velocity = rate.scale * (mean + self._centre) + rate.shift + rate.std / at.std * (offset - at.scale * mean)
        return velocity.reshape(x.shape).to(x.dtype)

    def score(self, t: Tensor | float, x: Tensor) -> Tensor:
        r"""Score :math:`\nabla_x \log p_t(x)`, ``(B, *event)``."""
        time = self._time(t, x)
        if self._form is None:
            return self._expectation(time, x, _score)
        at = self._form.at(time, _widest(x))
        mean, offset, _ = self._posterior(time, at, x)
        return ((at.scale * mean - offset) / at.std**2).reshape(x.shape).to(x.dtype)

    def posterior_mean(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Mean of the data end, :math:`E[x_1 | x_t = x]`, ``(B, *event)``."""
        time = self._time(t, x)
        if self._form is None:
            return self._expectation(time, x, lambda points, ends, law, rate: ends)
        mean = self._posterior(time, self._form.at(time, _widest(x)), x)[0]
        return (mean + self._centre).reshape(x.shape).to(x.dtype)

    def log_prob(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Log-density of :math:`x_t` in nats, ``(B, *event) -> (B,)``."""
        time = self._time(t, x)
        if self._form is None:
            blocks = self._pairs(time, x, rates=False)
            return softmax_mean((log, None) for log, _ in blocks)[0]
        return self._posterior(time, self._form.at(time, _widest(x)), x)[2].to(time.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None, t: Tensor | float | None = None) -> Tensor:
        """Draw ``n`` points ``(n, *event)`` of the data, or of :math:`p_t` at a time ``()`` or times ``(n,)``."""
        if self._log_weights is None:
            index = randint(len(self.data), (n,), generator, self.data.device)
        else:
            index = choose(self._log_weights.exp(), n, generator)
        x1 = self.data[index]
        if t is None:
            return x1
        return self.path.position(t, randn(tuple(x1.shape), generator, x1.device, x1.dtype), x1)

    def _time(self, t: Tensor | float, x: Tensor) -> Tensor:
        check_points(x, self.data.shape[1:], self.data.device)
        return check_time(t, x).expand(x.shape[:1])

    def _parts(self, width: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The data in chunks of rows, with their log-weights; ``width`` is how many numbers a data point costs."""
        chunk = self.chunk or max(1, BLOCK // max(1, width))
        weights = self._log_weights
        for start in range(0, len(self.data), chunk):
            stop = start + chunk
            yield self.data[start:stop], None if weights is None else weights[start:stop]

    # --- paths linear in the data ---------------------------------------------------------------------------------

    def _posterior(self, time: Tensor, at: Coefficients, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior mean and ``x - a c - b``, both about the centre ``c`` and ``(B, D)``; log-density ``(B,)``."""
        kind, product = self._precision(time, at, x.dtype)
        offset = _flat(x, at.scale.dtype) - at.shift - at.scale * self._centre
        size, dim = offset.shape
        z, ratio, centre = (offset / at.std).to(kind), (at.scale / at.std).to(kind), self._centre.to(kind)
        left = torch.cat([ratio * z, ratio**2], dim=1)

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for part, weights in self._parts(size + dim if product else size * dim):
                rows = _flat(part, kind) - centre
                if product:
                    squares = rows.square() if ratio.shape[1] > 1 else rows.square().sum(1, keepdim=True)
                    log = left @ torch.cat([rows, -0.5 * squares], dim=1).T
                else:
                    log = -0.5 * (z[:, None] - ratio[:, None] * rows).square().sum(-1)
                yield (log if weights is None else log + weights.to(kind)), rows

        log_mass, mean = softmax_mean(blocks())
        assert mean is not None
        if product:  # the square of the point itself is the same for all data, so it waited until here
            log_mass = log_mass - 0.5 * z.square().sum(1)
        constant = at.std.log().expand(size, dim).sum(1) + dim * HALF_LOG_2_PI
        if self._log_weights is None:
            constant = constant + math.log(len(self.data))
        return mean.to(offset.dtype), offset, log_mass - constant

    def _precision(self, time: Tensor, at: Coefficients, dtype: torch.dtype) -> tuple[torch.dtype, bool]:
        """The type in which the log-densities are computed, and whether by a matrix product."""
        widest = _widest(self.data)
        if not _look(at.std) or not _look(at.scale):
            return widest, False
        ratio = (at.scale.abs() / at.std).max().item()
        if not bool((at.std > 0).all()):
            raise singular(self.path, time)
        spread = max(self._radius * ratio, 1.0) ** 2
        if dtype != torch.float64 and torch.finfo(torch.float32).eps * spread < 1e-5:
            return torch.float32, True
        return widest, torch.finfo(widest).eps * spread < (1e-11 if dtype == torch.float64 else 1e-6)

    # --- any Gaussian path ----------------------------------------------------------------------------------------

    def _expectation(self, time: Tensor, x: Tensor, value: Callable[..., Tensor]) -> Tensor:
        """Posterior mean of a function of data point and law."""

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for log, rest in self._pairs(time, x, rates=value is _velocity):
                yield log, value(*rest).expand(rest[0].shape).reshape(*log.shape, -1)

        mean = softmax_mean(blocks())[1]
        assert mean is not None
        return mean.reshape(x.shape).to(x.dtype)

    def _pairs(self, time: Tensor, x: Tensor, rates: bool) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
        """Log-density ``(B, n)`` for a chunk of data, and points, ends, law and rate of all pairs, flattened."""
        # In half precision a log-density of -300 is known to 2, and its exponential not at all.
        x = x.to(torch.promote_types(time.dtype, time_dtype(self.data.dtype)))
        size, event = x.shape[0], x.shape[1:]
        for part, weights in self._parts(size * math.prod(event)):
            n = part.shape[0]
            points = x[:, None].expand(size, n, *event).flatten(0, 1)
            ends = part.to(x)[None].expand(size, n, *event).flatten(0, 1)
            shaped = expand_time(time[:, None].expand(size, n).flatten().to(x.dtype), ends)
            rate = None
            if rates:
                law, rate = self.path._mean_std_dot(shaped, ends)
            else:
                law = self.path._mean_std(shaped, ends)
            mean, std = law
            if _look(std) and not bool((std > 0).all()):
                raise singular(self.path, time)
            check_rates(self.path, time, *(rate or ()))
            log = gaussian_log_prob(points, mean, std).view(size, n)
            shares = -math.log(len(self.data)) if weights is None else weights.to(x.dtype)
            yield log + shares, (points, ends, law, rate)


def _velocity(points: Tensor, ends: Tensor, law: tuple[Tensor, Tensor], rate: tuple[Tensor, Tensor]) -> Tensor:
    """Theorem 3."""
    return rate[1] / law[1] * (points - law[0]) + rate[0]


def _score(points: Tensor, ends: Tensor, law: tuple[Tensor, Tensor], rate: None) -> Tensor:
    return (law[0] - points) / law[1] ** 2


def _look(x: Tensor) -> bool:
    """Whether values may be read: also on an accelerator, since one wait a call is little beside the call."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)
    return bool(x.numel()) and not traced


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).to(dtype)


def _widest(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def _log_shares(weights: Tensor, data: Tensor) -> Tensor:
    weights = torch.as_tensor(weights).to(data.device, _widest(data))
    if weights.shape != data.shape[:1] or not bool((weights > 0).all()) or not bool(weights.isfinite().all()):
        raise ValueError(
            f"weights must be {data.shape[0]} positive numbers, one a data point, got shape {tuple(weights.shape)} "
            f"and a smallest of {float(weights.min()) if weights.numel() else math.nan:g}; leave out points of weight 0"
        )
    return (weights / weights.sum()).log()
