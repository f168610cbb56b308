"""All scores at once: each is that of its own metric, on equal numbers of rows, with the features named."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from flowmatch.data import Images
from flowmatch.metrics import evaluate_images, frechet_distance, kernel_distance, precision_recall


class Pixels:
    name, sha256 = "pixels", "ab" * 32

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


def images(rows: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed)) + shift


def test_every_value_is_that_of_its_metric() -> None:
    samples, data, other = images(60, shift=0.5), images(60, seed=1), images(60, seed=2)
    got = evaluate_images(samples, data, other, Pixels())
    of, floor = precision_recall(data, samples), precision_recall(data, other)
    assert got.frechet == pytest.approx(frechet_distance(data.double(), samples.double()), rel=1e-9)
    assert got.frechet_floor == pytest.approx(frechet_distance(data.double(), other.double()), rel=1e-9)
    assert (got.precision, got.recall, got.density, got.coverage) == tuple(of)
    assert (got.precision_floor, got.recall_floor) == (floor.precision, floor.recall)
    want = kernel_distance(data, samples, generator=torch.Generator().manual_seed(0))
    assert (got.kernel, got.kernel_error) == pytest.approx((want.mean, want.error), rel=1e-6)
    assert (got.rows, got.features, got.sha256) == (60, "pixels", "ab" * 32)
    assert json.loads(json.dumps(got.to_dict()))["frechet"] == got.frechet


def test_the_floor_is_what_samples_of_the_data_law_score() -> None:
    scores = [evaluate_images(images(80, s), images(80, s + 99), images(80, s + 999), Pixels()) for s in range(30)]
    for name in ("frechet", "kernel", "precision", "recall"):
        gap = torch.tensor([getattr(v, name) - getattr(v, f"{name}_floor") for v in scores])
        assert abs(gap.mean().item()) < 4 * gap.std().item() / 30**0.5


def test_sets_are_cut_to_one_size_the_same_in_every_call() -> None:
    levels = torch.randint(256, (30, 1, 2, 2), dtype=torch.uint8)
    samples, data = images(90), Images(levels, labels=torch.arange(30) % 2)
    before = torch.get_rng_state()
    got = evaluate_images(samples, data, images(50, seed=1), Pixels())
    assert got.rows == 30
    assert got == evaluate_images(samples, data, images(50, seed=1), Pixels())
    assert torch.equal(before, torch.get_rng_state())
    assert evaluate_images(samples, data, images(50, seed=1), Pixels(), rows=20).rows == 20


def test_too_few_images_are_named() -> None:
    x = images(9)
    for few in (x[:0], x[:1]):
        with pytest.raises(ValueError, match="needs at least 4 images of each"):
            evaluate_images(few, x, x, Pixels())
    with pytest.raises(ValueError, match="rows=10 is more than there are images: {'samples': 9"):
        evaluate_images(x, x, x, Pixels(), rows=10)
