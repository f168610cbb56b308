"""Worlds to solve: mixtures with their exact marginal field, and a network trained on handwritten digits."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

import flowmatch as fm
from flowmatch.solvers import DOP853
from flowmatch.train import TensorData, TrainConfig, Trainer

STEPS = 2000  # of training on the digits: about 40 s on two cores


def circle(path: fm.AffinePath) -> fm.MixtureField:
    """Eight modes at radius 5 with variance 0.1."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return fm.MixtureField(5 * torch.stack([angle.cos(), angle.sin()], dim=1), std=math.sqrt(0.1), path=path)


def cloud(path: fm.AffinePath) -> fm.MixtureField:
    """Ten modes in 64 dimensions."""
    means = torch.randn(10, 64, generator=torch.Generator().manual_seed(100), dtype=torch.float64)
    return fm.MixtureField(means, std=0.5, path=path)


PATHS = {"straight": fm.AffinePath(fm.Linear()), "vp": fm.AffinePath(fm.VariancePreserving())}


class Digits:
    """A network trained on 8 x 8 digits, in float64 as the mixtures are; what schedulers ask of a field."""

    def __init__(self, path: fm.AffinePath) -> None:
        self.path, self.net = path, trained(path)
        self.means = torch.zeros(1, 64)

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        velocity: Tensor = self.net(t, x)
        return velocity

    def posterior_mean(self, t: float, x: Tensor) -> Tensor:
        """What the velocity says of the data."""
        time = torch.full(x.shape[:1], t, dtype=x.dtype)
        return self.path.convert(self(time, x), time, x, "velocity", "target")


@cache
def trained(path: fm.AffinePath) -> torch.nn.Module:
    """A residual MLP, trained in float32 with one seed and frozen in float64."""
    from sklearn.datasets import load_digits

    x1 = torch.from_numpy(load_digits().data).float() / 8 - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = fm.nn.MLP(dim=64, hidden=128, depth=3)
    objective = fm.FlowMatching(path, times=fm.Stratified(*path.interval))
    config = TrainConfig(steps=STEPS, batch_size=256, learning_rate=2e-3, evaluate_every=0, log_every=0)
    return Trainer(net, objective, TensorData(x1), config).fit().model.double().requires_grad_(False)


WORLDS = {"circle": circle, "cloud": cloud, "digits": Digits}


def start_and_truth(field: fm.MixtureField | Digits, seed: int, starts: int = 256) -> tuple[Tensor, Tensor]:
    """Starts, and where the exact flow takes them."""
    x = torch.randn(starts, *field.means.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # A network is smooth to rounding of its float64 weights, but not to 1e-12 of its own size.
    tolerance = 1e-12 if isinstance(field, fm.MixtureField) else 1e-10
    return x, fm.solve(fm.ODE(field), x, DOP853(), rtol=tolerance, atol=tolerance, span=field.path.interval).x


def error(y: Tensor, truth: Tensor) -> float:
    """Root mean square error; infinite for a result that is not finite."""
    value = (y.double() - truth).square().mean().sqrt().item()
    return value if math.isfinite(value) else math.inf
