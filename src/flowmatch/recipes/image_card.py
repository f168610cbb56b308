"""The model card of a run on images: what it is, how it was made, how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowmatch.recipes.card import size_and_loss

if TYPE_CHECKING:
    from flowmatch.recipes.image_runs import ImageRun, ImageRunConfig
    from flowmatch.train import TrainResult

__all__ = ["image_card"]

_JOBS = {
    "generate": "makes images",
    "upscale": "enlarges images",
    "inpaint": "paints in what is missing of images",
}


def image_card(name: str, config: ImageRunConfig, run: ImageRun, result: TrainResult, rows: int, held: int) -> str:
    """Markdown text of the card.

    Args:
        name: name of the run.
        config: what made it.
        run: the run.
        result: the trainer's account.
        rows: images trained on.
        held: images held out.
    """
    parameters, last = size_and_loss(result, "images")
    channels, height, width = run.shape
    kinds = f" of {len(run.classes)} classes" if run.classes else ""
    recipe = f"\n| recipe | {config.recipe} |" if config.recipe else ""
    use = {
        "generate": f"flowmatch sample {name} -n 64 --out new.png"
        + (f" --given {run.classes[0]} --guidance 2" if run.classes and config.train.label_dropout else ""),
        "upscale": f"flowmatch sample {name} --input small/ --out large/",
        "inpaint": f"flowmatch sample {name} --input whole/ --out painted/",
    }[config.flow.job]
    return f"""# {name}

A flow matching model that {_JOBS[config.flow.job]} of {channels} x {height} x {width}{kinds}.

| | |
|---|---|
| data | `{config.data.rpartition("/")[2]}`, {rows} images trained on, {held} held out |{recipe}
| path | {config.flow.path} |
| network | {config.flow.network}, {parameters:,} parameters |
| training | {result.step} steps of {config.train.batch_size} images in {result.seconds:.0f} s |
| seed | {config.train.seed} |
| weights | the average after step {result.selected} |
| held-out loss at the end | {last} |

## Use

```console
$ {use}
$ flowmatch evaluate {name}
$ flowmatch export {name} --to diffusers
```

```python
from flowmatch.recipes import ImageRun

run = ImageRun.open("{name}")
sample, likelihood = run.flow.sample, run.flow.likelihood  # on images (B, {channels}, {height}, {width}) in [-1, 1]
```
"""
