"""What a trained network is worth: distances, bits, calls; and by which setting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm
from benchmarks.images.ours import path_of
from benchmarks.images.peers import Sampler
from benchmarks.images.world import CHOOSING, SCORING, SIDE, World
from flowmatch.data.images.pixels import dequantized
from flowmatch.likelihood import nats_to_bits

__all__ = ["bits", "calls_and_errors", "choose_average", "choose_sampler", "sampled", "score"]

CHUNK = 250  # rows of a solve
SHORTLIST = 4
LONG = 20  # beyond so many calls nothing is chosen any more
DIM = SIDE * SIDE


@torch.no_grad()
def sampled(net: fm.nn.UNet, sampler: Sampler, x0: Tensor) -> Tensor:
    """Samples from all starts."""
    return torch.cat([sampler(net, part) for part in x0.split(CHUNK)])


def choose_sampler(world: World, net: fm.nn.UNet, ways: dict[str, Sampler], to: str, seed: int) -> str:
    """Name of the way to sample whose samples are nearest; the few best of a third of the starts get all of them."""
    x0, names = world.starts(seed, world.plan.choose_rows), list(ways)
    for part in (x0[: len(x0) // 3], x0):
        if len(names) > 1:
            found = {name: world.distance(sampled(net, ways[name], part), to) for name in names}
            names = sorted(found, key=found.__getitem__)[:SHORTLIST]
    return names[0]


def choose_average(world: World, weights: dict[str, Any], way: Sampler, to: str, seed: int) -> str:
    """Name of the average of the weights whose samples are nearest."""
    x0, net = world.starts(seed, world.plan.choose_rows), world.network(0).eval()
    found = {}
    for name, state in weights.items():
        net.load_state_dict(state)
        found[name] = world.distance(sampled(net, way, x0), to)
    return min(found, key=found.__getitem__)


def score(
    world: World, weights: dict[str, Any], ways: Callable[[int], dict[str, Sampler]], usual: str, ours: bool
) -> tuple[fm.nn.UNet, dict[str, Any]]:
    """Distances at every number of calls, and the network with the average that was chosen.

    Settings of a peer are those that are best for it on the very table: the test set, and its first starts. Ours are
    chosen on other starts and by the training set.
    """
    to, seed = ("train", CHOOSING) if ours else ("test", SCORING)
    average = choose_average(world, weights, ways(8)[usual], to, seed)
    net = world.network(0).eval()
    net.load_state_dict(weights[average])
    rows: dict[str, Any] = {}
    last = usual
    for calls in world.plan.calls:
        found = ways(calls)
        last = choose_sampler(world, net, found, to, seed) if calls <= LONG else last
        x0 = world.starts(SCORING, world.plan.rows if calls <= LONG else world.plan.long_rows)
        samples = sampled(net, found[last], x0)
        precision, recall = world.overlap(samples)
        rows[str(calls)] = {
            "distance": world.distance(samples),
            "precision": precision,
            "recall": recall,
            "rows": len(x0),
            "by": last,
        }
    return net, {"average": average, "calls": rows}


@torch.no_grad()
def bits(world: World, net: fm.nn.UNet, name: str) -> dict[str, float]:
    """Bits a dimension of test images, with one noise and with several, by Dopri5.

    The divergence is Hutchinson's with one probe. Rows, noises and probes are the same for every contender. The several
    noises of an image share one probe, so that its error is the same in all of them and does not widen their mean.
    """
    plan, flow = world.plan, fm.Flow(net, path_of(name), event_shape=(1, SIDE, SIDE))

    def scored(levels: Tensor, noise: int) -> Tensor:
        x = dequantized(levels, torch.Generator().manual_seed(noise))
        probe, likely = fm.Hutchinson(1, reverse=True), plan.likely
        how = {"solver": fm.Dopri5(), "rtol": likely, "atol": likely, "divergence": probe}
        return flow.log_prob(x, generator=torch.Generator().manual_seed(1), **how)

    order = torch.randperm(len(world.test), generator=torch.Generator().manual_seed(0))
    levels = world.test.levels(order[: plan.bits_rows])
    single = nats_to_bits(torch.cat([scored(part, i) for i, part in enumerate(levels.split(64))]), DIM, 128.0)
    few = levels[: plan.mix_rows]
    many = torch.stack([scored(few, 100 + noise) for noise in range(plan.noises)])
    mixed = nats_to_bits(many.logsumexp(0) - math.log(plan.noises), DIM, 128.0)
    alone = nats_to_bits(many, DIM, 128.0).mean(0)
    return {
        "bits": float(single.mean()),
        "stderr": float(single.std() / math.sqrt(len(single))),
        "bits of few, one noise": float(alone.mean()),
        f"bits of few, {plan.noises} noises": float(mixed.mean()),
        "gain": float((alone - mixed).mean()),
        "gain stderr": float((alone - mixed).std() / math.sqrt(len(few))),
        "each": [round(float(value), 5) for value in single],  # type: ignore[dict-item]
    }


@torch.no_grad()
def calls_and_errors(world: World, net: fm.nn.UNet, name: str, rows: int = 64) -> dict[str, float]:
    """Calls of Dopri5, mean of the samples and of the batch, and how far few midpoint steps end from there."""
    path = path_of(name)
    x0 = world.starts(SCORING + 1, min(rows, world.plan.choose_rows))
    equation, span = fm.ODE(net), path.interval
    fine = fm.solve(equation, x0, fm.Dopri5(), rtol=world.plan.tolerance, atol=world.plan.tolerance, span=span)
    found = {"nfe": float(fine.nfe_per_sample.double().mean()), "nfe of the batch": float(fine.nfe)}
    for calls in (4, 8, 20):
        few = fm.solve(equation, x0, fm.Midpoint(), steps=calls // 2, span=span).x
        found[f"error at {calls}"] = float((few - fine.x).square().mean().sqrt())
    return found
