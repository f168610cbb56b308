"""The density that is drawn is one of the data, in its units, with all classes together."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from flowmatch import Flow, plot
from flowmatch.data import TableCodec
from flowmatch.report.pictures import draw_all
from flowmatch.report.subject import Subject
from tests.report.worlds import exact_flow, normal_table

Density = Callable[[Tensor], Tensor]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Density]:
    """The log-densities that are drawn."""
    kept: list[Density] = []
    draw = plot.density

    def watch(log_prob: Density, extent: Any, cells: int = 9, **options: Any) -> Any:
        kept.append(log_prob)
        return draw(log_prob, extent, 9, **options)

    monkeypatch.setattr(plot, "density", watch)
    return kept


def draw(flow: Flow, frame: pd.DataFrame, folder: Path, condition: str | None = None) -> list[str]:
    codec = TableCodec.fit(frame, condition=condition)
    subject = Subject(flow, codec, {"steps": 12, "solver": None})
    rows = subject.rows(frame, 60, 0)
    made = subject.sample(len(rows.x), rows.cond, 0)
    return [picture["file"] for picture in draw_all(subject, made, rows, rows, folder, None, None, 0)]


def grid(left: float, right: float, count: int) -> tuple[Tensor, float]:
    line = left + (right - left) * (torch.arange(count) + 0.5) / count
    return torch.cartesian_prod(line, line), ((right - left) / count) ** 2


def test_the_density_is_that_of_the_data_in_its_units(tmp_path: Path, drawn: list[Density]) -> None:
    files = draw(exact_flow(2), normal_table(4000, unit=3.0), tmp_path)
    assert files == ["plots/samples.png", "plots/density.png", "plots/trajectories.png"]
    x, area = grid(-30, 40, 60)
    log_prob = drawn[0](x)
    assert float(log_prob.exp().sum()) * area == pytest.approx(1, abs=1e-3)
    assert float(drawn[0](torch.tensor([[5.0, 5.0]]))) == pytest.approx(-math.log(2 * math.pi * 3 * 6), abs=0.1)


def test_all_classes_are_together_in_their_shares(tmp_path: Path, drawn: list[Density]) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((200, 2)), columns=["a", "b"])
    frame["kind"] = np.where(np.arange(200) % 4 == 0, "rare", "common")

    def field(t: Tensor, x: Tensor, cond: Tensor) -> Tensor:
        return 8.0 * cond[:, None].to(x) + torch.zeros_like(x)  # class 1, rare, is carried eight units away

    draw(Flow(field, event_shape=(2,)), frame, tmp_path, condition="kind")
    x, area = grid(-6, 15, 70)
    mass = drawn[0](x).exp() * area
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    assert float(mass[x.sum(1) > 8].sum()) == pytest.approx(0.25, abs=0.13)


def test_whole_numbers_have_no_density_to_draw(tmp_path: Path, drawn: list[Density]) -> None:
    frame = normal_table(60).round().astype(np.int64)
    assert draw(exact_flow(2), frame, tmp_path) == ["plots/samples.png", "plots/trajectories.png"]
    assert drawn == []
