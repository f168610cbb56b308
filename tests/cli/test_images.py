"""The whole way of images by the command line: a folder goes in; samples, a report and features come out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from flowmatch.data.images import load_images, write_images
from flowmatch.errors import InputError
from flowmatch.likelihood import bits_per_dim
from flowmatch.recipes import ImageRun
from flowmatch.recipes.kinds import kind_of_source
from flowmatch.train import posthoc_ema
from tests.cli.test_bad_input import refused

KINDS = ("down", "flat", "up")
SMALL = ["--steps", "20", "--batch-size", "16", "--no-tensorboard"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Forty images of each of three classes, one of which is damaged, and a file that is none."""
    folder, rng = tmp_path_factory.mktemp("images") / "pictures", np.random.default_rng(0)
    ramp = np.linspace(0, 255, 8)
    for kind, slope in zip(KINDS, (ramp[::-1], np.full(8, 128), ramp), strict=True):
        (folder / kind).mkdir(parents=True)
        for k in range(40):
            noisy = slope[:, None] + rng.normal(0, 12, size=(8, 8))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / kind / f"{k:02d}.png")
    (folder / "flat" / "broken.png").write_bytes((folder / "flat" / "00.png").read_bytes()[:40])
    return folder


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    """A network small enough for tests."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    options = {"network": "dit-small", "network_options": {"hidden": 16, "depth": 1, "heads": 2}}
    path.write_text(yaml.safe_dump({"kind": "images", "flow": options}))
    return path


def _train(flowmatch, pictures, config, out, *more) -> Path:
    result = flowmatch("train", pictures, "--config", config, "--out", out, *SMALL, *more)
    assert result.code == 0, (result.err, result.exception)
    assert "1 of 121 images" in result.err
    assert "broken.png" in result.err
    return out


@pytest.fixture(scope="session")
def by_class(flowmatch, pictures, config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "run"
    more = ("--sample-every", 40, "--label-dropout", 0.2, "--steps", 80, "--learning-rate", 0.01)
    return _train(flowmatch, pictures, config, out, *more)


@pytest.fixture(scope="session", params=["upscale", "inpaint"])
def told(flowmatch, pictures, config, tmp_path_factory, request) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "run"
    return _train(flowmatch, pictures, config, out, "--job", request.param, "--no-labels")


def test_the_run_folder_is_whole(by_class) -> None:
    for name in ("config.yaml", "data.json", "flow.json", "model.safetensors", "README.md", "samples.png"):
        assert (by_class / name).is_file(), name
    described = json.loads((by_class / "data.json").read_text())
    assert described["shape"] == [1, 8, 8]
    assert list(described["counts"]) == list(KINDS)
    assert described["damaged"][0][0].endswith("broken.png")
    names = [path.name for path in sorted((by_class / "samples").iterdir())]
    assert names == ["step_00000040.png", "step_00000080.png"]


def test_looks_at_samples_go_to_tensorboard_as_well(flowmatch, pictures, config, tmp_path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    arguments = ("--config", config, "--steps", 4, "--batch-size", 8, "--sample-every", 2)
    assert flowmatch("train", pictures, "--out", out, *arguments).code == 0
    board = events.EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Images("samples")] == [2, 4]
    assert board.Images("samples")[0].encoded_image_string[:4] == b"\x89PNG"


def test_samples_are_written_in_every_form_and_read_again(flowmatch, by_class, tmp_path) -> None:
    for form in ("new.png", "new.npz", "new"):
        assert flowmatch("sample", by_class, "-n", 9, "--out", tmp_path / form).code == 0
    with Image.open(tmp_path / "new.png") as sheet:
        assert sheet.mode == "L"
    folder, array = load_images(tmp_path / "new"), load_images(tmp_path / "new.npz")
    assert folder.shape == array.shape == (1, 8, 8)
    assert set(folder.classes) <= set(KINDS)
    rows = lambda images: sorted(bytes(image) for image in images.levels().numpy())  # noqa: E731
    assert rows(folder) == rows(array)


def test_seed_class_and_guidance_decide_the_samples(flowmatch, by_class, tmp_path) -> None:
    def draw(name: str, *more: object) -> np.ndarray:
        arguments = ("-n", 6, "--given", "up", "--out", tmp_path / f"{name}.npz", *more)
        result = flowmatch("sample", by_class, *arguments)
        assert result.code == 0, result.err
        return np.load(tmp_path / f"{name}.npz")["images"]

    first = draw("first")
    assert np.array_equal(first, draw("again"))
    assert np.array_equal(first, draw("one", "--guidance", 1))
    assert not np.array_equal(first, draw("two", "--guidance", 3))
    assert np.array_equal(first, draw("late", "--guidance", 3, "--interval", 0.999, 1))
    assert not np.array_equal(first, draw("other", "--seed", 1))
    assert set(np.load(tmp_path / "first.npz")["labels"]) == {"up"}


def test_what_is_told_decides_the_samples(flowmatch, told, pictures, tmp_path) -> None:
    assert flowmatch("sample", told, "-n", 4, "--out", tmp_path / "held.png").code == 0
    whole = load_images(pictures, labels=False).levels(torch.arange(3))
    upscale = "upscale" in str(told)
    given = whole.float().view(3, 1, 4, 2, 4, 2).mean((3, 5)).to(torch.uint8) if upscale else whole
    (tmp_path / "in").mkdir()
    for k, image in enumerate(given):
        Image.fromarray(image[0].numpy()).save(tmp_path / "in" / f"{k}.png")
    more = []
    if not upscale:
        mask = np.full((8, 8), 255, dtype=np.uint8)
        mask[:, 4:] = 0
        Image.fromarray(mask).save(tmp_path / "mask.png")
        more = ["--mask", tmp_path / "mask.png"]
    result = flowmatch("sample", told, "--input", tmp_path / "in", *more, "--out", tmp_path / "new.npz")
    assert result.code == 0, result.err
    made = np.load(tmp_path / "new.npz")["images"]
    assert made.shape == (3, 8, 8)
    run = ImageRun.open(told)
    if not upscale:
        assert np.array_equal(made[:, :, :4], whole[:, 0, :, :4].numpy())  # what is known stays as it was
    filed = flowmatch("sample", told, "--input", tmp_path / "in", *more, "--out", tmp_path / "filed")
    assert filed.code == 0, filed.err
    assert sorted(path.stem for path in (tmp_path / "filed").glob("*.png")) == ["0", "1", "2"]
    one = flowmatch("sample", told, "--input", tmp_path / "in" / "0.png", *more, "--out", tmp_path / "one.png")
    assert one.code == 0, one.err
    refused(flowmatch("sample", told, "--guidance", 2, "--out", tmp_path / "x.png"), "--guidance")
    refused(flowmatch("sample", told, "--input", pictures / "none", "--out", tmp_path / "x.png"), "no images")
    wrong = Image.fromarray(np.zeros((5, 5), dtype=np.uint8))
    wrong.save(tmp_path / "wrong.png")
    sides = "4 x 4" if run.config.flow.job == "upscale" else "8 x 8"
    refused(flowmatch("sample", told, "--input", tmp_path / "wrong.png", "--out", tmp_path / "x.png"), sides, "5 x 5")


def test_evaluation_says_which_features_it_used_and_keeps_them(flowmatch, by_class, tmp_path) -> None:
    run = Path(shutil.copytree(by_class, tmp_path / "run"))
    first = flowmatch("evaluate", run, "--steps", 2, "--likelihood-rows", 2, "--noises", 2)
    assert first.code == 0, (first.err, first.exception)
    result = json.loads((run / "evaluation.json").read_text())
    assert result["rows"] == {"train": 108, "heldout": 12}
    assert result["sampling"]["nfe"] == 4
    assert result["bits_per_dim"]["noises"] == 2
    (file,) = (run / "features").iterdir()
    assert file.stem.rpartition("-")[2] == result["distances"]["sha256"][:16]
    assert result["distances"]["sha256"][:16] in first.out
    assert "<img" in (run / "report.html").read_text()
    again = flowmatch("evaluate", run, "--steps", 2, "--likelihood-rows", 0)
    assert again.code == 0, again.err
    repeated = json.loads((run / "evaluation.json").read_text())
    assert repeated["distances"] == result["distances"]
    assert repeated["bits_per_dim"] is None
    given = flowmatch("evaluate", run, "--steps", 2, "--likelihood-rows", 0, "--features", file)
    assert given.code == 0, given.err
    assert "floors are too high" in given.err
    assert json.loads((run / "evaluation.json").read_text())["distances"]["frechet"] == result["distances"]["frechet"]


def test_conditional_jobs_are_measured_against_the_truth(flowmatch, told, by_class, pictures, tmp_path) -> None:
    refused(flowmatch("evaluate", told), "--features")
    made = flowmatch("features", pictures, "--out", tmp_path / "features", "--epochs", 1)
    assert made.code == 0, made.err
    (file,) = (tmp_path / "features").iterdir()
    result = flowmatch("evaluate", told, "--features", file, "--steps", 2, "--likelihood-rows", 2)
    assert result.code == 0, (result.err, result.exception)
    assert "PSNR" in result.out
    likeness = json.loads((told / "evaluation.json").read_text())["likeness"]
    assert set(likeness["psnr"]) == {"samples", "told"}


def test_classes_of_what_is_told_are_those_of_its_folders(flowmatch, pictures, config, tmp_path) -> None:
    run = _train(flowmatch, pictures, config, tmp_path / "run", "--job", "upscale", "--labels")
    whole, inner = load_images(pictures), tmp_path / "in"
    small = whole.levels().float().view(-1, 1, 4, 2, 4, 2).mean((3, 5)).to(torch.uint8)
    write_images(small[::20], inner, whole.labels[::20], whole.classes)
    np.savez(tmp_path / "in.npz", images=small[::20, 0].numpy(), labels=np.array(KINDS)[whole.labels[::20].numpy()])
    for source in (inner, tmp_path / "in.npz"):
        out = tmp_path / f"out-{source.suffix or 'folder'}"
        result = flowmatch("sample", run, "--input", source, "--out", out)
        assert result.code == 0, (result.err, result.exception)
        assert load_images(out, least=1).counts == dict.fromkeys(KINDS, 2)
    assert flowmatch("sample", run, "--input", inner, "--given", "up", "--out", tmp_path / "up").code == 0
    assert {path.parent.name for path in (tmp_path / "up").rglob("*.png")} == {"up"}
    refused(flowmatch("sample", run, "--input", inner / "up", "--out", tmp_path / "x"), "--given", "sub-folder")
    (inner / "up").rename(inner / "sideways")
    refused(flowmatch("sample", run, "--input", inner, "--out", tmp_path / "x"), "sideways", "down")


def test_images_are_scored_one_by_one(flowmatch, by_class, pictures, tmp_path) -> None:
    arguments = ("score", by_class, pictures, "--steps", 2, "--out", tmp_path / "bits.csv")
    result = flowmatch(*arguments)
    assert result.code == 0, (result.err, result.exception)
    table = pd.read_csv(tmp_path / "bits.csv")
    assert len(table) == 120
    assert "broken.png" in result.err
    assert set(table["class"]) == set(KINDS)
    assert all(name.startswith(f"{kind}/") for name, kind in zip(table["image"], table["class"], strict=True))
    assert np.allclose(table["log_likelihood"], -table["bits_per_dim"] * 64 * np.log(2))
    assert f"{table['bits_per_dim'].mean():.4f}" in result.out
    # The same numbers as those of the flow itself, asked for the densities of the same noises.
    run, images = ImageRun.open(by_class), load_images(pictures)
    noise = torch.Generator().manual_seed(0)
    found = bits_per_dim(run.flow, images.levels()[:64], images.labels[:64], generator=noise, steps=2)
    assert np.allclose(table["bits_per_dim"][:64], found.bits, atol=1e-4)
    # Under a wrong class an image is less likely, and without one it lies between.
    wrong = flowmatch(*arguments[:3], "--steps", 2, "--given", "up", "--out", tmp_path / "up.csv")
    assert wrong.code == 0, wrong.err
    up, own = pd.read_csv(tmp_path / "up.csv"), table["class"] == "down"
    assert up["bits_per_dim"][own].mean() > table["bits_per_dim"][own].mean()
    assert np.allclose(up["bits_per_dim"][table["class"] == "up"], table["bits_per_dim"][table["class"] == "up"])


def test_images_without_classes_are_scored_under_all_of_them(flowmatch, by_class, pictures, tmp_path) -> None:
    flat = Path(shutil.copytree(pictures / "up", tmp_path / "flat"))
    result = flowmatch("score", by_class, flat, "--steps", 2, "--noises", 2, "--probes", 3, "--out", tmp_path / "x.csv")
    assert result.code == 0, (result.err, result.exception)
    assert "all classes together" in result.err
    assert (pd.read_csv(tmp_path / "x.csv")["class"].isna()).all()
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "large").mkdir()
    shutil.move(tmp_path / "one.png", tmp_path / "large" / "one.png")
    refused(flowmatch("score", by_class, tmp_path / "large"), "9 x 9", "8 x 8")
    refused(flowmatch("score", by_class, flat, "--given", "sideways"), "sideways", "down")
    refused(flowmatch("score", by_class, flat, "--noises", 0), "--noises")
    refused(flowmatch("score", by_class, flat, "--out", tmp_path / "x.npz"), ".csv")
    refused(flowmatch("score", by_class, tmp_path / "nowhere"), "nowhere")
    # Classes that the run does not know, and a single one by its number, which alone would look like an id.
    foreign = Path(shutil.copytree(pictures, tmp_path / "foreign"))
    (foreign / "up").rename(foreign / "sideways")
    refused(flowmatch("score", by_class, foreign), "sideways", "--no-labels")
    assert flowmatch("score", by_class, foreign, "--no-labels", "--steps", 1).code == 0
    np.savez(tmp_path / "last.npz", images=load_images(flat, labels=False).levels()[:3, 0].numpy(), labels=[2, 2, 2])
    last = flowmatch("score", by_class, tmp_path / "last.npz", "--steps", 1, "--out", tmp_path / "last.csv")
    assert last.code == 0, (last.err, last.exception)
    assert set(pd.read_csv(tmp_path / "last.csv")["class"]) == {"up"}


def test_what_tells_the_images_of_a_run_says_nothing_of_others(flowmatch, pictures, config, tmp_path) -> None:
    for name in ("train", "test"):
        shutil.copytree(pictures, tmp_path / "sets" / name)
    run = _train(flowmatch, tmp_path / "sets", config, tmp_path / "run", "--split", "train")
    assert flowmatch("score", run, pictures, "--steps", 1).code == 0
    assert flowmatch("score", run, tmp_path / "sets", "--split", "test", "--steps", 1).code == 0
    alike = flowmatch("score", run, tmp_path / "sets", "--steps", 1)
    assert alike.code == 0, alike.err


def test_a_run_without_classes_scores_images_of_classes(flowmatch, pictures, config, tmp_path) -> None:
    flat = Path(shutil.copytree(pictures / "up", tmp_path / "flat"))
    run = tmp_path / "run"
    more = ("--config", config, "--job", "upscale", "--labels", *SMALL)
    assert flowmatch("train", flat, "--out", run, *more).code == 0
    result = flowmatch("score", run, pictures, "--steps", 1)
    assert result.code == 0, (result.err, result.exception)


def test_only_jobs_with_a_likelihood_are_scored(flowmatch, told, pictures) -> None:
    result = flowmatch("score", told, pictures, "--steps", 2)
    if "inpaint" in str(told):
        refused(result, "paints in")
    else:
        assert result.code == 0, result.err
        assert "120 images" in result.out


def test_weights_are_averaged_after_training(flowmatch, by_class, pictures, config, tmp_path) -> None:
    run = _train(flowmatch, pictures, config, tmp_path / "run", "--posthoc-every", 2)
    new = tmp_path / "new"
    result = flowmatch("average", run, "--width", 0.1, "--out", new)
    assert result.code == 0, (result.err, result.exception)
    made, wanted = ImageRun.open(new).flow.field.state_dict(), posthoc_ema(run, 0.1)
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    old = ImageRun.open(run).flow.field.state_dict()
    assert not all(torch.equal(made[name], old[name]) for name in old)
    assert flowmatch("sample", new, "-n", 4, "--out", tmp_path / "new.png").code == 0
    assert "width of 0.1, to step 20" in (new / "README.md").read_text()
    early = flowmatch("average", run, "--width", 0.1, "--step", 10, "--out", tmp_path / "early")
    assert early.code == 0, early.err
    refused(flowmatch("average", run, "--width", 0.1, "--out", new), "already holds something")
    refused(flowmatch("average", run, "--width", 0.1, "--step", 3, "--out", tmp_path / "x"), "--step 2")
    refused(flowmatch("average", run, "--width", 0.5, "--out", tmp_path / "x"), "--width")
    refused(flowmatch("average", by_class, "--width", 0.1, "--out", tmp_path / "x"), "--posthoc-every")
    assert not (tmp_path / "x").exists()


def test_a_run_goes_on_where_it_stopped(flowmatch, by_class, tmp_path) -> None:
    run = Path(shutil.copytree(by_class, tmp_path / "run"))
    result = flowmatch("train", "--out", run, "--resume", "--steps", 84)
    assert result.code == 0, result.err
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 84
    assert ImageRun.open(run).config.train.steps == 84


def test_data_that_changed_are_refused(flowmatch, by_class, pictures, tmp_path) -> None:
    moved = Path(shutil.copytree(pictures, tmp_path / "moved"))
    assert flowmatch("evaluate", by_class, "--data", moved, "--steps", 1, "--likelihood-rows", 0).code == 0
    next((moved / "up").iterdir()).unlink()
    refused(flowmatch("evaluate", by_class, "--data", moved), "changed", "--data")


def test_recipes_are_listed_shown_and_estimated(flowmatch, pictures) -> None:
    listed = flowmatch("recipes")
    assert listed.code == 0
    assert "imagenet64" in listed.out
    shown = flowmatch("recipes", "cifar10")
    assert "steps: 391000" in shown.out
    dry = flowmatch("train", "--recipe", "cifar10", "--dry-run", "--throughput", 1000)
    assert dry.code == 0, dry.err
    for word in ("parameters: 159,917,827", "27.8 hours at 1,000 images", "GiB"):
        assert word in dry.out
    own = flowmatch("train", pictures, "--dry-run")
    assert own.code == 0, own.err
    assert "120 images" in own.out


def test_what_a_source_holds_is_told_by_its_form(pictures, tmp_path) -> None:
    np.savez(tmp_path / "pictures.npz", images=np.zeros((4, 8, 8), dtype=np.uint8))
    np.savez(tmp_path / "columns.npz", a=np.zeros(4), b=np.zeros(4))
    np.save(tmp_path / "rows.npy", np.zeros((4, 3)))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04nothing")
    kinds = {"pictures.npz": "images", "columns.npz": "table", "rows.npy": "table", "damaged.npz": "table"}
    assert {name: kind_of_source(str(tmp_path / name)) for name in kinds} == kinds
    assert kind_of_source(str(pictures)) == "images"
    assert kind_of_source("toy:moons") == "table"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hidden", "8"], ["--hidden", "tables alone"]),
        (["--condition", "kind"], ["--condition"]),
        (["--size", "9", "--network", "cifar10"], ["9 x 9"]),
        (["--job", "upscale", "--factor", "3"], ["factor", "3"]),
        (["--job", "enlarge"], ["job"]),
        (["--recipe", "cifar"], ["cifar10"]),
        (["--throughput", "5"], ["--dry-run"]),
        (["--strict"], ["broken.png"]),
        (["--resample", "nearest"], ["resample", "lanczos"]),
        (["--factor", "4"], ["--factor", "--job generate"]),
    ],
)
def test_options_that_cannot_be_are_refused_and_nothing_is_written(
    flowmatch, pictures, tmp_path, arguments, words
) -> None:
    refused(flowmatch("train", pictures, "--out", tmp_path / "run", *arguments), *words)
    assert not (tmp_path / "run").exists()


def test_options_of_images_are_refused_for_tables(flowmatch, planar, tmp_path) -> None:
    refused(flowmatch("train", "toy:moons", "--out", tmp_path / "run", "--job", "upscale"), "--job", "images alone")
    refused(flowmatch("train", "toy:moons", "--dry-run"), "--dry-run", "table")
    refused(flowmatch("sample", planar, "--guidance", 2, "--out", tmp_path / "x.csv"), "--guidance", "images alone")
    refused(flowmatch("evaluate", planar, "--features", "inception"), "--features", "images alone")


def test_commands_for_tables_say_that_a_run_is_one_of_images(flowmatch, by_class, tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n2\n")
    refused(flowmatch("score", by_class, tmp_path / "rows.csv"), "run of images")
    refused(flowmatch("sample", by_class, "--given", "kind=up", "--out", tmp_path / "x.png"), "one class")
    refused(flowmatch("sample", by_class, "--given", "sideways", "--out", tmp_path / "x.png"), "sideways", "down")
    refused(flowmatch("sample", by_class, "--input", tmp_path, "--out", tmp_path / "x.png"), "--input")
    refused(flowmatch("sample", by_class, "--device", "moon", "--out", tmp_path / "x.png"), "--device moon")
    refused(flowmatch("sample", by_class, "--guidance", "nan", "--out", tmp_path / "x.png"), "finite")
    noisy = ("--diffusion", "sigma", "--steps", 4, "--guidance", 2)
    refused(flowmatch("sample", by_class, *noisy, "--out", tmp_path / "x.png"), "--guidance", "law")
    refused(flowmatch("sample", by_class, "--gif", tmp_path / "x.gif", "--out", tmp_path / "x.png"), "--gif")


@pytest.mark.slow
def test_a_solver_is_tuned_to_a_run_of_images(flowmatch, by_class, tmp_path) -> None:
    run = Path(shutil.copytree(by_class, tmp_path / "run"))
    assert flowmatch("tune", run, "--nfe", 4, "--trajectories", 16, "--steps", 2).code == 0
    assert flowmatch("sample", run, "--nfe", 4, "-n", 4, "--out", tmp_path / "new.png").code == 0


def test_images_without_classes_go_the_whole_way(flowmatch, pictures, config, tmp_path) -> None:
    run = _train(flowmatch, pictures, config, tmp_path / "run", "--no-labels", "--sample-every", 10)
    assert (run / "samples" / "step_00000010.png").is_file()
    assert flowmatch("sample", run, "-n", 4, "--out", tmp_path / "new").code == 0
    assert len(list((tmp_path / "new").glob("*.png"))) == 4
    made = flowmatch("features", pictures, "--out", tmp_path / "features", "--epochs", 1)
    assert made.code == 0, made.err
    (file,) = (tmp_path / "features").iterdir()
    result = flowmatch("evaluate", run, "--features", file, "--steps", 1, "--likelihood-rows", 1)
    assert result.code == 0, (result.err, result.exception)
    assert flowmatch("train", "--out", run, "--resume", "--steps", 22).code == 0
    refused(flowmatch("sample", run, "--guidance", 2, "--out", tmp_path / "x.png"), "by class")


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-labels", "--label-dropout", "0.1"], ["label_dropout", "sub-folder"]),
        (["--job", "upscale", "--coupling", "ot"], ["coupling ot"]),
        (["--batch-size", "15", "--accumulate", "2"], ["15", "2"]),
        (["--posthoc-every", "5", "--ema-profile", "power", "--ema", "0"], ["averaging"]),
    ],
)
def test_options_that_are_refused_late_leave_the_old_run_alone(
    flowmatch, by_class, pictures, config, tmp_path, arguments, words
) -> None:
    run = Path(shutil.copytree(by_class, tmp_path / "run"))
    before = _content(run)
    refused(flowmatch("train", pictures, "--config", config, "--out", run, "--overwrite", *arguments), *words)
    assert _content(run) == before


def test_a_refused_resume_leaves_the_run_as_it_was(flowmatch, by_class, pictures, tmp_path) -> None:
    run = Path(shutil.copytree(by_class, tmp_path / "run"))
    before = _content(run)
    (tmp_path / "wide.yaml").write_text(
        yaml.safe_dump({"flow": {"network_options": {"hidden": 32, "depth": 1, "heads": 2}}})
    )
    refused(flowmatch("train", "--out", run, "--resume", "--config", tmp_path / "wide.yaml", "--steps", 90), "model")
    refused(flowmatch("train", "--out", run, "--resume", "--seed", 5), "train.seed", "held out")
    refused(flowmatch("train", "--out", run, "--resume", "--holdout", 0.2), "holdout")
    moved = Path(shutil.copytree(pictures, tmp_path / "moved"))
    next((moved / "up").iterdir()).unlink()
    refused(flowmatch("train", moved, "--out", run, "--resume"), "changed")
    assert _content(run) == before


def test_other_folders_are_not_taken_for_runs(flowmatch, pictures, config, tmp_path) -> None:
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "config.yaml").write_text("mine: 1")
    arguments = ("train", pictures, "--config", config, *SMALL)
    refused(flowmatch(*arguments, "--out", project, "--overwrite"), "not a run folder")
    assert (project / "src").is_dir()
    inside = pictures / "run"
    refused(flowmatch(*arguments, "--out", inside), "inside the images")
    assert not inside.exists()


def test_the_classes_of_another_split_have_the_numbers_of_training(flowmatch, pictures, config, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data / "train")
    for kind in KINDS[1:]:
        shutil.copytree(pictures / kind, data / "test" / kind)
    result = flowmatch("train", data, "--config", config, "--out", tmp_path / "run", "--rows", 60, *SMALL)
    assert result.code == 0, result.err
    run = ImageRun.open(tmp_path / "run")
    assert min(run.counts.values()) > 10  # so many rows of every class
    test = run.config.load(split="test", classes=run.classes)
    assert len(test) == 80
    assert test.classes == run.classes
    assert sorted(set(test.labels.tolist())) == [1, 2]
    (data / "test" / "up").rename(data / "test" / "sideways")
    with pytest.raises(InputError, match="class 'sideways' that is not among those known"):
        run.config.load(split="test", classes=run.classes)


def test_a_run_goes_out_to_diffusers_and_to_onnx(flowmatch, pictures, tmp_path) -> None:
    options = {"network_options": {"channels": 8, "mults": [1, 2], "head_channels": 8}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"flow": options}))
    run = _train(flowmatch, pictures, tmp_path / "tiny.yaml", tmp_path / "run")
    for form in ("diffusers", "onnx"):
        result = flowmatch("export", run, "--to", form, "--out", tmp_path / form)
        assert result.code == 0, (result.err, result.exception)
        assert "opened again" in result.out
    assert (tmp_path / "diffusers" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert list((tmp_path / "onnx").glob("*.onnx"))
