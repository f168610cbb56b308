"""What the numbers of a run on images mean, in one line each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flowmatch.report.readings import Reading, number

__all__ = ["image_readings"]


def image_readings(result: Mapping[str, Any]) -> list[Reading]:
    """The numbers of an evaluation in the order of the report."""
    part = result["distances"]
    found = [_frechet(part), _kernel(part), _precision(part), _recall(part)]
    if result["likeness"] is not None:
        found += [_like(name, values) for name, values in result["likeness"].items()]
    if result["bits_per_dim"] is not None:
        found.append(_bits(result["bits_per_dim"]))
    return [*found, _sampling(result["sampling"])]


def _frechet(part: Mapping[str, Any]) -> Reading:
    value, floor = part["frechet"], part["frechet_floor"]
    times = value / floor if floor > 0 else math.inf
    verdict, mood = (f"{number(times, 2)} times the floor", "good" if times < 3 else "fair" if times < 30 else "poor")
    text = f"Lower is better. In features of {part['features']}, {part['rows']:,} images a side."
    beside = (("two sets of real images", number(floor)),)
    unit = "between normals fitted to features"
    return Reading("Frechet distance", number(value), "", unit, beside, verdict, mood, text)


def _kernel(part: Mapping[str, Any]) -> Reading:
    value, error = part["kernel"], part["kernel_error"]
    near = value <= part["kernel_floor"] + 2 * error
    verdict, mood = ("at the floor", "good") if near else ("above the floor", "fair")
    text = "Lower is better, and unbiased, so that it may fall below zero by chance."
    beside = (("two sets of real images", number(part["kernel_floor"])),)
    shown = f"\u00b1 {number(error, 2)}"
    return Reading("Kernel distance", number(value), shown, "squared, cubic kernel", beside, verdict, mood, text)


def _precision(part: Mapping[str, Any]) -> Reading:
    short = part["precision_floor"] - part["precision"]
    verdict, mood = _share(short, "few samples lie outside the data", "many samples lie outside the data")
    beside = (("other real images", number(part["precision_floor"])), ("density", number(part["density"])))
    text = "The share of samples that lie where held-out images do: how good they are one by one."
    return Reading("Precision", number(part["precision"]), "", "share of samples", beside, verdict, mood, text)


def _recall(part: Mapping[str, Any]) -> Reading:
    short = part["recall_floor"] - part["recall"]
    verdict, mood = _share(short, "little of the data is missed", "much of the data is missed")
    beside = (("other real images", number(part["recall_floor"])), ("coverage", number(part["coverage"])))
    text = "The share of held-out images that lie where samples do: how varied the samples are."
    return Reading("Recall", number(part["recall"]), "", "share of held-out images", beside, verdict, mood, text)


def _share(short: float, good: str, poor: str) -> tuple[str, str]:
    return (good, "good") if short < 0.1 else (poor, "fair" if short < 0.3 else "poor")


def _like(name: str, values: Mapping[str, float | None]) -> Reading:
    made, told = values["samples"], values["told"]
    long, unit = {"psnr": ("PSNR", "decibels"), "ssim": ("SSIM", "1 is equal")}[name]
    nearer = made is None or (told is not None and made > told)
    verdict, mood = ("nearer to the truth than what was told", "good") if nearer else ("further than it", "fair")
    text = (
        "Higher is better. One sample of many that fit what was told: the mean of them would score higher and look "
        "blurred."
    )
    beside = (("what the network was told", number(told)),)
    return Reading(long, number(made), "", f"{unit}, samples against the truth", beside, verdict, mood, text)


def _bits(part: Mapping[str, Any]) -> Reading:
    error = "" if part["stderr"] is None else f"\u00b1 {number(part['stderr'], 2)}"
    mean = part["mean"]
    verdict, mood = (f"saves {number(8 - mean, 2)} bits", "good") if mean < 8 else ("saves nothing", "poor")
    text = (
        f"Lower is better. {part['rows']} held-out images, {part['noises']} noise{'s' * (part['noises'] != 1)} each, "
        f"divergence {part['divergence']}, {part['nfe']} calls."
    )
    if not part["dequantized"]:
        text += " The network was trained on bytes without noise, which a likelihood needs: read it with care."
    beside = (("every byte alike", "8"),)
    return Reading("Bits a dimension", number(mean, 4), error, "bits a byte", beside, verdict, mood, text)


def _sampling(part: Mapping[str, Any]) -> Reading:
    beside = ((f"Dopri5 at a tolerance of {part['tolerance']:g}", f"{part['adaptive_nfe']} calls"),)
    error = part["error"]
    verdict, mood = ("close to the exact flow", "good") if error < 0.05 else ("far from the exact flow", "fair")
    text = (
        f"The samples of {part['solver']} are {number(error, 2)} away from those of the tight tolerance, root mean "
        "square over pixels from -1 to 1."
    )
    return Reading("Calls a sample", str(part["nfe"]), "", "network calls", beside, verdict, mood, text)
