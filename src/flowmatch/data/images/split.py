r"""Which images are held out: the same share of every class, the same choice from the same seed.

Of ``M`` held out images class ``c`` with :math:`N_c` of ``N`` gets :math:`\lfloor M N_c / N \rfloor`, and what is left
goes to the largest remainders, the first class first among equals, while a class keeps an image to train on.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from flowmatch.errors import InputError
from flowmatch.randomness import randperm

__all__ = ["split_rows"]


def split_rows(
    count: int,
    holdout: float | int,
    seed: int,
    labels: NDArray[np.int64] | None = None,
    digests: NDArray[np.uint8] | None = None,
) -> NDArray[np.int64]:
    """Numbers of the images that are held out, in rising order.

    Args:
        count: number of images.
        holdout: share below 1, or number of images.
        seed: seed of the choice.
        labels: class of every image ``(N,)``.
        digests: digest of every image ``(N, 16)``, to choose by content. Copies of an image that is held out are held
            out too, so that there may be more than asked for.

    Raises:
        InputError: nothing would be left on one of the sides.

    Example:
        >>> split_rows(6, 2, seed=0, labels=np.array([0, 0, 0, 1, 1, 1]))
        array([0, 3])
    """
    share = isinstance(holdout, float)
    held = round(count * holdout) if share else int(holdout)
    if isinstance(holdout, bool) or holdout <= 0 or (share and holdout >= 1) or not 0 < held < count:
        raise InputError(
            f"holdout must be a share between 0 and 1 or a number of images from 1 to {count - 1}, so that both sides "
            f"have some of the {count} images; got {holdout!r}"
        )
    groups = np.zeros(count, dtype=np.int64) if labels is None else labels
    sizes = np.bincount(groups)
    quota, rest = np.divmod(held * sizes, count)
    # A class is held out as a whole only where there is no other way.
    first = np.lexsort((-rest, quota + 1 >= sizes))
    quota[first[: held - int(quota.sum())]] += 1
    order = _keys(digests, seed) if digests is not None else _shuffled(count, seed)
    chosen = []
    for group, number in enumerate(quota):
        rows = np.flatnonzero(groups == group)
        chosen.append(rows[np.argsort(order[rows], kind="stable")[:number]])
    found = np.concatenate(chosen)
    if digests is not None:
        found = np.flatnonzero(np.isin(order, order[found]))
        if len(found) == count:
            raise InputError("all images are copies of those held out, so nothing is left to train on")
    return np.sort(found)


def _shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """A place in a random order for every image."""
    places: NDArray[np.int64] = randperm(count, torch.Generator().manual_seed(seed)).numpy()
    return places


def _keys(digests: NDArray[np.uint8], seed: int) -> NDArray[np.uint64]:
    """A number for every image that depends on its content and the seed alone."""
    key = seed.to_bytes(8, "little", signed=seed < 0)
    made = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in digests)
    return np.frombuffer(made, dtype="<u8").astype(np.uint64)
