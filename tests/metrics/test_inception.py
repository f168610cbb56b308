"""Inception features by torch-fidelity: what it is given, and what is said where it or its weights are missing."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.metrics import FeatureNet, extract, inception, inception_features


class Extractor(nn.Module):
    """Takes what torch-fidelity's network takes, and gives the mean of every channel."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.path, self.scale = feature_extractor_weights_path, nn.Parameter(torch.ones(()))
        self.seen: Tensor | None = None

    def forward(self, levels: Tensor) -> tuple[Tensor, ...]:
        assert levels.dtype == torch.uint8
        assert levels.shape[1] == 3
        self.seen = levels
        return (self.scale * levels.float().mean((2, 3)),)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the package, and an empty folder where torch.hub keeps its files."""
    real = importlib.import_module

    def found(name: str, package: str | None = None) -> Any:
        if name == "torch_fidelity.feature_extractor_inceptionv3":
            return SimpleNamespace(FeatureExtractorInceptionV3=Extractor)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", found)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def with_the_right_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file has the hash of the real weights, which are too large for a test."""
    digest = SimpleNamespace(hexdigest=lambda: "6726825d" + "0" * 56)
    monkeypatch.setattr(inception, "hashlib", SimpleNamespace(sha256=lambda content: digest))


@pytest.mark.parametrize("name", ["weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"])
def test_bytes_in_colour_reach_the_network(fidelity: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    torch.save({"weight": torch.ones(2)}, fidelity / name)
    with_the_right_hash(monkeypatch)
    net = inception_features()
    assert isinstance(net, FeatureNet)
    assert (net.name, net.sha256[:8]) == ("inception-v3-2015", "6726825d")
    assert net.net.path == str(fidelity / name)
    grey = torch.tensor([-1.5, 0.0, 1.0, 0.5]).reshape(1, 1, 2, 2)
    assert extract(net, grey).tolist() == [[(0 + 128 + 255 + 192) / 4] * 3]
    assert net.net.seen.flatten(2).tolist() == [[[0, 128, 255, 192]] * 3]
    assert net(torch.zeros(2, 3, 4, 4)).shape == (2, 3)
    assert not net(grey).requires_grad
    with pytest.raises(ValueError, match=r"\(B, 1 or 3, H, W\), got \(2, 2, 4, 4\)"):
        net(torch.zeros(2, 2, 4, 4))


def test_missing_weights_are_not_fetched(fidelity: Path) -> None:
    with pytest.raises(InputError, match=r"no weights of the Inception network .* nothing is downloaded here"):
        inception_features()
    with pytest.raises(InputError, match="no weights of the Inception network at none.pth"):
        inception_features("none.pth")


def test_weights_of_another_network_are_refused_before_they_are_read(fidelity: Path) -> None:
    (fidelity / "other.pth").write_bytes(b"weights of another network")
    with pytest.raises(InputError, match="is not the Inception network of FID: its SHA-256 begins with"):
        inception_features(fidelity / "other.pth")


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the file was run",))


def test_code_among_the_weights_is_not_run(fidelity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": Code()}, fidelity / "code.pth")
    (fidelity / "half.pth").write_bytes(b"half a file")
    with_the_right_hash(monkeypatch)
    for name in ("code.pth", "half.pth"):
        with pytest.raises(InputError, match="does not hold tensors alone"):
            inception_features(fidelity / name)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        inception_features()
