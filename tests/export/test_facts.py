"""What a run folder tells of itself, and the cards that say it."""

from __future__ import annotations

import json

import pytest
import yaml

import flowmatch as fm
from flowmatch.export import Facts, run_facts, to_diffusers
from tests.export.worlds import image_flow

CARD = """# clothes

A model.

| | |
|---|---|
| data | `clothes.npz`, 90 images |
| path | linear |

| a | b | c |
|---|---|---|
| 1 | 2 | 3 |
"""


def _run(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_a_run_of_images_is_read(tmp_path):
    evaluation = {
        "frechet": {"value": 12.25, "floor": 0.5, "rows": 90, "kinds": [1, 2]},
        "rows": {"train": 80, "heldout": 10},
        "title": "x",
        "seed": 3,
        "seconds": 8.5,
        "sampling": {"nfe_mean": 30, "fast": True},
        "none": None,
    }
    data = {"counts": {"shirt": 40, "boot": 50}, "shape": [1, 8, 8]}
    run = _run(tmp_path / "clothes", README_md=CARD, evaluation_json=evaluation, data_json=data)
    assert run_facts(run) == Facts(
        title="clothes",
        table=(("data", "`clothes.npz`, 90 images"), ("path", "linear")),
        numbers=(("frechet value", 12.25), ("frechet floor", 0.5), ("sampling nfe mean", 30.0)),
        classes=("shirt", "boot"),
    )


def test_a_run_of_a_table_is_read(tmp_path):
    codec = {"columns": [], "condition": {"name": "kind", "levels": ["cat", 2]}}
    facts = run_facts(_run(tmp_path / "animals", data_json={"codec": codec}))
    assert facts == Facts("animals", classes=("cat", "2"), codec=codec)
    number = {"columns": [], "condition": {"column": {"name": "age"}}}
    assert run_facts(_run(tmp_path / "ages", data_json={"codec": number})).classes == ()


def test_a_bare_folder_gives_its_name(tmp_path):
    assert run_facts(_run(tmp_path / "bare")) == Facts("bare")


def test_a_damaged_file_is_named(tmp_path):
    with pytest.raises(fm.InputError, match=r"evaluation.json is damaged"):
        run_facts(_run(tmp_path / "run", evaluation_json="{"))


@pytest.fixture
def card(tmp_path):
    pytest.importorskip("diffusers", reason="needs the extra networks")

    def write(cond="labels", **options):
        to_diffusers(image_flow("dit", cond), tmp_path / "out", **options)
        _, head, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
        return yaml.safe_load(head), text

    return write


def test_a_card_names_licence_task_and_tags(card):
    head, text = card(license="cc-by-4.0")
    assert head == {
        "license": "cc-by-4.0",
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["flow-matching", "class-conditional"],
    }
    assert "No licence" not in text


def test_a_card_of_an_image_job_has_its_task_and_asks_for_a_licence(card):
    head, text = card("image")
    assert head == {"library_name": "diffusers", "pipeline_tag": "image-to-image", "tags": ["flow-matching"]}
    assert "No licence is named yet" in text
    assert "load_diffusers" not in text  # which refuses further channels


def test_a_card_tells_the_facts(card):
    facts = Facts("Clothes", (("path", "linear"),), (("frechet value", 12.25),), ("shirt", "boot"))
    _, text = card(facts=facts)
    for line in ("# Clothes", "| path | linear |", "Classes: 0 shirt, 1 boot.", "| frechet value | 12.25 |"):
        assert line in text.splitlines()


@pytest.mark.parametrize("license", ["", "my licence", "mit\ntags: x", "- mit"])
def test_a_licence_that_is_no_identifier_is_refused(tmp_path, card, license):
    with pytest.raises(fm.InputError, match="an identifier such as apache-2.0"):
        card(license=license)
    assert not any(tmp_path.iterdir())
