"""Evaluation of a run on images: distances in features, bits a dimension, likeness to the truth, and their floors."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flowmatch import plot
from flowmatch.errors import InputError
from flowmatch.likelihood import Exact
from flowmatch.metrics import FeatureNet, evaluate_images, ssim
from flowmatch.persist import write_atomically
from flowmatch.recipes import ImageRun, make_job
from flowmatch.recipes.drawing import draw, on_device, part_of
from flowmatch.recipes.previews import told_sheet
from flowmatch.recipes.scoring import bits_of_images, divergence_for
from flowmatch.report.page import write_html
from flowmatch.report.subject import Progress
from flowmatch.solvers import Dopri5, Midpoint

if TYPE_CHECKING:
    from flowmatch.data.images import Images

__all__ = ["evaluate_image_run"]

#: Tolerance of the adaptive solver whose calls are counted, that of the paper.
_TOLERANCE = 1e-5
_COUNTED = 16
_SHOWN = 80


def evaluate_image_run(
    run: ImageRun,
    train: Images,
    heldout: Images,
    features: FeatureNet,
    out: Path,
    how: dict[str, Any],
    *,
    samples: int = 2000,
    other: Images | None = None,
    notes: Sequence[str] = (),
    guidance: float | None = None,
    likelihood_rows: int = 32,
    noises: int = 1,
    seed: int = 0,
    batch: int = 256,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a run on images it never saw, and write a report about it.

    Writes ``report.html``, ``evaluation.json`` and ``plots/*.png`` into ``out``.

    Args:
        run: the run.
        train: images it was trained on.
        heldout: images it never saw.
        features: what distances are taken in; the report names them.
        out: folder of the report.
        how: ``solver=``, ``steps=`` and so on, of the samples.
        samples: number of samples to compare; as many as there are held-out images at most.
        other: real images for the floors, best such as the features were not trained on; ``train`` by default.
        notes: what the reader of the report should know.
        guidance: strength of guidance.
        likelihood_rows: held-out images to score; 0 for none. Runs that paint in have no bits: the known pixels are
            told with the noise that the likelihood would have to draw.
        noises: noises that each image is dequantised by.
        seed: seed of everything drawn.
        batch: images solved at a time.
        progress: called with the part that is done, from 0 to 1, and what comes next.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        InputError: too few images to compare with.
    """
    began = time.perf_counter()
    tick: Progress = progress if progress is not None else lambda done, what: None
    other = train if other is None else other
    count = min(samples, len(heldout), len(other))
    if count < 4:
        raise InputError(f"an evaluation needs 4 held-out images at least, got {count}; hold out more, or give --split")
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(heldout), generator=generator)[:count]
    job = make_job(run.config.flow, heldout.subset(index, flip=False, dequantize=False), noisy=False)
    truth, cond = job.take(torch.arange(count), generator)
    flow = run.flow if guidance is None else run.guided(guidance)
    tick(0.0, "drawing samples")
    working = lambda part: tick(0.4 * part, "drawing samples")  # noqa: E731
    made = draw(run.config.flow, flow, count, cond, how, batch=batch, generator=generator, tick=working)
    tick(0.4, "comparing features")
    compared = evaluate_images(made, truth, other.subset(_some(other, count, generator), flip=False), features)
    found: dict[str, Any] = {
        "title": run.folder.resolve().name,
        "kind": "images",
        "job": run.config.flow.job,
        "rows": {"train": len(train), "heldout": len(heldout)},
        "shape": list(run.shape),
        "classes": len(run.classes),
        "seed": seed,
        "guidance": guidance,
        "notes": [
            *notes,
            *([] if count == samples else [f"Compared are {count} images: there are no more to compare."]),
        ],
        "distances": compared.to_dict(),
        "likeness": None if run.config.flow.job == "generate" else _likeness(made, truth, cond),
    }
    tick(0.55, "counting calls")
    found["sampling"] = _cost(flow, cond, generator, how)
    tick(0.6, "scoring held-out images")
    scored = likelihood_rows if run.config.flow.job != "inpaint" else 0
    found["bits_per_dim"] = _bits(run, heldout, min(scored, len(heldout)), noises, seed) if scored else None
    tick(0.95, "drawing pictures")
    found["figures"] = _figures(run, made, truth, cond, train, features, out)
    found["seconds"] = time.perf_counter() - began
    write_atomically(out / "evaluation.json", (json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
    write_html(found, out / "report.html")
    tick(1.0, "done")
    return found


def _some(images: Images, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(images), generator=generator)[:count]


def _likeness(made: Tensor, truth: Tensor, cond: Any) -> dict[str, Any]:
    """How near the samples are to the images they were made for, beside what the network was told.

    PSNR is that of the mean squared error over all images, since that of one image that is met exactly is infinite.
    """

    def decibels(x: Tensor) -> float | None:
        error = float((x - truth).double().square().mean())
        return 10 * math.log10(4 / error) if error else None

    made, told = made.clamp(-1, 1), cond["image"].clamp(-1, 1)
    found: dict[str, Any] = {"psnr": {"samples": decibels(made), "told": decibels(told)}}
    if min(made.shape[2:]) >= 11:  # the window of SSIM
        found["ssim"] = {"samples": float(ssim(made, truth).mean()), "told": float(ssim(told, truth).mean())}
    return found


def _cost(flow: Any, cond: Any, generator: torch.Generator, how: dict[str, Any]) -> dict[str, Any]:
    """Calls of the sampler, and of an adaptive one under a tight tolerance."""
    count = _COUNTED if cond is None else min(_COUNTED, len(pytree.tree_leaves(cond)[0]))
    few = on_device(part_of(cond, torch.arange(count)), flow.home.device)
    start = flow.start(count, generator)
    with torch.no_grad():
        used = flow.solve(start, few, **how)
        tight = flow.solve(start, few, solver=Dopri5(), rtol=_TOLERANCE, atol=_TOLERANCE)
    away = (used.x - tight.x).float().square().mean().sqrt()
    return {
        "solver": type(how.get("solver") or flow.solver or (Midpoint() if "steps" in how else Dopri5())).__name__,
        "nfe": int(used.nfe),
        "adaptive_nfe": int(tight.nfe),
        "tolerance": _TOLERANCE,
        "error": float(away),
    }


def _bits(run: ImageRun, heldout: Images, rows: int, noises: int, seed: int) -> dict[str, Any]:
    """Bits a dimension of held-out images, without guidance, which is no density."""
    generator = torch.Generator().manual_seed(seed)
    index = _some(heldout, rows, generator)
    divergence = divergence_for(run)
    some = heldout.subset(index)
    how: dict[str, Any] = {"noises": noises, "divergence": divergence, "generator": generator, "batch": rows}
    bits, nfe = bits_of_images(run, some, some.labels, **how)
    return {
        "mean": float(bits.mean()),
        "stderr": float(bits.std() / math.sqrt(rows)) if rows > 1 else None,
        "noises": noises,
        "rows": rows,
        "nfe": nfe,
        "divergence": "exact" if isinstance(divergence, Exact) else "estimated with one probe",
        "dequantized": run.config.images.dequantize,
    }


def _figures(
    run: ImageRun, made: Tensor, truth: Tensor, cond: Any, train: Images, features: FeatureNet, out: Path
) -> list[dict[str, str]]:
    from flowmatch.data.images import sheet, to_uint8
    from flowmatch.data.images.write import png

    folder = out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[tuple[str, str, str, bytes]] = []
    levels, real = to_uint8(made[:_SHOWN]), to_uint8(truth[:_SHOWN])
    if run.config.flow.job == "generate":
        text = "Samples in the order in which they were drawn; none was chosen."
        drawn.append(("samples", "Samples", text, png(sheet(levels, 10, _scale(run)))))
        text = "Held-out images, of the same classes where there are any."
        drawn.append(("heldout", "Held-out images", text, png(sheet(real, 10, _scale(run)))))
    else:
        text = "Three images a sample: what the network was told, what it made, and the truth."
        told = cond["image"][:30]
        drawn.append(("samples", "Samples", text, png(told_sheet(told, levels[:30], real[:30], 3))))
    near = _nearest(made[:10], train, features)
    text = (
        "Above ten samples, below each the training image nearest to it in the features. Samples should not be copies."
    )
    pairs = torch.cat([levels[:10], train.levels(near)])
    drawn.append(("nearest", "Nearest training images", text, png(sheet(pairs, len(near), _scale(run)))))
    for name, _, _, content in drawn:
        write_atomically(folder / f"{name}.png", content)
    found = [{"file": f"plots/{name}.png", "title": title, "caption": text} for name, title, text, _ in drawn]
    history = run.history()
    if any(row.get("loss") is not None for row in history):
        figure = plot.loss_curve(history)
        figure.savefig(folder / "loss.png", bbox_inches="tight", pad_inches=0.12)
        caption = (
            "Every logged step, faint, and its running mean. A flow matching loss does not fall to zero: its floor is "
            "the spread of the velocities that meet in one point."
        )
        found.append({"file": "plots/loss.png", "title": "Training", "caption": caption})
    return found


def _scale(run: ImageRun) -> int:
    return max(1, 64 // max(run.shape[1:]))


def _nearest(made: Tensor, train: Images, features: FeatureNet, most: int = 10_000) -> Tensor:
    """Numbers of the training images nearest to samples, among the first of a fixed shuffle."""
    from flowmatch.metrics import extract

    index = _some(train, min(most, len(train)), torch.Generator().manual_seed(0))
    known = extract(features, train.subset(index, flip=False, dequantize=False))
    return index[torch.cdist(extract(features, made).double(), known.double()).argmin(1).cpu()]
