from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.errors import InputError
from flowmatch.train import TensorData, Trainer, TrainResult
from tests.train.runs import Stop, lines, noisy, objective, points, trainer, weights

# Nothing divides anything: a checkpoint falls between two lines, and a batch between two epochs.
OPTIONS = {"steps": 40, "log_every": 6, "checkpoint_every": 7, "evaluate_every": 9, "batch_size": 12, "ema": 0.9}


def noisy_trainer(out: Path, **options: Any) -> Trainer:
    return trainer(noisy(), out, holdout=TensorData(points(30)), **{**OPTIONS, **options})


def state(out: Path, step: int = 40) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    files = sorted((out / "checkpoints" / f"step_{step:08d}").glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def interrupted(out: Path, at: int, **options: Any) -> None:
    with pytest.raises(Stop.Crash):
        noisy_trainer(out, callbacks=[Stop(at)], **options).fit()


def assert_equal_runs(one: Path, other: Path) -> None:
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    assert {name.split("/")[0] for name in a} == {"model", "ema", "optimizer", "rng"}
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert lines(one) == lines(other)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run that nothing interrupts."""
    noisy_trainer(tmp_path / "whole").fit()
    return tmp_path / "whole"


@pytest.mark.parametrize("at", [9, 18, 36])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, whole: Path, at: int) -> None:
    out = tmp_path / "stopped"
    interrupted(out, at)
    assert lines(out)[-1]["step"] == at > max(int(path.name[5:]) for path in (out / "checkpoints").iterdir())
    torch.manual_seed(999)  # a new process: dropout would take another stream
    result = noisy_trainer(out).fit(resume=True)
    assert_equal_runs(whole, out)
    assert [row["step"] for row in result.history] == [row["step"] for row in lines(whole)]


def test_resume_many_times_with_parts(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    noisy_trainer(one, accumulate=3).fit()
    interrupted(other, 9, accumulate=3)
    for at in (20, 31):
        with pytest.raises(Stop.Crash):
            noisy_trainer(other, accumulate=3, callbacks=[Stop(at)]).fit(resume=True)
    noisy_trainer(other, accumulate=3).fit(resume=True)
    assert_equal_runs(one, other)


def test_damaged_newest_checkpoint_falls_back_to_the_last_good_one(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "stopped"
    interrupted(out, 30)
    newest = out / "checkpoints" / "step_00000028"
    (newest / "optimizer.safetensors").write_bytes(b"gone")
    with pytest.warns(UserWarning, match=r"step_00000028 \(optimizer.safetensors has changed\).*using step_00000021"):
        noisy_trainer(out).fit(resume=True)
    assert_equal_runs(whole, out)


def test_a_line_cut_short_is_dropped(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "stopped"
    interrupted(out, 18)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    noisy_trainer(out).fit(resume=True)
    assert_equal_runs(whole, out)


def test_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    noisy_trainer(tmp_path).fit()
    again = noisy_trainer(tmp_path).fit(resume=True)
    assert again.step == 40
    longer = noisy_trainer(tmp_path, steps=50, learning_rate=1e-4).fit(resume=True)
    assert longer.step == 50
    steps = [row["step"] for row in lines(tmp_path)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 50


def test_averaging_may_start_later(tmp_path: Path) -> None:
    noisy_trainer(tmp_path, steps=10, ema=0.0).fit()
    assert "ema/inlet.weight" not in state(tmp_path, 10)
    result = noisy_trainer(tmp_path, steps=20).fit(resume=True)
    assert not torch.equal(weights(result.model), torch.zeros_like(weights(result.model)))
    assert "ema/inlet.weight" in state(tmp_path, 20)


def test_seconds_go_on_counting(tmp_path: Path) -> None:
    first = noisy_trainer(tmp_path, steps=20).fit()
    second = noisy_trainer(tmp_path).fit(resume=True)
    seconds = [row["seconds"] for row in second.history]
    assert seconds == sorted(seconds)
    assert second.seconds > first.seconds


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    noisy_trainer(tmp_path, steps=10).fit()
    with pytest.raises(InputError, match="already holds a run; resume it, or give another folder"):
        noisy_trainer(tmp_path).fit()
    assert lines(tmp_path)[-1]["step"] == 10


def test_a_run_that_never_saved_starts_again(tmp_path: Path) -> None:
    interrupted(tmp_path, 6)
    with pytest.raises(InputError, match="no checkpoint in .*nothing to resume; start the run without it"):
        noisy_trainer(tmp_path).fit(resume=True)
    noisy_trainer(tmp_path).fit()
    assert [row["step"] for row in lines(tmp_path)] == [6, 9, 12, 18, 24, 27, 30, 36, 40]


@pytest.mark.parametrize("resume", [False, True])
def test_start_removes_what_a_killed_save_left(tmp_path: Path, resume: bool) -> None:
    if resume:
        noisy_trainer(tmp_path, steps=5).fit()
    left = tmp_path / "checkpoints" / ".unfinished_step_00000999"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    noisy_trainer(tmp_path, steps=10).fit(resume=resume)
    assert not left.exists()


def test_resume_needs_a_folder() -> None:
    with pytest.raises(InputError, match="give the Trainer out="):
        trainer().fit(resume=True)


class Wider(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(2, 2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.inlet(x)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: fm.nn.MLP(dim=2, hidden=8, depth=1), r"\(16, .* there and \(8, .* here"),
        (lambda: fm.nn.MLP(dim=2, hidden=16, depth=2), "is missing there"),
        (Wider, "inlet.weight is .* there and"),
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path: Path, model: Callable[[], nn.Module], said: str) -> None:
    trainer(out=tmp_path).fit()
    other = trainer(model(), tmp_path)
    before = weights(other.module)
    with pytest.raises(InputError, match=f"belongs to another model: .*{said}.*resume with the options"):
        other.fit(resume=True)
    assert torch.equal(weights(other.module), before)


def test_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_00000010").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000010" / "state.json").write_text('{"epoch": 3}')
    with pytest.raises(InputError, match="not written by flowmatch"):
        trainer(out=tmp_path).fit(resume=True)


def test_full_disc_stops_the_run_and_the_run_goes_on_later(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "stopped", os.fsync

    def full(handle: int) -> None:
        if (out / "checkpoints" / "step_00000014").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    # The folder of step 14 is forced to disc after its rename: that sync is the first to fail.
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="checkpoint of step 14 in .*No space left on device.*Make room"):
            noisy_trainer(out).fit()
    noisy_trainer(out).fit(resume=True)
    assert_equal_runs(whole, out)


def test_full_disc_at_a_line_of_metrics_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = noisy_trainer(tmp_path), Path.open

    def full(path: Path, mode: str = "r", **named: Any) -> Any:
        if mode == "a":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, mode, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"could not write .*metrics.jsonl: No space left on device; make room"):
        run.fit()


class Breaking(nn.Module):
    """A linear field whose output overflows from one call on."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.inner, self.left = nn.Linear(2, 2), call

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.left -= 1
        return self.inner(x) * (float("inf") if self.left < 0 else 1.0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path, accumulate: int) -> None:
    run = trainer(Breaking(16 * accumulate), tmp_path, checkpoint_every=6, log_every=10, accumulate=accumulate)
    said = r"the loss became (inf|nan) at step 17; lower learning_rate \(now 0.01\).*step_00000012, is good"
    with pytest.raises(InputError, match=said):
        run.fit()
    assert all(value.isfinite().all() for value in state(tmp_path, 12).values() if value.is_floating_point())
    assert trainer(Breaking(1000), tmp_path, learning_rate=1e-4).fit(resume=True).step == 20


def test_weights_that_broke_after_a_good_loss_are_not_saved(tmp_path: Path) -> None:
    class Spiked(nn.Module):
        """Finite output, infinite gradient, at the eighth call."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Linear(2, 2), 0

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            self.calls += 1
            y = self.inner(x)
            return y + (y - y.detach()).abs().sqrt() if self.calls == 8 else y

    run = trainer(Spiked(), tmp_path, checkpoint_every=4, log_every=20)
    with pytest.raises(InputError, match="the norm of the gradient became nan at step 8;.*step_00000004, is good"):
        run.fit()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.train.test_resume import noisy_trainer

out, calls, real = Path(sys.argv[1]), [0], os.fsync

def kill(handle):
    calls[0] += (out / "checkpoints" / ".unfinished_step_00000014").exists()
    if calls[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)

os.fsync = kill
torch.set_num_threads(1)
noisy_trainer(out).fit()
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal of POSIX")
def test_kill_in_the_middle_of_a_save(tmp_path: Path, whole: Path) -> None:
    out, root = tmp_path / "killed", Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(Path(fm.__file__).parents[1])])
    command = [sys.executable, "-c", KILLED, str(out)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert left == [".unfinished_step_00000014", "step_00000007"]
    noisy_trainer(out).fit(resume=True)
    assert not any(path.name.startswith(".") for path in (out / "checkpoints").iterdir())
    assert_equal_runs(whole, out)


def test_checkpoint_says_what_wrote_it(tmp_path: Path) -> None:
    result: TrainResult = trainer(out=tmp_path, steps=3).fit()
    body = json.loads((tmp_path / "checkpoints" / "step_00000003" / "state.json").read_text())
    assert (body["format"], body["version"], body["step"]) == ("flowmatch.checkpoint", 1, 3)
    assert body["torch"] == torch.__version__
    assert body["sha256"].keys() == {f"{name}.safetensors" for name in ("model", "ema", "optimizer", "rng")}
    assert body["state"]["config"]["steps"] == result.step == 3


def test_objective_may_change_but_its_weights_may_not(tmp_path: Path) -> None:
    trainer(out=tmp_path, steps=5).fit()
    result = trainer(out=tmp_path, steps=8, goal=objective(times=fm.Stratified())).fit(resume=True)
    assert result.step == 8
