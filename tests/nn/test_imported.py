"""To diffusers and back: plain diffusers makes our samples, and its networks are fields."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
import torch

import flowmatch as fm
from flowmatch.nn import from_diffusers
from tests.nn.networks import image_inputs, image_net
from tests.problems import pair, seeded

pytest.importorskip("diffusers", reason="needs the extra networks")

# What a user of plain diffusers runs: no word of flowmatch in it.
PLAIN = """
import json, sys
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

folder, steps = sys.argv[1], int(sys.argv[2])
net = UNet2DModel.from_pretrained(folder).eval()
start = load_file(f"{folder}/start.safetensors")
scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
x = start["x"]
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t, start["label"]).sample, t, x).prev_sample
save_file({"x": x}, f"{folder}/end.safetensors")
print("flowmatch" in sys.modules)
"""


def _small(kind, **options):
    """In single precision, with weights of the size that trained ones have."""
    net = image_net(kind, "labels", **options).float()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    return net


def test_plain_diffusers_in_its_own_process_makes_our_euler_samples(tmp_path):
    from safetensors.torch import load_file, save_file

    net, steps = _small("unet"), 9
    x, label = pair(4, 1, 8, 8, dtype=torch.float32)[0], torch.tensor([0, 1, 2, 3])
    net.to_diffusers().save_pretrained(tmp_path)
    save_file({"x": x, "label": label}, tmp_path / "start.safetensors")
    command = [sys.executable, "-c", PLAIN, str(tmp_path), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    with torch.no_grad():
        ours = fm.solve(fm.ODE(net, label), x, solver=fm.Euler(), steps=steps).x
    theirs = load_file(tmp_path / "end.safetensors")["x"]
    assert (
        ours - x
    ).abs().max() > 0.05  # the network moves the samples, so the next line compares something  # it does move
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "UNet2DModel"


@pytest.mark.parametrize("kind", ["unet", "unet-conv", "dit"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_loop_of_diffusers_is_ours_on_any_grid(kind, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    net, steps = _small(kind), 6
    x, label = pair(4, 1, 8, 8, dtype=torch.float32)[0], torch.tensor([0, 1, 2, 3])
    plain = net.to_diffusers()
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    theirs = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            answer = plain(theirs, timestep=t.expand(4), class_labels=label).sample
            theirs = scheduler.step(answer, t, theirs).prev_sample
        ours = fm.solve(fm.ODE(net, label), x, solver=fm.Euler(), grid=1 - scheduler.sigmas.double()).x
    assert (ours - x).abs().max() > 0.05  # the network moves the samples, so the next line compares something
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("cond", ["plain", "labels", "noise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_export_is_a_copy_of_its_own_and_of_one_type(kind, cond, dtype, caplog):
    net = image_net(kind, cond).to(dtype)
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        plain = net.to_diffusers()
    assert not caplog.records
    assert type(plain).__module__.startswith("diffusers.")
    assert {p.dtype for p in plain.parameters()} == {dtype}
    with torch.no_grad():
        before = [p.clone() for p in net.parameters()]
        for parameter in plain.parameters():
            parameter.zero_()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["unet", "unet-conv", "dit"])
def test_what_is_exported_comes_back_as_the_same_field(kind):
    net, (t, x, label) = image_net(kind, "labels"), image_inputs(4, "labels")
    back = from_diffusers(net.to_diffusers())
    torch.testing.assert_close(back(t, x, label), net(t, x, label), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back(t, x, {"class_labels": label}), back(t, x, label))
    assert torch.equal(back(0.25, x, label), back(torch.full((4,), 0.25), x, label))
    assert back(torch.zeros(0), x[:0], label[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_network_of_diffusers_has_exact_likelihoods(kind):
    """Though its own attention is fused."""
    field, (t, x, label) = from_diffusers(image_net(kind, "labels").to_diffusers()), image_inputs(2, "labels")
    direction = torch.randn(x.shape, generator=seeded(4), dtype=x.dtype)
    _, slope = torch.func.jvp(lambda point: field(t, point, label), (x,), (direction,))
    quotient = (field(t, x + 1e-5 * direction, label) - field(t, x - 1e-5 * direction, label)) / 2e-5
    torch.testing.assert_close(slope, quotient, rtol=1e-4, atol=1e-6)
    assert fm.divergence(field, t[:1], x[:1], label[:1], method=fm.Exact(chunk=16)).isfinite().all()


def test_a_transformer_with_text_is_a_field():
    """Its conditions come by name in a dict, what is no condition of a sample when the field is made."""
    from diffusers import SD3Transformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
            pos_embed_max_size=8,
        ).eval()  # fmt: skip
    field = from_diffusers(model)
    x, text, pooled = (torch.randn(shape, generator=seeded(1)) for shape in ((2, 4, 8, 8), (2, 3, 16), (2, 16)))
    cond = {"encoder_hidden_states": text, "pooled_projections": pooled}
    with torch.no_grad():
        expected = -model(x, text, pooled, torch.full((2,), 750.0)).sample
        torch.testing.assert_close(field(0.25, x, cond), expected)
    _, slope = torch.func.jvp(lambda point: field(0.25, point, cond), (x,), (x,))
    quotient = (field(0.25, 1.01 * x, cond) - field(0.25, 0.99 * x, cond)) / 0.02
    torch.testing.assert_close(slope, quotient, rtol=2e-2, atol=2e-3)


def test_an_imported_flow_comes_back_when_its_network_is_given_again(tmp_path):
    first, second = (image_net("unet", seed_shift := "plain").to_diffusers() for _ in range(2))
    del seed_shift
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    fm.Flow(from_diffusers(first), event_shape=(1, 8, 8)).save(tmp_path)
    with pytest.raises(fm.errors.InputError, match=r"give it with Flow.load\(folder, field=...\)"):
        fm.Flow.load(tmp_path)
    back = fm.Flow.load(tmp_path, field=from_diffusers(second))
    t, x = image_inputs(2)
    assert torch.equal(back.field(t, x), from_diffusers(first)(t, x))


class _Model(torch.nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.channels = channels

    def forward(self, sample, timestep, bias=0.0, return_dict=True):
        assert not return_dict
        return (timestep.view(-1, 1, 1) * sample[:, : self.channels] + bias,)


def test_time_scale_and_further_arguments_reach_the_model():
    field = from_diffusers(_Model(), time_scale=10.0, bias=2.0)
    assert torch.equal(field(0.75, torch.ones(2, 1, 3)), torch.full((2, 1, 3), -4.5))
    assert repr(field) == "FromDiffusers(_Model, time_scale=10.0)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: from_diffusers("model"), TypeError, "must be a network of diffusers.* got str; a pipeline holds"),
        (lambda: from_diffusers(torch.nn.Linear(2, 2)), TypeError, "got Linear"),
        (lambda: from_diffusers(_Model(), time_scale=-1.0), ValueError, "time_scale must be positive"),
        (lambda: from_diffusers(_Model())(0.5, torch.ones(2, 3, 3)), ValueError, "the model returned shape"),
        (lambda: from_diffusers(_Model())(2.0, torch.ones(2, 1, 3)), ValueError, "t must lie in"),
        (lambda: image_net("dit", shape=(1, 8, 4)).to_diffusers(), ValueError, "square images only, this is 8 x 4"),
    ],
)
def test_what_is_no_network_of_diffusers_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
