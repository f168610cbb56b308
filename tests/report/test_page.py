"""The page stands alone, trusts no text of the user's, and puts a floor beside every number."""

from __future__ import annotations

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flowmatch.data import TableCodec
from flowmatch.errors import InputError
from flowmatch.report import evaluate, write_html
from flowmatch.report.readings import _sliced, number, readings
from tests.report.worlds import exact_flow, normal_table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    names = {"c0": "<script>alert(1)</script>", "c1": "a&b"}
    frame = normal_table(60, 3).rename(columns=names)
    codec = TableCodec.fit(frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["flowmatch.report.distances"], "c2st", lambda *_, **__: 0.5)
        options = {"samples": 20, "steps": 4, "title": "<b>run</b>", "notes": ["1 < 2"]}
        result = evaluate(exact_flow(3), codec, frame[:40], frame[40:], folder, **options)
    return folder, result


class Tags(HTMLParser):
    """Every tag with its attributes, and the tags left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    folder, result = made
    page = (folder / "report.html").read_text(encoding="utf-8")
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags.seen}
    sources = [str(attrs[name]) for _, attrs in tags.seen for name in ("src", "href", "srcset") if name in attrs]
    assert len(sources) == len(result["figures"])
    for source, figure in zip(sources, result["figures"], strict=True):
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == (folder / figure["file"]).read_bytes()
    assert not re.search(r"url\(|@import|https?:", page)
    assert all(attrs.get("alt") for tag, attrs in tags.seen if tag == "img")


def test_names_are_escaped(made: tuple[Path, dict[str, Any]]) -> None:
    page = (made[0] / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page
    assert "1 &lt; 2" in page


def test_every_number_has_a_unit_a_neighbour_and_one_line(made: tuple[Path, dict[str, Any]]) -> None:
    folder, result = made
    page = (folder / "report.html").read_text(encoding="utf-8")
    for item in readings(result):
        assert item.unit
        assert item.text.endswith(".")
        assert item.beside
        assert item.value in page
        assert item.verdict in page
        for _, value in item.beside:
            assert value in page


def test_the_page_can_be_made_again_and_misses_no_picture_silently(made: tuple[Path, dict[str, Any]]) -> None:
    folder, result = made
    first = (folder / "report.html").read_bytes()
    assert write_html(result, folder / "again.html").read_bytes() == first
    lost = {**result, "figures": [{"file": "plots/lost.png", "title": "", "caption": ""}]}
    with pytest.raises(InputError, match=r"plots/lost\.png is not in"):
        write_html(lost, folder / "report.html")
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("value", "error", "want"),
    [
        (-2.8588, 0.0308, "\u22122.859"),
        (-108.21, 1.28, "\u2212108.2"),
        (12345.6, 0.5, "12,345.60"),
        (0.0045, 0.038, "0.0045"),
    ],
)
def test_a_mean_shows_the_digits_that_its_error_lets_count(value: float, error: float, want: str) -> None:
    part = {"mean": value, "stderr": error, "rows": 9}
    zero = {"mean": 0.0, "stderr": 1.0, "rows": 9}
    density = {"heldout": part, "train": zero, "gap": zero, "gaussian": zero, "above_gaussian": zero, "best": None}
    result = {
        "log_likelihood": {**density, "divergence": "exact", "unit": "nats", "bits_per_dim": None},
        "sliced_wasserstein": {
            "value": 1.0,
            "floor": 1.0,
            "spread": None,
            "floor_spread": None,
            "rows": 9,
            "repeats": 1,
        },
        "c2st": None,
        "sampling": {
            "samples": 9,
            "seconds": 1.0,
            "samples_per_second": 9.0,
            "nfe": 8.0,
            "nfe_max": 8,
            "method": "Euler",
        },
    }
    assert readings(result)[0].value == want


@pytest.mark.parametrize(
    ("value", "spread", "verdict", "mood"),
    [
        (1.1, None, "at the floor", "good"),
        (1.3, None, "1.3 times the floor", "fair"),
        (1.3, 0.2, "at the floor", "good"),
        (5.0, 0.2, "5.0 times the floor", "poor"),
    ],
)
def test_a_distance_is_judged_by_its_floor_and_spread(value: float, spread: Any, verdict: str, mood: str) -> None:
    part = {"value": value, "floor": 1.0, "spread": spread, "floor_spread": spread, "rows": 9, "repeats": 2}
    told = _sliced(part)
    assert (told.verdict, told.mood) == (verdict, mood)


def test_numbers_that_are_none_are_said_to_be() -> None:
    assert number(float("nan")) == number(float("inf")) == number(None) == "not finite"
