"""Evaluation of a trained flow: every number beside its floor, every picture beside the data."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flowmatch.data import TableCodec
from flowmatch.errors import InputError
from flowmatch.flow import Flow
from flowmatch.persist import write_atomically
from flowmatch.report.distances import distances, plan
from flowmatch.report.likelihoods import likelihoods
from flowmatch.report.page import write_html
from flowmatch.report.pictures import draw_all
from flowmatch.report.subject import Progress, Subject
from flowmatch.solvers import Solver

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluate"]

# Training rows read for comparisons and for the plain reference model; more change no digit that is shown.
_TRAIN_ROWS = 20_000
# Rows scored by default: the divergence of wide rows costs in proportion to their width.
_WIDE, _SCORED, _SCORED_WIDE = 16, 2000, 500


def evaluate(
    flow: Flow,
    codec: TableCodec,
    train: pd.DataFrame,
    heldout: pd.DataFrame,
    out: str | Path,
    history: Sequence[Mapping[str, Any]] | None = None,
    samples: int = 2000,
    steps: int | None = None,
    seed: int = 0,
    image_shape: tuple[int, int] | None = None,
    progress: Progress | None = None,
    *,
    rtol: float | None = None,
    solver: Solver | None = None,
    likelihood_rows: int | None = None,
    entropy: float | None = None,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a flow on rows it never saw, and write a report about it.

    Writes ``report.html`` (one file that loads nothing from elsewhere), ``evaluation.json`` and ``plots/*.png`` into
    ``out``.

    Args:
        flow: the trained flow.
        codec: the codec of its table.
        train: rows it was trained on.
        heldout: rows it never saw; one at least, and comparisons need some dozens to tell much.
        out: folder of the report; made if it is not there.
        history: rows of the training's metrics, with ``step`` and ``loss`` or ``heldout_loss``.
        samples: about how many samples are drawn for the comparisons.
        steps: number of equal solver steps; error control by default.
        seed: seed of everything drawn; the same seed gives the same numbers.
        image_shape: height and width if each row is an image.
        progress: called with the part that is done, from 0 to 1, and what comes next.
        rtol: tolerance of the error control, 1e-4 by default.
        solver: how to integrate.
        likelihood_rows: at most so many held-out rows, and training rows, are scored; by default 2000, and 500 above
            16 columns, where a row costs more.
        entropy: entropy of the law of the data in nats, if it is known: the log-likelihood cannot exceed minus it.
        title: name on the report, by default that of the folder.
        notes: what the reader of the report should know.

    Returns:
        What ``evaluation.json`` holds: ``log_likelihood``, ``sliced_wasserstein``, ``c2st``, ``sampling``, ``rows``,
        ``notes`` and ``figures``.

    Raises:
        InputError: no rows to compare with, fewer than two samples, or both ``steps`` and ``rtol``.
    """
    _check(flow, codec, train, heldout, samples, steps, rtol, likelihood_rows, image_shape)
    began = time.perf_counter()
    tick: Progress = progress if progress is not None else lambda done, what: None
    folder = Path(out)
    how: dict[str, Any] = {"steps": steps} if steps is not None else {"rtol": rtol or 1e-4, "atol": rtol or 1e-4}
    subject = Subject(flow, codec, {**how, "solver": solver})
    real, known = subject.rows(heldout, samples, seed), subject.rows(train, _TRAIN_ROWS, seed + 1)
    draws = plan(len(known.x), len(real.x), samples, torch.Generator().manual_seed(seed))
    every = torch.cat(draws.rows)
    cond = None if real.cond is None else real.cond[every]
    most = likelihood_rows or (_SCORED if codec.dim <= _WIDE else _SCORED_WIDE)
    scored = subject.rows(train, most, seed + 2), subject.rows(heldout, most, seed)

    mode = flow.training
    flow.eval()
    try:
        made = subject.sample(len(every), cond, seed, lambda done, what: tick(0.15 * done, what))
        sampling = subject.cost()
        density = likelihoods(subject, *scored, known, entropy, seed, lambda d, w: tick(0.15 + 0.35 * d, w))
        compared = distances(known, real, made, draws, codec.classes, seed, lambda d, w: tick(0.5 + 0.35 * d, w))
        tick(0.85, "drawing pictures")
        figures = draw_all(subject, made, real, known, folder / "plots", history, image_shape, seed)
    finally:
        flow.train(mode)

    found = {
        "title": folder.resolve().name if title is None else title,
        "rows": {"train": len(train), "heldout": len(heldout)},
        "columns": codec.dim,
        "condition": None if codec.condition is None else str(codec.condition.name),
        "seed": seed,
        "log_likelihood": density,
        **compared,
        "sampling": sampling,
        "notes": [*codec.notes, *notes, *_cautions(len(draws.rows[0]), len(heldout), compared)],
        "figures": figures,
        "seconds": time.perf_counter() - began,
    }
    result: dict[str, Any] = _json(found)
    write_atomically(folder / "evaluation.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    write_html(result, folder / "report.html")
    tick(1.0, "done")
    return result


def _json(value: Any) -> Any:
    """The same with ``None`` for what JSON cannot hold: numbers that are NaN or infinite."""
    if isinstance(value, dict):
        return {key: _json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check(
    flow: Flow,
    codec: TableCodec,
    train: pd.DataFrame,
    heldout: pd.DataFrame,
    samples: int,
    steps: int | None,
    rtol: float | None,
    likelihood_rows: int | None,
    image_shape: tuple[int, int] | None,
) -> None:
    for name, frame in (("training", train), ("held-out", heldout)):
        if len(frame) == 0:
            raise InputError(f"there are no {name} rows, and an evaluation needs both; give at least one of each")
    if samples < 2:
        raise InputError(f"samples must be at least 2, got {samples}")
    if likelihood_rows is not None and likelihood_rows < 1:
        raise InputError(f"likelihood_rows must be at least 1, got {likelihood_rows}")
    if steps is not None and rtol is not None:
        raise InputError("steps and rtol exclude each other; give one")
    if flow.event_shape != (codec.dim,):
        raise InputError(f"the flow makes events of shape {flow.event_shape}, but the table has {codec.dim} columns")
    pixels = 0 if image_shape is None else image_shape[0] * image_shape[1]
    if pixels > len(codec.columns) + len(codec.constants):
        raise InputError(f"images of {image_shape} need {pixels} columns, the table has {len(codec.order)}")


def _cautions(size: int, heldout: int, compared: dict[str, Any]) -> list[str]:
    notes = []
    if size < 100:
        notes.append(
            f"Comparisons use {size} row{'s' * (size != 1)} a side, with {heldout} held out: they can only tell coarse "
            "faults, and their floors are high. Read the spreads."
        )
    if compared["c2st"] is None:
        notes.append(f"The classifier test needs two rows a side; there is {heldout} held out, so it was left out.")
    return notes
