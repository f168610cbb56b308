"""An entropic plan: the arguments of its problem checked, the problem solved, and indices drawn from it.

Everything that cannot give a right plan is refused here, before or after the iteration: a plan that looks like one and
is not, such as a uniform one put in the place of an overflow, would train a model on the wrong coupling in silence.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.couplings.cost import squared_distances
from flowmatch.couplings.scaling import Scaled, scale

__all__ = ["Plan", "check_iterations", "check_positive", "inverse_cumulative", "joining_costs", "relative", "solve"]

ROUNDING = 16  # units in the last place of the largest cost that the regularisation has to exceed


class Plan(NamedTuple):
    r"""An entropic plan, :math:`P = e^{(f_i + g_j - C_{ij})/\varepsilon}`.

    Attributes:
        f: potential of the rows ``(..., n)``, in units of the cost; the log-masses are in it.
        g: potential of the columns ``(..., m)``.
        log_plan: logarithm of the plan ``(..., n, m)``.
        error: by how much its masses are wrong, summed over rows and columns, ``(...)``.
        iterations: done, over all stages of the annealing.
    """

    f: Tensor
    g: Tensor
    log_plan: Tensor
    error: Tensor
    iterations: int


def solve(
    cost: Tensor,
    reg: float | Tensor,
    a: Tensor | None,
    b: Tensor | None,
    tol: float,
    max_iterations: int,
    price: float = math.inf,
) -> Plan:
    """Check the arguments of an entropic problem, balanced or with a ``price`` of missing the masses, and solve it."""
    if not isinstance(cost, Tensor) or cost.dtype not in (torch.float32, torch.float64):
        kind = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
        raise TypeError(f"cost must be a float32 or float64 tensor (..., n, m), got {kind}")
    if cost.ndim < 2 or 0 in cost.shape[-2:]:
        raise ValueError(f"cost must have shape (..., n, m) with n and m at least 1, got {tuple(cost.shape)}")
    reach = torch.maximum(cost.amax((-2, -1)), -cost.amin((-2, -1))).detach().reshape(-1)
    if not bool(torch.isfinite(reach).all()):  # a NaN is the largest and the smallest
        bad = int((~torch.isfinite(cost)).sum())
        raise ValueError(f"cost has {bad} entries that are NaN or infinite; look for them in the two clouds")
    check_positive("tol", tol)
    check_iterations(max_iterations)
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    regs = torch.as_tensor(reg, dtype=cost.dtype, device=cost.device)
    if regs.ndim and regs.shape != lead:
        raise ValueError(f"reg must be a number or have shape {tuple(lead)}, got {tuple(regs.shape)}")
    if regs.numel() and not bool((regs > 0).all() and torch.isfinite(regs).all()):
        raise ValueError(f"reg must be positive and finite, got {float(regs.min()):g} to {float(regs.max()):g}")
    log_a, log_b = _log_masses("a", a, lead, n, cost), _log_masses("b", b, lead, m, cost)
    if not cost.numel():
        empty = cost.new_zeros(lead)
        return Plan(cost.new_zeros(*lead, n), cost.new_zeros(*lead, m), cost.detach().clone(), empty, 0)
    flat, regs = cost.detach().reshape(-1, n, m), regs.expand(lead).reshape(-1)
    smallest = ROUNDING * torch.finfo(cost.dtype).eps * reach
    if bool((regs < smallest).any()):
        worst = int((smallest / regs).argmax())
        finer = "a larger one" if cost.dtype == torch.float64 else "cost.double()"
        raise ValueError(
            f"reg = {float(regs[worst]):.3g} is too small for {cost.dtype}: the cost reaches {float(reach[worst]):.3g} "
            f"and is not known to reg; the smallest usable is {float(smallest[worst]):.3g}, or use {finer}"
        )
    scaled = scale(flat, regs, log_a, log_b, tol, max_iterations, price)
    _check_convergence(scaled, regs, tol, price)
    f, g = scaled.f * regs[:, None], scaled.g * regs[:, None]
    return Plan(
        f.reshape(*lead, n),
        g.reshape(*lead, m),
        scaled.log_plan.reshape(cost.shape),
        scaled.error.reshape(lead),
        scaled.iterations,
    )


def joining_costs(x0: Tensor, x1: Tensor) -> Tensor:
    """Costs of two checked clouds; raises if one is empty, so that nobody can be joined to anyone."""
    if not x0.shape[0] or not x1.shape[0]:
        raise ValueError(f"x0 and x1 must have at least one row each to be joined, got {x0.shape[0]} and {x1.shape[0]}")
    return squared_distances(x0, x1)


def relative(epsilon: float, cost: Tensor) -> float:
    """``epsilon`` times the mean cost; where every cost is zero any plan is optimal, and the unit is 1."""
    return epsilon * (float(cost.mean()) or 1.0)


def inverse_cumulative(weights: Tensor, level: Tensor) -> Tensor:
    """Columns at which the running sum of ``weights`` ``(R, m)`` passes ``level`` ``(R, k)`` in [0, 1): ``(R, k)``."""
    total = weights.cumsum(1, dtype=torch.float64)
    return torch.searchsorted(total, level * total[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)


def check_positive(name: str, value: float | None) -> None:
    """Raise ValueError unless ``value`` is ``None`` or a positive, finite number."""
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value}")


def check_iterations(most: int) -> None:
    """Raise ValueError unless at least one iteration is allowed."""
    if most < 1:
        raise ValueError(f"max_iterations must be at least 1, got {most}")


def _log_masses(name: str, mass: Tensor | None, lead: torch.Size, size: int, cost: Tensor) -> Tensor:
    if mass is None:
        return cost.new_full((lead.numel(), size), -math.log(size))
    if mass.shape not in ((size,), (*lead, size)):
        raise ValueError(f"{name} must have shape {(size,)} or {(*lead, size)}, got {tuple(mass.shape)}")
    mass = mass.detach().to(cost)
    total = mass.sum(-1)
    if not bool((mass > 0).all()):
        raise ValueError(f"{name} must be positive, its smallest entry is {float(mass.min()):g}; leave such points out")
    if not bool(((total - 1).abs() < 1e-4).all()):
        raise ValueError(f"{name} must sum to 1, got sums from {float(total.min()):g} to {float(total.max()):g}")
    return (mass / total[..., None]).log().expand(*lead, size).reshape(-1, size)


def _check_convergence(scaled: Scaled, regs: Tensor, tol: float, price: float) -> None:
    worst = int(scaled.error.argmax())
    error, dtype = float(scaled.error[worst]), scaled.log_plan.dtype
    if error <= tol:
        return
    log_mass = float(scaled.log_plan[worst].logsumexp((0, 1)))
    if price < math.inf and not log_mass > -50:
        raise ValueError(
            f"hardly any mass is left in the plan (its logarithm is {log_mass:.3g}): every cost is far above the "
            f"penalty of {price:.3g}; use a larger one"
        )
    finer = "" if dtype == torch.float64 else ", cost.double()"
    raise RuntimeError(
        f"the masses of the plan are wrong by {error:.3g} after {scaled.iterations} iterations, tol is {tol:g}; "
        f"use more max_iterations, a larger reg than {float(regs[worst]):.3g}{finer} or a larger tol"
    )
