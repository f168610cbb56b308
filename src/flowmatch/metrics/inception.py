r"""Features of the Inception network, as FID has them, by the package torch-fidelity.

Nothing is downloaded: the weights of the 2015 network have to be on the machine already. Their name ends in the first
digits of their hash, ``6726825d``, by which every program that makes FID's numbers knows them; a file with another
hash is refused before it is read, and one that holds more than tensors is as well: torch-fidelity would run it.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.metrics.features import check_images, in_bytes

__all__ = ["InceptionFeatures", "inception_features"]

_HASH = "6726825d"
# What torch-fidelity and pytorch-fid call one and the same file.
_NAMES = (f"weights-inception-2015-12-05-{_HASH}.pth", f"pt_inception-2015-12-05-{_HASH}.pth")


class InceptionFeatures:
    """The frozen Inception network as a :class:`~flowmatch.metrics.features.FeatureNet`; 2048 features.

    Args:
        net: torch-fidelity's extractor: bytes ``(B, 3, H, W)`` to a tuple with the features first.
        sha256: hash of its weights.
    """

    name = "inception-v3-2015"

    def __init__(self, net: nn.Module, sha256: str) -> None:
        self.net, self.sha256 = net.eval().requires_grad_(False), sha256

    def __repr__(self) -> str:
        return f"InceptionFeatures(sha256={self.sha256[:12]})"

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in ``[-1, 1]``, grey or in colour and of any size, to features ``(B, 2048)``."""
        check_images(images, (1, 3))
        where = next((weight.device for weight in self.net.parameters()), images.device)
        levels = in_bytes(images).to(torch.uint8).expand(-1, 3, -1, -1).to(where)
        features: Tensor = self.net(levels)[0]
        return features

    def to(self, device: torch.device | str) -> InceptionFeatures:
        """Move the network; returns itself."""
        self.net.to(device)
        return self


def inception_features(weights: str | Path | None = None) -> InceptionFeatures:
    """Features of the Inception network of FID, from weights on this machine.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth``, or pytorch-fid's, which is the same. By default
            it is looked for where torch.hub keeps what it has downloaded.

    Raises:
        ImportError: torch-fidelity is missing.
        InputError: no such file, one of another content, or one that holds more than tensors.

    Source:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, with the weights of Heusel et
        al., GANs Trained by a Two Time-Scale Update Rule, 2017.
    """
    module = _fidelity()
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    places = [folder / name for name in _NAMES] if weights is None else [Path(weights)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(
            f"no weights of the Inception network at {' or '.join(map(str, places))}; nothing is downloaded here. Put "
            f"{_NAMES[0]}, a release file of torch-fidelity, there or give its path with weights=, or use features of "
            "your own by train_classifier"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(_HASH):
        raise InputError(
            f"{path} is not the Inception network of FID: its SHA-256 begins with {found[:8]}, expected {_HASH}; "
            "get the file again"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes are answered with errors of many types
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} does not hold tensors alone ({why}); get it again") from None
    extractor = module.FeatureExtractorInceptionV3(
        name="inception-v3-compat", features_list=["2048"], feature_extractor_weights_path=str(path)
    )
    return InceptionFeatures(extractor, found)


def _fidelity() -> Any:
    try:
        return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise ImportError(
            "Inception features need torch-fidelity; install it with: pip install torch-fidelity"
        ) from error
