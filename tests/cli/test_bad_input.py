"""Whatever is wrong: one message that says what, where and how to mend it, exit code 2, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from flowmatch.recipes import Run
from tests.cli.conftest import SMALL


def refused(result, *words: str) -> None:
    """Exit code 2 and one message with these words; no traceback."""
    assert result.code == 2, (result.code, result.out, result.err)
    said = result.err.lower()
    assert "traceback" not in said
    for word in words:
        assert word.lower() in said, (word, result.err)


def write(tmp_path, text: str) -> str:
    path = tmp_path / "data.csv"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("a,b\n", ["0 rows"]),
        ("a,b\n1,2\n", ["2 rows", "1"]),
        ("a,b\n1,1\n1,1\n1,1\n", ["constant", "nothing to learn"]),
        ("a,b\n1.5,2\n,3\n2.5,4\n", ["a", "row 1", "drop"]),
        ("a,b\n1.5,2\ninf,3\n2.5,4\n", ["a", "row 1"]),
        ("a,b\n1.5,red\n2.5,blue\n3.5,red\n", ["'b'", "--condition", "--drop"]),
        ("a,a\n1,2\n3,4\n", ["a"]),
    ],
    ids=["empty", "header", "one-row", "all-constant", "nan", "inf", "text", "doubled"],
)
def test_tables_that_cannot_be_learnt(flowmatch, tmp_path, text, words) -> None:
    refused(flowmatch("train", write(tmp_path, text), "--out", tmp_path / "run", *SMALL), *words)


def test_a_missing_file_names_its_neighbours(flowmatch, tmp_path) -> None:
    (tmp_path / "wine.csv").write_text("a\n1\n2\n")
    refused(flowmatch("train", tmp_path / "wines.csv"), "wines.csv", "wine.csv")


def test_a_constant_column_is_told_and_comes_back(flowmatch, tmp_path) -> None:
    source = write(tmp_path, "a,b\n" + "\n".join(f"{k / 7},5" for k in range(30)))
    result = flowmatch("train", source, "--out", tmp_path / "run", *SMALL)
    assert result.code == 0
    assert "constant" in result.err
    assert "'b'" in result.err
    assert flowmatch("sample", tmp_path / "run", "-n", 5, "--out", tmp_path / "new.csv").code == 0
    assert (pd.read_csv(tmp_path / "new.csv")["b"] == 5).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toy:rung"], ["rings"]),
        (["sklearn:diggits"], ["digits"]),
        (["data.xlsx"], [".csv"]),
        ([], ["no data"]),
        (["toy:rings", "--path", "liner"], ["path", "linear"]),
        (["toy:rings", "--steps", "0"], ["steps", "greater"]),
        (["toy:rings", "--sigma-min", "2"], ["sigma_min"]),
        (["toy:rings", "--batch-size", "64", "--pool", "100"], ["error: pool 100 must be a multiple of batch_size 64"]),
        (["toy:rings", "--coupling", "nearest"], ["coupling", "sinkhorn"]),
        (["toy:rings", "--condition", "x0", "--coupling", "sinkhorn"], ["numeric condition", "use coupling ot"]),
        (["toy:rings", "--holdout", "0.9"], ["holdout", "0.5"]),
        (["toy:rings", "--condition", "x9"], ["x9"]),
        (["toy:rings", "--columns", "x0,x7"], ["x7"]),
        (["toy:rings", "--resume", "--overwrite"], ["exclude"]),
        (["toy:rings", "--batch-size", "10", "--accumulate", "3"], ["batch_size", "accumulate"]),
    ],
)
def test_options_that_mean_nothing(flowmatch, tmp_path, arguments, words) -> None:
    refused(flowmatch("train", *arguments, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_is_refused_with_the_nearest(flowmatch) -> None:
    result = flowmatch("train", "toy:rings", "--batchsize", "3")
    assert result.code == 2
    assert "--batch-size" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: [unclosed", ["YAML"]),
        ("- a\n- b\n", ["mapping"]),
        ("data: toy:rings\ntrain: {stepz: 3}\n", ["stepz", "steps"]),
        ("data: toy:rings\ntrain: 5\n", ["train", "mapping"]),
        ("data: toy:rings\nbatch: 5\n", ["batch"]),
    ],
)
def test_config_files_that_are_wrong(flowmatch, tmp_path, text, words) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    refused(flowmatch("train", "--config", config, "--out", tmp_path / "run"), *words)


def test_an_output_folder_is_never_lost(flowmatch, run, tmp_path) -> None:
    before = (run / "model.safetensors").read_bytes()
    refused(flowmatch("train", "toy:rings", "--out", run, *SMALL), "already", "--resume", "--overwrite")
    assert (run / "model.safetensors").read_bytes() == before
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("...")
    refused(flowmatch("train", "toy:rings", "--out", thesis, "--overwrite", *SMALL), "not a run folder")
    assert (thesis / "chapter.tex").is_file()
    # An option that is refused must not cost the run that was to be replaced.
    refused(flowmatch("train", "toy:rings", "--out", run, "--overwrite", "--steps", "0"), "steps")
    assert (run / "model.safetensors").read_bytes() == before


def test_runs_that_are_damaged_or_foreign(flowmatch, run, tmp_path) -> None:
    def attempt(*words: str) -> None:
        refused(flowmatch("sample", run, "-n", 3, "--out", tmp_path / "new.csv"), *words)
        assert not (tmp_path / "new.csv").exists()

    refused(flowmatch("sample", tmp_path / "nowhere"), "nowhere", "run folder")
    good = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(good[:-50])
    attempt("model.safetensors", "damaged")
    (run / "model.safetensors").write_bytes(good)
    for name in ("flow.json", "data.json", "config.yaml"):
        text = (run / name).read_text()
        (run / name).write_text(text[: len(text) // 2] + "{")
        attempt(name)
        (run / name).write_text("[1, 2]")
        attempt(name if name != "config.yaml" else "mapping")
        (run / name).unlink()
        attempt(name)
        (run / name).write_text(text)
    assert flowmatch("sample", run, "-n", 3, "--out", tmp_path / "new.csv").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--given", "kind=bird"], ["bird", "cat", "dog"]),
        (["--given", "sort=cat"], ["sort", "kind"]),
        (["--given", "cat"], ["COLUMN=VALUE"]),
        (["--steps", "0"], ["--steps"]),
        (["--steps", "5", "--rtol", "1e-3"], ["exclude"]),
        (["--rtol", "7"], ["--rtol"]),
        (["--solver", "rk5"], ["rk5", "rk4"]),
        (["--solver", "euler"], ["--steps"]),
        (["-n", "0"], ["-n"]),
        (["--gif", "x.gif", "-n", "2"], []),
        (["--out", "samples.doc"], [".csv"]),
        (["--out", "no/such/folder/x.csv"], ["folder"]),
        (["--out", "samples.npy"], ["text"]),
    ],
)
def test_sampling_requests_that_mean_nothing(flowmatch, trained, tmp_path, monkeypatch, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    result = flowmatch("sample", trained, *arguments)
    if arguments[0] == "--gif":  # two modelled columns: allowed
        assert result.code == 0
        return
    refused(result, *words)


def test_an_existing_file_is_not_overwritten(flowmatch, trained, tmp_path) -> None:
    target = tmp_path / "mine.csv"
    target.write_text("precious")
    refused(flowmatch("sample", trained, "-n", 3, "--out", target), "exists", "--overwrite")
    assert target.read_text() == "precious"
    assert flowmatch("sample", trained, "-n", 3, "--out", target, "--overwrite").code == 0


def test_tables_that_do_not_fit_the_run(flowmatch, trained, tmp_path) -> None:
    refused(flowmatch("score", trained, write(tmp_path, "weight,kind\n3,cat\n4,dog\n")), "age")
    text = "weight,legs,age,kind\n3,4,2,cat\n4,4,3,bird\n"
    refused(flowmatch("score", trained, write(tmp_path, text)), "bird", "row 1")


def test_evaluating_on_changed_data_is_refused(flowmatch, run, table, tmp_path) -> None:
    table.head(100).to_csv(tmp_path / "other.csv", index=False)
    refused(flowmatch("evaluate", run, "--data", tmp_path / "other.csv"), "changed", "--data")


def test_a_full_disc_leaves_the_old_file_and_says_so(flowmatch, trained, tmp_path, monkeypatch) -> None:
    target = tmp_path / "new.csv"
    assert flowmatch("sample", trained, "-n", 3, "--out", target).code == 0
    before = target.read_text()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(os, "fsync", full)
    result = flowmatch("sample", trained, "-n", 3, "--seed", 5, "--out", target, "--overwrite")
    assert result.code == 1
    assert "No space left on device" in result.err
    assert target.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_a_full_disc_while_training_keeps_the_checkpoints(flowmatch, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    result = flowmatch("train", "toy:rings", "--rows", 100, "--out", out, *SMALL, "--checkpoint-every", 5)
    assert result.code in (1, 2)
    assert "space" in result.err
    monkeypatch.setattr(os, "fsync", real)
    resumed = flowmatch("train", "--resume", "--out", out)
    assert resumed.code == 0, resumed.err
    assert Run.open(out).config.train.steps == 30


def test_a_kill_at_any_moment_can_be_resumed(flowmatch, tmp_path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "flowmatch", "train", "toy:rings", "--rows", "200", "--out", str(out), *SMALL]
    options = ["--steps", "100000", "--checkpoint-every", "20", "--keep", "2"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list((out / "checkpoints").glob("step_*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    saved = sorted((out / "checkpoints").glob("step_*"))
    assert saved, "no checkpoint within a minute"
    refused(flowmatch("sample", out), "flow.json", "resume")
    last = int(saved[-1].name.removeprefix("step_"))
    result = flowmatch("train", "--resume", "--out", out, "--steps", last + 10)
    assert result.code == 0, result.err
    assert flowmatch("sample", out, "-n", 3, "--steps", 2).code == 0


def test_unexpected_errors_are_one_line_unless_asked(flowmatch, trained, monkeypatch) -> None:
    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("something of ours")

    monkeypatch.setattr("flowmatch.flow.Flow.sample", broken)
    result = flowmatch("sample", trained, "-n", 2)
    assert (result.code, "something of ours" in result.err, "--debug" in result.err) == (1, True, True)
    monkeypatch.setenv("FLOWMATCH_DEBUG", "1")
    assert isinstance(flowmatch("sample", trained, "-n", 2).exception, RuntimeError)


def test_a_run_folder_can_move_with_its_data(flowmatch, run, table, tmp_path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    assert flowmatch("sample", moved, "-n", 2, "--out", tmp_path / "x.csv").code == 0
    assert np.isfinite(pd.read_csv(tmp_path / "x.csv")["weight"]).all()
