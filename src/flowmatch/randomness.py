"""Random draws: each by a generator, and one seed means one draw wherever its tensors live.

A generator belongs to a device, and its numbers are those of that device. Draws are made where the generator is and
moved to where they are needed, so a CPU generator serves any device and gives the same numbers on each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["choose", "drawn", "rand", "randint", "randn", "randperm"]


def drawn(
    draw: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Call ``draw(shape, generator=, device=, dtype=)`` on the generator's device; the result on ``device``."""
    where = torch.device("cpu") if device is None else torch.device(device)
    home = generator.device if generator is not None and generator.device.type != where.type else where
    return draw(shape, generator=generator, device=home, dtype=dtype).to(where)


def randn(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal draws; a CPU generator serves any device, so that one seed means one sample.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> randn((2,), generator=g)
        tensor([ 1.5410, -0.2934])
    """
    return drawn(torch.randn, shape, generator, device, dtype)


def rand(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draws uniform on [0, 1); a CPU generator serves any device."""
    return drawn(torch.rand, shape, generator, device, dtype)


def randint(
    high: int,
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Whole numbers from 0 to ``high - 1``, each as likely as the others."""
    return drawn(lambda size, **how: torch.randint(high, size, **how), shape, generator, device, torch.long)


def randperm(n: int, generator: torch.Generator | None = None, device: torch.device | str | None = None) -> Tensor:
    """A permutation of ``0 ... n - 1``, ``(n,)``."""
    return drawn(lambda size, **how: torch.randperm(size[0], **how), (n,), generator, device, torch.long)


def choose(weights: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """``n`` indices drawn with replacement in proportion to ``weights`` ``(K,)``; ``n`` may be 0."""
    home = weights.device if generator is None else generator.device
    # torch draws at least one.
    return torch.multinomial(weights.to(home), max(n, 1), replacement=True, generator=generator)[:n].to(weights.device)
