"""The toy sets by name. Each is a known law: draws, and the log-density they come from."""

from __future__ import annotations

from collections.abc import Callable

from flowmatch.data.frames import did_you_mean
from flowmatch.data.toy_base import Toy
from flowmatch.data.toy_closed import Checkerboard, EightGaussians, Funnel, Pinwheel, Rings
from flowmatch.data.toy_curves import moons, swissroll, two_spirals
from flowmatch.errors import InputError

__all__ = ["TOYS", "Toy", "toy"]

_MAKERS: dict[str, Callable[[], Toy]] = {
    "8gaussians": EightGaussians,
    "checkerboard": Checkerboard,
    "moons": moons,
    "pinwheel": Pinwheel,
    "two_spirals": two_spirals,
    "rings": Rings,
    "swissroll": swissroll,
    "funnel": Funnel,
}
_ALIASES = {"2spirals": "two_spirals"}

TOYS: tuple[str, ...] = tuple(_MAKERS)
"""Names that :func:`toy` knows."""


def toy(name: str) -> Toy:
    """Return the toy set of that name.

    Args:
        name: one of :data:`TOYS`, or ``"2spirals"`` for ``"two_spirals"``.

    Returns:
        A :class:`Toy` with ``name``, ``dim``, ``sample``, ``log_prob`` and ``entropy`` in nats.

    Raises:
        InputError: no toy set has that name.

    Example:
        >>> import torch
        >>> board = toy("checkerboard")
        >>> x = board.sample(3, generator=torch.Generator().manual_seed(0))
        >>> x.shape, board.log_prob(x), round(board.entropy, 4)
        (torch.Size([3, 2]), tensor([-3.4657, -3.4657, -3.4657]), 3.4657)
    """
    known = _ALIASES.get(name, name)
    if known not in _MAKERS:
        hint = did_you_mean(name, (*TOYS, *_ALIASES))
        raise InputError(f"no toy set is called {name!r}{hint}; there are {', '.join(TOYS)}")
    return _MAKERS[known]()
