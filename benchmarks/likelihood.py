"""Exact and estimated log-likelihood: this package against Meta's ``ODESolver`` and the loops that others write.

All solve the same augmented equation for the same network with the same midpoint steps and give the same values, so
the only difference is how the divergence is had. The peers take a backward pass for each dimension through one graph:
Meta's ``compute_likelihood(exact_divergence=True)``, a continuous normalising flow as FFJORD has it on
``torchdiffeq.odeint`` (weights that require gradients, ``create_graph=True``), and the same loop as lean as it can be
(frozen weights, no second graph, no odeint). Ours is timed as it is called, where ``nn.MLP`` offers its divergence, and
by the two ways that work for any network, forward (``Exact()``) and in reverse (``Exact(reverse=True)``). A second
table is of pictures and a convolutional network; a third of the estimates, whose standard error the peers do not tell.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import flowmatch as fm

STEPS, REPEATS, SEED = 4, 4, 0
CASES = [  # dimension, rows, width; three blocks
    (16, 64, 64),
    (16, 256, 64),
    (16, 256, 128),
    (16, 1024, 128),
    (64, 64, 64),
    (64, 256, 64),
    (64, 256, 128),
    (64, 1024, 128),
]
PICTURES = [(16, 1, 8, 8), (32, 1, 8, 8), (16, 3, 8, 8), (8, 1, 14, 14)]
PROBES = (6, 12, 24)
TARGETS = {16: 2.0, 64: 4.0}
PEERS = {"flow_matching": "flow_matching", "torchdiffeq": "torchdiffeq"}

Score = Callable[[torch.nn.Module, Tensor], Tensor]


def network(dim: int, hidden: int) -> fm.nn.MLP:
    """An MLP whose last layer is not zero, as after training."""
    torch.manual_seed(SEED)
    net = fm.nn.MLP(dim=dim, hidden=hidden, depth=3)
    torch.nn.init.normal_(net.outlet.weight, std=0.05)
    return net


class Convolutions(torch.nn.Module):
    """A convolutional velocity of pictures, with the time as one channel more."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        sizes = [(channels + 1, width), (width, width), (width, channels)]
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)
        for layer in self.layers:
            torch.nn.init.kaiming_normal_(layer.weight)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Velocity ``(B, C, H, W)`` at times ``(B,)``."""
        h = torch.cat([x, t.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], dim=1)
        for i, layer in enumerate(self.layers):
            h = layer(torch.nn.functional.silu(h) if i else h)
        return h


def traced(net: torch.nn.Module, t: Tensor, x: Tensor, again: bool) -> tuple[Tensor, Tensor]:
    """Velocity and divergence by a backward pass for each dimension; ``again`` keeps a graph of each."""
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        velocity = net(t.expand(len(x)), point)
        flat, trace = velocity.flatten(1), torch.zeros(len(x))
        for d in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, d].sum(), point, retain_graph=True, create_graph=again)
            trace = trace + row.flatten(1)[:, d]
    return velocity.detach(), trace.detach()


def by_lean_loop(net: torch.nn.Module, x: Tensor) -> Tensor:
    """Log-likelihood by the least that a loop of backward passes can do."""
    h, log_det = -1 / STEPS, torch.zeros(len(x))
    for k in range(STEPS):
        t = torch.tensor(1 + k * h)
        velocity, _ = traced(net, t, x, again=False)
        velocity, trace = traced(net, t + h / 2, x + h / 2 * velocity, again=False)
        x, log_det = x + h * velocity, log_det + h * trace
    return fm.Normal().log_prob(x) + log_det


def by_torchdiffeq(net: torch.nn.Module, x: Tensor) -> Tensor:
    """Log-likelihood by the loop on ``torchdiffeq.odeint``."""
    odeint = importlib.import_module("torchdiffeq").odeint
    grid = torch.linspace(1, 0, STEPS + 1)
    start = (x, torch.zeros(len(x)))
    ends = odeint(lambda t, state: traced(net, t, state[0], again=True), start, grid, method="midpoint")
    return fm.Normal().log_prob(ends[0][-1]) + ends[1][-1]


def by_meta(net: torch.nn.Module, x: Tensor, exact: bool = True) -> Tensor:
    """Log-likelihood by Meta's solver."""
    wrapper = importlib.import_module("flow_matching.utils").ModelWrapper

    class Velocity(wrapper):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return net(t.expand(len(x)), x)

    solver = importlib.import_module("flow_matching.solver").ODESolver(Velocity(None))
    how = {"step_size": 1 / STEPS, "method": "midpoint", "exact_divergence": exact}
    value: Tensor = solver.compute_likelihood(x_1=x.clone(), log_p0=fm.Normal().log_prob, **how)[1]
    return value


def scored(net: torch.nn.Module, x: Tensor, method: Any = None) -> fm.Likelihood:
    """Log-likelihood by the package, with its standard error."""
    with torch.no_grad():
        flow, probes = fm.Flow(net, event_shape=tuple(x.shape[1:])), torch.Generator().manual_seed(SEED)
        return flow.likelihood(x, steps=STEPS, solver=fm.Midpoint(), divergence=method, generator=probes)


def ours(net: torch.nn.Module, x: Tensor) -> Tensor:
    """Log-likelihood by the package as it is called."""
    return scored(net, x).log_prob


def forward(net: torch.nn.Module, x: Tensor) -> Tensor:
    """Log-likelihood by the package for a network that offers no divergence of its own."""
    return scored(lambda t, x: net(t, x), x).log_prob  # type: ignore[arg-type]


def reverse(net: torch.nn.Module, x: Tensor) -> Tensor:
    """The same by vectorised backward passes."""
    return scored(net, x, fm.Exact(reverse=True)).log_prob


def best_ms(functions: Sequence[Callable[[], object]]) -> list[float]:
    """Shortest time of each function in milliseconds, the runs interleaved so that all meet the same machine.

    The shortest, as whatever else runs can only lengthen a turn.
    """
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(REPEATS + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat:  # the first warms up
                seconds.append(1e3 * (time.perf_counter() - start))
    return [min(seconds) for seconds in times]


def compare(net: torch.nn.Module, x: Tensor, ways: Sequence[Score]) -> tuple[list[float], float]:
    """Time of every way on trained weights, and the largest difference between the values of any two."""
    values = torch.stack([way(net, x).detach() for way in ways])
    difference = (values.amax(0) - values.amin(0)).max().item()
    # The lean loop alone may freeze the weights; a trained network comes with weights that require gradients.
    calls = [lambda way=way: way(net.requires_grad_(way is not by_lean_loop), x) for way in ways]
    return best_ms(calls), difference


def vectors() -> None:
    """The table of MLPs."""
    ways: list[Score] = [by_meta, by_torchdiffeq, by_lean_loop, ours, forward, reverse]
    print(f"\nexact, nn.MLP on [N, D], {STEPS} midpoint steps: milliseconds, and how many times as long as ours")
    print("  (forward and reverse are ours for any network, by Meta's time over theirs)")
    print("  D  rows width   Meta ms  torchdiffeq  lean loop   ours  Meta/  tdq/  lean/  forward  reverse  max diff")
    ratios: dict[int, list[float]] = {}
    for dim, rows, hidden in CASES:
        x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(SEED))
        (meta, tdq, lean, mine, ahead, back), difference = compare(network(dim, hidden), x, ways)
        ratios.setdefault(dim, []).append(meta / mine)
        print(
            f"{dim:3d} {rows:5d} {hidden:5d} {meta:9.1f} {tdq:12.1f} {lean:10.1f} {mine:6.1f} {meta / mine:6.2f} "
            f"{tdq / mine:5.2f} {lean / mine:6.2f} {meta / ahead:8.2f} {meta / back:8.2f} {difference:9.1e}",
            flush=True,
        )
    for dim, found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        print(
            f"  D = {dim}: Meta over ours {min(found):.2f} to {max(found):.2f}, mean {mean:.2f}; aim {TARGETS[dim]:g}"
        )


def pictures() -> None:
    """The table of pictures, and what the peer does with them."""
    print("\nexact, three convolutions of width 32 on [N, C, H, W]")
    try:
        by_meta(Convolutions(1), torch.zeros(2, 1, 8, 8))
    except (IndexError, RuntimeError) as error:
        print(f"  Meta's compute_likelihood(exact_divergence=True): {type(error).__name__}: {error}")
    else:
        print("  Meta's compute_likelihood(exact_divergence=True) works")
    print("  shape            torchdiffeq  lean loop     ours  reverse   tdq/  lean/  max diff")
    for shape in PICTURES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        ways: list[Score] = [by_torchdiffeq, by_lean_loop, ours, reverse]
        (tdq, lean, mine, back), difference = compare(Convolutions(shape[1]), x, ways)
        print(
            f"  {shape!s:16s} {tdq:11.1f} {lean:10.1f} {mine:8.1f} {back:8.1f} {tdq / mine:6.2f} {lean / mine:6.2f} "
            f"{difference:9.1e}",
            flush=True,
        )


def estimates() -> None:
    """The table of estimates: time, the standard error that is told, and the error there is."""
    for name, net, shape in (
        ("nn.MLP, D = 64, width 128", network(64, 128), (256, 64)),
        ("convolutions", Convolutions(1), (8, 1, 14, 14)),
    ):
        print(f"\nestimates on {shape}, {name}: errors of a log-density in nats, root mean square over the rows")
        x = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        truth = ours(net, x)
        methods: list[Any] = [fm.Exact()]
        for probes in PROBES:
            methods += [fm.Hutchinson(probes), fm.HutchPlusPlus(probes)]
        times = best_ms(
            [
                lambda: by_meta(net, x, exact=False),  # noqa: B023
                *(lambda method=method: scored(net, x, method) for method in methods),  # noqa: B023
            ]
        )
        print("                              ms  standard error  error")
        single = (by_meta(net, x, exact=False) - truth).square().mean().sqrt().item()
        print(f"  Meta, one probe       {times[0]:8.1f}        not told  {single:5.3f}")
        for method, spent in zip(methods, times[1:], strict=True):
            found = scored(net, x, method)
            told, error = (v.square().mean().sqrt().item() for v in (found.stderr, found.log_prob - truth))
            shown = type(method).__name__ + (f"({method.probes})" if hasattr(method, "probes") else "()")
            print(f"  {shown:20s}  {spent:8.1f}  {told:14.3f}  {error:5.3f}", flush=True)


def main() -> None:
    """Print the tables."""
    versions = [f"torch {torch.__version__}"]
    for name, package in PEERS.items():
        try:
            importlib.import_module(name)
        except ImportError:
            raise ImportError(f"{name} is a peer of this benchmark: pip install {' '.join(PEERS.values())}") from None
        versions.append(f"{name} {importlib.import_module('importlib.metadata').version(package)}")
    print(f"{', '.join(versions)}; {torch.get_num_threads()} threads, seed {SEED}, best of {REPEATS} turns")
    vectors()
    pictures()
    estimates()


if __name__ == "__main__":
    main()
