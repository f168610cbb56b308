"""Images: flow matching on Fashion-MNIST of 14 x 14 in equal seconds, against TorchCFM, Meta's package and diffusers.

Every contender trains one and the same U-Net (:func:`flowmatch.nn.unet_preset` ``"small"``, of which diffusers sees its
own ``UNet2DModel``) for the same seconds with the same optimiser, and samples as it likes. Scores are the Frechet
distance of the samples to the test images in the features of a frozen classifier, precision and recall in the same,
bits a dimension of test images and calls of an adaptive solver. Peers' settings are the best on the table itself; ours
are chosen on other starts and by the training images. The same evaluator counts bits and calls of all.

Run ``python -m benchmarks images``. What is finished is kept in ``--out`` (weights and scores, by contender and seed),
and a run that was stopped goes on from there. ``--quick`` makes sure that everything runs, and says nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import statistics
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.images.world import Plan, World, folder_of

__all__ = ["CONTENDERS", "Plan", "main"]

PEERS = ("torchcfm", "torchcfm-ot", "meta", "diffusers", "diffusers-logit")
OURS = ("ours", "condot", "vp", "ours-logit", "ours-uniform")
CONTENDERS = PEERS + OURS
USUALLY = PEERS + OURS[:3]
TARGETS = {8: 0.9, 20: 0.9}
USUAL = {"torchcfm": "midpoint, shift 1", "meta": "midpoint, shift 1", "diffusers": "UniPC(2), shift 1"}
OUR_USUAL = "UniPC(2) on path_grid(0.5, straight, crowd 1.25)"


def main(arguments: list[str] | None = None) -> None:
    """Train, score and print."""
    options = _options([] if arguments is None else arguments)
    versions = importlib.import_module("benchmarks.images.peers").versions()
    if options.threads:
        torch.set_num_threads(options.threads)
    given = {name: getattr(options, name) for name in ("seconds", "rows", "rate") if getattr(options, name) is not None}
    plan = replace(Plan.quick() if options.quick else Plan(), **given)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "flowmatch": importlib.import_module("flowmatch").__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "plan": plan.to_dict(),
    }
    _check_same(out / "about.json", about)
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "plan"))
    print(f"seeds {options.seeds}; {plan.to_dict()}; kept in {out}", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        world = World(folder_of(options.data), out, plan, options.features)
        print(f"features {world.features!r}, {100 * world.accuracy:.1f} % of the test images right", flush=True)
        clock = _clock(world, out, options.only)
        found: dict[str, dict[int, Any]] = {name: {} for name in options.only}
        for seed in options.seeds:
            for name in options.only:
                found[name][seed] = _contender(world, out, name, seed, clock)
        floors = _kept(out / "floors.json", world.floors)
    _report(plan, found, floors, clock)
    if options.json:
        text = json.dumps({"about": about, "floors": floors, "clock": clock, "found": found}, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks images", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, help="training of each contender; 480 by default")
    parser.add_argument("--rate", type=float, help="largest learning rate of all contenders; 3e-3 by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(USUALLY), help="some contenders only")
    parser.add_argument("--rows", type=int, help="samples that are scored; 10000 by default")
    parser.add_argument("--threads", type=int, help="threads of torch; its own number by default")
    parser.add_argument("--data", help="folder of Fashion-MNIST's four idx files")
    parser.add_argument("--features", type=Path, help="file of features; trained with seed 0 by default")
    parser.add_argument("--out", default="runs/benchmark-images", help="where weights and scores are kept")
    parser.add_argument("--json", help="also write all numbers to this file")
    parser.add_argument("--quick", action="store_true", help="a few seconds of everything, to see that it runs")
    return parser.parse_args(arguments)


def _check_same(path: Path, about: dict[str, Any]) -> None:
    """Raise where ``out`` was begun under other conditions, which cannot stand in one table."""
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in about if before.get(name) != about[name]]
        if other:
            raise SystemExit(
                f"{path.parent} was begun with "
                + ", ".join(f"{name} {before.get(name)} (now {about[name]})" for name in other)
                + "; give another --out, or the same options"
            )
    _write(path, about)


def _write(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _kept(path: Path, make: Any) -> Any:
    """What an earlier run left in ``path``, or what ``make`` makes now."""
    if not path.exists():
        _write(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def _clock(world: World, out: Path, names: list[str]) -> dict[str, float]:
    """Seconds of a step of every contender, and the trainer's overhead; measured once."""
    loop, ours, peers = (importlib.import_module(f"benchmarks.images.{part}") for part in ("loop", "ours", "peers"))

    def network() -> dict[str, float]:
        draw, timed = peers.DRAWS["meta"][0](), world.plan.timed
        mine, bare, ratio = ours.step_seconds(world, partial(loop.run, world, draw), timed, max(1, timed // 2))
        return {"network": loop.step_seconds(world, draw), "trainer": mine, "bare loop": bare, "ratio": ratio}

    clock: dict[str, float] = dict(_kept(out / "clock.json", network))
    for name in names:
        if name not in clock:
            if name in peers.DRAWS:
                clock[name] = loop.draw_seconds(world, peers.DRAWS[name][0]())
            else:
                clock[name] = ours.draw_seconds(world, ours.RECIPES[name])
    _write(out / "clock.json", clock)
    return clock


def _steps(clock: dict[str, float], name: str, seconds: float) -> int:
    """Steps of a contender in its seconds; the overhead of our trainer is counted against it."""
    over = max(0.0, clock["ratio"] - 1) * clock["network"] if name in OURS else 0.0
    return max(2, int(seconds / (clock["network"] + clock[name] + over)))


def _contender(world: World, out: Path, name: str, seed: int, clock: dict[str, float]) -> dict[str, Any]:
    """Train and score a contender, or read what an earlier run left of it."""
    judge, loop, ours, peers = (
        importlib.import_module(f"benchmarks.images.{part}") for part in ("judge", "loop", "ours", "peers")
    )
    weights, scores = out / f"{name}-{seed}.pt", out / f"{name}-{seed}.json"
    steps, mine = _steps(clock, name, world.plan.seconds), name in OURS
    if not weights.exists():
        print(f"{name}, seed {seed}: {steps} steps", end="", flush=True)
        if mine:
            state, spent = ours.train(world, name, steps, seed)
        else:
            make, velocity = peers.DRAWS[name]
            state, spent = loop.train(world, make(), velocity, steps, seed)
        loop.write_atomically(weights, lambda part: torch.save({"weights": state, "spent": spent}, part))
        print(f", {spent['seconds']:.0f} s, loss {spent['loss']:.4f}", flush=True)
    content = torch.load(weights, weights_only=True)
    found = json.loads(scores.read_text(encoding="utf-8")) if scores.exists() else {"spent": content["spent"]}
    begun = time.perf_counter()
    if mine:
        ways, usual = partial(ours.samplers, ours.path_of(name).schedule), OUR_USUAL
    else:
        ways, usual = partial(peers.samplers_of, name), USUAL[name.partition("-")[0]]
    net = world.network(0).eval()
    if "calls" not in found:
        net, scored = judge.score(world, content["weights"], ways, usual, mine)
        found |= scored
        _write(scores, found)
        _progress(name, seed, "distances", begun)
    net.load_state_dict(content["weights"][found["average"]])
    for part, make in (("nfe", judge.calls_and_errors), ("bits", judge.bits)):
        if part not in found:
            found[part] = make(world, net, name)
            _write(scores, found)
            _progress(name, seed, part, begun)
    return found


def _progress(name: str, seed: int, what: str, begun: float) -> None:
    print(f"  {name}, seed {seed}: {what} done, {time.perf_counter() - begun:.0f} s", flush=True)


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _report(plan: Plan, found: dict[str, dict[int, Any]], floors: dict[str, float], clock: dict[str, float]) -> None:
    """Print the tables."""
    over = lambda name, *keys: _mean([_at(scores, *keys) for scores in found[name].values()])  # noqa: E731
    print("\nFrechet distance to the test images, mean over the seeds, at so many calls")
    print(f"  {'':18s}" + "".join(f"{calls:9d}" for calls in plan.calls))
    table = {name: [over(name, "calls", str(c), "distance") for c in plan.calls] for name in found}
    for name, row in table.items():
        print(f"  {name:18s}" + "".join(f"{value:9.3f}" for value in row))
    long = [plan.rows if calls <= 20 else plan.long_rows for calls in plan.calls]
    least = "".join(f"{floors[f'distance at {rows}']:9.3f}" for rows in long)
    print(f"  {'training images':18s}{least}  (floor)")
    print(f"  {'rows':18s}" + "".join(f"{rows:9d}" for rows in long))
    rivals = [name for name in found if name in PEERS]
    if rivals and "ours" in found:
        best = [min((table[name][i], name) for name in rivals) for i in range(len(plan.calls))]
        ratios = [table["ours"][i] / best[i][0] for i in range(len(plan.calls))]
        print(f"  {'ours over best':18s}" + "".join(f"{ratio:9.3f}" for ratio in ratios))
        for i, calls in enumerate(plan.calls):
            aim = TARGETS.get(calls, math.inf)
            goal = f"; aim {aim}, {'kept' if ratios[i] <= aim else 'MISSED'}" if calls in TARGETS else ""
            print(f"    at {calls} calls against {best[i][1]}{goal}")
    print("  settings: average, and way to sample")
    for name, runs in found.items():
        for seed, scores in runs.items():
            ways = "; ".join(f"{calls}: {row['by']}" for calls, row in scores["calls"].items())
            print(f"    {name}, seed {seed}: {scores['average']}; {ways}")
    print("\nprecision and recall, of training images " + f"{floors['precision']:.3f} and {floors['recall']:.3f}")
    for name in found:
        pairs = [(over(name, "calls", str(c), "precision"), over(name, "calls", str(c), "recall")) for c in plan.calls]
        print(f"  {name:18s}" + "".join(f"   {p:.3f} {r:.3f}" for p, r in pairs))
    _report_bits(plan, found, over, rivals)
    _report_order(found, over)
    _report_training(plan, found, clock, over)


def _at(scores: Any, *keys: str) -> float:
    for key in keys:
        scores = scores[key]
    return float(scores)


def _report_bits(plan: Plan, found: dict[str, dict[int, Any]], over: Any, rivals: list[str]) -> None:
    some, few = f"{plan.noises} noises", f"bits of few, {plan.noises} noises"
    print(
        f"\nbits a dimension (Dopri5 at {plan.likely:g}, one probe; the same evaluator, rows, noises and "
        f"probes for all):\n  {plan.bits_rows} test images with one noise, {plan.mix_rows} with {plan.noises}; and the "
        "calls of a sample of Dopri5 as it is drawn"
    )
    print(f"  {'':18s} one noise  std.error  less ours  std.error  | few: one   {some}       gain   |    NFE")
    for name, runs in found.items():
        pairs = [
            b - a
            for seed, scores in runs.items()
            for a, b in zip(_each(found, "ours", seed, scores), scores["bits"]["each"], strict=True)
        ]
        error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
        print(
            f"  {name:18s} {over(name, 'bits', 'bits'):9.4f}  {over(name, 'bits', 'stderr'):9.4f}  {_mean(pairs):9.4f} "
            f" {error:9.4f}  | {over(name, 'bits', 'bits of few, one noise'):9.4f} {over(name, 'bits', few):10.4f} "
            f"{over(name, 'bits', 'gain'):10.4f}   | {over(name, 'nfe', 'nfe'):6.1f}"
        )
    if rivals and "ours" in found:
        best = min((over(name, "bits", "bits"), name) for name in rivals)
        ratio = over("ours", "bits", "bits") - best[0]
        print(f"  ours less the best peer ({best[1]}): {ratio:+.4f}; aim 0, {'kept' if ratio <= 0 else 'MISSED'}")
        calls = min((over(name, "nfe", "nfe"), name) for name in rivals)
        print(f"  calls of ours over the fewest of a peer ({calls[1]}): {over('ours', 'nfe', 'nfe') / calls[0]:.3f}")


def _each(found: dict[str, dict[int, Any]], name: str, seed: int, other: dict[str, Any]) -> list[float]:
    """Bits of every row of a contender; those of ``other`` itself where it was not run."""
    values: list[float] = found.get(name, {}).get(seed, other)["bits"]["each"]
    return values


def _report_order(found: dict[str, dict[int, Any]], over: Any) -> None:
    if not {"condot", "vp"} <= found.keys():
        return
    print("\nthe paper's order: both by our trainer with uniform times and independent pairs")
    print(f"  {'':10s}  calls of Dopri5   RMSE of midpoint to Dopri5 at 4, 8, 20 calls")
    for name in ("condot", "vp"):
        errors = " ".join(f"{over(name, 'nfe', f'error at {calls}'):9.4f}" for calls in (4, 8, 20))
        print(f"  {name:10s}  {over(name, 'nfe', 'nfe'):15.1f}   {errors}")
    quotients = {part: over("condot", "nfe", part) / over("vp", "nfe", part) for part in ("nfe", "error at 8")}
    gains = [over(name, "bits", "gain") for name in ("condot", "vp")]
    kept = max(quotients.values()) < 1 and min(gains) > 0
    print(
        f"  condot over vp: calls {quotients['nfe']:.2f}, error at 8 calls {quotients['error at 8']:.2f}; gain of "
        f"several noises {gains[0]:.4f} and {gains[1]:.4f} bits: {'as in the paper' if kept else 'NOT as in the paper'}"
    )


def _report_training(plan: Plan, found: dict[str, dict[int, Any]], clock: dict[str, float], over: Any) -> None:
    batch = importlib.import_module("benchmarks.images.loop").BATCH
    ratio = clock["ratio"]
    print(f"\ntraining, {plan.seconds:g} s each: batches of {batch}, a step of the network {clock['network']:.4f} s")
    print(f"  {'':18s}   steps  seconds  images a second  share of the draw    loss")
    for name in found:
        whole = clock["network"] + clock[name]
        seconds, steps = over(name, "spent", "seconds"), over(name, "spent", "steps")
        print(
            f"  {name:18s} {steps:7.0f} {seconds:8.1f} {steps * batch / seconds:16.0f} {clock[name] / whole:18.2%}"
            f" {over(name, 'spent', 'loss'):7.4f}"
        )
    waits = {name: over(name, "spent", "waiting") for name in found if name in OURS}
    if waits:
        print("  share of the time that our trainer waited for batches: ", end="")
        print(", ".join(f"{name} {wait:.2%}" for name, wait in waits.items()))
    print(
        f"  a step of our trainer over the bare loop's: {clock['trainer']:.4f} and {clock['bare loop']:.4f} s, "
        f"median ratio of neighbours {ratio:.3f}; aim 1.03, {'kept' if ratio <= 1.03 else 'MISSED'}"
    )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
