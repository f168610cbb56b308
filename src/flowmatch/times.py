r"""Times: at which ``t`` training looks.

The loss is :math:`E_t E |v(t, x_t) - u_t|^2` with ``t`` uniform. Its minimiser is the same for any
positive density of ``t``; what changes is where the error goes and how noisy the gradient is.

**Stratified** times cut the interval into ``n`` equal cells and draw one time in each. Every single time
is still uniform, so the loss stays unbiased; the part of the variance that comes from the spread of
``t`` over the batch nearly vanishes.

The interval belongs to the sampler of times, so that no formula carries an epsilon. A path says on
which interval it is regular; :class:`~flowmatch.FlowMatching` uses it by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.tensors import rand

__all__ = ["Stratified", "Uniform"]


@dataclass(frozen=True)
class Uniform:
    """Independent times, uniform on ``[low, high)``.

    Args:
        low: smallest time, at least 0.
        high: largest time, at most 1.

    Raises:
        ValueError: unless ``0 <= low < high <= 1``.

    Example:
        >>> Uniform()(3, generator=torch.Generator().manual_seed(0))
        tensor([0.4963, 0.7682, 0.0885])
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_interval(self.low, self.high)

    def __call__(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``n`` times, shape ``(n,)``."""
        t = rand((n,), generator, device, dtype)
        return t if (self.low, self.high) == (0.0, 1.0) else _onto(t, self.low, self.high)


@dataclass(frozen=True)
class Stratified:
    """One time in each of ``n`` equal cells of ``[low, high)``, in random order.

    Args:
        low: smallest time, at least 0.
        high: largest time, at most 1.

    Raises:
        ValueError: unless ``0 <= low < high <= 1``.

    Source:
        Owen, Monte Carlo theory, methods and examples, 2013, section 8.4.

    Example:
        >>> t = Stratified()(4, generator=torch.Generator().manual_seed(0))
        >>> (4 * t).floor().sort().values
        tensor([0., 1., 2., 3.])
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_interval(self.low, self.high)

    def __call__(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``n`` times, shape ``(n,)``."""
        # The order must not follow the rows: a sorted batch would tie the time to the sample.
        home = None if generator is None else generator.device
        cell = torch.randperm(n, generator=generator, device=home).to(device or "cpu")
        inside = rand((n,), generator, device, dtype)
        return _onto(((cell + inside) / max(n, 1)).to(inside.dtype), self.low, self.high)


def _onto(unit: Tensor, low: float, high: float) -> Tensor:
    """Map times on ``[0, 1]`` to ``[low, high)``; rounding may lift one to ``high``, and it is put below."""
    t = unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit
    return t.clamp(max=high * (1 - torch.finfo(t.dtype).eps))


def _check_interval(low: float, high: float) -> None:
    if not 0 <= low < high <= 1:
        raise ValueError(f"times need 0 <= low < high <= 1, got low={low} and high={high}")
