r"""Features of images: what the distances between sets of images are taken in.

A :class:`FeatureNet` maps images in ``[-1, 1]`` to rows of numbers and says who it is: ``name`` and the SHA-256 of its
weights. Two values of a distance can be compared only if both say the same, so every result carries them on.

* :func:`~flowmatch.metrics.inception.inception_features`: the Inception network of FID, for colour images and for
  numbers that stand beside published ones. Its weights have to be on the machine.
* :func:`~flowmatch.metrics.training.train_classifier`: a small classifier trained on the data's own classes, in a
  minute, frozen, and written to a file whose name pins its hash. Its numbers stand beside those made with the same
  file only.

**Bytes.** Samples of a flow are real numbers, images in files are bytes. A network sees the difference, and a distance
would charge for it. Every network here therefore sees :math:`\lfloor 128 (x + 1) \rfloor`, cut off at 0 and 255, which
is what a sample becomes when it is saved; dequantised images give the features of their bytes.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.tensors import check_event, check_finite

__all__ = ["FeatureNet", "ImageSet", "Pictures", "check_images", "extract", "in_bytes", "known", "label_of", "labelled"]


@runtime_checkable
class FeatureNet(Protocol):
    """A frozen network from images to features.

    Attributes:
        name: what it is, for people.
        sha256: hash of its weights, which tells two networks of one name apart.
    """

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in ``[-1, 1]`` to features ``(B, D)``."""
        ...


class ImageSet(Protocol):
    """Images with a class each, as :class:`flowmatch.data.Images` gives them."""

    labels: Tensor | None

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images ``index`` as numbers in ``[-1, 1]``, ``(B, C, H, W)``, and their labels."""
        ...


Pictures: TypeAlias = "Tensor | ImageSet"
"""A tensor ``(N, C, H, W)`` in ``[-1, 1]``, or a set of images."""


def label_of(net: FeatureNet) -> str:
    """Name and hash in one word, as statistics and tables show it.

    Example:
        >>> class Pixels:
        ...     name, sha256 = "pixels", "0" * 64
        ...     def __call__(self, images):
        ...         return images.flatten(1)
        >>> label_of(Pixels())
        'pixels@000000000000'
    """
    return f"{net.name}@{net.sha256[:12]}"


def extract(net: FeatureNet, images: Pictures, batch: int = 256) -> Tensor:
    """Features of all images, ``(N, D)``, ``batch`` images at a time and without a graph.

    Args:
        net: the network.
        images: a tensor ``(N, C, H, W)`` in ``[-1, 1]``, or a set of images such as :class:`flowmatch.data.Images`.
        batch: images a call.

    Raises:
        ValueError: no images, or features that are not one row for each image.
        TypeError: images that are no tensor and no set of images.
    """
    if not isinstance(images, Tensor) and not hasattr(images, "take"):
        raise TypeError(f"images must be a tensor (N, C, H, W) or flowmatch.data.Images, got {type(images).__name__}")
    if not len(images):
        raise ValueError("there are no images; give at least one")
    rows = []
    with torch.no_grad():
        for index in torch.arange(len(images)).split(batch):
            part = images[index.to(images.device)] if isinstance(images, Tensor) else images.take(index)[0]
            row = net(part)
            if row.ndim != 2 or row.shape[0] != part.shape[0]:
                raise ValueError(
                    f"the features of {net.name} have shape {tuple(row.shape)} for {part.shape[0]} images; expected "
                    f"({part.shape[0]}, D)"
                )
            rows.append(row)
    return torch.cat(rows)


def in_bytes(images: Tensor) -> Tensor:
    """Images in ``[-1, 1]`` as whole numbers from 0 to 255, in a floating type; see the module's page.

    Example:
        >>> in_bytes(torch.tensor([-1.5, 0.001, 0.999]))
        tensor([  0., 128., 255.])
    """
    wide = images if images.dtype == torch.float64 else images.float()
    return ((wide + 1) * 128).floor_().clamp_(0, 255)


def check_images(images: Tensor, channels: int | tuple[int, ...], name: str = "images") -> None:
    """Raise unless ``images`` are finite floating images ``(B, C, H, W)`` with as many channels as asked for.

    Raises:
        TypeError: bytes or other whole numbers.
        ValueError: another shape, or entries that are not finite.
    """
    allowed = (channels,) if isinstance(channels, int) else channels
    if isinstance(images, Tensor) and not images.is_floating_point():
        raise TypeError(f"{name} must be numbers in [-1, 1], got {images.dtype}; bytes become them by x / 127.5 - 1")
    check_event(images, name)
    if images.ndim != 4 or images.shape[1] not in allowed or 0 in images.shape[2:]:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"{name} must have shape (B, {wanted}, H, W), got {tuple(images.shape)}")
    if images.shape[0]:
        check_finite(images, name)


class _Tensors:
    """Images and labels held as tensors, as an :class:`ImageSet`."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels: Tensor | None = labels

    def __len__(self) -> int:
        return self.images.shape[0]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.images[index.to(self.images.device)], known(self.labels)[index]


def labelled(images: Pictures, labels: Tensor | None) -> ImageSet:
    """Images with their labels, from a set that has them or from two tensors.

    Raises:
        InputError: no labels, not one each, not whole numbers from 0, or given twice.
    """
    if not isinstance(images, Tensor):
        if labels is not None:
            raise InputError("a set of images has its own labels; give labels= with a tensor of images only")
        known(images.labels)
        return images
    check_images(images, (1, 3))
    numbers = torch.as_tensor(known(labels)).cpu()
    if numbers.shape != images.shape[:1]:
        raise InputError(f"labels have shape {tuple(numbers.shape)} for {images.shape[0]} images; give one each")
    if numbers.is_floating_point() or (numbers.numel() and int(numbers.min()) < 0):
        raise InputError("labels must be whole numbers from 0")
    return _Tensors(images, numbers.long())


def known(labels: Tensor | None) -> Tensor:
    """The labels, or InputError."""
    if labels is None:
        raise InputError("a classifier needs the class of every image; give labels=, or images with classes")
    return labels
