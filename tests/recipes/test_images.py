"""The recipe for images: every job makes the network and the pairs it names, trains, samples and is saved."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from flowmatch.data.images import Images
from flowmatch.errors import InputError
from flowmatch.recipes import (
    RECIPES,
    ImageConfig,
    ImageRun,
    ImageRunConfig,
    fit_images,
    make_image_model,
    make_job,
    recipe,
    train_image_run,
)
from flowmatch.train import TrainConfig
from tests.problems import seeded

TINY = {"hidden": 16, "depth": 1, "heads": 2}


def _set(count: int = 40, shape=(1, 8, 8), classes: int = 3, **options) -> Images:
    levels = torch.randint(256, (count, *shape), generator=seeded(0), dtype=torch.uint8)
    labels = torch.arange(count) % classes if classes else None
    return Images(levels, labels, **options)


def _config(**options) -> ImageConfig:
    return ImageConfig(network="dit-small", network_options=TINY, **options)


@pytest.mark.parametrize("job", ["generate", "upscale", "inpaint"])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("predicts", ["velocity", "target"])
def test_every_job_trains_and_its_flow_is_saved_whole(job, classes, predicts, tmp_path):
    images = _set(classes=classes)
    flow, result = fit_images(
        images,
        _set(10, classes=classes),
        flow=_config(job=job, predicts=predicts, cond_noise=0.1 if job == "upscale" else 0.0),
        train=TrainConfig(steps=3, batch_size=8, log_every=1, tensorboard=False),
    )
    assert result.step == 3
    _, cond = make_job(_config(job=job, cond_noise=0.1), images).take(torch.arange(4), seeded(1))
    x = flow.sample(4, cond, generator=seeded(2), steps=3)
    assert x.shape == (4, 1, 8, 8)
    flow.save(tmp_path)
    again = fm.Flow.load(tmp_path).sample(4, cond, generator=seeded(2), steps=3)
    assert torch.equal(x, again)


def test_the_network_is_told_what_the_job_knows():
    assert make_image_model(_config(), (1, 8, 8), 3).null == 3
    told = make_image_model(_config(job="upscale"), (3, 8, 8))
    assert (told.image, told.mask, told.noise) == (3, False, False)
    assert make_image_model(_config(job="upscale", cond_noise=0.1), (3, 8, 8)).noise
    assert make_image_model(_config(job="inpaint"), (1, 8, 8)).mask


def test_first_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    nets = [make_image_model(_config(), (1, 8, 8), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    first, same, other = (torch.cat([w.flatten() for w in net.parameters()]) for net in nets)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_pairs_of_transport_keep_to_their_class_and_do_not_go_with_images():
    objective = fit_objective(_config(coupling="ot"), _set())
    assert isinstance(objective.coupling, fm.ConditionAware)
    for job in ("upscale", "inpaint"):
        with pytest.raises(InputError, match="coupling ot does not go with job"):
            fit_images(_set(), None, flow=_config(job=job, coupling="ot"), train=TrainConfig(steps=1, batch_size=8))


def fit_objective(config: ImageConfig, images: Images):
    from flowmatch.recipes import make_objective

    return make_objective(config, len(images.classes))


def test_dropped_labels_and_transport_do_not_fight():
    """Noise given a label is normal, whatever was dropped, since labels are dropped after the pairs are made."""
    torch.manual_seed(0)
    levels = torch.cat([torch.full((256, 1, 2, 2), 20), torch.full((256, 1, 2, 2), 230)]).to(torch.uint8)
    images = Images(levels, torch.arange(512) // 256)
    from flowmatch.train import Draws
    from flowmatch.train.labels import LabelDropout

    objective = fit_objective(_config(coupling="ot"), images)
    drop = LabelDropout(make_image_model(_config(), (1, 4, 4), 2), 0.3)
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    with Draws(objective, images, batch_size=256, seed=3, change=drop) as draws:
        for step in range(40):
            draw = draws(step)
            for label in seen:
                seen[label].append(draw.sample.x0[draw.cond == label].mean((1, 2, 3)))
    for label, rows in seen.items():
        mean = torch.cat(rows)
        # The mean of four standard normals: within four standard errors of 0, whatever the class.
        assert abs(float(mean.mean())) < 4 * 0.5 / len(mean) ** 0.5, label


def test_options_that_a_network_does_not_take_are_told():
    with pytest.raises(InputError, match="1 x 9 x 9.*--size"):
        make_image_model(ImageConfig(network="cifar10"), (1, 9, 9))
    with pytest.raises(InputError, match="width"):
        make_image_model(ImageConfig(network="dit-small", network_options={"width": 3}), (1, 8, 8))


SHRUNK = {"channels": 8, "head_channels": 8, "depth": 1}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_on_tiny_images(name, tmp_path):
    known, options = RECIPES[name], recipe(name)
    shape = (known.shape[0], 16, 16)
    options["images"]["size"] = 16
    options["flow"]["network_options"] = {**SHRUNK, "attention": [8]}
    options["train"] |= {"steps": 2, "batch_size": 4, "tensorboard": False}
    config = ImageRunConfig.parse({"data": str(tmp_path), **options})
    assert config == ImageRunConfig.parse(config.model_dump(mode="json"))
    images = _set(8, shape, classes=3 if config.images.labels else 0, flip=config.images.flip)
    run, result = train_image_run(config, images, tmp_path)
    assert result.step == 2
    assert ImageRun.open(tmp_path).config == config
    assert "recipe" in (tmp_path / "README.md").read_text()
    assert len(run.classes) == (3 if known.classes else 0)


def test_recipes_have_the_papers_hyper_parameters():
    """Table 3 of Lipman et al."""
    paper = {
        "cifar10": (256, 391_000, 5e-4, 45_000, "linear"),
        "imagenet32": (1024, 250_000, 1e-4, 20_000, "linear"),
        "imagenet64": (2048, 157_000, 1e-4, 0, "constant"),
        "imagenet128": (1536, 500_000, 1e-4, 20_000, "linear"),
    }
    for name, (batch, steps, rate, warmup, decay) in paper.items():
        train = ImageRunConfig.parse({"data": "x", **recipe(name)}).train
        assert (train.batch_size, train.steps, train.warmup, train.decay) == (batch, steps, warmup, decay)
        assert train.learning_rate == rate
        assert (train.betas, train.weight_decay) == ((0.9, 0.999), 0.0)
        assert train.rate(max(warmup, 1)) == pytest.approx(rate, rel=1e-4)
    with pytest.raises(InputError, match="did you mean cifar10"):
        recipe("cifar-10")


def test_recipes_are_fresh_copies():
    recipe("cifar10")["train"]["steps"] = 1
    assert recipe("cifar10")["train"]["steps"] == 391_000


@pytest.fixture
def run(tmp_path) -> ImageRun:
    options = {"holdout": 0.2, "flow": _config().model_dump(), "train": {"steps": 3, "batch_size": 8}}
    options["train"] |= {"tensorboard": False, "label_dropout": 0.5}
    config = ImageRunConfig.parse({"data": str(tmp_path), **options})
    return train_image_run(config, _set(), tmp_path)[0]


def test_labels_are_drawn_as_often_as_they_occur(run):
    counts = torch.bincount(run.labels(6000, seeded(0)), minlength=3).double() / 6000
    shares = torch.tensor(list(run.counts.values())).double()
    assert (counts - shares / shares.sum()).abs().max() < 4 * 0.5 / 6000**0.5
    assert (run.labels(5, seeded(0), "2") == 2).all()
    with pytest.raises(InputError, match="no class '7'.*0, 1, 2"):
        run.labels(5, seeded(0), "7")


def test_guidance_of_one_is_none_and_more_extrapolates(run):
    label = torch.tensor([0, 1, 2, 0])
    x, t = torch.randn(4, 1, 8, 8, generator=seeded(0)), torch.full((4,), 0.5)
    field, empty = run.flow.field, torch.full((4,), 3)
    with torch.no_grad():
        plain, without = field(t, x, label), field(t, x, empty)
        torch.testing.assert_close(run.guided(1.0).field(t, x, label), plain)
        torch.testing.assert_close(run.guided(3.0).field(t, x, label), without + 3 * (plain - without))
        torch.testing.assert_close(run.guided(3.0, (0.6, 1.0)).field(t, x, label), plain)


def test_guidance_is_refused_where_it_was_not_learnt(run):
    learnt = run.config.train.model_copy(update={"label_dropout": 0.0})
    without = ImageRun(run.folder, run.config.model_copy(update={"train": learnt}), run.flow, run.counts, "")
    with pytest.raises(InputError, match="label_dropout"):
        without.guided(2.0)
    with pytest.raises(InputError, match="not one of images by class"):
        ImageRun(run.folder, run.config, run.flow, {}, "").guided(2.0)
