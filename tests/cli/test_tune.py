"""``flowmatch tune``, and ``flowmatch sample --nfe`` after it."""

from __future__ import annotations

import pandas as pd
import pytest

from flowmatch.recipes import Run

QUICK = ("--trajectories", 16, "--steps", 2)


def test_a_tuned_run_is_sampled_by_its_solver(flowmatch, run, tmp_path) -> None:
    weights = (run / "model.safetensors").read_bytes()
    result = flowmatch("tune", run, "--nfe", 3, *QUICK)
    assert result.code == 0, result.err
    for part in ("tuned solver, 3 calls: error", "3 calls: error", "6 calls: error", "sample"):
        assert part in result.out
    assert (run / "model.safetensors").read_bytes() == weights
    assert list(Run.open(run).flow.tuned) == [3]
    for name, options in (("a", ("--nfe", 3)), ("b", ("--nfe", 3)), ("c", ("--rtol", 1e-3))):
        assert flowmatch("sample", run, "-n", 30, *options, "--out", tmp_path / f"{name}.csv").code == 0
    a, b, c = (pd.read_csv(tmp_path / f"{name}.csv") for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)
    given = ("--given", "kind=cat", "--out", tmp_path / "cats.csv")
    assert flowmatch("sample", run, "-n", 5, "--nfe", 3, *given).code == 0
    assert (pd.read_csv(tmp_path / "cats.csv")["kind"] == "cat").all()


def test_the_seed_decides_and_tuning_again_replaces(flowmatch, run) -> None:
    vectors = []
    for seed in (0, 0, 1):
        result = flowmatch("tune", run, "--nfe", 2, "--seed", seed, "--quiet", *QUICK)
        assert (result.code, result.out) == (0, ""), result.err
        tuned = Run.open(run).flow.tuned
        assert list(tuned) == [2]
        vectors.append(tuned[2].vector().tolist())
    assert vectors[0] == vectors[1] != vectors[2]


def test_sampling_at_other_calls_says_how_to_tune(flowmatch, run) -> None:
    result = flowmatch("sample", run, "--nfe", 7)
    assert result.code == 2
    assert "has no solver of 7 calls (there is: none); make one with flowmatch tune" in result.err
    assert "--nfe 7" in result.err


@pytest.mark.parametrize("option", [("--steps", 4), ("--solver", "euler"), ("--rtol", 0.1)])
def test_nfe_excludes_other_ways_to_step(flowmatch, run, option) -> None:
    result = flowmatch("sample", run, "--nfe", 3, *option)
    assert result.code == 2
    assert f"leave out {option[0]}" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nfe", 0), "--nfe must be at least 1, got 0"),
        (("--trajectories", 4), "--trajectories must be at least 8, got 4"),
        (("--steps", 0), "--steps must be at least 1, got 0"),
        (("--batch", 0), "--batch must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_told(flowmatch, run, options, message) -> None:
    result = flowmatch("tune", run, *options)
    assert result.code == 2
    assert message in result.err


def test_a_folder_without_a_run_is_told(flowmatch, tmp_path) -> None:
    result = flowmatch("tune", tmp_path / "nothing")
    assert result.code == 2
    assert "no run folder" in result.err
