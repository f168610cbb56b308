"""All distances between samples and images at once, in one kind of features, beside the floor of the data itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from flowmatch.metrics.clouds import subset
from flowmatch.metrics.features import FeatureNet, Pictures, extract
from flowmatch.metrics.frechet import frechet_distance
from flowmatch.metrics.kernel_distance import kernel_distance
from flowmatch.metrics.precision_recall import precision_recall

__all__ = ["ImageScores", "evaluate_images"]


@dataclass(frozen=True)
class ImageScores:
    """How far samples lie from data, and how far other data do.

    Attributes:
        frechet: Frechet distance of samples and data.
        frechet_floor: Frechet distance of other data of the same law and the data, by as many rows.
        kernel: kernel distance of samples and data.
        kernel_error: its standard error.
        kernel_floor: kernel distance of other data and the data.
        precision: share of samples that lie in the region of the data.
        recall: share of data that lie in the region of the samples.
        density: mean number of balls of the data that a sample lies in, over ``k``.
        coverage: share of balls of the data that hold a sample.
        precision_floor: precision of other data, the value that good samples have.
        recall_floor: recall of other data.
        rows: images of each kind that were used.
        features: name of the features.
        sha256: hash of their weights; values made with two hashes cannot be compared.
    """

    frechet: float
    frechet_floor: float
    kernel: float
    kernel_error: float
    kernel_floor: float
    precision: float
    recall: float
    density: float
    coverage: float
    precision_floor: float
    recall_floor: float
    rows: int
    features: str
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """All values by name, for a report or a JSON file."""
        return asdict(self)


def evaluate_images(
    samples: Pictures,
    data: Pictures,
    other: Pictures,
    net: FeatureNet,
    rows: int | None = None,
    k: int = 3,
    batch: int = 256,
    generator: torch.Generator | None = None,
) -> ImageScores:
    """Frechet and kernel distance, precision and recall of samples against data, with their floors.

    All three sets are cut to the same number of rows, at random: the bias of the Frechet distance and the radii of
    precision and recall depend on it, so a floor of another size would be none.

    Args:
        samples: what is judged, ``(N, C, H, W)`` in ``[-1, 1]``, or a set of images.
        data: images to compare with, such as the test set.
        other: images of the same law which the data do not hold, such as the training set; they give the floors.
        net: the features.
        rows: images of each to use; by default as many as the smallest set has.
        k: neighbour of precision and recall.
        batch: images a call of the network.
        generator: draws the rows. Without one they are the same in every call.

    Raises:
        ValueError: fewer images than ``rows``, or too few for a metric.

    Example:
        >>> class Pixels:
        ...     name, sha256 = "pixels", "0" * 64
        ...     def __call__(self, images):
        ...         return images.flatten(1)
        >>> images = torch.randn(90, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> scores = evaluate_images(images[:30] + 5, images[30:60], images[60:], Pixels())
        >>> scores.frechet > 50 * scores.frechet_floor, scores.precision, scores.rows, scores.features
        (True, 0.0, 30, 'pixels')
    """
    sizes = {"samples": len(samples), "data": len(data), "other": len(other)}
    count = min(sizes.values()) if rows is None else rows
    if count < max(4, k + 1):
        raise ValueError(f"evaluate_images needs at least {max(4, k + 1)} images of each, got {sizes}, rows={rows}")
    if count > min(sizes.values()):
        raise ValueError(f"rows={rows} is more than there are images: {sizes}; give fewer")
    rng = torch.Generator().manual_seed(0) if generator is None else generator
    drawn, held, more = (subset(extract(net, images, batch), count, rng) for images in (samples, data, other))
    kernel, overlap = kernel_distance(held, drawn, generator=rng), precision_recall(held, drawn, k)
    floor = precision_recall(held, more, k)
    return ImageScores(
        frechet=frechet_distance(held, drawn),
        frechet_floor=frechet_distance(held, more),
        kernel=kernel.mean,
        kernel_error=kernel.error,
        kernel_floor=kernel_distance(held, more, generator=rng).mean,
        precision=overlap.precision,
        recall=overlap.recall,
        density=overlap.density,
        coverage=overlap.coverage,
        precision_floor=floor.precision,
        recall_floor=floor.recall,
        rows=count,
        features=net.name,
        sha256=net.sha256,
    )
