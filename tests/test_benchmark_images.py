"""The benchmark of images: its yardsticks are right, a missing peer stops it, and it goes on where it was stopped."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

import flowmatch as fm
from benchmarks.images import _check_same, _steps, main
from benchmarks.images.judge import choose_average, choose_sampler
from benchmarks.images.loop import rate
from benchmarks.images.ours import RECIPES, draw_seconds, samplers, train
from benchmarks.images.peers import PACKAGES
from benchmarks.images.world import Plan
from flowmatch.data.images import Images
from flowmatch.train import TrainConfig

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def test_the_loop_of_the_peers_has_the_learning_rate_of_the_trainer():
    config = TrainConfig(steps=500, learning_rate=2e-3, warmup=100)
    for step in (0, 7, 99, 100, 300, 499):
        assert rate(step, 500, 2e-3, 100) == pytest.approx(config.rate(step), rel=1e-12)


@pytest.mark.parametrize(
    "schedule", [fm.Linear(), fm.VariancePreserving()], ids=lambda schedule: type(schedule).__name__
)
@pytest.mark.parametrize("calls", [2, 8, 20])
def test_ways_of_ours_make_the_calls_they_are_given_and_end_at_the_data(schedule, calls):
    exact = fm.GaussianField(torch.full((1, 2, 2), 0.3), std=0.5, path=fm.AffinePath(schedule))
    x0, count = torch.randn(200, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double(), []
    ways = samplers(schedule, calls)
    assert len(ways) >= 12
    for name, way in ways.items():
        count.clear()
        made = way(lambda t, x: count.append(1) or exact(t, x), x0)
        assert len(count) == calls, name
        if calls == 20 and not ("shifted" in name and isinstance(schedule, fm.VariancePreserving)):
            # A shift is one of the straight path; on another it may be coarse where that path is bent.
            assert (made.mean() - 0.3).abs() < 0.1, name
            assert (made.std() - 0.5).abs() < 0.1, name


class Little:
    """A world of 4 x 4 pictures in which the distance is that of the means."""

    plan = Plan(choose_rows=30, timed=2)

    def __init__(self):
        self.train = Images(torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8), dequantize=True)

    def network(self, seed):
        torch.manual_seed(seed)
        return fm.nn.UNet((1, 4, 4), channels=8, mults=(1,), depth=1, head_channels=8)

    def starts(self, seed, rows):
        return torch.randn(rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed))

    def distance(self, samples, to):
        return abs(float(samples.mean()) - {"test": 1.0, "train": 3.0}[to])


def test_the_nearest_way_and_the_nearest_average_are_chosen():
    world = Little()
    ways = {f"+{shift}": lambda net, x, shift=shift: x + shift for shift in range(8)}
    assert choose_sampler(world, world.network(0), ways, "test", 0) == "+1"
    assert choose_sampler(world, world.network(0), ways, "train", 0) == "+3"
    weights = {str(scale): {k: v + scale for k, v in world.network(0).state_dict().items()} for scale in (0, 5)}
    way = lambda net, x: torch.full_like(x, 3.0 if next(net.parameters()).mean() > 2 else 1.0)  # noqa: E731
    assert choose_average(world, weights, way, "train", 0) == "5"
    assert choose_average(world, weights, way, "test", 0) == "0"


def test_every_recipe_trains_and_keeps_two_kinds_of_weights():
    world = Little()
    for name, recipe in RECIPES.items():
        if name == "ours":
            pytest.importorskip("numba")
        weights, spent = train(world, name, 3, 0)
        assert set(weights) == {str(recipe.average), "last"}
        assert spent["steps"] == 3
        assert math.isfinite(spent["loss"])
        assert draw_seconds(world, recipe) > 0
        moved = [
            key for key, value in weights["last"].items() if not torch.equal(value, world.network(0).state_dict()[key])
        ]
        assert moved


def test_a_slower_draw_and_an_overhead_of_ours_cost_steps():
    clock = {"network": 0.1, "ratio": 1.1, "meta": 0.0, "torchcfm-ot": 0.1, "ours": 0.0}
    assert _steps(clock, "meta", 10.0) == 100
    assert _steps(clock, "torchcfm-ot", 10.0) == 50
    assert _steps(clock, "ours", 11.05) == 100


def test_a_folder_of_other_conditions_is_refused(tmp_path):
    _check_same(tmp_path / "about.json", {"threads": 1})
    _check_same(tmp_path / "about.json", {"threads": 1})
    with pytest.raises(SystemExit, match=r"begun with threads 1 \(now 2\); give another --out"):
        _check_same(tmp_path / "about.json", {"threads": 2})


@pytest.mark.parametrize("peer", ["torchcfm", "flow_matching"])
def test_a_missing_peer_stops_the_run(peer, tmp_path, monkeypatch):
    for name in PACKAGES:
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, torch)  # stands for a peer that is there
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    monkeypatch.setitem(sys.modules, peer, None)
    with pytest.raises(ImportError, match=rf"{peer} is a peer of this benchmark.*peers\.txt"):
        main(["--quick", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_it_runs_and_goes_on_where_it_was_stopped(tmp_path, capsys):
    for peer in PACKAGES:
        pytest.importorskip(peer)
    arguments = ["--quick", "--only", "torchcfm", "ours", "--out", str(tmp_path / "kept")]
    main([*arguments, "--json", str(tmp_path / "found.json")])
    told = capsys.readouterr().out
    assert "ours over best" in told
    assert "aim 1.03" in told
    first = json.loads((tmp_path / "found.json").read_text())
    (tmp_path / "kept" / "ours-0.json").unlink()  # stopped after a training
    main([*arguments, "--json", str(tmp_path / "found.json")])
    again = json.loads((tmp_path / "found.json").read_text())
    assert "steps, " not in capsys.readouterr().out
    assert again["found"]["torchcfm"] == first["found"]["torchcfm"]
    assert again["found"]["ours"]["0"]["calls"]["8"] == pytest.approx(first["found"]["ours"]["0"]["calls"]["8"])
