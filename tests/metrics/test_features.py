"""Features: what a network must give back, bytes, and the small classifier from training to a pinned file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch.data import Images, load_images, to_uint8
from flowmatch.data.images import dequantized
from flowmatch.errors import InputError
from flowmatch.metrics import (
    Classifier,
    ClassifierFeatures,
    FeatureNet,
    extract,
    label_of,
    load_features,
    train_classifier,
)
from flowmatch.metrics.features import in_bytes

FASHION = Path("/usr/share/datasets/fashion-mnist")


class Pixels:
    """The simplest features there are."""

    name, sha256 = "pixels", "0" * 64

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return images.flatten(1)


def bars(rows: int, size: int = 14, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bytes with a bright bar, across or upright, in noise; the direction is the class."""
    g = torch.Generator().manual_seed(seed)
    levels = torch.randint(100, (rows, 1, size, size), generator=g, dtype=torch.uint8)
    labels = torch.randint(2, (rows,), generator=g)
    for image, label, place in zip(levels, labels, torch.randint(size, (rows,), generator=g), strict=True):
        image[0][(int(place), slice(None)) if label else (slice(None), int(place))] = 200
    return levels, labels


def numbers(levels: Tensor) -> Tensor:
    return (levels.float() + 0.5) / 128 - 1


@pytest.fixture(scope="module")
def trained() -> ClassifierFeatures:
    levels, labels = bars(256)
    return train_classifier(numbers(levels), labels, epochs=4, batch=32, name="bars")


def test_extract_covers_all_images_in_batches_and_takes_sets() -> None:
    levels, labels = bars(10)
    net = Pixels()
    assert isinstance(net, FeatureNet)
    rows = extract(net, numbers(levels), batch=4)
    assert net.calls == [4, 4, 2]
    assert torch.equal(rows, numbers(levels).flatten(1))
    assert torch.equal(extract(net, Images(levels, labels), batch=3), rows)
    assert label_of(net) == "pixels@000000000000"


def test_extract_names_bad_input() -> None:
    class Wrong(Pixels):
        def __call__(self, images: Tensor) -> Tensor:
            return images

    with pytest.raises(ValueError, match=r"features of pixels have shape \(2, 1, 4, 4\) for 2 images"):
        extract(Wrong(), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="there are no images"):
        extract(Pixels(), torch.zeros(0, 1, 4, 4))
    with pytest.raises(TypeError, match="got list"):
        extract(Pixels(), [torch.zeros(1, 4, 4)])  # type: ignore[arg-type]


def test_bytes_are_those_of_saved_images() -> None:
    x = torch.cat([torch.linspace(-1.2, 1.2, 4001), torch.tensor([-1.0, 1.0])])
    assert torch.equal(in_bytes(x).to(torch.uint8), to_uint8(x))
    assert torch.equal(in_bytes(x.double()).to(torch.uint8), to_uint8(x.double()))


def test_dequantised_images_have_the_features_of_their_bytes(trained: ClassifierFeatures) -> None:
    levels, _ = bars(6, seed=1)
    assert torch.equal(trained(dequantized(levels)), trained(numbers(levels)))
    assert not torch.equal(trained(numbers(levels)), trained(numbers(levels + 5)))


def test_learns_and_is_frozen(trained: ClassifierFeatures) -> None:
    levels, labels = bars(200, seed=1)
    assert trained.accuracy(numbers(levels), labels) > 0.95
    assert trained.accuracy(Images(levels, labels), batch=64) == trained.accuracy(numbers(levels), labels)
    assert trained.accuracy(numbers(levels), 1 - labels) < 0.05
    features = trained(numbers(levels))
    assert features.shape == (200, 64)
    assert not features.requires_grad
    # Frozen statistics: an image has the same features in any company.
    torch.testing.assert_close(trained(numbers(levels[:1])), features[:1], rtol=1e-4, atol=1e-5)
    assert trained(numbers(levels[:0])).shape == (0, 64)


def test_training_is_a_function_of_data_and_seed() -> None:
    levels, labels = bars(64)
    before = torch.get_rng_state()
    seen: list[tuple[int, int]] = []

    def train(seed: int, **how: Any) -> str:
        return train_classifier(Images(levels, labels), epochs=1, batch=32, seed=seed, **how).sha256

    first = train(3, on_step=lambda step, total, loss: seen.append((step, total)))
    assert first == train_classifier(numbers(levels), labels, epochs=1, batch=32, seed=3).sha256
    assert first != train(4)
    assert seen == [(1, 2), (2, 2)]
    assert torch.equal(before, torch.get_rng_state())


def test_the_seed_fixes_the_first_weights_too() -> None:
    # All images in one step: another order is then another rounding and no more.
    levels, labels = bars(32)
    one, two = (train_classifier(numbers(levels), labels, epochs=1, batch=32, seed=seed).net.body[5] for seed in (0, 1))
    assert (one.weight - two.weight).abs().max() > 0.01


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (14, 3), (28, 1), (33, 3)])
def test_sizes_and_channels(size: int, channels: int) -> None:
    x = torch.randn(4, channels, size, size).clamp(-1, 1)
    net = train_classifier(x, torch.tensor([0, 1, 2, 0]), epochs=1, batch=2)
    assert net(x).shape == (4, 64)
    assert net.classify(x).shape == (4,)


def test_file_round_trip(trained: ClassifierFeatures, tmp_path: Path) -> None:
    path = trained.save(tmp_path / "deep")
    assert path.name == f"bars-{trained.sha256[:16]}.safetensors"
    read = load_features(path)
    x = numbers(bars(5, seed=2)[0])
    assert torch.equal(read(x), trained(x))
    assert (read.name, read.sha256, read.size) == ("bars", trained.sha256, (14, 14))
    assert label_of(read) == f"bars@{trained.sha256[:12]}"
    other = path.rename(tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="does not end in 16 digits of its hash"):
        load_features(other)
    assert load_features(other, sha256=trained.sha256).sha256 == trained.sha256


def test_another_content_than_the_name_says_is_refused(trained: ClassifierFeatures, tmp_path: Path) -> None:
    path = trained.save(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged or another file: its SHA-256 begins with [0-9a-f]{16}, expected"):
        load_features(path)
    whole = trained.save(tmp_path)
    with pytest.raises(InputError, match="expected 1{64}"):
        load_features(whole, sha256="1" * 64)
    with pytest.raises(InputError, match="no file of features"):
        load_features(tmp_path / "none-0123456789abcdef.safetensors")


def test_a_file_that_is_no_features_is_refused_though_its_hash_is_right(tmp_path: Path) -> None:
    import hashlib

    from safetensors.torch import save

    for content in (
        save({"w": torch.zeros(2)}),
        b"text",
        save({"w": torch.zeros(2)}, {"flowmatch": '{"format": "x"}'}),
    ):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(InputError, match="holds no features of ours"):
            load_features(tmp_path / "f", sha256=hashlib.sha256(content).hexdigest())


def test_bad_images_are_named(trained: ClassifierFeatures) -> None:
    with pytest.raises(ValueError, match="trained on images of 14 x 14, got 28 x 28"):
        trained(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\), got \(1, 3, 14, 14\)"):
        trained(torch.zeros(1, 3, 14, 14))
    with pytest.raises(TypeError, match="bytes become them"):
        trained(torch.zeros(1, 1, 14, 14, dtype=torch.uint8))
    with pytest.raises(ValueError, match="NaN or infinite"):
        trained(torch.full((1, 1, 14, 14), float("nan")))
    with pytest.raises(ValueError, match="name must be of letters"):
        ClassifierFeatures(Classifier(2), "a/b", (28, 28))


def test_bad_training_data_is_named() -> None:
    x, labels = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    with pytest.raises(InputError, match="needs the class of every image"):
        train_classifier(x)
    with pytest.raises(InputError, match="needs the class of every image"):
        train_classifier(Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)))
    with pytest.raises(InputError, match="has its own labels"):
        train_classifier(Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels), labels)
    with pytest.raises(InputError, match=r"labels have shape \(3,\) for 4 images"):
        train_classifier(x, labels[:3], batch=2)
    with pytest.raises(InputError, match="whole numbers from 0"):
        train_classifier(x, -labels, batch=2)
    with pytest.raises(InputError, match="at least 2 classes"):
        train_classifier(x, 0 * labels, batch=2)
    with pytest.raises(InputError, match="fewer than batch=128"):
        train_classifier(x, labels)
    with pytest.raises(InputError, match="at least 8 x 8, got 8 x 4"):
        train_classifier(x[..., :4], labels, batch=2)
    with pytest.raises(ValueError, match="epochs >= 1 and batch >= 2"):
        train_classifier(x, labels, batch=1)
    with pytest.raises(InputError, match="no images to classify"):
        train_classifier(x, labels, batch=2).accuracy(x[:0], labels[:0])


def test_missing_safetensors_says_what_to_install(trained: ClassifierFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r'pip install "flowmatch\[train\]"'):
        load_features("x-0123456789abcdef.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not installed (Debian: dataset-fashion-mnist)")
def test_nine_tenths_of_fashion_mnist_are_right() -> None:
    net = train_classifier(load_images(FASHION, split="train"), epochs=2)
    assert net.accuracy(load_images(FASHION, split="test")) >= 0.9
