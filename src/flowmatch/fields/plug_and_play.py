r"""Plug and play: restoration by turns of a step towards the observation, fresh noise, and the flow's own denoiser.

Of :math:`y = A x_1 + s\, n` one wants an :math:`x_1` that fits ``y`` and is likely. A flow knows a denoiser for every
level of noise, the mean of the data given the state, which on the straight path is
:math:`D_t(x) = x + (1 - t)\, v(t, x)` and on any affine path the conversion of the velocity to the target. So at rising
times, from a guess :math:`\hat x`,

.. math::
    z = \hat x - \gamma_t A^T (A \hat x - y), \qquad \tilde z = \alpha_t z + \sigma_t\, \varepsilon, \qquad
    \hat x \leftarrow D_t(\tilde z), \qquad \varepsilon \sim N(0, I).

The noise puts the guess back where the denoiser was trained. There is no backward pass through the field: a turn costs
one call, and products with ``A`` and its transpose.

**The size of the step.** The paper takes :math:`\gamma_t = \eta (1 - t)^p`; here :math:`1 - t` is read as the share of
the noise, :math:`\sigma / (\alpha + \sigma)`, so that the procedure does not depend on the scale of the path. With
:math:`\rho = \sigma / \alpha`, Tweedie's formula for the denoiser turns a round into

.. math:: \hat x \leftarrow z + \rho^2 \nabla \log p_t(\tilde z) + \rho\, \varepsilon ,

a step of length :math:`\rho^2` up the log-density of the data. The observation has its due weight beside it if
:math:`\gamma = \rho^2 / s^2`. The paper's step, of a lower order in :math:`\rho`, ends up fitting ``y`` with its noise;
so where the noise of the observation is told, the step is the smaller of the two.

**What comes out.** A step of :math:`\rho^2` with noise of variance :math:`\rho^2` is Langevin's method at half the
temperature, and at ``1 / (2 K)`` if ``K`` denoised guesses are averaged: the result has nearly the law
:math:`\propto p(x_1 | y)^{2 K}`. It gathers about the likely, where a posterior sample is spread as the posterior is:
an estimate, for samples see :mod:`flowmatch.fields.inverse`. The steps shrink and the guess comes to rest a little
before the end, with the data as they look there. For two normal numbers of unit variance and correlation 0.8, of which
the first is seen to be 2 with noise of 0.5, the mean given that is (1.6, 1.28); 20 and 100 turns give (1.55, 1.15) and
(1.60, 1.28), and half of the posterior's variances. Without noise the mean is (2, 1.6), and 20, 100 and 1000 turns give
(1.98, 1.24), (2.00, 1.49) and (2.00, 1.58) for ``p = 0.1``, but (1.33, 0.80), (1.70, 1.16) and (1.91, 1.42) for
``p = 1``.

It is no velocity, as it draws on its way; so it is a function of its own.

Source: Martin et al., PnP-Flow: Plug-and-Play Image Restoration with Flow Matching, 2025, Algorithm 3,
https://arxiv.org/abs/2410.02423.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from flowmatch.paths import AffinePath
from flowmatch.randomness import randn
from flowmatch.solvers import ODE
from flowmatch.tensors import check_event, check_finite, time_dtype
from flowmatch.typing import Cond, Field

__all__ = ["plug_and_play"]


@torch.no_grad()
def plug_and_play(
    field: Field,
    path: AffinePath,
    x0: Tensor,
    operator: Callable[[Tensor], Tensor],
    y: Tensor,
    cond: Cond = None,
    *,
    noise: float = 0.0,
    steps: int = 100,
    step: float = 1.0,
    power: float = 0.1,
    noises: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Restore data of which something linear was observed, :math:`y = A x_1 + s\, n`, by PnP-Flow.

    .. math:: \hat x \leftarrow \frac1K \sum_k D_t\big(\alpha_t [\hat x - \gamma_t A^T (A \hat x - y)] +
        \sigma_t \varepsilon_k\big), \qquad
        \gamma_t = \min\Big( \eta \big(\tfrac{\sigma}{\alpha + \sigma}\big)^p, \frac{\sigma^2}{\alpha^2 s^2} \Big)

    Args:
        field: velocity of the path, of the data without observation.
        path: the affine path that it belongs to, from a standard normal source.
        x0: source samples ``(B, *event)``: the noise of the first turn.
        operator: ``A``, a linear function of a batch ``(B, *event) -> (B, *observation)``, row by row. One that is not
            linear is taken by its linear part at the guess.
        y: the observation ``(B, *observation)``.
        cond: condition of the field.
        noise: standard deviation ``s`` of the noise in ``y``. 0 takes the paper's step alone, which fits ``y`` as it
            is.
        steps: number ``N`` of turns, at equal steps over the path's interval, its end left out; at least 2.
        step: the ``eta`` of the step. It must stay below 2 over the square of the largest singular value of ``A``, and
            half of that is the choice: 1 for a mask, and for a mean as in a blur.
        power: the ``p`` with which the step falls, in the paper up to 1, for strong noise the most. The smaller, the
            sooner ``y`` is met.
        noises: number ``K`` of noises whose denoised guesses are averaged: calls a turn, and less spread.
        generator: randomness of the noise.

    Returns:
        Estimates ``(B, *event)``.

    Raises:
        TypeError: a path that is not affine, an operator that cannot be called or an observation that is no tensor.
        ValueError: numbers out of range, ``x0`` or ``y`` not finite, an observation of another shape than ``A`` gives,
            or a ``step`` so large that the guess runs away.

    Source:
        Martin et al. 2025, Algorithm 3.

    Example:
        The first of two normal numbers of correlation 0.8 is seen, and the second follows it:

        >>> import flowmatch as fm
        >>> cov, noise = torch.tensor([[1.0, 0.8], [0.8, 1.0]]), torch.Generator().manual_seed(0)
        >>> plain, x0 = fm.GaussianField(torch.zeros(2), cov=cov), torch.randn(500, 2, generator=noise)
        >>> y = torch.full((500, 1), 2.0)
        >>> x = plug_and_play(plain, fm.AffinePath(), x0, lambda x1: x1[:, :1], y, generator=noise)
        >>> x.mean(0).round(decimals=1)
        tensor([2.0000, 1.5000])
    """
    if not isinstance(path, AffinePath):
        raise TypeError(f"path must be a flowmatch AffinePath, got {path!r}; other paths have no such denoiser")
    if not callable(operator):
        raise TypeError(f"operator must be a function of x1, got {type(operator).__name__}")
    if steps < 2 or noises < 1:
        raise ValueError(
            f"steps must be at least 2, as the first turn has no guess yet, and noises at least 1, got steps={steps} "
            f"and noises={noises}"
        )
    if not (0 <= noise < math.inf and 0 < step < math.inf and 0 <= power < math.inf):
        raise ValueError(
            f"need noise >= 0, step > 0 and power >= 0, all finite, got noise={noise}, step={step} and power={power}"
        )
    check_event(x0, "x0")
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be the observation, a tensor (B, *observation), got {type(y).__name__}")
    for name, value in (("x0", x0), ("y", y)):
        check_finite(value, name)
    low, high = path.interval
    times = [low + (high - low) * i / steps for i in range(steps)]
    sizes = _sizes(path, times, noise, step, power)
    equation, kind = ODE(field, cond), time_dtype(x0.dtype)

    def denoised(t: float, state: Tensor) -> Tensor:
        state = state.to(x0.dtype)
        time = torch.full(x0.shape[:1], t, dtype=kind, device=x0.device)
        return path.convert(equation(time, state), time, state, "velocity", "target").to(kind)

    # In float32 at least, as a solve is: in half precision the last steps would be rounded away.
    guess = denoised(low, x0)
    for t, size in zip(times[1:], sizes[1:], strict=True):
        seen, back = cast(Any, torch.func.vjp(operator, guess.to(x0.dtype)))
        if y.shape != seen.shape:
            raise ValueError(f"the observation has shape {tuple(y.shape)} and the operator gives {tuple(seen.shape)}")
        nearer = guess + size * back(y.to(seen) - seen)[0].to(kind)
        turns = (
            denoised(t, path.position(t, randn(tuple(x0.shape), generator, x0.device, kind), nearer))
            for _ in range(noises)
        )
        guess = sum(turns, torch.zeros_like(guess)) / noises
    if not bool(guess.isfinite().all()):
        raise ValueError(
            f"the guess ran away: step={step} is too large for this operator; give at most 1 over the square of its "
            "largest singular value"
        )
    return guess.to(x0.dtype)


def _sizes(path: AffinePath, times: list[float], noise: float, step: float, power: float) -> list[float]:
    """Step towards the observation at every time."""
    grid = torch.tensor(times, dtype=torch.float64)
    alpha, sigma = path.schedule.alpha(grid), path.schedule.sigma(grid)
    size = step * (sigma / (alpha + sigma)) ** power
    if noise:
        size = torch.minimum(size, (sigma / alpha / noise) ** 2)  # infinite without signal: the other is smaller
    sizes: list[float] = size.tolist()
    return sizes
