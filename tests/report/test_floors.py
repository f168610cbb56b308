"""With the real classifier: an exact flow reaches every floor, a wrong one does not, and each is told so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flowmatch import Flow
from flowmatch.data import TableCodec
from flowmatch.report import evaluate
from flowmatch.report.readings import readings
from tests.report.worlds import class_flow, class_table, exact_flow, normal_table, run


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {item.name: item.verdict for item in readings(result)}


def test_an_exact_flow_is_at_its_floors_and_at_the_entropy(tmp_path: Path) -> None:
    entropy = math.log(2 * math.pi * math.e) + math.log(2.0)  # columns of spread 1 and 2
    history = [{"step": k, "loss": 1 / k, "heldout_loss": 1.2 / k} for k in range(1, 20)]
    result = run(
        exact_flow(2), normal_table(800), normal_table(200, seed=1), tmp_path, history=history, entropy=entropy
    )
    density = result["log_likelihood"]
    assert density["best"] == -entropy
    for name in ("heldout", "train", "gaussian"):
        assert abs(density[name]["mean"] + entropy) < 4 * density[name]["stderr"]
    assert abs(density["above_gaussian"]["mean"]) < 0.03
    assert abs(result["sliced_wasserstein"]["value"] - result["sliced_wasserstein"]["floor"]) < 0.08
    assert verdicts(result)["Sliced Wasserstein distance"] == "at the floor"
    assert verdicts(result)["Classifier test (C2ST)"] == "at the floor"
    assert verdicts(result)["Overfitting gap"] == "none beyond chance"
    assert {figure["file"] for figure in result["figures"]} == {
        f"plots/{name}.png" for name in ("samples", "density", "trajectories", "loss")
    }
    assert density["train"]["rows"] == 800
    for figure in result["figures"]:
        with Image.open(tmp_path / figure["file"]) as picture:
            assert min(picture.size) > 300
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.json", "plots", "report.html"]


def test_a_wrong_flow_is_told_from_the_data(tmp_path: Path) -> None:
    wrong = exact_flow(3, std=0.4, shift=1.0)
    result = run(wrong, normal_table(500, 3), normal_table(150, 3, seed=1), tmp_path)
    assert result["sliced_wasserstein"]["value"] > 3 * result["sliced_wasserstein"]["floor"]
    assert result["c2st"]["value"] > 0.75
    assert result["c2st"]["floor"] < 0.6
    told = {item.name: (item.verdict, item.mood) for item in readings(result)}
    assert told["Held-out log-likelihood"] == ("worse than one normal", "poor")
    assert told["Classifier test (C2ST)"] == ("above the floor", "poor")
    assert told["Sliced Wasserstein distance"][1] == "poor"


def test_a_flow_that_ignores_its_condition_is_told(tmp_path: Path) -> None:
    frame, heldout = class_table(400), class_table(150, seed=1)
    codec = TableCodec.fit(frame, condition="kind")
    exact = class_flow(codec)

    def deaf(t: torch.Tensor, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        # The classes in the right shares, but not for the rows that asked: the law of the columns alone is right.
        return exact.field(t, x, cond.roll(1))

    result = evaluate(Flow(deaf, event_shape=(2,)), codec, frame, heldout, tmp_path, samples=150, steps=10)
    assert result["c2st"]["value"] > result["c2st"]["floor"] + 0.05
