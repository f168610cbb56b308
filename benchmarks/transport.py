"""Optimal-transport flow matching in two dimensions, beside TorchCFM: how straight, how close, how dear.

Protocol of Tong et al. 2023 (https://arxiv.org/abs/2302.00482, and the runner in its repository): four pairs of laws,
10,000 training points, a SELU network of three layers of 64, AdamW at 1e-3 with weight decay 1e-5, Euler with 100
steps, seeds 42 to 46; here with batches of 256 and 5,000 steps for everybody. Every method gets the same network
weights at the start, the same optimiser and the same average of the weights (0.999 a step; at a constant learning rate
the path energy of the last weights jumps by 5 % from one hundred steps to the next, whatever the method). TorchCFM runs
as in that protocol, with ``sigma=0.1``; flowmatch with straight paths without extra noise, and stratified times, in
three ways: ``ExactOT`` on every batch as TorchCFM does it, ``ExactOT`` once and for all on the training set in pools of
2,000 points, from which batches of pairs are then drawn, and independent pairs.

* ``NPE`` is |PE - W2^2| / W2^2: the path energy PE, the mean of the integral of |v|^2 along the flow, against the least
  possible, the squared Wasserstein distance of the two laws. Zero is optimal transport.
* ``W2^2 - floor`` is the squared distance between generated and fresh data minus that between two fresh samples.

An exact distance of 10,000 points takes a minute, so all distances are means over blocks of 2,000 points: five for each
model, with the floor measured on the same blocks of data, and forty for the W2^2 of the two laws.

Run: ``python -m benchmarks transport`` in an environment with ``benchmarks/peers.txt``; 15 minutes on two cores.
"""

from __future__ import annotations

import copy
import importlib.metadata
import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.couplings import ExactOT, assign
from flowmatch.couplings.cost import squared_distances

SEEDS, STEPS, BATCH, TRAIN, SIGMA = (42, 43, 44, 45, 46), 5_000, 256, 10_000, 0.1
EULER_STEPS, BLOCK, BLOCKS, REFERENCE_BLOCKS = 100, 2_000, 5, 40
POOL, AVERAGE = 2_000, 0.999
TIMED_STEPS, TURNS, WORKERS = 50, 20, 2
NPE_BOUND, COST_BOUND = 0.05, 2.5
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile for this many seeds

Step = Callable[[nn.Module, Tensor, Tensor], Tensor]


# --- the laws -----------------------------------------------------------------------------------------------------


def ring(n: int, seed: int, radius: float, std: float) -> np.ndarray:
    """Eight Gaussians on a circle."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * rng.integers(8, size=n) / 8
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1) + std * rng.standard_normal((n, 2))


def small_moons(n: int, seed: int) -> np.ndarray:
    """Two moons of the size of a standard normal."""
    return 2 * datasets.make_moons(n, noise=0.05, random_state=seed)[0] - [1.0, 0.0]


def large_moons(n: int, seed: int) -> np.ndarray:
    """Two moons with mean 0 and standard deviation 7 over all coordinates of the law."""
    x = datasets.make_moons(n, noise=0.1, random_state=seed)[0]
    return 7 * (x - LARGE_MOONS_MEAN) / LARGE_MOONS_STD


def s_curve(n: int, seed: int) -> np.ndarray:
    """The S of scikit-learn, seen from the side."""
    return 1.5 * datasets.make_s_curve(n, noise=0.05, random_state=seed)[0][:, [0, 2]]


def normal(n: int, seed: int) -> np.ndarray:
    """The standard normal."""
    return np.random.default_rng(seed).standard_normal((n, 2))


# Over all coordinates at once, as in the protocol, but of the law and not of each sample, so that there is one law.
LARGE_MOONS_MEAN, LARGE_MOONS_STD = 0.375, 0.7229

PAIRS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "N -> 8gaussians": (normal, lambda n, seed: ring(n, seed, 5.0, 1.0)),
    "N -> moons": (normal, small_moons),
    "N -> scurve": (normal, s_curve),
    "moons -> 8gaussians": (large_moons, lambda n, seed: ring(n, seed, 12.0, 1.5)),
}


def draw(law: Callable[..., np.ndarray], n: int, seed: int) -> Tensor:
    """Points of a law as float32."""
    return torch.from_numpy(law(n, seed)).float()


# --- network and methods ------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Three hidden layers of 64 with SELU on the point and the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 2)
        )

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Velocity ``(B, 2)``."""
        return self.layers(torch.cat([x, t.expand(x.shape[0])[:, None]], dim=1))


def ours(coupling: fm.typing.Coupling | None, seed: int) -> Step:
    """The loss of flowmatch on a batch of pairs."""
    objective = fm.FlowMatching(fm.AffinePath(fm.Linear()), coupling=coupling, times=fm.Stratified())
    generator = torch.Generator().manual_seed(seed)
    return lambda net, x0, x1: objective(net, x1, x0=x0, generator=generator).mean()


def torchcfm(name: str, seed: int) -> Step:
    """The loss of TorchCFM as its examples write it; its randomness is that of the global generators."""
    from torchcfm import conditional_flow_matching

    matcher = getattr(conditional_flow_matching, name)(sigma=SIGMA)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (its pairs are drawn from here)

    def loss(net: nn.Module, x0: Tensor, x1: Tensor) -> Tensor:
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(x0, x1)
        return torch.mean((net(t, x_t) - u_t) ** 2)

    return loss


POOLED, BATCHED, RIVAL = "flowmatch ExactOT, pools of 2,000", "flowmatch ExactOT, batches", "TorchCFM OT-CFM"
INDEPENDENT, RIVAL_INDEPENDENT = "flowmatch Independent", "TorchCFM I-CFM"
METHODS: dict[str, Callable[[int], Step]] = {
    POOLED: lambda seed: ours(None, seed),
    BATCHED: lambda seed: ours(ExactOT(), seed),
    RIVAL: lambda seed: torchcfm("ExactOptimalTransportConditionalFlowMatcher", seed),
    INDEPENDENT: lambda seed: ours(None, seed),
    RIVAL_INDEPENDENT: lambda seed: torchcfm("ConditionalFlowMatcher", seed),
}


def couple(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """The two sets in pairs of optimal transport, found pool by pool."""
    starts, ends = [], []
    for a, b in zip(x0.split(POOL), x1.split(POOL), strict=True):
        i, j = ExactOT()(a, b)
        starts.append(a[i])
        ends.append(b[j])
    return torch.cat(starts), torch.cat(ends)


class Training:
    """A network in training, with the average of its weights."""

    def __init__(self, method: str, x0: Tensor, x1: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = Network()
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.weights = [w.detach() for w in self.net.parameters()], list(self.average.parameters())
        self.loss = METHODS[method](seed)
        self.paired = method == POOLED
        self.x0, self.x1 = couple(x0, x1) if self.paired else (x0, x1)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=1e-5)
        self.batches = torch.Generator().manual_seed(seed)

    def run(self, steps: int) -> nn.Module:
        """Train for ``steps`` steps; returns the average."""
        for _ in range(steps):
            i, j = torch.randint(len(self.x0), (2, BATCH), generator=self.batches)
            self.loss(self.net, self.x0[i], self.x1[i if self.paired else j]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            torch._foreach_lerp_(self.weights[1], self.weights[0], 1 - AVERAGE)
        return self.average


# --- measures -----------------------------------------------------------------------------------------------------


def w2_squared(x: Tensor, y: Tensor) -> float:
    """Squared Wasserstein distance of two samples of one size."""
    cost = squared_distances(x.double(), y.double()).numpy()
    return float(cost[np.arange(len(cost)), assign(cost)[0]].mean())


def blocks(x: Tensor, y: Tensor) -> float:
    """Mean of :func:`w2_squared` over blocks."""
    return statistics.mean(w2_squared(a, b) for a, b in zip(x.split(BLOCK), y.split(BLOCK), strict=True))


@torch.no_grad()
def flow(net: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """End of the flow from ``x`` by Euler's method, and its path energy."""
    energy = 0.0
    for k in range(EULER_STEPS):
        velocity = net(torch.tensor(k / EULER_STEPS), x)
        energy += velocity.square().sum(1).mean().item() / EULER_STEPS
        x = x + velocity / EULER_STEPS
    return x, energy


def measure(task: tuple[str, int]) -> dict[str, tuple[float, float]]:
    """Train all methods on one pair with one seed: path energy and W2^2 - floor of each."""
    torch.set_num_threads(1)
    (source, data), seed = PAIRS[task[0]], task[1]
    x0, x1 = draw(source, TRAIN, seed), draw(data, TRAIN, seed + 1_000)
    n = BLOCK * BLOCKS
    start, fresh, other = (draw(law, n, seed + k) for law, k in ((source, 2_000), (data, 3_000), (data, 4_000)))
    floor = blocks(other, fresh)
    rows = {}
    for method in METHODS:
        end, energy = flow(Training(method, x0, x1, seed).run(STEPS), start)
        rows[method] = (energy, blocks(end, fresh) - floor)
    return rows


def reference(pair: str) -> tuple[float, float]:
    """W2^2 of the two laws and its standard error."""
    source, data = PAIRS[pair]
    values = [
        w2_squared(draw(source, BLOCK, 10_000 + k), draw(data, BLOCK, 20_000 + k)) for k in range(REFERENCE_BLOCKS)
    ]
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def milliseconds() -> dict[str, float]:
    """Median time of a training step of each method, in turns on one thread, pools included; data of the first pair."""
    torch.set_num_threads(1)
    source, data = PAIRS["N -> 8gaussians"]
    x0, x1 = draw(source, TRAIN, 0), draw(data, TRAIN, 1)
    runs = {method: Training(method, x0, x1, SEEDS[0]) for method in METHODS}
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    pools = []
    for turn in range(TURNS + 1):
        for method, run in runs.items():
            begin = time.perf_counter()
            run.run(TIMED_STEPS)
            if turn:  # the first warms up
                seconds[method].append(time.perf_counter() - begin)
        if turn % 4 == 0:
            begin = time.perf_counter()
            couple(x0, x1)
            pools.append(time.perf_counter() - begin)
    result = {method: 1_000 * statistics.median(values) / TIMED_STEPS for method, values in seconds.items()}
    result[POOLED] += 1_000 * statistics.median(pools) / STEPS
    return result


# --- the report ---------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> str:
    """Mean and half width of its 95 % interval over the seeds."""
    return f"{statistics.mean(values):.4f} ± {half_width(values):.4f}"


def half_width(values: list[float]) -> float:
    """Half of Student's 95 % interval of the mean."""
    return STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def main() -> None:
    """Train, measure and print the tables with their verdicts."""
    names = ("torch", "torchcfm", "pot", "scikit-learn", "numba")
    print(f"flowmatch {fm.__version__}, " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names))
    print(f"seeds {SEEDS}, {STEPS} steps of {BATCH}, {BLOCKS} blocks of {BLOCK} points; mean ± 95 % over the seeds\n")
    assign(np.zeros((2, 2)))  # compiled once, before the workers would all do it
    tasks = list(itertools.product(PAIRS, SEEDS))
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        least = dict(zip(PAIRS, pool.map(reference, PAIRS), strict=True))
        results = dict(zip(tasks, pool.map(measure, tasks), strict=True))
    verdicts = []
    print("| pair | W2^2 of the laws | method | path energy | NPE | W2^2 - floor |")
    print("| --- | --- | --- | --- | --- | --- |")
    for pair in PAIRS:
        target, error = least[pair]
        npe, gap = {}, {}
        for method in METHODS:
            energy = [results[pair, seed][method][0] for seed in SEEDS]
            npe[method] = [abs(value - target) / target for value in energy]
            gap[method] = [results[pair, seed][method][1] for seed in SEEDS]
            cells = (interval(energy), interval(npe[method]), interval(gap[method]))
            print(f"| {pair} | {target:.3f} (s.e. {error:.3f}) | {method} | " + " | ".join(cells) + " |", flush=True)
        for method in (POOLED, BATCHED):
            change = [a - b for a, b in zip(gap[method], gap[RIVAL], strict=True)]
            straight = statistics.mean(npe[method]) <= NPE_BOUND
            above = statistics.mean(change) - half_width(change) > 0
            verdicts.append(
                f"| {pair} | {method} | {statistics.mean(npe[method]):.4f} ({'kept' if straight else 'BROKEN'}) | "
                f"{interval([a - b for a, b in zip(npe[method], npe[RIVAL], strict=True)])} | "
                f"{interval(change)} ({'ABOVE' if above else 'not above'}) |"
            )
    print(f"\nAgainst {RIVAL}, differences paired by seed; bound of NPE {NPE_BOUND}\n")
    print("| pair | method | NPE | difference of NPE | difference of W2^2 - floor |\n| --- | --- | --- | --- | --- |")
    print("\n".join(verdicts))
    times = milliseconds()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"\nA training step on one thread, in turns; load of the machine {load} on {os.cpu_count()} cores\n")
    print("| method | ms a step | over independent |\n| --- | --- | --- |")
    for method, value in times.items():
        print(
            f"| {method} | {value:.2f} | {value / times[RIVAL_INDEPENDENT if method == RIVAL else INDEPENDENT]:.2f} |"
        )
    cost = times[POOLED] / times[INDEPENDENT]
    print(f"\npools over independent: {cost:.2f}, bound {COST_BOUND}: {'kept' if cost <= COST_BOUND else 'BROKEN'}")


if __name__ == "__main__":
    main()
