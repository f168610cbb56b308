"""A folder that plain diffusers opens, in a process that cannot import flowmatch, and samples as we do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flowmatch as fm
from flowmatch.export import to_diffusers
from flowmatch.nn import from_diffusers
from tests.export.worlds import SHAPE, guided_flow, image_flow, small, table_flow, told
from tests.problems import seeded

pytest.importorskip("diffusers", reason="needs the extra networks")

STEPS, ROWS = 7, 3

# What a user of plain diffusers runs: the network with the scheduler, the pipeline, and the lines of the model card.
PLAIN = """
import json, os, re, sys
sys.modules["flowmatch"] = None  # any import of it fails
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

steps = int(sys.argv[1])
logging.disable_progress_bar()
made = {}
for name in sys.argv[2:]:
    given = load_file(f"{name}.safetensors")
    x, label = given.pop("x"), given.pop("label", None)
    part = "unet" if os.path.isdir(f"{name}/unet") else "transformer"
    kind = UNet2DModel if part == "unet" else DiTTransformer2DModel
    net = kind.from_pretrained(name, subfolder=part).eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(name, subfolder="scheduler")
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    own = torch.zeros(len(x), dtype=torch.long) if label is None and part == "transformer" else label
    known = [v if v.ndim == 4 else v.view(-1, 1, 1, 1).expand(-1, 1, 8, 8) for v in given.values()]
    state = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            joined = torch.cat([state, *[v.float() for v in known]], dim=1)
            state = scheduler.step(net(joined, t.expand(len(x)), own).sample, t, state).prev_sample
    made[name + " loop"] = state
    pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=os.path.abspath(name), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    made[name + " pipe"] = pipe(
        class_labels=label, condition=given, latents=x, num_inference_steps=steps, output_type="latent"
    ).images
    if "_class_name" in json.load(open(f"{name}/model_index.json")) and name == "unet-plain":
        usual = DiffusionPipeline.from_pretrained(name)
        assert type(usual).__name__ == "DDPMPipeline", type(usual)
        usual.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made[name + " usual"] = usual(len(x), generator, steps, output_type="pt").images
        made[name + " stops"] = usual.scheduler.sigmas.clone()
    if name in sys.argv[-5:]:
        for block in re.findall(r"^```python\\n(.*?)^```$", open(f"{name}/README.md").read(), re.M | re.S):
            scope = {}
            exec(block, scope)
            made[name + " card"] = scope["images"] if torch.is_tensor(scope["images"]) else torch.zeros(1)
save_file({key: value.contiguous() for key, value in made.items()}, "made.safetensors")
"""


def _linear(**options):
    return fm.AffinePath(fm.Linear(**options))


# The last five are also sampled by the lines of their cards.
WORLDS = {
    "unet-narrow": (lambda: image_flow("unet-conv", path=_linear(sigma_min=0.1)), "plain"),
    "unet-cosine": (lambda: image_flow("unet", "labels", path=fm.AffinePath(fm.Cosine())), "labels"),
    "unet-guided": (lambda: guided_flow("unet", interval=(2 / 7, 5 / 7)), "labels"),
    "unet-painted": (lambda: guided_flow("unet", "mask"), "mask"),
    "dit-labels": (lambda: image_flow("dit", "labels"), "labels"),
    "unet-wide": (lambda: image_flow("unet", source=fm.Normal(3.0)), "plain"),
    "dit-plain": (lambda: image_flow("dit"), "plain"),
    "dit-noise": (lambda: image_flow("dit", "noise"), "noise"),
    "unet-labels": (lambda: image_flow("unet", "labels"), "labels"),
    "unet-plain": (lambda: image_flow("unet"), "plain"),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Every flow with its noise and its condition, and what plain diffusers made of its export."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("exports")
    ours = {}
    for name, (make, cond) in WORLDS.items():
        flow, given = make().eval(), told(cond, ROWS)
        to_diffusers(flow, folder / name)
        x = flow.source.sample((ROWS, *SHAPE), generator=seeded(1))
        ours[name] = flow.float(), x, given
        parts = dict(given) if isinstance(given, dict) else {} if given is None else {"label": given}
        save_file({"x": x, **parts}, folder / f"{name}.safetensors")
    environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, str(STEPS), *WORLDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return ours, load_file(folder / "made.safetensors"), folder


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("way", ["loop", "pipe"])
def test_plain_diffusers_makes_our_euler_samples(worlds, name, way):
    flows, made, _ = worlds
    flow, x, cond = flows[name]
    if way == "loop" and isinstance(flow.field, fm.Guided):  # the bare loop has no guidance
        flow = fm.Flow(flow.field.field, event_shape=SHAPE)
    ours = flow.decode(x, cond, solver=fm.Euler(), steps=STEPS)
    assert (ours - x).abs().max() > 0.05  # the network moves the samples, so the next line compares something
    torch.testing.assert_close(made[f"{name} {way}"], ours, rtol=0, atol=1e-5)


def test_guidance_changes_the_samples_only_inside_its_interval(worlds):
    flows, made, _ = worlds
    assert (made["unet-guided pipe"] - made["unet-guided loop"]).abs().max() > 1e-3
    flow, x, cond = flows["unet-guided"]
    everywhere = fm.Flow(fm.Guided(flow.field.field, 3.0, flow.field.field.null), event_shape=SHAPE)
    other = everywhere.decode(x, cond, solver=fm.Euler(), steps=STEPS)
    assert (made["unet-guided pipe"] - other).abs().max() > 1e-3


def test_diffusers_own_pipeline_samples_an_unconditional_unet(worlds):
    flows, made, _ = worlds
    flow, _, _ = flows["unet-plain"]
    x = flow.start(ROWS, torch.Generator().manual_seed(0))
    ours = flow.decode(x, solver=fm.Euler(), grid=1 - made["unet-plain stops"].double())
    torch.testing.assert_close(made["unet-plain usual"], (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_the_lines_of_the_card_run(worlds):
    flows, made, folder = worlds
    for name in ("unet-wide", "dit-plain", "dit-noise", "unet-labels", "unet-plain"):
        assert made[f"{name} card"].shape == (16, *SHAPE)
    assert (folder / "first.png").is_file()
    for name, cond in (("unet-labels", torch.arange(16) % 3), ("unet-wide", None)):
        flow, _, _ = flows[name]
        x = flow.start(16, torch.Generator().manual_seed(0))
        ours = flow.decode(x, cond, solver=fm.Euler(), steps=50)
        torch.testing.assert_close(made[f"{name} card"], (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_what_is_in_the_folder(worlds):
    *_, folder = worlds
    for name, part in (("unet-labels", "unet"), ("dit-labels", "transformer")):
        files = {str(path.relative_to(folder / name)) for path in (folder / name).rglob("*") if path.is_file()}
        weights = f"{part}/diffusion_pytorch_model.safetensors"
        assert files == {
            "README.md",
            "model_index.json",
            "pipeline.py",
            f"{part}/config.json",
            weights,
            "scheduler/scheduler_config.json",
        }
    assert "flowmatch" not in re.sub(r'""".*?"""', "", (folder / "unet-labels" / "pipeline.py").read_text(), flags=re.S)
    assert (folder / "unet-labels" / "pipeline.py").read_bytes() == (folder / "dit-noise" / "pipeline.py").read_bytes()
    index = json.loads((folder / "unet-guided" / "model_index.json").read_text())
    assert (index["classes"], index["guidance_scale"], index["guidance_interval"]) == (3, 3.0, [2 / 7, 5 / 7])


def test_a_singular_path_ends_within_its_margin(tmp_path):
    """The scheduler's last step goes to 1 where the path's interval stops before: by that much times the velocity."""
    flow = image_flow("dit", "labels", path=fm.AffinePath(fm.VariancePreserving()))
    assert flow.path.interval == (0.0, 1 - 1e-5)
    assert to_diffusers(flow, tmp_path / "vp").sample < 1e-5
    x, cond = flow.start(ROWS, seeded(1)), told("labels", ROWS)
    grid = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    longer, ours = (flow.decode(x, cond, solver=fm.Euler(), **how) for how in ({"grid": grid}, {"steps": STEPS}))
    torch.testing.assert_close(longer, ours, rtol=0, atol=1e-4)


def test_the_noise_of_sigma_min_is_in_the_samples_of_both():
    """For the exact field of a point mass, an ODE whose velocity says nothing of sigma_min to the sampler."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigma_min = 0.25

    class Exact(torch.nn.Module):
        """The velocity of N(0, sigma_t^2), as a network of diffusers."""

        def forward(self, sample, timestep, return_dict=True):
            t = 1 - timestep.view(-1, 1) / 1000
            sigma = 1 - (1 - sigma_min) * t
            return ((1 - sigma_min) / sigma * sample,)

    flow = fm.Flow(from_diffusers(Exact()), _linear(sigma_min=sigma_min), event_shape=(1,))
    x = flow.start(5, seeded(1))
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(sigmas=[1 - k / 50 for k in range(50)])
    state = x
    for t in scheduler.timesteps:
        state = scheduler.step(Exact()(state, t.expand(5))[0], t, state).prev_sample
    torch.testing.assert_close(state, sigma_min * x, rtol=1e-4, atol=0)  # Euler is exact on straight lines
    torch.testing.assert_close(state, flow.decode(x, solver=fm.Euler(), steps=50), rtol=0, atol=1e-5)


# --- refusals ---


class _Own(torch.nn.Module):
    def forward(self, t, x):
        return x


def _guided(scale, null):
    return fm.Guided(small("unet", "labels"), scale, null)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: table_flow(), ["no network like MLP", "to_onnx"]),
        (lambda: fm.Flow(_Own(), event_shape=SHAPE), ["no network like _Own", "fm.nn.UNet and fm.nn.DiT"]),
        (lambda: fm.Flow(lambda t, x: x, event_shape=SHAPE), ["no network like function"]),
        (lambda: fm.Flow(fm.Predicts(small("unet"), fm.AffinePath(), "target")), ["no network like Predicts"]),
        (lambda: image_flow("unet", source=fm.Empirical(torch.zeros(2, *SHAPE))), ["starts from normal noise"]),
        (lambda: fm.Flow(_guided(None, 3), event_shape=SHAPE), ["scale=None", "guidance_scale="]),
        (lambda: fm.Flow(_guided(2.0, 0), event_shape=SHAPE), ["another null"]),
        (lambda: fm.Flow(fm.AutoGuided(small("unet"), small("unet"), 2.0)), ["no network like AutoGuided"]),
        (lambda: fm.Flow(from_diffusers(small("unet").to_diffusers()), event_shape=SHAPE), ["save_pretrained"]),
    ],
)
def test_what_plain_diffusers_cannot_express_is_refused(tmp_path, make, words):
    with pytest.raises(fm.InputError) as refused:
        to_diffusers(make(), tmp_path / "out")
    for word in words:
        assert word in str(refused.value)
    assert not any(tmp_path.iterdir())


def test_a_path_that_starts_later_or_a_broken_scale_is_refused(tmp_path):
    late = fm.AffinePath(fm.Cosine())
    late.interval = (0.01, 1.0)
    with pytest.raises(fm.InputError, match=r"runs from 0 to 1, the path of this flow from 0.01 to 1.0"):
        to_diffusers(image_flow("unet", path=late), tmp_path / "out")
    net = fm.nn.DiT(SHAPE, hidden=16, depth=1, heads=2, time_scale=0.5)
    with pytest.raises(fm.InputError, match=r"whole number, this network has time_scale=0.5"):
        to_diffusers(fm.Flow(net, event_shape=SHAPE), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_oblong_transformer_is_refused(tmp_path):
    net = fm.nn.DiT((1, 8, 4), hidden=16, depth=1, heads=2)
    with pytest.raises(fm.InputError, match="square images only"):
        to_diffusers(fm.Flow(net, event_shape=(1, 8, 4)), tmp_path / "out")


# --- the folder ---


def test_an_export_replaces_an_export_only_and_only_when_told(tmp_path):
    out = tmp_path / "out"
    to_diffusers(image_flow("dit"), out)
    before = (out / "model_index.json").read_text()
    with pytest.raises(fm.InputError, match="already holds something"):
        to_diffusers(image_flow("dit", "labels"), out)
    assert (out / "model_index.json").read_text() == before
    to_diffusers(image_flow("dit", "labels"), out, overwrite=True)
    assert (out / "model_index.json").read_text() != before
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("...")
    with pytest.raises(fm.InputError, match="is no export"):
        to_diffusers(image_flow("dit"), thesis, overwrite=True)
    with pytest.raises(fm.InputError, match="is a file"):
        to_diffusers(image_flow("dit"), thesis / "chapter.tex", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "thesis"]


def test_an_empty_folder_is_taken_and_a_missing_parent_made(tmp_path):
    (tmp_path / "empty").mkdir()
    assert to_diffusers(image_flow("dit"), tmp_path / "empty").path == tmp_path / "empty"
    to_diffusers(image_flow("dit"), tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "README.md").is_file()


def test_an_export_that_is_not_the_flow_is_never_put_in_place(tmp_path, monkeypatch):
    """Weights that change on the way: the earlier export stays, and nothing else."""
    from diffusers import DiTTransformer2DModel

    out = tmp_path / "out"
    to_diffusers(image_flow("dit"), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    real = DiTTransformer2DModel.from_pretrained

    def changed(*args, **kwargs):
        net = real(*args, **kwargs)
        with torch.no_grad():
            net.proj_out_2.bias.add_(0.1)
        return net

    monkeypatch.setattr(DiTTransformer2DModel, "from_pretrained", changed)
    with pytest.raises(RuntimeError, match=r"the export is not the flow: its velocities differ by 0.1"):
        to_diffusers(image_flow("dit"), out, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_gives_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    to_diffusers(image_flow("dit"), out)
    real = os.replace

    def failing(source, target):
        if str(source).endswith(".new"):
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no"):
        to_diffusers(image_flow("dit"), out, overwrite=True)
    assert (out / "README.md").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_exporting_leaves_the_flow_as_it_was(tmp_path):
    flow = image_flow("unet", "labels").double().train()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    done = to_diffusers(flow, tmp_path / "out")
    assert done.velocity < 1e-5
    assert done.sample < 1e-5
    assert flow.training
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert next(flow.parameters()).dtype == torch.float64


# --- the pipeline's own refusals ---


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import FlowMatchEulerDiscreteScheduler

    from flowmatch.export.pipeline import FlowMatchPipeline

    def make(cond="plain", **settings):
        net = small("unet", cond).to_diffusers()
        pipe = FlowMatchPipeline(FlowMatchEulerDiscreteScheduler(), unet=net, **settings)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({}, {"class_labels": 1}, "this model takes no class_labels"),
        ({}, {"guidance_scale": 2.0}, "guidance_scale needs a model with classes"),
        ({}, {"condition": {"image": torch.zeros(1, 1, 8, 8)}}, "a condition of nothing"),
        ({"cond": "labels", "classes": 3}, {}, "class_labels from 0 to 2, 3 for no class"),
        ({"cond": "labels", "classes": 3}, {"class_labels": 4}, r"must lie in 0..3, got \[4\]"),
        ({"cond": "image", "image": 2}, {}, r"a condition of \['image'\]"),
    ],
)
def test_a_pipeline_says_what_it_takes(pipeline, settings, call, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**settings)(num_inference_steps=1, **call)


def test_a_pipeline_draws_pictures_by_its_generator(pipeline):
    pipe = pipeline("labels", classes=3)
    options = {"num_inference_steps": 2, "class_labels": [0, 3], "output_type": "pt"}
    a, b, c = (pipe(generator=seeded(k), **options).images for k in (0, 0, 1))
    assert a.shape == (2, 1, 8, 8)
    assert a.min() >= 0
    assert a.max() <= 1
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    pictures = pipe(**options | {"output_type": "pil", "class_labels": 2, "batch_size": 3}).images
    assert [picture.size for picture in pictures] == [(8, 8)] * 3
    (numbers,) = pipe(**options | {"output_type": "np"}, return_dict=False)
    assert numbers.shape == (2, 8, 8, 1)
    assert Path(type(pipe).__module__.replace(".", "/")).name == "pipeline"


def test_a_pipeline_starts_from_noise_of_its_own_spread(pipeline):
    options = {"num_inference_steps": 2, "output_type": "latent"}
    wide = pipeline(noise_std=3.0)(generator=seeded(0), **options).images
    given = pipeline()(latents=3 * torch.randn(1, *SHAPE, generator=seeded(0)), **options).images
    assert torch.equal(wide, given)


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"flowmatch\[networks\]"):
        to_diffusers(image_flow("dit"), tmp_path / "out")
