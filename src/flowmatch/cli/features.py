"""``flowmatch features``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowmatch.cli.errors import note, reported, say
from flowmatch.cli.working import Working
from flowmatch.errors import InputError

__all__ = ["features"]


@reported
def features(
    source: Annotated[str, typer.Argument(help="Images with classes to train on: a folder, .npz, idx or parquet.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the file.")] = Path("features"),
    test: Annotated[
        str | None, typer.Option(help="Split of the source to test on, such as test.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to train on.", show_default=False)] = None,
    size: Annotated[int | None, typer.Option(help="Side to crop and resize to.", show_default=False)] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour.", show_default=False)] = None,
    resample: Annotated[str, typer.Option(metavar="lanczos|bicubic|box", help="Filter that resizes.")] = "lanczos",
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the weights and the order.")] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the features. (default: of the source)")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Train a small classifier and freeze it, as features for flowmatch evaluate.

    The file's name ends in the hash of its content; numbers made with two files cannot be compared.
    """
    from flowmatch.metrics import train_classifier
    from flowmatch.recipes import ImageDataConfig
    from flowmatch.train import explain

    try:
        data = ImageDataConfig(size=size, channels=channels, resample=resample, split=split, dequantize=False)
    except ValueError as error:
        problems = error.errors() if hasattr(error, "errors") else []
        raise InputError("; ".join(explain(problem, ImageDataConfig) for problem in problems)) from None
    chosen = name or "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(source).resolve().stem)
    if not all(c.isalnum() or c in "-_." for c in chosen):
        raise InputError(f"--name must be of letters, digits, dots and dashes, got {chosen!r}")
    if epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {epochs}")
    images = data.load(source)
    for line in images.report.lines():
        note(line)
    if not images.classes:
        raise InputError(f"{source} has no classes to tell apart; give images in a sub-folder for each class")
    with Working("training", quiet) as working:
        net = train_classifier(
            images,
            epochs=epochs,
            batch=min(128, len(images)),
            seed=seed,
            name=chosen,
            on_step=lambda step, steps, loss: working.update(step / steps, f"loss {loss:.3f}"),
        )
    path = net.save(out)
    if quiet:
        return
    if test is not None:
        other = data.load(source, split=test, classes=images.classes)
        largest = max(other.counts.values()) / len(other)
        say(f"right on {net.accuracy(other):.2%} of {test}; the largest class is {largest:.2%}")
    say(f"features written to {path}")
    say(f"next: flowmatch evaluate RUN --features {path}")
