"""What all contenders share: images, frozen features, the network, and how samples are scored."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm
from flowmatch.data.images import Images, load_images
from flowmatch.metrics.classifier import ClassifierFeatures, load_features
from flowmatch.metrics.features import extract
from flowmatch.metrics.frechet import FrechetStatistics, frechet_distance
from flowmatch.metrics.precision_recall import precision_recall
from flowmatch.metrics.training import train_classifier

__all__ = ["CHOOSING", "SCORING", "SIDE", "Plan", "World", "folder_of"]

SIDE = 14
SCORING, CHOOSING = 1_000_003, 2_000_003  # seeds of starts: of the table, and those on which a setting is chosen
FEATURES = "fashion-mnist-14"
FOLDERS = ("/usr/share/datasets/fashion-mnist", "/usr/share/datasets/dataset-fashion-mnist")


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        seconds: of training of a contender.
        rate: largest learning rate, of all contenders.
        calls: numbers of calls at which the distance is measured.
        rows: samples that are scored.
        long_rows: samples at more than 20 calls, which cost most.
        choose_rows: samples by which a setting is chosen.
        bits_rows: test images whose bits are counted with one noise.
        mix_rows: test images whose bits are counted with ``noises`` noises.
        noises: noises of dequantisation, ``K``.
        tolerance: of the adaptive solver whose calls are counted.
        likely: of the solver that counts bits, which at ten times the tolerance change in the third digit at most.
        timed: steps by which the machine's speed is measured.
        data_rows: training images that are used; 0 for all.
        epochs: of the classifier whose features are used.
    """

    seconds: float = 480.0
    rate: float = 3e-3
    calls: tuple[int, ...] = (2, 4, 8, 20, 100)
    rows: int = 10_000
    long_rows: int = 1_000
    choose_rows: int = 600
    bits_rows: int = 64
    mix_rows: int = 4
    noises: int = 20
    tolerance: float = 1e-5
    likely: float = 1e-4
    timed: int = 16
    data_rows: int = 0
    epochs: int = 4

    @classmethod
    def quick(cls) -> Plan:
        """A few seconds of everything: whether the command runs, and no more."""
        return cls(1.0, 3e-3, (2, 8), 64, 64, 24, 2, 1, 2, 1e-2, 1e-2, 2, 1_000, 1)

    def to_dict(self) -> dict[str, Any]:
        """All values by name."""
        return json.loads(json.dumps(asdict(self)))


class World:
    """Fashion-MNIST by means of 2 x 2 pixels, and a frozen classifier's features of it."""

    def __init__(self, folder: Path, out: Path, plan: Plan, features: Path | None = None) -> None:
        self.plan, self.out = plan, out
        read = {"size": SIDE, "resample": "box", "dequantize": True}
        labelled = load_images(folder, split="train", **read)
        tested = load_images(folder, split="test", **read)
        if plan.data_rows:
            labelled = labelled.subset(torch.arange(plan.data_rows))
            tested = tested.subset(torch.arange(max(plan.rows, plan.choose_rows)))
        self.features = _features(labelled, out, plan, features)
        self.accuracy = self.features.accuracy(tested)
        # A network without classes takes no labels.
        self.train, self.test = (Images(images.levels(), dequantize=True) for images in (labelled, tested))

    @cached_property
    def test_features(self) -> Tensor:
        """Features of the test set."""
        return extract(self.features, self.test)

    @cached_property
    def train_features(self) -> Tensor:
        """Features of the training set."""
        return extract(self.features, self.train)

    @cached_property
    def _statistics(self) -> dict[str, FrechetStatistics]:
        return {
            "test": FrechetStatistics().update(self.test_features),
            "train": FrechetStatistics().update(self.train_features),
        }

    def network(self, seed: int) -> fm.nn.UNet:
        """The network of every contender, with the first weights of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return fm.nn.unet_preset("small", (1, SIDE, SIDE))

    def starts(self, seed: int, rows: int) -> Tensor:
        """Source points, the same for all contenders."""
        return torch.randn(rows, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))

    def distance(self, samples: Tensor, to: str = "test") -> float:
        """Frechet distance to the test set or to the training set; infinite if a sample is not finite."""
        if not bool(torch.isfinite(samples).all()):
            return float("inf")
        return frechet_distance(FrechetStatistics().update(extract(self.features, samples)), self._statistics[to])

    def overlap(self, samples: Tensor) -> tuple[float, float]:
        """Precision and recall against as many test images."""
        rows = min(len(samples), len(self.test_features))
        found = precision_recall(self.test_features[:rows], extract(self.features, samples[:rows]))
        return found.precision, found.recall

    def floors(self) -> dict[str, float]:
        """What other real images score: distance, precision and recall of as many training images."""
        order = torch.randperm(len(self.train_features), generator=torch.Generator().manual_seed(0))
        floors = {}
        for rows in sorted({self.plan.rows, self.plan.long_rows, self.plan.choose_rows}):
            part = self.train_features[order[: min(rows, len(order))]]
            floors[f"distance at {rows}"] = frechet_distance(FrechetStatistics().update(part), self._statistics["test"])
        rows = min(self.plan.rows, len(self.test_features), len(order))
        found = precision_recall(self.test_features[:rows], self.train_features[order[:rows]])
        return floors | {"precision": found.precision, "recall": found.recall}


def folder_of(given: str | None) -> Path:
    """The folder of the data, or what to do."""
    for name in FOLDERS if given is None else (given,):
        if Path(name).is_dir():
            return Path(name)
    raise argparse.ArgumentTypeError(
        f"no Fashion-MNIST in {FOLDERS[0] if given is None else given}: apt-get install dataset-fashion-mnist, or give "
        "--data FOLDER with its four idx files"
    )


def _features(images: Images, out: Path, plan: Plan, given: Path | None) -> ClassifierFeatures:
    """Features that are given, that an earlier run left, or new ones."""
    if given is not None:
        return load_features(given)
    name = FEATURES if not plan.data_rows else f"{FEATURES}-quick"
    left = sorted(out.glob(f"{name}-*.safetensors")) if plan.data_rows == 0 else sorted(out.glob(f"{name}-*"))
    left = [path for path in left if path.stem.rpartition("-")[0] == name]
    if left:
        return load_features(left[0])
    print(f"training the classifier whose features are used, {plan.epochs} epochs", flush=True)
    features = train_classifier(images, epochs=plan.epochs, seed=0, name=name)
    print(f"  kept in {features.save(out)}", flush=True)
    return features
