"""``flowmatch evaluate`` on a run of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flowmatch.cli.errors import note, say
from flowmatch.cli.working import Working
from flowmatch.errors import InputError
from flowmatch.recipes import ImageRun

if TYPE_CHECKING:
    from flowmatch.metrics import FeatureNet
    from flowmatch.report.readings import Reading

__all__ = ["Compared", "evaluate_images", "in_one_line"]

_KEPT = 5000  # training images at most that features do not see, for the floors


@dataclass(frozen=True)
class Compared:
    """What to compare.

    Attributes:
        samples: number of samples.
        split: split of the source that stands in for the held-out images.
        features: ``"inception"`` or a file; the run's own by default.
        guidance: strength of guidance.
        noises: noises a scored image.
        rows: images to score.
        seed: seed of everything drawn.
        data: where the images lie now.
    """

    samples: int
    split: str | None
    features: str | None
    guidance: float | None
    noises: int
    rows: int | None
    seed: int
    data: str | None


def evaluate_images(run: ImageRun, wanted: Compared, how: dict[str, Any], quiet: bool) -> None:
    """Measure, write the report and say the numbers."""
    from flowmatch.report import evaluate_image_run
    from flowmatch.report.image_readings import image_readings

    if wanted.samples < 4 or wanted.noises < 1 or (wanted.rows is not None and wanted.rows < 0):
        raise InputError(
            f"need --samples of 4, --noises of 1 and --likelihood-rows of 0 at least, got {wanted.samples}, "
            f"{wanted.noises} and {wanted.rows}"
        )
    if wanted.guidance is not None:
        run.guided(wanted.guidance)
    train, heldout = run.split(wanted.data)
    if wanted.split is not None:
        heldout = run.config.load(wanted.data, wanted.split, run.classes)
    if heldout is None:
        raise InputError(f"the run at {run.folder} kept no images out of training; give another set with --split")
    with Working("evaluating", quiet) as working:
        net, other, notes = _features(run, wanted.features, train, working)
        _check_features(net, heldout)
        result = evaluate_image_run(
            run,
            train,
            heldout,
            net,
            run.folder,
            how,
            samples=wanted.samples,
            other=other,
            notes=notes,
            guidance=wanted.guidance,
            likelihood_rows=32 if wanted.rows is None else wanted.rows,
            noises=wanted.noises,
            seed=wanted.seed,
            progress=working.update,
        )
    if not quiet:
        for reading in image_readings(result):
            say(in_one_line(reading))
        for line in result["notes"]:
            note(line)
        say(f"features: {net.name}, SHA-256 {net.sha256[:16]}")
        say(f"report written to {run.folder / 'report.html'}")


def in_one_line(reading: Reading) -> str:
    """A number of the report as a line of text."""
    beside = "; ".join(f"{what} {value}" for what, value in reading.beside)
    return f"{reading.name}: {' '.join((reading.value, reading.error)).strip()} {reading.unit} ({beside})"


def _features(run: ImageRun, asked: str | None, train: Any, working: Working) -> tuple[Any, Any, list[str]]:
    """The features asked for, else those made for the run before, or made now; real images for the floors; notes.

    A classifier knows its training images too well: their features lie further from those of held-out ones than fresh
    images do, and a floor made with them would be too high. So a part is kept from the classifier that is made here.
    """
    from flowmatch.metrics import inception_features, load_features, train_classifier

    device = run.flow.home.device
    if asked == "inception":
        return inception_features().to(device), train, []
    if asked is not None:
        told = "If the features were trained on the run's own images, the floors are too high: read them with care."
        return load_features(asked).to(device), train, [told]
    folder = run.folder / "features"
    if len(run.classes) < 2:
        raise InputError(
            f"the run at {run.folder} knows no classes to make features from; give --features inception, or a file "
            "that flowmatch features made from images with classes"
        )
    learnt, kept = train.split(min(_KEPT, len(train) // 4), seed=run.config.train.seed + 1)
    made = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if made:
        return load_features(made[0]).to(device), kept, []
    working.update(0.0, "training features")
    plain = learnt.subset(torch.arange(len(learnt)), flip=False, dequantize=False)
    net = train_classifier(plain, batch=min(128, len(learnt)), name="own-classes", device=device)
    net.save(folder)
    return net, kept, []


def _check_features(net: FeatureNet, images: Any) -> None:
    """Try one image, so that features of another size are told before the samples are drawn.

    Raises:
        InputError: they do not take these images.
    """
    try:
        net(images.take(torch.arange(1))[0])
    except ValueError as error:
        raise InputError(f"the features do not fit the run's images: {error}") from None
