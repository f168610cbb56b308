"""Labels replaced by the empty one now and then, so that one network learns the field with and without a class.

The draw has been made by then: a coupling that looks at labels has joined the pairs by the true ones, and what is
dropped is only what the network is told. The choice has a stream of its own, so that a run with and a run without it
see the same rows, times and noise.

Source: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, Algorithm 1, https://arxiv.org/abs/2207.12598.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.randomness import rand

__all__ = ["LabelDropout"]


class LabelDropout:
    """Replaces each label of a draw by the empty one with a fixed probability, and nothing else.

    Args:
        model: the network; its ``null``, or ``null["label"]``, is the empty label.
        share: the probability.

    Raises:
        InputError: the network has no empty label; on use, a draw without labels.

    Example:
        >>> import flowmatch as fm
        >>> drop = LabelDropout(fm.nn.DiT((1, 4, 4), hidden=8, depth=1, heads=1, classes=10), share=0.5)
        >>> draw = fm.FlowMatching(fm.AffinePath()).draw(torch.zeros(6, 1, 4, 4), cond=torch.arange(6))
        >>> drop(draw, torch.Generator().manual_seed(0)).cond
        tensor([10,  1, 10, 10, 10,  5])
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        null = getattr(model, "null", None)
        empty = null.get("label") if isinstance(null, Mapping) else null
        if not isinstance(empty, int) or isinstance(empty, bool):
            raise InputError(
                f"label_dropout needs a network with an empty label, and {type(model).__name__} has none; sort "
                "the images into sub-folders as classes, or set label_dropout=0 (in Python: a network with classes=)"
            )
        self.empty, self.share = empty, share

    def __call__(self, draw: Any, generator: torch.Generator) -> Any:
        """The draw with some labels replaced; the one that was given stays as it is."""
        cond = getattr(draw, "cond", None)
        label = cond.get("label") if isinstance(cond, Mapping) else cond
        if not isinstance(label, Tensor) or label.is_floating_point() or label.ndim != 1:
            found = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
            raise InputError(
                f"label_dropout needs draws whose condition is a label (B,), or a dict with one, got {found}; give "
                "data with labels, or set label_dropout=0"
            )
        dropped = rand((len(label),), generator, label.device) < self.share
        label = label.masked_fill(dropped, self.empty)
        return draw._replace(cond={**cond, "label": label} if isinstance(cond, Mapping) else label)
