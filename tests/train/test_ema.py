from __future__ import annotations

import pytest
import torch
from torch import nn

from flowmatch.train import Ema
from tests.train.runs import Noisy, noisy


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_average_is_the_closed_form_on_a_known_sequence(decay: float) -> None:
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(net.weight, 7.0)
    ema = Ema(net, decay)
    sequence = [float(k * k) for k in range(60)]
    for step, value in enumerate(sequence):
        nn.init.constant_(net.weight, value)
        ema.update(step)
    # Unrolled: every value counts by its own share times the decays after it, the start by all of them.
    decays = [min(decay, (1 + k) / (10 + k)) for k in range(60)]
    after = [torch.tensor(decays[k + 1 :], dtype=torch.float64).prod().item() for k in range(60)]
    expected = 7.0 * torch.tensor(decays, dtype=torch.float64).prod().item()
    expected += sum((1 - d) * later * value for d, later, value in zip(decays, after, sequence, strict=True))
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-12)


def test_warmup_forgets_the_start_and_ends_at_the_limit() -> None:
    ema = Ema(nn.Linear(1, 1), 0.999)
    assert ema.decay(0) == pytest.approx(0.1)
    assert all(ema.decay(k) < ema.decay(k + 1) for k in range(8000))
    assert ema.decay(9000) == 0.999


def test_buffers_are_copied_and_the_class_is_kept() -> None:
    net = noisy()
    ema = Ema(net, 0.999)
    for step in range(3):
        net(torch.rand(8), torch.randn(8, 2)).sum()
        ema.update(step)
    assert type(ema.module) is Noisy
    assert ema.module.calls.item() == 3
    assert torch.equal(ema.module.norm.running_mean, net.norm.running_mean)
    assert net.norm.running_mean.abs().sum() > 0


def test_average_is_apart_from_the_model() -> None:
    net = noisy()
    ema = Ema(net, 0.9)
    assert not ema.module.training
    assert net.training
    assert not any(weight.requires_grad for weight in ema.module.parameters())
    before = net.inlet.weight.clone()
    nn.init.zeros_(ema.module.inlet.weight)
    assert torch.equal(net.inlet.weight, before)


def test_integer_weights_are_copied() -> None:
    net = nn.Module()
    net.table = nn.Parameter(torch.tensor([3]), requires_grad=False)
    net.weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema(net, 0.5)
    net.table.data.fill_(8)
    ema.update(0)
    assert ema.module.table.item() == 8


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_decay_outside_its_interval_is_an_error(decay: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        Ema(nn.Linear(1, 1), decay)
