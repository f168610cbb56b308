"""Sampling with noise from the command line."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from tests.cli.test_bad_input import refused


@pytest.mark.parametrize("form", ["sigma", "matched"])
def test_a_run_is_sampled_with_noise_and_by_seed(flowmatch, run, tmp_path, form):
    files = [tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        result = flowmatch(
            "sample",
            run,
            "-n",
            20,
            "--diffusion",
            form,
            "--steps",
            6,
            "--seed",
            seed,
            "--given",
            "kind=dog",
            "-o",
            file,
        )
        assert result.code == 0, result.err
    first, again, other = map(pd.read_csv, files)
    assert (first["kind"] == "dog").all()
    assert first.equals(again)
    assert not first.equals(other)


def test_noise_that_cannot_be_is_refused(flowmatch, run, tmp_path):
    refused(flowmatch("sample", run, "--diffusion", "wild", "--steps", 5), "no diffusion wild", "sigma")
    refused(flowmatch("sample", run, "--diffusion", "sigma"), "--steps")
    refused(flowmatch("sample", run, "--diffusion", "sigma", "--steps", 5, "--solver", "heun"), "no --solver")
    description = json.loads((run / "flow.json").read_text())
    (run / "flow.json").write_text(json.dumps({**description, "independent": False}))
    refused(
        flowmatch("sample", run, "--diffusion", "sigma", "--steps", 5), "pairs of a coupling", "--coupling independent"
    )
