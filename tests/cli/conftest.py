"""One small trained run of each kind, shared by the tests of the commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from flowmatch.cli.app import app

SMALL = ["--steps", "30", "--batch-size", "64", "--hidden", "16", "--depth", "1", "--no-tensorboard"]


class Result:
    """What a command left: exit code, and both streams without line breaks that depend on the terminal."""

    def __init__(self, raw) -> None:
        self.code, self.out, self.err = raw.exit_code, " ".join(raw.stdout.split()), " ".join(raw.stderr.split())
        self.exception = raw.exception


@pytest.fixture(scope="session")
def flowmatch() -> Callable[..., Result]:
    def call(*args: object) -> Result:
        return Result(CliRunner().invoke(app, [str(arg) for arg in args]))

    return call


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    kind = rng.choice(["cat", "dog"], size=200)
    return pd.DataFrame(
        {
            "weight": np.where(kind == "cat", 4.0, 20.0) + rng.normal(size=200),
            "legs": np.full(200, 4),
            "age": rng.integers(0, 15, size=200),
            "kind": kind,
        }
    )


@pytest.fixture(scope="session")
def trained(flowmatch, table, tmp_path_factory) -> Path:
    """A conditional run on a CSV file."""
    folder = tmp_path_factory.mktemp("animals")
    table.to_csv(folder / "animals.csv", index=False)
    result = flowmatch("train", folder / "animals.csv", "--condition", "kind", "--out", folder / "run", *SMALL)
    assert result.code == 0, result.err
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run to break; the data file stays where it was."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def planar(flowmatch, tmp_path_factory) -> Path:
    """An unconditional run on a two-dimensional toy set."""
    out = tmp_path_factory.mktemp("toy") / "run"
    result = flowmatch("train", "toy:moons", "--rows", "400", "--out", out, *SMALL)
    assert result.code == 0, result.err
    return out
