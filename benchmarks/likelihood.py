"""Exact log-likelihood: this package against the usual Python loop of D backward passes.

Both solve the same augmented equation for the same network with the same midpoint steps, so the only difference is
how the divergence is had. The loop makes a backward pass for each dimension through one forward graph: once as lean
as it can be (frozen weights, no second graph), and once as continuous normalising flows are usually written (weights
that require gradients, ``create_graph=True``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import flowmatch as fm

STEPS, REPEATS, SEED = 4, 7, 0
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


def network(dim: int, hidden: int) -> fm.nn.MLP:
    """An MLP whose last layer is not zero, as after training."""
    torch.manual_seed(SEED)
    net = fm.nn.MLP(dim=dim, hidden=hidden, depth=3)
    torch.nn.init.normal_(net.outlet.weight, std=0.05)
    return net.requires_grad_(False)


def by_loop(net: fm.nn.MLP, x: Tensor, usual: bool = False) -> Tensor:
    """Log-likelihood with the divergence by D backward passes."""

    def step(t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        point = x.detach().requires_grad_(True)
        velocity = net(torch.full((len(x),), t), point)
        trace = torch.zeros(len(x))
        for d in range(x.shape[1]):
            (row,) = torch.autograd.grad(velocity[:, d].sum(), point, retain_graph=True, create_graph=usual)
            trace = trace + row[:, d]
        return velocity.detach(), trace.detach()

    h, log_det = -1 / STEPS, torch.zeros(len(x))
    for k in range(STEPS):
        t = 1 + k * h
        velocity, _ = step(t, x)
        velocity, trace = step(t + h / 2, x + h / 2 * velocity)
        x, log_det = x + h * velocity, log_det + h * trace
    return fm.Normal().log_prob(x) + log_det


def ours(net: torch.nn.Module, x: Tensor, chunk: int | None = None) -> Tensor:
    """Log-likelihood by the package; a chunk asks for the way that works for any network."""
    flow = fm.Flow(net, event_shape=(x.shape[1],))
    return flow.log_prob(x, steps=STEPS, solver=fm.Midpoint(), divergence=fm.Exact(chunk))


def median_seconds(functions: list[Callable[[], object]]) -> list[float]:
    """Median time of each function, the runs interleaved so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(REPEATS + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat:  # the first warms up
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, seed {SEED}, {STEPS} midpoint steps")
    columns = "usual ms   lean ms   ours ms  usual/ours  lean/ours  lean/any-net  max diff"
    print(f"  D  rows width  {columns}")
    for dim, rows, hidden in CASES:
        net = network(dim, hidden)
        x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(SEED))
        difference = (by_loop(net, x) - ours(net, x)).abs().max().item()
        # The rows of both ways are compared on the same solve, so the difference is rounding.
        trainable = network(dim, hidden).requires_grad_(True)
        usual, loop, mine, general = median_seconds(
            [
                lambda: by_loop(trainable, x, usual=True),  # noqa: B023
                lambda: by_loop(net, x),  # noqa: B023
                lambda: ours(net, x),  # noqa: B023
                lambda: ours(net, x, chunk=dim),  # noqa: B023
            ]
        )
        print(
            f"{dim:3d} {rows:5d} {hidden:5d} {1e3 * usual:9.1f} {1e3 * loop:9.1f} {1e3 * mine:9.1f} "
            f"{usual / mine:11.2f} {loop / mine:10.2f} {loop / general:13.2f} {difference:9.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
