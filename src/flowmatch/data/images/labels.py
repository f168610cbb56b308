"""Labels as class numbers with names, whatever a source stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmatch.errors import InputError

__all__ = ["check_names", "class_numbers", "known_numbers"]


def check_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Names of the classes as a tuple.

    Raises:
        InputError: not text, or two that are equal or differ in case only.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"classes of {source} must be a list of names, got {names!r}")
    seen: dict[str, str] = {}
    for name in names:
        other = seen.get(name.casefold())
        if other is not None:
            what = "occurs twice" if other == name else f"differs from {other!r} in case only"
            raise InputError(f"class {name!r} of {source} {what}; rename one, or make one class of the two")
        seen[name.casefold()] = name
    return tuple(names)


def known_numbers(
    values: Sequence[Any] | NDArray[Any], source: str, names: Sequence[str] | None, known: Sequence[str]
) -> NDArray[np.int64]:
    """Class number of every image ``(N,)`` among classes that are known from elsewhere, which ``values`` may lack.

    Args:
        values: labels, one an image.
        source: where they come from, for messages.
        names: names that whole numbers stand for there; without them a number is a class of that name, or counts the
            known classes.
        known: names of the classes, in the order of their numbers.

    Raises:
        InputError: a class that is not known.

    Example:
        >>> known_numbers(["dog", "dog"], "pets", None, ["cat", "dog"])
        array([1, 1])
    """
    array, place = np.asarray(values).reshape(-1), {name: number for number, name in enumerate(known)}
    if array.dtype.kind not in "OUbiu":
        raise InputError(f"labels of {source} must be whole numbers or text, got {array.dtype}")
    found = {}
    for value in dict.fromkeys(array.tolist()):
        number = int(value) if isinstance(value, bool | int) else None
        name = value if number is None else str(number) if names is None else names[number]
        if name not in place and number is not None and names is None and 0 <= number < len(known):
            name = known[number]
        if name not in place:
            raise InputError(f"{source} has a class {name!r} that is not among those known: {', '.join(known)}")
        found[value] = place[name]
    return np.array([found[value] for value in array.tolist()], dtype=np.int64)


def class_numbers(
    values: Sequence[Any] | NDArray[Any], source: str, names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class number of every image ``(N,)``, and the names of the classes.

    Whole numbers stay as they are, so that a training and a test set agree; text is numbered in sorted order.

    Args:
        values: labels, one an image.
        source: where they come from, for messages.
        names: names of the classes that whole numbers stand for; the numbers themselves by default.

    Raises:
        InputError: labels that are missing, negative, fractions, beyond the names or too sparse to be classes.

    Example:
        >>> class_numbers(["dog", "cat", "dog"], "pets")
        (array([1, 0, 1]), ('cat', 'dog'))
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"labels of {source} must be one an image, got shape {array.shape}; labels=False leaves them")
    if array.dtype.kind in "OU" and all(isinstance(value, str) for value in array.tolist()):
        found = sorted(set(array.tolist()))
        known = check_names(found if names is None else names, source)
        foreign = sorted(set(found) - set(known))
        if foreign:
            raise InputError(f"label {foreign[0]!r} of {source} is not among classes={list(known)}")
        place = {name: number for number, name in enumerate(known)}
        return np.array([place[value] for value in array.tolist()], dtype=np.int64), known
    if array.dtype.kind not in "biu":
        raise InputError(
            f"labels of {source} must be whole numbers or text without gaps, got {array.dtype}; labels=False leaves "
            "them out"
        )
    numbers = array.astype(np.int64)
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, -1)
    if low < 0:
        raise InputError(f"labels of {source} must count from 0, got {low}; labels=False leaves them out")
    if names is not None:
        known = check_names(names, source)
        if high >= len(known):
            raise InputError(f"label {high} of {source} has no name: there are {len(known)} classes, counted from 0")
        return numbers, known
    distinct = len(np.unique(numbers))
    if high + 1 > 2 * distinct:
        raise InputError(
            f"labels of {source} are {distinct} different numbers up to {high}, which look like ids and not like "
            "classes; number the classes from 0, name them with classes=, or leave the labels out with labels=False"
        )
    return numbers, tuple(str(number) for number in range(high + 1))
