"""Networks of diffusers as flows: they sample as diffusers' own loops do, on its scheduler's own times."""

from __future__ import annotations

import json

import pytest
import torch

import flowmatch as fm
from flowmatch.export import load_diffusers, scheduler_grid, to_diffusers
from tests.export.worlds import SHAPE, guided_flow, image_flow, told
from tests.problems import seeded

diffusers = pytest.importorskip("diffusers", reason="needs the extra networks")

STEPS, ROWS = 5, 3


def _unet():
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )


def _conditioned():
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
    )


def _sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=16,
        pooled_projection_dim=5,
        pos_embed_max_size=8,
    )


def _flux():
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        axes_dims_rope=(2, 2, 4),
    )


def _drawn(*shape, seed=3):
    return torch.randn(*shape, generator=seeded(seed))


TEXT = {"encoder_hidden_states": _drawn(ROWS, 4, 6), "pooled_projections": _drawn(ROWS, 5, seed=4)}
PLACES = {"img_ids": torch.arange(9.0).repeat_interleave(3).view(9, 3) / 3, "txt_ids": torch.zeros(4, 3)}

# Network, name in a pipeline, shape of a sample, condition, arguments, and what its pipeline divides the timestep by.
NETS = {
    "unet": (_unet, "unet", (2, 8, 8), None, {}, 1),
    "conditioned": (_conditioned, "unet", (2, 8, 8), {"encoder_hidden_states": _drawn(ROWS, 4, 6)}, {}, 1),
    "sd3": (_sd3, "transformer", (2, 8, 8), TEXT, {}, 1),
    "flux": (_flux, "transformer", (9, 4), TEXT, PLACES, 1000),
}


def _pipeline(folder, name, **scheduler):
    """A pipeline folder with random weights, and the network."""
    make, part, *_ = NETS[name]
    torch.manual_seed(0)
    net = make().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(7)))
    net.save_pretrained(folder / part)
    chosen = diffusers.FlowMatchEulerDiscreteScheduler(**scheduler)
    chosen.save_pretrained(folder / "scheduler")
    parts = {part: ["diffusers", type(net).__name__], "scheduler": ["diffusers", type(chosen).__name__]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Some", **parts, "vae": [None, None]}))
    return net, chosen


def _own_loop(net, scheduler, x, cond, arguments, divisor, **steps):
    """How the pipelines of diffusers sample."""
    scheduler.set_timesteps(STEPS, **steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            time = t.expand(len(x)) / divisor
            answer = net(x, timestep=time, **(cond or {}), **arguments, return_dict=False)[0]
            x = scheduler.step(answer, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scheduler", [{}, {"shift": 3.0}, {"num_train_timesteps": 500, "shift": 0.5}])
def test_a_flow_samples_as_the_pipelines_of_diffusers_do(tmp_path, name, scheduler):
    *_, shape, cond, arguments, divisor = NETS[name]
    if divisor != 1:
        divisor = scheduler.get("num_train_timesteps", 1000)
    net, chosen = _pipeline(tmp_path, name, **scheduler)
    flow = load_diffusers(tmp_path, event_shape=None if name != "flux" else shape, **arguments)
    assert flow.event_shape == shape
    x = _drawn(ROWS, *shape, seed=1)
    theirs = _own_loop(net, chosen, x, cond, arguments, divisor)
    ours = flow.decode(x, cond, solver=fm.Euler(), grid=scheduler_grid(tmp_path, STEPS))
    assert (ours - x).abs().max() > 0.05  # the network moves the samples, so the next line compares something
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_dynamic_shifts_are_taken_from_mu(tmp_path):
    *_, shape, cond, arguments, divisor = NETS["sd3"]
    net, chosen = _pipeline(tmp_path, "sd3", use_dynamic_shifting=True)
    x = _drawn(ROWS, *shape, seed=1)
    theirs = _own_loop(net, chosen, x, cond, arguments, divisor, mu=0.8)
    flow = load_diffusers(tmp_path)
    ours = flow.decode(x, cond, solver=fm.Euler(), grid=scheduler_grid(tmp_path, STEPS, mu=0.8))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    with pytest.raises(fm.InputError, match="give mu="):
        scheduler_grid(tmp_path, STEPS)


def test_the_grid_of_a_scheduler_goes_from_noise_to_data(tmp_path):
    _pipeline(tmp_path, "unet")
    grid = scheduler_grid(tmp_path, 4)
    assert grid.dtype == torch.float64
    torch.testing.assert_close(grid, torch.tensor([0, 0.333, 0.666, 0.999, 1], dtype=torch.float64), atol=1e-6, rtol=0)
    with pytest.raises(fm.InputError, match=r"a shift of its own, 1.0, and takes no mu"):
        scheduler_grid(tmp_path, 4, mu=0.5)
    with pytest.raises(fm.InputError, match="steps must be at least 1, got 0"):
        scheduler_grid(tmp_path, 0)


def test_a_scheduler_of_two_stages_has_no_euler_grid(tmp_path):
    _pipeline(tmp_path, "unet")
    _told(tmp_path, scheduler=["diffusers", "FlowMatchHeunDiscreteScheduler"])
    assert load_diffusers(tmp_path).field.time_scale == 1000
    with pytest.raises(fm.InputError, match=r"FlowMatchHeunDiscreteScheduler, which is not Euler's"):
        scheduler_grid(tmp_path, 4)


@pytest.mark.parametrize(
    ("make", "cond"),
    [
        (lambda: image_flow("unet", "labels"), "labels"),
        (lambda: image_flow("unet", source=fm.Normal(3.0)), "plain"),
        (lambda: image_flow("dit", "labels"), "labels"),
        (lambda: image_flow("dit"), "plain"),
        (lambda: guided_flow("unet", interval=(0.2, 0.7)), "labels"),
        (lambda: guided_flow("dit"), "labels"),
    ],
)
def test_what_we_export_comes_back_as_the_same_flow(tmp_path, make, cond):
    flow, given = make().eval(), told(cond, ROWS)
    to_diffusers(flow, tmp_path / "out")
    back = load_diffusers(tmp_path / "out")
    assert (back.event_shape, back.source) == (SHAPE, flow.source)
    t, x = torch.tensor([0.0, 0.5, 1.0]), _drawn(ROWS, *SHAPE)
    condition = () if given is None else (given,)
    with torch.no_grad():
        torch.testing.assert_close(back.field(t, x, *condition), flow.field(t, x, *condition), rtol=0, atol=1e-5)
    a, b = (f.sample(ROWS, given, generator=seeded(0), solver=fm.Euler(), steps=STEPS) for f in (flow, back))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="its file does not say"):
        back.sample(ROWS, given, diffusion="sigma", steps=3)


def test_a_network_alone_and_its_likelihood(tmp_path):
    flow = image_flow("unet", "labels").eval()
    flow.field.to_diffusers().save_pretrained(tmp_path)
    back, x, label = load_diffusers(tmp_path), _drawn(ROWS, *SHAPE), told("labels", ROWS)
    options = {"steps": 3, "divergence": fm.Hutchinson(), "solver": fm.Midpoint()}
    a, b = (f.log_prob(x, label, generator=seeded(0), **options) for f in (flow, back))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


# --- refusals ---


def _told(folder, **changes):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}))


def test_a_pipeline_of_another_kind_is_refused(tmp_path):
    _pipeline(tmp_path, "unet")
    _told(tmp_path, scheduler=["diffusers", "DDPMScheduler"])
    for attempt in (load_diffusers, lambda folder: scheduler_grid(folder, 3)):
        with pytest.raises(fm.InputError, match=r"sampled by DDPMScheduler.*fm\.Predicts"):
            attempt(tmp_path)


def test_a_class_of_unknown_convention_needs_its_time_scale(tmp_path):
    torch.manual_seed(0)
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        in_channels=2,
        out_channels=2,
        cross_attention_dim=8,
        caption_channels=6,
        patch_size=2,
    )
    net.save_pretrained(tmp_path)
    with pytest.raises(fm.InputError, match=r"a PixArtTransformer2DModel is called with.*time_scale=1000 or"):
        load_diffusers(tmp_path)
    assert load_diffusers(tmp_path, time_scale=1000).field.time_scale == 1000


def test_a_shape_that_is_not_told_is_asked_for(tmp_path):
    _pipeline(tmp_path, "flux")
    with pytest.raises(fm.InputError, match=r"does not say the shape of a sample: give event_shape="):
        load_diffusers(tmp_path)


def test_further_channels_are_not_guessed(tmp_path):
    to_diffusers(image_flow("unet", "image"), tmp_path / "out")
    with pytest.raises(fm.InputError, match="takes 3 channels and answers 1"):
        load_diffusers(tmp_path / "out")


def test_no_code_is_run_and_nothing_unpickled(tmp_path):
    folder = tmp_path / "alone"
    _unet().save_pretrained(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save(_unet().state_dict(), folder / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_diffusers(folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("DDPMScheduler", "os", "Nothing", None, ["pipeline", "Own"]):
        (folder / "config.json").write_text(json.dumps(config | {"_class_name": name}))
        with pytest.raises(fm.InputError, match="which is no network of this diffusers"):
            load_diffusers(folder)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model_index.json", "{", "is damaged"),
        ("model_index.json", "[]", "it holds no object"),
        ("model_index.json", "{}", "needs one of unet and transformer, it has none"),
        ("unet/config.json", "{", "is damaged"),
        ("unet/config.json", None, "is missing"),
        ("scheduler/scheduler_config.json", None, "is missing"),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": "many"}', "not a number of steps"),
    ],
)
def test_damaged_folders_name_the_file(tmp_path, file, text, message):
    _pipeline(tmp_path, "unet")
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(fm.InputError, match=message):
        load_diffusers(tmp_path)


def test_a_folder_without_a_network_is_told(tmp_path):
    with pytest.raises(fm.InputError, match="neither model_index.json nor config.json is there"):
        load_diffusers(tmp_path / "nowhere")
