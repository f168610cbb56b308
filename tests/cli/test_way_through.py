"""The whole way by the command line: a table goes in; samples, scores and a report come out."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flowmatch.recipes import Run
from tests.cli.conftest import SMALL


def test_train_writes_the_run_folder(trained) -> None:
    for name in ("config.yaml", "data.json", "flow.json", "model.safetensors", "metrics.jsonl", "README.md"):
        assert (trained / name).is_file(), name
    assert list((trained / "checkpoints").iterdir())


def test_samples_have_the_tables_columns_types_and_range(flowmatch, trained, table, tmp_path) -> None:
    assert flowmatch("sample", trained, "-n", 50, "--out", tmp_path / "new.csv").code == 0
    new = pd.read_csv(tmp_path / "new.csv")
    assert list(new.columns) == list(table.columns)
    assert (new.dtypes == pd.read_csv(trained.parent / "animals.csv").dtypes).all()
    assert len(new) == 50
    assert (new["legs"] == 4).all()
    assert new["age"].between(0, 14).all()
    assert set(new["kind"]) <= {"cat", "dog"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_given_fixes_the_condition(flowmatch, trained, tmp_path, suffix) -> None:
    target = tmp_path / f"cats{suffix}"
    assert flowmatch("sample", trained, "-n", 20, "--given", "kind=cat", "--out", target).code == 0
    new = pd.read_csv(target) if suffix == ".csv" else pd.read_parquet(target)
    assert (new["kind"] == "cat").all()


def test_the_seed_decides_the_samples(flowmatch, trained, tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert flowmatch("sample", trained, "-n", 10, "--seed", seed, "--out", tmp_path / f"{name}.csv").code == 0
    a, b, c = (pd.read_csv(tmp_path / f"{name}.csv") for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


def test_numbers_go_to_npy_and_npz(flowmatch, planar, tmp_path) -> None:
    assert flowmatch("sample", planar, "-n", 7, "--steps", 4, "--out", tmp_path / "x.npy").code == 0
    assert np.load(tmp_path / "x.npy").shape == (7, 2)
    assert flowmatch("sample", planar, "-n", 7, "--steps", 4, "--out", tmp_path / "x.npz").code == 0
    assert all(column.shape == (7,) for column in np.load(tmp_path / "x.npz").values())


def test_score_is_the_flows_log_density_in_the_units_of_the_table(flowmatch, planar, tmp_path) -> None:
    rows = pd.DataFrame({name: [0.1, 0.5, 1.0] for name in Run.open(planar).codec.order})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert flowmatch("score", planar, tmp_path / "rows.csv", "--out", tmp_path / "scores.csv").code == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    run = Run.open(planar)
    x, _ = run.codec.encode(rows)
    expected = run.flow.log_prob(x, rtol=1e-6, atol=1e-6) + run.codec.log_det
    assert np.allclose(scores["log_likelihood"], expected, atol=2e-3)
    assert list(scores.columns) == [*rows.columns, "log_likelihood"]


def test_score_takes_the_condition_from_the_table_or_from_given(flowmatch, trained, table, tmp_path) -> None:
    cats = table[table["kind"] == "cat"].head(5)
    cats.to_csv(tmp_path / "with.csv", index=False)
    cats.drop(columns="kind").to_csv(tmp_path / "without.csv", index=False)
    assert flowmatch("score", trained, tmp_path / "with.csv", "--out", tmp_path / "a.csv").code == 0
    given = ("--given", "kind=cat", "--out", tmp_path / "b.csv")
    assert flowmatch("score", trained, tmp_path / "without.csv", *given).code == 0
    a, b = (pd.read_csv(tmp_path / name)["log_likelihood"] for name in ("a.csv", "b.csv"))
    assert np.allclose(a, b)


def test_evaluate_writes_one_file_that_needs_nothing_else(flowmatch, planar) -> None:
    few = ("--samples", 40, "--likelihood-rows", 20, "--steps", 4, "--gif")
    result = flowmatch("evaluate", planar, *few)
    assert result.code == 0, result.err
    page = (planar / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64" in page
    assert 'src="http' not in page
    numbers = json.loads((planar / "evaluation.json").read_text())
    assert {"value", "floor"} <= numbers["sliced_wasserstein"].keys()
    with Image.open(planar / "plots" / "flow.gif") as gif:
        assert gif.n_frames > 10


def test_a_config_file_is_overridden_by_the_command_line(flowmatch, tmp_path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: toy:rings\nrows: 100\nflow: {path: cosine}\ntrain: {steps: 7, seed: 3}\n")
    result = flowmatch("train", "--config", config, "--out", tmp_path / "run", *SMALL, "--steps", 5)
    assert result.code == 0, result.err
    made = Run.open(tmp_path / "run").config
    assert (made.flow.path, made.train.steps, made.train.seed) == ("cosine", 5, 3)
    again = flowmatch("train", "--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]


def test_a_resumed_run_is_the_uninterrupted_one(flowmatch, tmp_path) -> None:
    options = ["toy:moons", "--rows", 200, *SMALL, "--checkpoint-every", 10]
    assert flowmatch("train", *options, "--out", tmp_path / "whole").code == 0
    assert flowmatch("train", *options, "--out", tmp_path / "part").code == 0
    # As if the machine had died after step 20: nothing that was written later is left.
    for name in ("flow.json", "model.safetensors", "README.md"):
        (tmp_path / "part" / name).unlink()
    newest = sorted((tmp_path / "part" / "checkpoints").iterdir())[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    result = flowmatch("train", "--resume", "--out", tmp_path / "part")
    assert result.code == 0, result.err
    assert (tmp_path / "part" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
