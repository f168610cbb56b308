"""What can be seen of a run: samples that change nothing, pictures, loggers, waiting, memory."""

from __future__ import annotations

import importlib
import io
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.train import Callback, TensorBoard, TensorData
from tests.train.runs import lines, noisy, points, saved, trainer


class Look(Callback):
    """Draws samples, and is as careless with the generators as a user may be."""

    def __init__(self, picture: Tensor | None = None) -> None:
        self.seen: list[tuple[int, bool, bool]] = []
        self.weights: list[Tensor] = []
        self.picture = picture

    def on_sample(self, step: int, model: nn.Module) -> dict[str, Tensor] | None:
        torch.manual_seed(step)
        model(torch.rand(8), torch.randn(8, 2))
        self.seen.append((step, model.training, torch.is_grad_enabled()))
        self.weights.append(next(model.parameters()).detach().clone())
        return None if self.picture is None else {"samples": self.picture}


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_training_is_the_same_bit_for_bit_whether_one_looks_or_not(tmp_path: Path, ema: float) -> None:
    held = TensorData(points(20))
    options = {"ema": ema, "holdout": held, "evaluate_every": 6, "checkpoint_every": 7}
    trainer(noisy(), tmp_path / "blind", **options).fit()
    look = Look()
    run = trainer(noisy(), tmp_path / "seen", sample_every=3, callbacks=[look], **options)
    run.fit()
    one, other = saved(tmp_path / "blind", 20), saved(tmp_path / "seen", 20)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert lines(tmp_path / "blind") == lines(tmp_path / "seen")
    assert look.seen == [(step, False, False) for step in (3, 6, 9, 12, 15, 18, 20)]
    # The averaged model is shown, which at the end is the result.
    assert torch.equal(look.weights[-1], next(run._averaged().parameters()))
    assert (ema == 0) == torch.equal(look.weights[-1], next(run.module.parameters()))


def test_nobody_looks_unless_asked() -> None:
    look = Look()
    trainer(callbacks=[look]).fit()
    assert look.seen == []


def test_pictures_go_to_tensorboard(tmp_path: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = torch.linspace(-0.5, 1.5, 12).view(1, 3, 4)
    trainer(out=tmp_path, tensorboard=True, sample_every=8, callbacks=[Look(picture)]).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    images = events.Images("samples")
    assert [image.step for image in images] == [8, 16, 20]
    shown = np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string)).convert("L"))
    expected = (picture[0].clamp(0, 1) * 255).round().numpy()
    assert np.abs(shown.astype(float) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4), (1, 1, 4, 4)])
def test_what_is_no_picture_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    board = TensorBoard(tmp_path)
    with pytest.raises(InputError, match=r"must have shape \(1, H, W\) or \(3, H, W\), got"):
        board.image("samples", torch.zeros(shape), 1)
    board.close()


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The package as far as it is used."""
    module = types.ModuleType("wandb")
    module.started, module.runs = [], []

    def init(**options: Any) -> FakeRun:
        module.started.append(options)
        module.runs.append(FakeRun())
        return module.runs[-1]

    module.init, module.Image = init, lambda array: array
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_metrics_and_pictures_go_to_wandb(tmp_path: Path, wandb: Any) -> None:
    picture = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    options = {"wandb": True, "sample_every": 10, "callbacks": [Look(picture)]}
    trainer(out=tmp_path / "wine", **options).fit()
    trainer(out=tmp_path / "wine", steps=30, **options).fit(resume=True)
    shutil.rmtree(tmp_path / "wine" / "checkpoints")
    trainer(out=tmp_path / "wine", steps=5, wandb=True).fit()
    first, second, fresh = wandb.started
    assert fresh["id"] != first["id"]  # what was logged under the old number would hide its steps
    assert first["name"] == "wine"
    assert first["config"]["steps"] == 20
    assert (first["resume"], first["id"]) == ("allow", second["id"])
    assert [step for step, row in wandb.runs[0].logged if "loss" in row] == [5, 10, 15, 20]
    images = [(step, row["samples"]) for step, row in wandb.runs[0].logged if "samples" in row]
    assert [step for step, _ in images] == [10, 20]
    assert np.array_equal(images[0][1], picture.movedim(0, -1).numpy())
    steps = [step for step, _ in wandb.runs[0].logged]
    assert steps == sorted(steps)  # what comes late is dropped there
    assert [run.finished for run in wandb.runs] == [1, 1, 1]


def test_wandb_that_is_missing_is_named_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import of it then raises ImportError for
    with pytest.raises(ImportError):
        importlib.import_module("wandb")
    with pytest.raises(ImportError, match="wandb is not installed; run: pip install wandb, or set wandb=False"):
        trainer(out=tmp_path, wandb=True)


def test_wandb_needs_a_folder(wandb: Any) -> None:
    with pytest.raises(InputError, match="wandb=True needs the folder of the run; give the Trainer out="):
        trainer(wandb=True)


def test_waiting_is_the_share_of_time_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock of our own: it goes on by ten in a take and by one in a loss.
    clock = [0.0]
    monkeypatch.setattr("flowmatch.train.meter.time", types.SimpleNamespace(perf_counter=lambda: clock[0]))

    class Timed(TensorData):
        def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Any]:
            clock[0] += 10
            return super().take(index, generator)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            clock[0] += 30
            return self.inner(x)

    history = trainer(Net(), data=Timed(points())).fit().history
    assert [row["waiting"] for row in history] == [0.25] * 4
    assert [row["samples_per_second"] for row in history] == [12 / 40] * 4  # rounded to a tenth


def test_memory_of_a_gpu_is_what_pytorch_had_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowmatch.train import meter

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    assert meter._peak(torch.device("cuda")) == 3.0


@pytest.mark.parametrize(("platform", "mib"), [("linux", 2048.0), ("darwin", 2.0)])
def test_memory_of_a_process_is_told_in_mib_everywhere(
    monkeypatch: pytest.MonkeyPatch, platform: str, mib: float
) -> None:
    resource = pytest.importorskip("resource")
    from flowmatch.train import meter

    # Kibibytes on Linux, bytes on a Mac.
    monkeypatch.setattr(resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=2**21))
    monkeypatch.setattr(sys, "platform", platform)
    assert meter._peak(torch.device("cpu")) == mib
