"""The trainer on images: the whole way, and the same batches in every mode of drawing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flowmatch as fm
from flowmatch.data.images import Downsampled, Images, Masked, load_images
from flowmatch.train import TrainConfig, Trainer
from flowmatch.train.draws import Draws
from tests.data.images.written import first, pixels, save


class Small(nn.Module):
    """One convolution over the image and whatever images the condition has, plus a row for the class."""

    def __init__(self, inputs: int, classes: int = 3) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, 1)
        self.net = nn.Conv2d(inputs, 1, 3, padding=1)

    def forward(self, t, x, cond=None):
        if isinstance(cond, dict):
            label = cond["label"]
            x = torch.cat([x, *(cond[name] for name in ("image", "mask") if name in cond)], 1)
        else:
            label = cond
        return self.net(x) + self.label(label)[:, :, None, None] + t[:, None, None, None]


OBJECTIVE = fm.FlowMatching(fm.AffinePath())
CONFIG = {"steps": 2, "batch_size": 6, "warmup": 0, "log_every": 1}


def images(**options):
    return Images(torch.from_numpy(first(pixels(20, 6, 6, 1)).copy()), torch.arange(20) % 3, **options)


@pytest.mark.parametrize(
    ("wrap", "inputs"), [(lambda data: data, 1), (lambda data: Downsampled(data, 2, noise=0.1), 2), (Masked, 3)]
)
def test_two_steps_with_a_held_out_loss(wrap, inputs, tmp_path):
    train, held = images(flip=True, dequantize=True).split(5)
    net = Small(inputs)
    before = net.net.weight.clone()
    config = TrainConfig(**CONFIG, evaluate_every=1, tensorboard=False)
    history = Trainer(net, OBJECTIVE, wrap(train), config, holdout=wrap(held), out=tmp_path).fit().history
    assert [row["step"] for row in history] == [1, 2]
    assert all(row["heldout_loss"] > 0 for row in history)
    assert not torch.equal(net.net.weight, before)


def test_files_train_like_memory_ahead_of_the_step_or_not(tmp_path):
    for number, image in enumerate(pixels(20, 6, 6, 1)):
        save(tmp_path / "abc"[number % 3] / f"{number:02d}.png", image)
    weights = []
    for memory, ahead in ((2**31, 0), (0, 0), (0, 2)):
        torch.manual_seed(0)
        data = load_images(tmp_path, flip=True, dequantize=True, memory=memory)
        net = Small(1)
        Trainer(net, OBJECTIVE, data, TrainConfig(**CONFIG, ahead=ahead)).fit()
        weights.append(net.net.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_a_batch_is_a_function_of_seed_and_step():
    data = images(flip=True, dequantize=True)
    with Draws(OBJECTIVE, data, 6, seed=3) as one, Draws(OBJECTIVE, data, 6, seed=3, ahead=1) as other:
        forward = [one(step).sample.x1 for step in range(6)]
        for step in (5, 0, 3):
            assert torch.equal(other(step).sample.x1, forward[step])
    # The same rows in the next epoch come with other flips and other noise.
    assert not torch.equal(torch.cat(forward[:3]).sort(0).values, torch.cat(forward[3:]).sort(0).values)


def test_an_mlp_learns_on_flattened_images():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = fm.nn.MLP(dim=36, hidden=8, classes=3)

        def forward(self, t, x, cond):
            return self.mlp(t, x.flatten(1), cond).view_as(x)

    result = Trainer(Flat(), OBJECTIVE, images(), TrainConfig(**{**CONFIG, "steps": 30, "learning_rate": 0.02})).fit()
    assert result.history[-1]["loss"] < result.history[0]["loss"]
