"""Tables from NumPy files. Python objects inside are refused, so nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowmatch.data.frames import need
from flowmatch.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_npy", "read_npz"]


def read_npy(path: Path, source: str) -> tuple[pd.DataFrame, tuple[int, int] | None]:
    """The array of a ``.npy`` file as a frame, and the shape of an image if its rows are images."""
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{source} is an archive of arrays, not one; rename it to .npz")
    return _array_frame(array, source)


def read_npz(path: Path, source: str) -> tuple[pd.DataFrame, tuple[int, int] | None]:
    """The arrays of a ``.npz`` file as a frame, with a last column ``target`` if it has one."""
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise InputError(f"{source} is one array, not an archive; rename it to .npy")
    with archive:
        arrays = {name: archive[name] for name in archive.files}
    if len(arrays) == 1:
        return _array_frame(next(iter(arrays.values())), source)
    main = [name for name in arrays if name.lower() in ("x", "data")]
    label = [name for name in arrays if name.lower() in ("y", "target")]
    if len(main) != 1 or len(label) > 1 or len(main) + len(label) != len(arrays):
        held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise InputError(
            f"{source} holds {held}; expected one array, or x (or data) and perhaps y (or target). "
            "Write it with numpy.savez(path, x=..., y=...)"
        )
    frame, image_shape = _array_frame(arrays[main[0]], source)
    target = arrays[label[0]]
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.shape != (len(frame),) or target.dtype.kind not in "biufU":
        raise InputError(
            f"{label[0]} in {source} must have one number or text a row, shape ({len(frame)},), "
            f"got shape {target.shape} of {target.dtype}"
        )
    frame["target"] = _native(target)
    return frame, image_shape


def _array_frame(array: NDArray[Any], source: str) -> tuple[pd.DataFrame, tuple[int, int] | None]:
    if array.dtype.kind not in "biuf":
        raise InputError(f"{source} holds {array.dtype}; expected an array of numbers")
    if array.ndim not in (1, 2, 3):
        raise InputError(
            f"{source} has shape {array.shape}; expected (N,), (N, columns) or (N, height, width). "
            "Reshape it with array.reshape(len(array), -1)"
        )
    image_shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else None
    width = int(np.prod(array.shape[1:]))
    matrix = _native(array).reshape(len(array), width)
    return need("pandas").DataFrame(matrix, columns=[f"x{d}" for d in range(width)]), image_shape


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in this machine's byte order, which pandas insists on."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
