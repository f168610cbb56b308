"""What a number means, in one line: every value of the report with its unit, its floor and a reading.

A difference counts when it exceeds two standard errors, or two spreads over the repeats. What can be explained by
chance is said to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Reading", "number", "readings"]

# Without repeats there is no spread; two real samples of the same size differ by about this part of their distance.
_ALONE = 0.15


@dataclass(frozen=True)
class Reading:
    """One number of the report.

    Args:
        name: what is measured.
        value: the number, written out.
        error: its uncertainty, written out, or nothing.
        unit: its unit.
        beside: name and value of each number it has to be read against.
        verdict: a few words.
        mood: ``good``, ``fair`` or ``poor``, for the colour of the verdict.
        text: how to read it.
    """

    name: str
    value: str
    error: str
    unit: str
    beside: tuple[tuple[str, str], ...]
    verdict: str
    mood: str
    text: str


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits that count, and a true minus sign.

    Example:
        >>> number(-12.3456), number(1234567.0), number(0.000123), number(None)
        ('−12.3', '1,234,567', '0.000123', 'not finite')
    """
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, min(places, 8))}f}".replace("-", "\u2212")


def readings(result: Mapping[str, Any]) -> list[Reading]:
    """The numbers of an evaluation in the order of the report."""
    found = [_likelihood(result["log_likelihood"]), _gap(result["log_likelihood"])]
    if (bits := result["log_likelihood"]["bits_per_dim"]) is not None:
        found.append(_bits(bits, result["log_likelihood"]["heldout"]["rows"]))
    found.append(_sliced(result["sliced_wasserstein"]))
    if result["c2st"] is not None:
        found.append(_classifier(result["c2st"]))
    return [*found, _sampling(result["sampling"])]


def _error(value: float | None) -> str:
    return "" if value is None else f"\u00b1 {number(value, 2)}"


def _with_error(part: Mapping[str, Any]) -> tuple[str, str]:
    """A mean, to the digit that its standard error lets count, and the error."""
    mean, error = part["mean"], part["stderr"]
    if mean is None or not error or not math.isfinite(error):
        return number(mean, 4), _error(error)
    digits = max(1, math.floor(math.log10(max(abs(mean), error))) - math.floor(math.log10(error)) + 2)
    return number(mean, min(digits, 9)), _error(error)


def _likelihood(part: Mapping[str, Any]) -> Reading:
    value, error = _with_error(part["heldout"])
    above = part["above_gaussian"]
    gain, doubt = above["mean"] or 0.0, 2 * (above["stderr"] or 0.0)
    verdict, mood = ("as good as one normal", "fair")
    if gain > doubt:
        verdict, mood = "better than one normal", "good"
    elif gain < -doubt:
        verdict, mood = "worse than one normal", "poor"
    beside = [("one normal fitted to the training rows", " ".join(_with_error(part["gaussian"])))]
    text = f"Higher is better. The flow gains {' '.join(_with_error(above))} nats a row over the normal"
    if part["best"] is not None:
        short = {"mean": part["best"] - (part["heldout"]["mean"] or 0.0), "stderr": part["heldout"]["stderr"]}
        beside.append(("best possible, minus the entropy of the data", number(part["best"], 4)))
        text += f" and falls {' '.join(_with_error(short))} short of the best possible"
    text += f". Mean over {part['heldout']['rows']:,} rows, divergence {part['divergence']}."
    return Reading("Held-out log-likelihood", value, error, part["unit"], tuple(beside), verdict, mood, text)


def _gap(part: Mapping[str, Any]) -> Reading:
    value, error = _with_error(part["gap"])
    gap, doubt = part["gap"]["mean"] or 0.0, 2 * (part["gap"]["stderr"] or 0.0)
    verdict, mood = "none beyond chance", "good"
    text = "The flow explains new rows as well as those it was trained on, within two standard errors."
    if gap > doubt:
        verdict, mood = "training rows are likelier", "fair"
        text = "Part of what was learnt holds for the training rows only. More rows or an earlier stop narrow it."
    elif gap < -doubt:
        verdict = "held-out rows are likelier"
        text = "No overfitting; the two sets of rows differ by more than chance would explain."
    beside = (("no overfitting", "0"), ("training log-likelihood", " ".join(_with_error(part["train"]))))
    return Reading("Overfitting gap", value, error, "nats a row, training minus held-out", beside, verdict, mood, text)


def _bits(part: Mapping[str, Any], rows: int) -> Reading:
    value, error = _with_error(part)
    saved = part["uniform"] - (part["mean"] or 0.0)
    verdict, mood = (f"saves {number(saved, 2)} bits", "good") if saved > 0 else ("saves nothing", "poor")
    text = f"Lower is better: the held-out log-likelihood in the unit of image models, over {rows:,} rows."
    beside = (("every value of a column alike", number(part["uniform"])), ("the least for whole numbers", "0"))
    return Reading("Bits a number", value, error, "bits a column", beside, verdict, mood, text)


def _sliced(part: Mapping[str, Any]) -> Reading:
    value, floor = part["value"], part["floor"]
    spreads = [s for s in (part["spread"], part["floor_spread"]) if s is not None]
    near = value is not None and floor is not None
    if near and value <= floor + (2 * max(spreads) if spreads else _ALONE * floor):
        verdict, mood = "at the floor", "good"
        text = "Samples lie as near to the held-out rows as training rows do."
    else:
        ratio = value / floor if near and floor > 0 else math.inf
        verdict, mood = f"{number(ratio, 2)} times the floor", "fair" if ratio < 2 else "poor"
        text = "Samples lie further from the held-out rows than training rows do."
    beside = ((f"floor: training rows instead of samples {_error(part['floor_spread'])}".strip(), number(floor)),)
    unit = "standard deviations"
    return Reading(
        "Sliced Wasserstein distance",
        number(value),
        _error(part["spread"]),
        unit,
        beside,
        verdict,
        mood,
        text + _sizes(part),
    )


def _classifier(part: Mapping[str, Any]) -> Reading:
    value, floor = part["value"], part["floor"]
    doubt = 2 * max(s for s in (part["spread"], part["floor_spread"], part["chance_stderr"]) if s is not None)
    if value <= max(floor, 0.5) + doubt:
        verdict, mood = "at the floor", "good"
        text = "A small network trained to tell samples from held-out rows does no better than by chance."
    else:
        verdict, mood = "above the floor", "fair" if value < 0.75 else "poor"
        text = f"A small network tells samples from held-out rows in {100 * value:.0f} of 100 cases; guessing tells 50."
    beside = (
        (f"floor: training rows instead of samples {_error(part['floor_spread'])}".strip(), f"{floor:.3f}"),
        (f"guessing {_error(part['chance_stderr'])}", "0.500"),
    )
    unit = "accuracy, from 0.5 to 1"
    return Reading(
        "Classifier test (C2ST)",
        f"{value:.3f}",
        _error(part["spread"]),
        unit,
        beside,
        verdict,
        mood,
        text + _sizes(part),
    )


def _sizes(part: Mapping[str, Any]) -> str:
    times = "once" if part["repeats"] == 1 else f"mean of {part['repeats']}"
    return f" {part['rows']:,} rows a side, {times}."


def _sampling(part: Mapping[str, Any]) -> Reading:
    text = (
        f"{part['samples']:,} samples took {number(part['seconds'], 2)} s here, "
        f"{number(part['samples_per_second'], 2)} a second. The time grows with the calls; fewer steps or a looser "
        "tolerance are faster and less exact."
    )
    beside = (("the least, one Euler step", "1"), ("most for one sample", f"{part['nfe_max']:,}"))
    return Reading(
        "Cost of a sample", number(part["nfe"], 3), "", "calls of the field", beside, part["method"], "fair", text
    )
