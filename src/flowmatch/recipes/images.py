"""The recipe for images: from their shape and number to a network, an objective and a training run.

Three jobs share one network and one loop, and differ in what the network is told:

* ``generate``: the class of an image, if there are classes. The label is left out of some samples in training, so that
  one network knows the law of each class and of all, which classifier-free guidance needs;
* ``upscale``: the image made smaller by a factor and enlarged again;
* ``inpaint``: the image with a hole in it, and where the hole is.

What the defaults weigh: the small network is the largest that two CPU cores train in an hour; times are stratified, the
same expected loss with less noise in its gradient; bytes are spread over their cells, since without that the
likelihood of a pixel that is always black has no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field

from flowmatch.errors import InputError
from flowmatch.fields import Predicts
from flowmatch.flow import Flow
from flowmatch.nn import dit_preset, unet_preset
from flowmatch.nn.images import ImageNetwork
from flowmatch.paths import AffinePath
from flowmatch.recipes.matching import MatchingConfig, make_objective
from flowmatch.train import TrainConfig, Trainer, TrainResult

if TYPE_CHECKING:
    from flowmatch.data.images import Images

__all__ = ["ImageConfig", "ImageDataConfig", "fit_images", "make_image_model", "make_job", "suggest_images"]

_DITS = {"dit-small": "small", "dit-s/2": "DiT-S/2", "dit-b/2": "DiT-B/2", "dit-l/2": "DiT-L/2", "dit-xl/2": "DiT-XL/2"}


class ImageDataConfig(BaseModel):
    """How images are read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: int | None = Field(None, ge=1, description="side to crop and resize to; needed where sizes differ")
    channels: int | None = Field(None, description="1 for grey, 3 for colour; as the images are if open")
    split: str | None = Field(None, description="which of several sets to train on, train where there is one")
    resample: Literal["lanczos", "bicubic", "box"] = Field("lanczos", description="filter that resizes")
    flip: bool = Field(False, description="mirror half of the images left to right, anew each time")
    dequantize: bool = Field(True, description="spread bytes over their cells, which likelihoods need")
    labels: bool = Field(True, description="learn the classes, if the images have any")
    column: str | None = Field(None, description="column or array of the images, where it is not clear")
    strict: bool = Field(False, description="stop at a damaged image, which is else left out and named")

    def load(self, source: str, rows: int | None = None, split: str | None = None) -> Images:
        """Read images from ``source`` in this way, from another ``split`` if one is named."""
        from flowmatch.data.images import load_images

        return load_images(
            source,
            self.size,
            self.channels,
            split=self.split if split is None else split,
            labels=self.labels,
            column=self.column,
            rows=rows,
            resample=self.resample,
            flip=self.flip,
            dequantize=self.dequantize,
            strict=self.strict,
        )


class ImageConfig(MatchingConfig):
    """What is learnt: the job, the path, pairs, times and the network.

    Example:
        >>> ImageConfig(job="upscale", factor=4).network
        'small'
    """

    job: Literal["generate", "upscale", "inpaint"] = Field("generate", description="what the network is for")
    factor: int = Field(2, ge=2, description="how much smaller the images are that are to be enlarged")
    cond_noise: float = Field(
        0.0, ge=0, description="largest noise added to the small image in training, told to the network"
    )
    holes: Literal["box", "pixel"] = Field("box", description="what is to be painted in: rectangles or single pixels")
    network: Literal[
        "small",
        "base",
        "cifar10",
        "imagenet32",
        "imagenet64",
        "imagenet128",
        "dit-small",
        "dit-s/2",
        "dit-b/2",
        "dit-l/2",
        "dit-xl/2",
    ] = Field("small", description="network: a U-Net, or a transformer (dit)")
    network_options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the network that stand in for those of its name"
    )


def suggest_images(count: int, labelled: bool, job: str = "generate") -> dict[str, Any]:
    """Default options of ``TrainConfig`` for ``count`` images.

    Example:
        >>> suggest_images(60_000, labelled=True)["label_dropout"]
        0.1
    """
    small = count < 2000
    return {
        "steps": 2000 if small else 6000,
        "batch_size": min(128, max(1, count)),
        "learning_rate": 1e-3,
        "betas": (0.9, 0.99),
        "warmup": 100,
        "label_dropout": 0.1 if labelled and job == "generate" else 0.0,
        "evaluate_every": 500,
        "checkpoint_every": 500,
    }


def make_job(config: ImageConfig, images: Images) -> Any:
    """Images with what the job tells the network about them.

    Raises:
        InputError: sides that the factor does not divide.
    """
    from flowmatch.data.images import Downsampled, Masked, box_holes, pixel_holes

    if config.job == "upscale":
        return Downsampled(images, config.factor, noise=config.cond_noise)
    if config.job == "inpaint":
        return Masked(images, box_holes if config.holes == "box" else pixel_holes)
    return images


def make_image_model(config: ImageConfig, shape: Sequence[int], classes: int = 0, seed: int = 0) -> ImageNetwork:
    """The network that a config names, its first weights fixed by ``seed``; leaves the global generator alone.

    Raises:
        InputError: a shape or options that the network cannot take.
        ImportError: diffusers is not installed.
    """
    told: dict[str, Any] = {}
    if config.job != "generate":
        told = {
            "image": shape[0],
            "mask": config.job == "inpaint",
            "noise": config.job == "upscale" and config.cond_noise > 0,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if config.network in _DITS:
                return dit_preset(_DITS[config.network], shape, classes, **told, **config.network_options)
            return unet_preset(config.network, shape, classes, **told, **config.network_options)
        except (TypeError, ValueError) as error:
            sides = " x ".join(map(str, shape))
            raise InputError(
                f"network {config.network} does not take images of {sides}: {error}; resize them with --size, or "
                "choose another --network"
            ) from None


def fit_images(
    images: Images,
    holdout: Images | None,
    *,
    flow: ImageConfig | None = None,
    train: TrainConfig | None = None,
    out: FilePath | None = None,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
) -> tuple[Flow, TrainResult]:
    """Train a flow on images.

    Args:
        images: what to learn, as :func:`flowmatch.data.images.load_images` reads it.
        holdout: images kept out of training, or ``None``.
        flow: job, path, pairs, times and network.
        train: training options; by :func:`suggest_images` if not given.
        out: run folder for checkpoints and metrics, or ``None`` to write nothing.
        callbacks: told about progress; see :mod:`flowmatch.train`.
        resume: go on from the newest good checkpoint in ``out``.

    Returns:
        The flow with the averaged weights, and the trainer's account. Its condition is the label of an image, or what
        the job's ``given`` makes.

    Example:
        >>> from flowmatch.data.images import Images
        >>> images = Images(torch.zeros(8, 1, 4, 4, dtype=torch.uint8))
        >>> config = ImageConfig(network="dit-small", network_options={"hidden": 8, "depth": 1, "heads": 1})
        >>> trained, _ = fit_images(images, None, flow=config, train=TrainConfig(steps=2, batch_size=4))
        >>> trained.sample(3, steps=2).shape
        torch.Size([3, 1, 4, 4])
    """
    flow = ImageConfig() if flow is None else flow
    classes = len(images.classes)
    train = TrainConfig(**suggest_images(len(images), bool(classes), flow.job)) if train is None else train
    if flow.job != "generate" and flow.coupling != "independent":
        raise InputError(
            f"coupling {flow.coupling} does not go with job {flow.job}: what is known of an image all but tells it, so "
            "no two noises could change places; use coupling independent"
        )
    objective = make_objective(flow, classes)
    path = cast(AffinePath, objective.path)
    model = make_image_model(flow, images.shape, classes, train.seed)
    held = None if holdout is None else make_job(flow, holdout)
    data = make_job(flow, images)
    trainer = Trainer(model, objective, data, config=train, holdout=held, out=out, callbacks=callbacks)
    result = trainer.fit(resume=resume)
    return make_flow(result.model, flow, path, images.shape), result


def make_flow(model: Any, config: ImageConfig, path: AffinePath, shape: Sequence[int]) -> Flow:
    """The flow of a network trained under ``config``."""
    field = model if config.predicts == "velocity" else Predicts(model, path, config.predicts)
    return Flow(field, path, tuple(shape), independent=config.coupling == "independent").eval()
