"""Bits of images under a run: what evaluations and ``flowmatch score`` share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.likelihood import Divergence, Exact, Hutchinson, bits_per_dim
from flowmatch.recipes.drawing import on_device
from flowmatch.recipes.image_runs import ImageRun
from flowmatch.recipes.images import make_job
from flowmatch.solvers import Dopri5

if TYPE_CHECKING:
    from flowmatch.data.images import Images

__all__ = ["LIKELY", "bits_of_images", "check_scorable", "divergence_for", "labels_for"]

#: An exact divergence takes as many passes as an image has numbers; beyond these it is estimated.
_EXACT = 64
#: How a likelihood is solved if nothing else is said; at ten times the tolerance bits change in the third digit.
LIKELY: dict[str, Any] = {"solver": Dopri5(), "rtol": 1e-4, "atol": 1e-4}


def check_scorable(run: ImageRun) -> None:
    """Raise unless a run has a likelihood of whole images.

    Raises:
        InputError: it paints in: the known pixels would have to be told with the noise that dequantises them.
    """
    if run.config.flow.job == "inpaint":
        raise InputError(
            f"the run at {run.folder} paints in, and has no likelihood of whole images; score those of a run that "
            "generates or enlarges"
        )


def divergence_for(run: ImageRun, probes: int | None = None) -> Divergence:
    """The exact divergence of small images, else an estimated one of so many probes, one by default."""
    if probes is None and math.prod(run.shape) <= _EXACT:
        return Exact()
    return Hutchinson(1 if probes is None else probes, reverse=True)


def labels_for(run: ImageRun, images: Images, given: str | None = None) -> Tensor | None:
    """The class number to score each image under.

    That of its own, or of ``given``; where neither is known the empty label, under which a network that was trained
    with label dropout has the law of all classes together.

    Raises:
        InputError: the classes are needed and not known.
    """
    if given is not None:
        return run.labels(len(images), torch.Generator(), given)
    if not run.classes:
        return None
    if images.labels is not None:
        run.check_seen(images.labels)
        return images.labels
    if run.config.train.label_dropout:
        return torch.full((len(images),), len(run.classes))
    raise InputError(
        f"the run at {run.folder} is told the class of an image, and was trained without --label-dropout, so that it "
        "does not know the law of all classes together: put the images into a sub-folder for each class, or say "
        "--given CLASS for all"
    )


def bits_of_images(
    run: ImageRun,
    images: Images,
    labels: Tensor | None,
    *,
    noises: int = 1,
    divergence: Divergence | None = None,
    generator: torch.Generator | None = None,
    batch: int = 64,
    tick: Callable[[float], Any] | None = None,
    how: dict[str, Any] | None = None,
) -> tuple[Tensor, int]:
    """Bits a dimension of images under uniform dequantisation, without guidance, which is no density.

    Args:
        run: the run.
        images: the images, ``B`` of them; what the run is told of an image is taken from itself.
        labels: class number of every image ``(B,)``, of a run with classes.
        noises: noises of each image.
        divergence: by :func:`divergence_for` if not given.
        generator: of noises and probes.
        batch: images solved at a time.
        tick: told the share that is done.
        how: how to solve; :data:`LIKELY` by default.

    Returns:
        Bits in float64 ``(B,)`` on the CPU, and the calls of the network, of all batches together.

    Raises:
        InputError: a run that paints in.
    """
    check_scorable(run)
    divergence = divergence_for(run) if divergence is None else divergence
    job = make_job(run.config.flow, images.subset(torch.arange(len(images)), flip=False, dequantize=False), noisy=False)
    device, parts, nfe = run.flow.home.device, [], 0
    for rows in torch.arange(len(images)).split(batch):
        _, cond = job.take(rows, generator)
        if labels is not None:
            cond = {**cond, "label": labels[rows]} if isinstance(cond, dict) else labels[rows]
        scored = bits_per_dim(
            run.flow,
            images.levels(rows).to(device),
            on_device(cond, device),
            noises=noises,
            divergence=divergence,
            generator=generator,
            **(LIKELY if how is None else how),
        )
        parts.append(scored.bits.cpu().double())
        nfe += scored.nfe
        if tick is not None:
            tick((int(rows[-1]) + 1) / len(images))
    return torch.cat(parts), nfe
