"""A report on any table: its units, its seeds, its conditions, its smallest and widest cases, and its refusals."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flowmatch import Flow
from flowmatch.data import TableCodec
from flowmatch.errors import InputError
from flowmatch.report import evaluate
from flowmatch.solvers import Euler
from tests.report.worlds import class_flow, class_table, exact_flow, image_table, normal_table, run, without_times


@pytest.fixture(autouse=True)
def no_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten networks a report would take most of its time; test_floors.py trains them."""
    monkeypatch.setattr(sys.modules["flowmatch.report.distances"], "c2st", lambda *_, **__: 0.5)


def test_log_likelihood_is_in_the_units_of_the_data(tmp_path: Path) -> None:
    at = [
        run(exact_flow(3), normal_table(300, 3, unit=unit), normal_table(60, 3, 1, unit), tmp_path, samples=60, steps=9)
        for unit in (1.0, 10.0)
    ]
    means = [result["log_likelihood"]["heldout"]["mean"] for result in at]
    assert means[0] - means[1] == pytest.approx(3 * math.log(10), abs=1e-3)
    distances = [result["sliced_wasserstein"]["value"] for result in at]
    assert distances[0] == pytest.approx(distances[1], rel=1e-3)


def test_the_same_seed_gives_the_same_numbers_and_progress_runs_to_one(tmp_path: Path) -> None:
    seen: list[float] = []
    before = torch.get_rng_state()
    a, b, c = (
        without_times(
            run(
                exact_flow(3),
                normal_table(200, 3),
                normal_table(50, 3, seed=1),
                tmp_path / "same",
                samples=100,
                seed=seed,
                steps=6,
                progress=lambda done, _: seen.append(done),
            )
        )
        for seed in (0, 0, 1)
    )
    assert a == b
    assert a["sliced_wasserstein"]["value"] != c["sliced_wasserstein"]["value"]
    assert torch.equal(before, torch.get_rng_state())
    first = seen[: seen.index(1.0) + 1]
    assert first == sorted(first)
    assert first[0] > 0


def test_samples_and_floor_follow_the_condition_of_the_held_out_rows(tmp_path: Path) -> None:
    frame, heldout = class_table(400), class_table(60, seed=1)
    codec = TableCodec.fit(frame, condition="kind")
    result = evaluate(class_flow(codec), codec, frame, heldout, tmp_path, samples=300, steps=12)
    assert result["condition"] == "kind"
    assert result["sampling"]["samples"] == 300
    # Without like conditions the floor would hold the chance of the rare class, about twice as much.
    assert result["sliced_wasserstein"]["floor"] < 0.25
    assert result["sliced_wasserstein"]["value"] < 1.3 * result["sliced_wasserstein"]["floor"]
    bits = result["log_likelihood"]["bits_per_dim"]
    exact = math.log2(6 * math.sqrt(2 * math.pi * math.e))
    assert abs(bits["mean"] - exact) < 4 * bits["stderr"] + 0.01
    assert bits["mean"] < bits["uniform"]


@pytest.mark.parametrize("rows", [1, 2, 15])
def test_small_held_out_sets_work_and_are_said_to_be_small(tmp_path: Path, rows: int) -> None:
    result = run(exact_flow(4), normal_table(40, 4), normal_table(rows, 4, seed=1), tmp_path, samples=60, steps=6)
    assert result["sliced_wasserstein"]["rows"] == rows
    assert any(f"Comparisons use {rows} row" in note for note in result["notes"])
    if rows == 1:
        assert result["c2st"] is None
        assert result["log_likelihood"]["heldout"]["stderr"] is None
        assert any("left out" in note for note in result["notes"])
    else:
        assert result["c2st"]["folds"] == min(5, rows)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)  # a picture may spell anything
    assert "NaN" not in (tmp_path / "evaluation.json").read_text(encoding="utf-8")


def test_images_stand_by_class_and_constant_pixels_come_back(tmp_path: Path) -> None:
    frame, heldout = image_table(200), image_table(30, seed=1)
    codec = TableCodec.fit(frame, condition="target")
    assert codec.dim == 8
    flow = Flow(lambda t, x, cond: torch.zeros_like(x), event_shape=(8,))
    result = evaluate(flow, codec, frame, heldout, tmp_path, samples=30, steps=2, image_shape=(3, 3))
    assert [figure["file"] for figure in result["figures"]] == ["plots/images.png", "plots/trajectories.png"]
    no_class = TableCodec.fit(frame.drop(columns="target"))
    plain = Flow(lambda t, x: torch.zeros_like(x), event_shape=(8,))
    again = evaluate(plain, no_class, frame, heldout, tmp_path, samples=30, steps=2, image_shape=(3, 3))
    assert again["figures"][0]["caption"] == "Held-out images and samples, not chosen."


def test_wide_rows_use_probes_and_few_rows_are_scored(tmp_path: Path) -> None:
    frame = normal_table(90, 70)
    result = run(exact_flow(70), frame, normal_table(30, 70, seed=1), tmp_path, samples=30, steps=4, likelihood_rows=20)
    assert result["log_likelihood"]["divergence"] == "estimated with 8 probes"
    assert result["log_likelihood"]["heldout"]["rows"] == result["log_likelihood"]["train"]["rows"] == 20
    assert result["c2st"]["width"] == 128
    assert "Shown are the six of 70 columns" in result["figures"][0]["caption"]


def test_one_column_and_a_numeric_condition_work(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.uniform(0, 9, 80), "size": rng.standard_normal(80)})
    codec = TableCodec.fit(frame, condition="age")
    flow = Flow(lambda t, x, cond: torch.zeros_like(x), event_shape=(1,))
    result = evaluate(flow, codec, frame[:60], frame[60:], tmp_path, samples=40, steps=2)
    assert result["columns"] == 1
    assert result["sliced_wasserstein"]["repeats"] == 4


def test_the_cost_is_what_the_solver_declares(tmp_path: Path) -> None:
    options = {"samples": 20, "steps": 7, "solver": Euler()}
    result = run(exact_flow(2), normal_table(50), normal_table(20, seed=1), tmp_path, **options)
    assert result["sampling"]["nfe"] == result["sampling"]["nfe_max"] == 7
    assert result["sampling"]["method"] == "Euler, 7 steps"


def test_bad_input_is_named_before_any_work(tmp_path: Path) -> None:
    frame = normal_table(30)
    with pytest.raises(InputError, match="no held-out rows"):
        run(exact_flow(2), frame, frame[:0], tmp_path)
    with pytest.raises(InputError, match="steps and rtol exclude each other"):
        run(exact_flow(2), frame, frame, tmp_path, steps=3, rtol=1e-3)
    with pytest.raises(InputError, match="samples must be at least 2, got 1"):
        run(exact_flow(2), frame, frame, tmp_path, samples=1)
    with pytest.raises(InputError, match=r"events of shape \(3,\), but the table has 2 columns"):
        run(exact_flow(3), frame, frame, tmp_path)
    with pytest.raises(InputError, match="likelihood_rows must be at least 1, got 0"):
        run(exact_flow(2), frame, frame, tmp_path, likelihood_rows=0)
    with pytest.raises(InputError, match=r"images of \(2, 2\) need 4 columns"):
        run(exact_flow(2), frame, frame, tmp_path, image_shape=(2, 2))
    assert list(tmp_path.iterdir()) == []


def test_the_flow_is_left_in_its_mode(tmp_path: Path) -> None:
    flow = exact_flow(3)
    for mode in (True, False):
        run(flow.train(mode), normal_table(30, 3), normal_table(9, 3), tmp_path, samples=8, steps=2)
        assert flow.training is mode
