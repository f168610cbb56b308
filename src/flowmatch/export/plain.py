r"""What of a flow plain diffusers can express, and a refusal that says what to do for the rest.

diffusers samples by :math:`x \leftarrow x + (\sigma' - \sigma)\, f(x, T \sigma)` with the noise share :math:`\sigma`
falling from 1 to 0. With :math:`f(x, T\sigma) = -v(1 - \sigma, x)` that is Euler's method for :math:`\dot x = v(t, x)`
from ``t = 0`` to 1, whatever path the velocity was learnt on: a flow is its velocity and its source. So the path need
not be a straight one, and a ``sigma_min`` changes nothing: its noise is in the velocity, and samples carry it in either
package. Three things have to hold:

* the field is a velocity, answered by the network itself: a change of output (:class:`flowmatch.Predicts`) needs the
  schedule, which a diffusers model has not;
* the source is a normal. Its standard deviation, where not 1, is a factor of the noise that sampling starts from;
* the interval is that of the scheduler, [0, 1]. Paths that are singular at the data stop at ``1 - 1e-5``; the
  scheduler's last step goes on to 1, with the velocity that it has at the last but one stop, as it never asks at 1. The
  difference is 1e-5 velocities.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from flowmatch.errors import InputError
from flowmatch.fields import Guided
from flowmatch.flow import Flow
from flowmatch.nn import DiT, FromDiffusers, UNet
from flowmatch.sources import Normal

__all__ = ["Plain", "plain_parts"]

#: How far before the data a path may stop for the scheduler's last step to stand for ours.
END = 1e-4

ONNX = "an ONNX file holds any field: export it with to_onnx (--to onnx)"


@dataclass(frozen=True)
class Plain:
    """A flow in the terms of diffusers.

    Attributes:
        net: the network of diffusers, a copy in single precision.
        part: its name in a pipeline, ``"unet"`` or ``"transformer"``.
        time_scale: the ``num_train_timesteps`` of its scheduler.
        settings: arguments of the pipeline in ``pipeline.py`` that are not its defaults.
    """

    net: Any
    part: str
    time_scale: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def usual(self) -> bool:
        """Whether the pipeline for unconditional U-Nets that diffusers itself has will do."""
        return self.part == "unet" and not self.settings


def plain_parts(flow: Flow) -> Plain:
    """The flow's network and settings for diffusers.

    Raises:
        InputError: a field, a source or an interval that plain diffusers cannot express.
    """
    if type(flow.source) is not Normal:
        raise InputError(
            f"diffusers starts from normal noise, this flow from {flow.source!r}; {ONNX}, which starts anywhere"
        )
    low, high = flow.path.interval
    if low != 0 or high < 1 - END:
        raise InputError(
            f"the scheduler of diffusers runs from 0 to 1, the path of this flow from {low} to {high}; {ONNX}"
        )
    settings: dict[str, Any] = {} if flow.source.std == 1 else {"noise_std": flow.source.std}
    network, guidance = _unguided(flow.field)
    if isinstance(network, UNet | DiT):
        told = {name: getattr(network, name) for name in ("classes", "image", "mask", "noise")}
        settings |= {name: value for name, value in told.items() if value} | guidance
        scale, part = network.time_scale, "unet" if isinstance(network, UNet) else "transformer"
        copied: nn.Module = copy.deepcopy(network).cpu().float().eval()
        try:
            plain: Any = copied.to_diffusers()  # type: ignore[operator]
        except ValueError as error:  # a shape that the class of diffusers does not take
            raise InputError(f"{error}; {ONNX}") from None
    elif isinstance(network, FromDiffusers):
        raise InputError(
            f"this field is a {type(network.model).__name__} of diffusers already: write it with its own "
            f"save_pretrained, flow.field.model.save_pretrained(folder); {ONNX}"
        )
    else:
        raise InputError(
            f"plain diffusers has no network like {type(network).__name__}, only fm.nn.UNet and fm.nn.DiT as they "
            f"are; {ONNX}"
        )
    if scale != int(scale):
        raise InputError(
            f"the num_train_timesteps of a diffusers scheduler is a whole number, this network has time_scale={scale}; "
            f"train it with a whole one, or: {ONNX}"
        )
    return Plain(plain, part, int(scale), settings)


def _unguided(wrapped: Any) -> tuple[Any, dict[str, Any]]:
    """The network, and the settings of the guidance around it."""
    if not isinstance(wrapped, Guided):
        return wrapped, {}
    inner = wrapped.field
    if wrapped.scale is None:
        raise InputError(
            "guidance with a scale of each sample (scale=None) has no pendant in the pipeline; export the flow without "
            "guidance, Flow(flow.field.field, ...), and give guidance_scale= when sampling"
        )
    if not isinstance(inner, UNet | DiT) or not _same(wrapped, inner.null):
        raise InputError(
            "the pipeline leaves a condition out as the network's own null does (the label classes, an image of "
            f"zeros); this guidance has another null; {ONNX}"
        )
    guidance: dict[str, Any] = {} if wrapped.scale == 1 else {"guidance_scale": wrapped.scale}
    if wrapped.interval != (0.0, 1.0):
        guidance["guidance_interval"] = list(wrapped.interval)
    return inner, guidance


def _same(guided: Guided, null: Any) -> bool:
    leaves, form = pytree.tree_flatten(null)
    held = [getattr(guided, f"null_{i}") for i in range(guided._count)]
    return null is not None and form == guided._form and all(map(_is, held, leaves))


def _is(held: torch.Tensor, value: float) -> bool:
    return bool((held == value).all())
