r"""Networks of diffusers as fields: their time and sign turned into ours.

A diffusers network trained by flow matching is called with a timestep, :math:`1000\, \sigma` for the noise share
:math:`\sigma = 1 - t`, and predicts noise less data, so

.. math:: v(t, x) = -\, \mathrm{model}\big( x,\; 1000\, (1 - t) \big) .
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.nn.forward_mode import differentiable
from flowmatch.tensors import check_event, check_shaped, check_time
from flowmatch.typing import Cond

__all__ = ["FromDiffusers", "from_diffusers"]


class FromDiffusers(nn.Module):
    r"""A U-Net or transformer of diffusers as a velocity field.

    .. math:: v(t, x) = -\, \mathrm{model}\big( x,\; \mathrm{time\_scale}\, (1 - t) \big)

    A condition that is a tensor is given as ``class_labels``, one that is a dict as the arguments that it names, such
    as ``encoder_hidden_states``. Attention is differentiable in forward mode, so that likelihoods are exact.

    Args:
        model: the network, with a ``forward(sample, timestep=..., return_dict=...)`` as those of diffusers have, or
            with ``hidden_states`` for ``sample``.
        time_scale: what the noise share is multiplied by; 1 for networks that are called with the share itself.
        **arguments: further arguments of every call, that are no condition of a sample, such as ``img_ids``.

    Raises:
        TypeError: not a module, or one without ``timestep``.
        ValueError: a time scale that is not positive; on use, an answer that has not the shape of ``x``.
    """

    def __init__(self, model: nn.Module, time_scale: float = 1000.0, **arguments: Any) -> None:
        super().__init__()
        if not isinstance(model, nn.Module) or "timestep" not in inspect.signature(model.forward).parameters:
            raise TypeError(
                "model must be a network of diffusers, with a forward(sample, timestep, ...), got "
                f"{type(model).__name__}; a pipeline holds its own as .unet or .transformer"
            )
        if not 0 < time_scale < math.inf:
            raise ValueError(f"time_scale must be positive and finite, got {time_scale}")
        self.model, self.time_scale, self.arguments = model, float(time_scale), arguments

    def forward(self, t: Tensor | float, x: Tensor, cond: Cond = None) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)``, under the condition."""
        check_event(x)
        if not x.shape[0]:  # attention of diffusers takes no empty batch
            return torch.zeros_like(x)
        told = {} if cond is None else dict(cond) if isinstance(cond, Mapping) else {"class_labels": cond}
        timestep = self.time_scale * (1 - check_time(t, x).expand(x.shape[:1]))
        with differentiable():
            (answer, *_) = self.model(x, timestep=timestep, return_dict=False, **told, **self.arguments)
        check_shaped(answer, x, "model", "velocity")
        velocity: Tensor = -answer
        return velocity

    def __repr__(self) -> str:
        return f"FromDiffusers({type(self.model).__name__}, time_scale={self.time_scale})"


def from_diffusers(model: nn.Module, time_scale: float = 1000.0, **arguments: Any) -> FromDiffusers:
    """The network ``model`` of diffusers, trained by flow matching, as a field; see :class:`FromDiffusers`.

    Example:
        >>> from torch import nn
        >>> class Model(nn.Module):  # stands in for a UNet2DModel
        ...     def forward(self, sample, timestep, return_dict=True):
        ...         return (timestep[:, None] * sample,)
        >>> field = from_diffusers(Model())
        >>> field(0.75, sample := torch.ones(1, 2))
        tensor([[-250., -250.]])
    """
    return FromDiffusers(model, time_scale, **arguments)
