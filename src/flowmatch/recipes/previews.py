"""A look at the samples while a network trains, always from the same noise.

The pictures of one run then differ by what was learnt between them and by nothing else. Where there are classes each
row is one class; where the network is told an image, each row is what it is told, a sample, and the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowmatch.persist import write_atomically
from flowmatch.recipes.drawing import draw
from flowmatch.recipes.image_runs import ImageRunConfig
from flowmatch.recipes.images import make_job
from flowmatch.recipes.matching import make_flow, make_path
from flowmatch.solvers import AdamsBashforth
from flowmatch.train import Callback, TrainResult

if TYPE_CHECKING:
    from flowmatch.data.images import Images

__all__ = ["Previews", "told_sheet"]

#: Fixed steps, so that a look costs the same whatever was learnt; a twentieth of the way shows what there is to see.
HOW: dict[str, Any] = {"solver": AdamsBashforth(2), "steps": 20}
_ROWS, _COLUMNS = 10, 10


class Previews(Callback):
    """Writes ``samples/step_00001000.png`` every ``sample_every`` steps, and ``samples.png`` at the end.

    Args:
        config: the run's config.
        images: images to tell the network of, where it has to be told one; held-out ones, if there are any.
        out: run folder.
    """

    def __init__(self, config: ImageRunConfig, images: Images, out: Path) -> None:
        self.config, self.out = config, out
        self.classes = len(images.classes)
        generator = torch.Generator().manual_seed(config.train.seed)
        self.shape = images.shape
        self.truth: Tensor | None = None
        self.cond: Any = None
        if config.flow.job == "generate":
            shown = torch.linspace(0, max(0, self.classes - 1), min(self.classes, _ROWS) or _ROWS).round().long()
            labels = shown.repeat_interleave(_COLUMNS)
            self.cond, self.count = (labels if self.classes else None), len(labels)
        else:
            index = torch.randperm(len(images), generator=generator)[:_ROWS]
            self.truth, self.cond = make_job(config.flow, images, noisy=False).take(index, generator)
            self.count = len(index)
        self.noise = torch.randn(self.count, *images.shape, generator=generator)

    def on_sample(self, step: int, model: nn.Module) -> dict[str, Tensor]:
        """Draw and write; what is returned goes to TensorBoard and its like."""
        return {"samples": self._write(model, self.out / "samples" / f"step_{step:08d}.png")}

    def on_end(self, result: TrainResult) -> None:
        """Draw the last one, with the weights that are kept."""
        self._write(result.model, self.out / "samples.png")

    def sheet(self, model: nn.Module) -> Tensor:
        """The sheet in bytes, ``(C, height, width)``."""
        from flowmatch.data.images import sheet, to_uint8

        path = make_path(self.config.flow)
        flow = make_flow(model, self.config.flow, path, self.shape)
        # No more at a time than in training; and the noise of the path's own source, which is wider than one on some.
        at_once = max(1, self.config.train.batch_size // self.config.train.accumulate)
        noise = self.noise * path.source_std
        made = to_uint8(draw(self.config.flow, flow, self.count, self.cond, HOW, batch=at_once, noise=noise))
        if self.truth is None:
            return sheet(made, _COLUMNS)
        return told_sheet(self.cond["image"], made, to_uint8(self.truth))

    def _write(self, model: nn.Module, target: Path) -> Tensor:
        from flowmatch.data.images.write import png

        target.parent.mkdir(parents=True, exist_ok=True)
        drawn = self.sheet(model)
        write_atomically(target, png(drawn))
        return drawn


def told_sheet(told: Tensor, made: Tensor, truth: Tensor | None = None, groups: int = 1) -> Tensor:
    """One row a sample: the image that the network was told, the sample, and the truth if it is known.

    Args:
        told: images ``(N, C, H, W)`` in ``[-1, 1]``.
        made: samples in bytes, alike.
        truth: in bytes, alike.
        groups: samples in a row of the sheet.
    """
    from flowmatch.data.images import sheet, to_uint8

    parts = [to_uint8(told.float().cpu().clamp(-1, 1)), made] + ([] if truth is None else [truth])
    return sheet(torch.stack(parts, dim=1).flatten(0, 1), groups * len(parts))
