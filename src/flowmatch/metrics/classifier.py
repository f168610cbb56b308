r"""A small classifier whose last hidden layer gives features, for grey images of Fashion-MNIST's kind.

Three convolutions and a layer of 64 units, 120 thousand weights; :func:`~flowmatch.metrics.training.train_classifier`
fits them. The file carries the hash of its content in its name, and is not read where the two disagree.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.metrics.features import Pictures, check_images, in_bytes, known, labelled

__all__ = ["Classifier", "ClassifierFeatures", "load_features"]

FORMAT = "flowmatch features 1"
_HASH_DIGITS = 16  # of the hash, in the file's name


class Classifier(nn.Module):
    """A convolutional network with a layer of 64 features before its last.

    Args:
        classes: number of classes.
        channels: of the images, 1 or 3.
        halve: halve the image in the first layer, which images of 28 x 28 can afford and those of 14 x 14 cannot.
    """

    dim = 64

    def __init__(self, classes: int, channels: int = 1, halve: bool = True) -> None:
        super().__init__()
        self.classes, self.channels, self.halve = classes, channels, halve
        self.body = nn.Sequential(
            _layer(channels, 32, 2 if halve else 1),
            _layer(32, 64, 2),
            _layer(64, 64, 2),
            nn.AdaptiveAvgPool2d(4),  # nothing at 28 x 28 and at 14 x 14; lets other sizes pass
            nn.Flatten(),
            nn.Linear(64 * 16, self.dim, bias=False),
            nn.BatchNorm1d(self.dim),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.dim, classes)

    def features(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in ``[-1, 1]`` to features ``(B, 64)``, none below 0; images get no gradient."""
        features: Tensor = self.body((in_bytes(images).float() + 0.5) / 128 - 1)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in ``[-1, 1]`` to logits ``(B, classes)``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class ClassifierFeatures:
    """A trained :class:`Classifier`, frozen, as a :class:`~flowmatch.metrics.features.FeatureNet`.

    Args:
        net: the network; it is put into evaluation mode and takes no gradients for its weights any more.
        name: what it is, for people; part of the file name.
        size: height and width of the images it was trained on; others are refused.
    """

    def __init__(self, net: Classifier, name: str, size: tuple[int, int]) -> None:
        if not name or not all(c.isalnum() or c in "-_." for c in name):
            raise ValueError(f"name must be of letters, digits, dots and dashes, got {name!r}")
        self.net = net.eval().requires_grad_(False)
        self.name, self.size = name, (int(size[0]), int(size[1]))

    def __repr__(self) -> str:
        return f"ClassifierFeatures({self.name!r}, {self.size[0]} x {self.size[1]}, sha256={self.sha256[:12]})"

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in ``[-1, 1]`` to features ``(B, 64)``, on the device of the network."""
        self._check(images)
        return self.net.features(images.to(self.net.head.weight.device))

    def classify(self, images: Tensor) -> Tensor:
        """Most likely class of each image, ``(B,)``."""
        self._check(images)
        with torch.no_grad():
            logits: Tensor = self.net(images.to(self.net.head.weight.device))
        return logits.argmax(1)

    def accuracy(self, images: Pictures, labels: Tensor | None = None, batch: int = 256) -> float:
        """Share of images whose class is right; floor: the share of the largest class.

        Args:
            images: a tensor with ``labels``, or a set of images that has its own.
            labels: class numbers ``(N,)``.
            batch: images a call.

        Raises:
            InputError: no images, or no labels.
        """
        given = labelled(images, labels)
        if not len(given):
            raise InputError("there are no images to classify; give at least one")
        right = 0
        for index in torch.arange(len(given)).split(batch):
            pictures, truth = given.take(index)
            right += int((self.classify(pictures).cpu() == known(truth).cpu()).sum())
        return right / len(given)

    def to(self, device: torch.device | str) -> ClassifierFeatures:
        """Move the network; returns itself."""
        self.net.to(device)
        return self

    @cached_property
    def sha256(self) -> str:
        """Hash of the file that :meth:`save` writes."""
        return hashlib.sha256(self._content()).hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write ``NAME-HASH.safetensors`` into ``folder``, made if it is not there; returns the file's path.

        Raises:
            ImportError: the extra ``train`` is missing.
        """
        path = Path(folder) / f"{self.name}-{self.sha256[:_HASH_DIGITS]}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._content())
        return path

    def _content(self) -> bytes:
        net = self.net
        arguments = {"classes": net.classes, "channels": net.channels, "halve": net.halve}
        about = {"format": FORMAT, "name": self.name, "size": self.size, "arguments": arguments}
        weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
        # One key: the order of several in the file is not fixed, and the hash would not be either.
        content: bytes = _safetensors().save(weights, metadata={"flowmatch": json.dumps(about, sort_keys=True)})
        return content

    def _check(self, images: Tensor) -> None:
        check_images(images, self.net.channels)
        if tuple(images.shape[2:]) != self.size:
            raise ValueError(
                f"{self.name} was trained on images of {self.size[0]} x {self.size[1]}, got {images.shape[2]} x "
                f"{images.shape[3]}; resize them, or train features for that size"
            )


def load_features(path: str | Path, sha256: str | None = None) -> ClassifierFeatures:
    """Read features that :meth:`ClassifierFeatures.save` wrote, if the content has the hash it should have.

    Args:
        path: the file.
        sha256: its whole hash, or how it begins. By default what the file's name ends in.

    Raises:
        ImportError: the extra ``train`` is missing.
        InputError: no such file, no hash to check, another content than the hash says, or no features of ours.
    """
    path = Path(path)
    tensors = _safetensors()
    if not path.is_file():
        raise InputError(f"no file of features at {path}; make one with train_classifier(...).save(folder)")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    wanted = (path.stem.rpartition("-")[2] if sha256 is None else sha256).lower()
    if len(wanted) < _HASH_DIGITS or set(wanted) - set("0123456789abcdef"):
        raise InputError(
            f"{path.name} does not end in {_HASH_DIGITS} digits of its hash; give the file its name back, or the hash "
            "with sha256="
        )
    if not found.startswith(wanted):
        raise InputError(
            f"{path} is damaged or another file: its SHA-256 begins with {found[: len(wanted)]}, expected {wanted}; "
            "restore it from a copy, or train it again"
        )
    try:
        about = json.loads(_metadata(content)["flowmatch"])
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, this flowmatch reads {FORMAT!r}")
        net = Classifier(**about["arguments"])
        net.load_state_dict(tensors.load(content))
        return ClassifierFeatures(net, about["name"], tuple(about["size"]))
    except (KeyError, TypeError, ValueError, RuntimeError, importlib.import_module("safetensors").SafetensorError) as e:
        raise InputError(f"{path} holds no features of ours ({e}); give a file that ClassifierFeatures wrote") from None


def _metadata(content: bytes) -> Any:
    # The head of the format: eight bytes with its length, then JSON.
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise ImportError('features need safetensors to be saved: pip install "flowmatch[train]"') from None
