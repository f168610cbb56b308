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

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field

from flowmatch.errors import InputError
from flowmatch.flow import Flow
from flowmatch.nn import dit_preset, unet_preset
from flowmatch.nn.images import ImageNetwork
from flowmatch.paths import AffinePath
from flowmatch.recipes.matching import MatchingConfig, make_flow, make_objective
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
    labels: bool | None = Field(
        None, description="learn the classes, if the images have any; by default where images are made from noise alone"
    )
    column: str | None = Field(None, description="column or array of the images, where it is not clear")
    strict: bool = Field(False, description="stop at a damaged image, which is else left out and named")

    def learns_labels(self, job: str) -> bool:
        """Whether classes are learnt for a job, by default where images are made from noise alone."""
        return job == "generate" if self.labels is None else self.labels

    def load(
        self,
        source: str,
        rows: int | None = None,
        split: str | None = None,
        job: str = "generate",
        classes: Sequence[str] | None = None,
        least: int = 2,
    ) -> Images:
        """Read images from ``source`` in this way.

        Args:
            source: where they are.
            rows: so many of them only.
            split: another split than that of training.
            job: what for; decides on labels that are left open.
            classes: names of the classes in the order of their numbers, where they are known already.
            least: fewest images that will do.

        Raises:
            InputError: they cannot be read, or have a class that is not among those known.
        """
        from flowmatch.data.images import load_images

        return load_images(
            source,
            self.size,
            self.channels,
            split=self.split if split is None else split,
            labels=self.learns_labels(job),
            known=classes or None,
            column=self.column,
            rows=rows,
            least=least,
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


def suggest_images(count: int, labelled: bool, job: str = "generate", processes: int = 1) -> dict[str, Any]:
    """Default options of ``TrainConfig`` for ``count`` images, trained on by so many processes.

    Example:
        >>> suggest_images(60_000, labelled=True)["label_dropout"]
        0.1
    """
    small = count < 2000
    return {
        "steps": 2000 if small else 6000,
        "batch_size": max(processes, min(128, count) // processes * processes),
        "learning_rate": 1e-3,
        "betas": (0.9, 0.99),
        "warmup": 100,
        "label_dropout": 0.1 if labelled and job == "generate" else 0.0,
        "evaluate_every": 500,
        "checkpoint_every": 500,
    }


def make_job(config: ImageConfig, images: Images, noisy: bool = True) -> Any:
    """Images with what the job tells the network about them.

    Args:
        config: the job.
        images: the images.
        noisy: add the noise of ``cond_noise`` to small images, as in training; in use they are given as they are.

    Raises:
        InputError: sides that the factor does not divide.
    """
    from flowmatch.data.images import Downsampled, Masked, box_holes, pixel_holes

    if config.job == "upscale":
        job = Downsampled(images, config.factor, noise=config.cond_noise if noisy else 0.0)
        return job if noisy or not config.cond_noise else _Clear(job)
    if config.job == "inpaint":
        return Masked(images, box_holes if config.holes == "box" else pixel_holes)
    return images


class _Clear:
    """Small images without noise, for a network that is told how much there is: none."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __len__(self) -> int:
        return len(self.job)

    def take(self, index: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, Any]:
        x1, cond = self.job.take(index, generator)
        return x1, {**cond, "noise": x1.new_zeros(len(x1))}


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
        except TypeError as error:
            raise InputError(f"network_options do not fit network {config.network}: {error}") from None
        except ValueError as error:
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
    ready: Callable[[], Any] | None = None,
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
        ready: called once all options have been checked, before anything is written.

    Returns:
        The flow with the averaged weights, and the trainer's account. Its condition is the label of an image, or what
        the job's ``given`` makes.

    Raises:
        InputError: options that do not go together, or a shape that the network cannot take.

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
    if train.label_dropout and not classes:
        raise InputError(
            f"label_dropout {train.label_dropout:g} needs images with classes, and these have none; put them into a "
            "sub-folder for each class, or leave --label-dropout out"
        )
    objective = make_objective(flow, classes)
    path = cast(AffinePath, objective.path)
    model = make_image_model(flow, images.shape, classes, train.seed)
    held = None if holdout is None else make_job(flow, holdout)
    data = make_job(flow, images)
    trainer = Trainer(model, objective, data, config=train, holdout=held, out=out, callbacks=callbacks)
    if ready is not None:
        ready()
    result = trainer.fit(resume=resume)
    return make_flow(result.model, flow, path, images.shape), result


def painted(config: ImageConfig, made: torch.Tensor, cond: Any) -> torch.Tensor:
    """Samples ``(B, C, H, W)`` as they are used: what was known of an image that was painted in stays as it was."""
    if config.job != "inpaint":
        return made
    return torch.where(cond["mask"].to(made.device), cond["image"].to(made), made)
