r"""Training of the small classifier whose features are used: a minute of one core for Fashion-MNIST.

With the defaults 92.5 % of its test images are right at 28 x 28, and 91.2 % at 14 x 14 (means of 2 x 2 pixels), each
after 62 seconds of one core (measured).

Training is a function of the data and a seed, on one machine and number of threads; on another, sums may round in
another way and the weights, and so the hash, differ. Make the file once and pass it on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from flowmatch.errors import InputError
from flowmatch.metrics.classifier import Classifier, ClassifierFeatures
from flowmatch.metrics.features import ImageSet, Pictures, check_images, known, labelled
from flowmatch.randomness import randperm

__all__ = ["train_classifier"]

_LEAST_SIDE = 8
_RATE, _DECAY = 5e-3, 1e-2


def train_classifier(
    images: Pictures,
    labels: Tensor | None = None,
    epochs: int = 4,
    batch: int = 128,
    seed: int = 0,
    name: str = "classifier",
    device: torch.device | str | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> ClassifierFeatures:
    """Train a small classifier and freeze it: AdamW under a one-cycle rate on shuffled images.

    Args:
        images: a tensor ``(N, C, H, W)`` in ``[-1, 1]`` with ``labels``, or a set of images that has its own, such as
            :class:`flowmatch.data.Images`.
        labels: class numbers ``(N,)`` from 0.
        epochs: passes over the images.
        batch: images a step; a rest that is smaller is left out of its pass.
        seed: fixes the first weights and the order; the global generator is left alone.
        name: name of the features.
        device: where to train; the CPU by default.
        on_step: called with the number of the step, of all steps, and the loss.

    Raises:
        InputError: no labels or not one each, fewer than 2 classes, or images below 8 x 8.
        ValueError: no epoch, or a batch below 2.
        FloatingPointError: the loss is not finite.

    Example:
        >>> images = torch.full((8, 1, 8, 8), -0.5)
        >>> images[::2] = 0.5
        >>> net = train_classifier(images, torch.tensor([0, 1] * 4), epochs=20, batch=4)
        >>> net(images).shape, net.accuracy(images, torch.tensor([0, 1] * 4))
        (torch.Size([8, 64]), 1.0)
    """
    if epochs < 1 or batch < 2:
        raise ValueError(f"train_classifier needs epochs >= 1 and batch >= 2, got epochs={epochs} and batch={batch}")
    given = labelled(images, labels)
    if len(given) < batch:
        raise InputError(f"there are {len(given)} images, fewer than batch={batch}; give more, or a smaller batch")
    classes = int(known(given.labels).max()) + 1
    if classes < 2:
        raise InputError("a classifier needs images of at least 2 classes; these have one")
    first = given.take(torch.arange(1))[0]
    check_images(first, (1, 3))
    channels, height, width = first.shape[1:]
    if min(height, width) < _LEAST_SIDE:
        raise InputError(f"images must be at least {_LEAST_SIDE} x {_LEAST_SIDE}, got {height} x {width}")
    where = torch.device("cpu" if device is None else device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(classes, channels, halve=min(height, width) >= 28).to(where)
    _fit(net, given, epochs, batch, seed, where, on_step)
    return ClassifierFeatures(net, name, (height, width))


def _fit(
    net: Classifier,
    images: ImageSet,
    epochs: int,
    batch: int,
    seed: int,
    device: torch.device,
    on_step: Callable[[int, int, float], None] | None,
) -> None:
    rng = torch.Generator().manual_seed(seed)
    total = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(total, 2))
    step = 0
    for _ in range(epochs):
        for index in randperm(len(images), rng).split(batch)[: len(images) // batch]:
            pictures, truth = images.take(index)
            loss = functional.cross_entropy(net(pictures.to(device)), known(truth).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            step += 1
            if on_step is not None:
                on_step(step, total, loss.item())
    if not torch.isfinite(loss):
        raise FloatingPointError("the classifier's loss is not finite; look at the images, or give another seed")
