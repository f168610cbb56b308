"""Recipes with a name: the settings of the paper's image models, and what was made of them since.

Table 3 of Lipman et al. gives channels, depth, multipliers, heads, attention, batch, iterations, learning rate, its
schedule and warm-up for CIFAR-10 and ImageNet at 32, 64 and 128; its sizes are in :mod:`flowmatch.nn.presets`. All
use Adam with betas 0.9 and 0.999 and no weight decay. The decay called polynomial falls linearly to almost nothing,
which is ``linear`` here. Of CIFAR-10 it says 1000 epochs and 391 thousand steps, which is true of 128 images a step and
not of its 256; the steps are taken. The table leaves open what is set here as its field does it: images are flipped,
gradients are clipped at norm 1, weights are averaged with decay 0.9999, and ``sigma_min`` is 1e-5.

``upscale256`` is the paper's job of 64 x 64 to 256 x 256. Its hyper-parameters are not in that table: the network and
the batch are ours, after those of cascaded diffusion models, and so is the noise on the small image.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Table 3, https://arxiv.org/abs/2210.02747; Ho and
Salimans, Classifier-Free Diffusion Guidance, 2022, https://arxiv.org/abs/2207.12598, for leaving out a tenth of the
labels; Saharia et al., Image Super-Resolution via Iterative Refinement, 2021, https://arxiv.org/abs/2104.07636, and Ho
et al., Cascaded Diffusion Models, 2021, https://arxiv.org/abs/2106.15282, for the job.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from flowmatch.errors import InputError

__all__ = ["RECIPES", "Recipe", "recipe"]

Options = dict[str, Any]


class Recipe(NamedTuple):
    """A recipe: what it is for, the images it was made for, and a function that returns its options.

    Attributes:
        about: one line.
        shape: channels, height and width of its images.
        images: number of images of its data set.
        classes: number of classes of its data set, 0 where labels are not used.
        options: makes the options of :class:`~flowmatch.recipes.ImageRunConfig`, without ``data``.
    """

    about: str
    shape: tuple[int, int, int]
    images: int
    classes: int
    options: Callable[[], Options]


def _paper(size: int, batch: int, steps: int, rate: float, warmup: int, decay: str = "linear") -> Options:
    """What the four models of the table have in common."""
    return {
        "holdout": 0.0,
        "images": {"size": size, "channels": 3, "flip": True, "labels": False},
        "flow": {"path": "linear", "sigma_min": 1e-5, "times": "uniform"},
        "train": {
            "batch_size": batch,
            "steps": steps,
            "learning_rate": rate,
            "betas": (0.9, 0.999),
            "weight_decay": 0.0,
            "warmup": warmup,
            "decay": decay,
            "ema": 0.9999,
            "precision": "bf16",
            "label_dropout": 0.0,
            "checkpoint_every": 5000,
            "evaluate_every": 5000,
        },
    }


def cifar10() -> Options:
    """CIFAR-10: 391 thousand steps of 256 images."""
    return _with(_paper(32, 256, 391_000, 5e-4, 45_000), flow={"network": "cifar10"})


def imagenet32() -> Options:
    """ImageNet at 32 x 32: 250 thousand steps of 1024 images."""
    return _with(_paper(32, 1024, 250_000, 1e-4, 20_000), flow={"network": "imagenet32"}, images={"resample": "box"})


def imagenet64() -> Options:
    """ImageNet at 64 x 64: 157 thousand steps of 2048 images at a constant rate."""
    found = _paper(64, 2048, 157_000, 1e-4, 0, "constant")
    return _with(found, flow={"network": "imagenet64"}, images={"resample": "box"})


def imagenet128() -> Options:
    """ImageNet at 128 x 128: 500 thousand steps of 1536 images."""
    return _with(_paper(128, 1536, 500_000, 1e-4, 20_000), flow={"network": "imagenet128"})


def upscale256() -> Options:
    """From 64 x 64 to 256 x 256."""
    found = _paper(256, 256, 300_000, 1e-4, 10_000)
    options = {"channels": 128, "mults": [1, 2, 4, 4], "depth": 2, "attention": [32]}
    flow = {"job": "upscale", "factor": 4, "cond_noise": 0.2, "network": "imagenet64", "network_options": options}
    return _with(found, flow=flow)


def fashion() -> Options:
    """Fashion-MNIST by class, on two CPU cores within the hour."""
    return {
        "images": {"size": 28, "channels": 1, "labels": True},
        "flow": {"network": "small", "coupling": "ot"},
        "train": {
            "steps": 4000,
            "batch_size": 128,
            "pool": 2560,
            "ahead": 1,
            "learning_rate": 2e-3,
            "label_dropout": 0.1,
            "evaluate_every": 1000,
            "checkpoint_every": 500,
            "sample_every": 1000,
        },
    }


def labelled(options: Options) -> Options:
    """The same with classes, of which a tenth is left out for guidance."""
    return _with(options, images={"labels": True}, train={"label_dropout": 0.1})


def on_path(options: Options, path: str) -> Options:
    """The same on another path from noise to data."""
    return _with(options, flow={"path": path, "sigma_min": 0.0})


_COLOUR32, _COLOUR64, _COLOUR128 = (3, 32, 32), (3, 64, 64), (3, 128, 128)

RECIPES: dict[str, Recipe] = {
    "cifar10": Recipe("CIFAR-10, straight path", _COLOUR32, 50_000, 0, cifar10),
    "cifar10-vp": Recipe("CIFAR-10, VP path", _COLOUR32, 50_000, 0, lambda: on_path(cifar10(), "vp")),
    "cifar10-classes": Recipe("CIFAR-10 by class", _COLOUR32, 50_000, 10, lambda: labelled(cifar10())),
    "imagenet32": Recipe("ImageNet 32, straight path", _COLOUR32, 1_281_167, 0, imagenet32),
    "imagenet32-vp": Recipe("ImageNet 32, VP path", _COLOUR32, 1_281_167, 0, lambda: on_path(imagenet32(), "vp")),
    "imagenet64": Recipe("ImageNet 64, straight path", _COLOUR64, 1_281_167, 0, imagenet64),
    "imagenet64-vp": Recipe("ImageNet 64, VP path", _COLOUR64, 1_281_167, 0, lambda: on_path(imagenet64(), "vp")),
    "imagenet64-classes": Recipe("ImageNet 64 by class", _COLOUR64, 1_281_167, 1000, lambda: labelled(imagenet64())),
    "imagenet128": Recipe("ImageNet 128, straight path", _COLOUR128, 1_281_167, 0, imagenet128),
    "imagenet128-classes": Recipe(
        "ImageNet 128 by class", _COLOUR128, 1_281_167, 1000, lambda: labelled(imagenet128())
    ),
    "upscale256": Recipe("64 x 64 to 256 x 256", (3, 256, 256), 1_281_167, 0, upscale256),
    "fashion": Recipe("Fashion-MNIST by class", (1, 28, 28), 60_000, 10, fashion),
}


def recipe(name: str) -> Options:
    """Options of the recipe ``name``, a fresh copy.

    Raises:
        InputError: no such recipe.

    Example:
        >>> recipe("cifar10")["train"]["steps"]
        391000
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
        raise InputError(f"there is no recipe {name!r}; {hint}")
    return {"recipe": name, **RECIPES[name].options()}


def _with(options: Options, **parts: Options) -> Options:
    """A copy with some options of its parts set otherwise."""
    changed = copy.deepcopy(options)
    for part, more in parts.items():
        changed[part] = {**changed.get(part, {}), **more}
    return changed
