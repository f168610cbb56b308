from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.train import Checkpoints
from flowmatch.train.checkpoint import check_fit


def groups(value: float = 1.0) -> dict[str, dict[str, Tensor]]:
    shared = torch.full((3, 2), value)
    return {"model": {"a.weight": shared, "b.tied": shared, "view": shared.T}, "rng": {"cpu": torch.arange(5).byte()}}


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, groups(step), {"seconds": 0.1 + step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_exactly(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "folder")
    values = {
        str(dtype): torch.tensor([0.1, -3.0, 1e-3]).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool)
    }
    values |= {"scalar": torch.tensor(0.1), "empty": torch.zeros(0, 3), **groups()["model"]}
    state = {"list": [0.1, 1 / 3, 5e-324], "text": "né", "tuple": (1, 2), "none": None, "keys": {3: 1}}
    path = checkpoints.save(12, {"model": values}, state)
    found = checkpoints.load()
    assert (found.path, found.step, path.name) == (path, 12, "step_00000012")
    assert found.state == json.loads(json.dumps(state))
    assert found.tensors["model"].keys() == values.keys()
    for name, value in values.items():
        assert found.tensors["model"][name].dtype == value.dtype
        assert torch.equal(found.tensors["model"][name], value)


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 5, 10, 100, 123_456_789)
    assert names(tmp_path) == ["step_00000100", "step_123456789"]
    assert checkpoints.load().step == 123_456_789


def test_rotation_after_going_back_counts_good_ones_only(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 10)
    for step in (20, 30):
        (tmp_path / f"step_000000{step}").mkdir()  # damaged: nothing in them
    save(checkpoints, 15)
    assert names(tmp_path) == ["step_00000015", "step_00000020", "step_00000030"]
    save(checkpoints, 20)  # replaces the damaged one of its name
    with pytest.warns(UserWarning, match="step_00000030"):
        assert checkpoints.load().step == 20


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("20.1", "20.2"))


DAMAGES = {
    "truncated": ("model.safetensors", truncate, "model.safetensors has changed"),
    "one bit": ("rng.safetensors", flip, "rng.safetensors has changed"),
    "missing file": ("rng.safetensors", Path.unlink, "rng.safetensors is missing"),
    "missing state": ("state.json", Path.unlink, "state.json is missing"),
    "half a state": ("state.json", truncate, "state.json cannot be read"),
    "binary state": ("state.json", lambda path: path.write_bytes(b"\xff\xfe"), "state.json cannot be read"),
    "edited scalar": ("state.json", edit, "state.json has changed"),
    "a folder for a file": ("model.safetensors", lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_named_and_the_last_good_one_used(tmp_path: Path, damage: str) -> None:
    name, spoil, said = DAMAGES[damage]
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10, 20)
    spoil(tmp_path / "step_00000020" / name)
    with pytest.warns(UserWarning, match=rf"step_00000020 \(.*{said}.*using step_00000010"):
        found = checkpoints.load()
    assert found.step == 10
    assert torch.equal(found.tensors["model"]["view"], torch.full((2, 3), 10.0))


def test_no_good_checkpoint_is_an_error_that_names_all(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10, 20)
    truncate(tmp_path / "step_00000010" / "model.safetensors")
    shutil.rmtree(tmp_path / "step_00000020")
    (tmp_path / "step_00000020").mkdir()
    with pytest.raises(InputError, match="every checkpoint .*step_00000020.*step_00000010.*another folder"):
        checkpoints.load()


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, lambda path: (path.mkdir(), (path / "x").touch())])
def test_no_checkpoint_at_all_is_an_error(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint in .*nothing to resume"):
        Checkpoints(tmp_path / "checkpoints").load()


def test_foreign_and_newer_checkpoints_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10, 20)
    state = tmp_path / "step_00000020" / "state.json"
    body = json.loads(state.read_text())
    state.write_text(json.dumps({**body, "version": 99}))
    with pytest.raises(InputError, match="version 99 .*reads version 1; install"):
        checkpoints.load()
    state.write_text('{"global_step": 20}')
    with pytest.raises(InputError, match="step_00000020 was not written by flowmatch"):
        checkpoints.load()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"w": torch.ones(3)}, r"w is \(3,\) torch.float32 there and \(2,\) torch.float32 here"),
        ({"w": torch.ones(2).double()}, "torch.float64 there"),
        ({}, "w is missing there"),
        ({"w": torch.ones(2), "v": torch.ones(1)}, "v is missing here"),
        ({str(i): torch.ones(1) for i in range(5)}, "and 3 more"),
    ],
)
def test_tensors_that_do_not_fit_are_named(found: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InputError, match=f"belongs to another model: .*{said}"):
        check_fit(found, {"w": torch.ones(2)}, "model", Path("step_00000001"))


class Failing:
    """Stands for ``os.fsync``, which every file and folder of a save passes, and fails at one of its calls."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.left, self.error, self.real = at, error, os.fsync

    def __call__(self, handle: int) -> None:
        if self.left == 0:
            raise self.error
        self.left -= 1
        self.real(handle)


SYNCS = 5  # two files of tensors, the state, the temporary folder, the folder of checkpoints


@pytest.mark.parametrize("at", range(SYNCS))
def test_full_disc_at_any_point_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 10)
    failing = Failing(at, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        said = "could not save the checkpoint of step 20 in .*No space left.*is untouched. Make room"
        with pytest.raises(InputError, match=said):
            save(checkpoints, 20)
    assert failing.left == 0
    # The last of the points comes after the rename: the new checkpoint is whole then, the old one not yet removed.
    assert names(tmp_path) == ["step_00000010", "step_00000020"][: 1 + (at == SYNCS - 1)]
    assert checkpoints.load().step == (20 if at == SYNCS - 1 else 10)
    save(checkpoints, 30)
    assert names(tmp_path) == ["step_00000030"]


@pytest.mark.parametrize("at", range(SYNCS))
def test_stop_at_any_point_leaves_what_the_next_start_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Failing(at, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 20)
    whole = at == SYNCS - 1
    assert any(name.startswith(".") for name in names(tmp_path)) != whole
    assert checkpoints.load().step == (20 if whole else 10)
    checkpoints.clean()
    assert names(tmp_path) == ["step_00000010", "step_00000020"][: 1 + whole]


def test_nothing_is_read_by_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoints.load().step == 10
    assert {path.suffix for path in (tmp_path / "step_00000010").iterdir()} == {".safetensors", ".json"}


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(InputError, match="could not save the checkpoint of step 1 in .*exists"):
        save(Checkpoints(tmp_path / "checkpoints"), 1)
