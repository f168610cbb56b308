"""Two processes killed in the middle of a save: two go on bit for bit, and one goes on alone."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from flowmatch.train import draws
from tests.train.runs import launch, lines
from tests.train.test_ranks import HALF, SMALL, STEPS, assert_equal, assert_same, run_of

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from flowmatch.train import draws
from tests.train.test_ranks import HALF, SMALL, run_of

torch.set_num_threads(1)
draws._NUMBERS = SMALL
out, real, seen = Path(sys.argv[1]), os.fsync, [0]

def kill(handle):
    seen[0] += (out / "checkpoints" / f".unfinished_step_{HALF + 9:08d}").exists()
    if seen[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)

os.fsync = kill
run_of(out).fit()
"""

RESUMED = """
import sys
from pathlib import Path
import torch
from flowmatch.train import draws
from tests.train.test_ranks import SMALL, run_of

torch.set_num_threads(1)
draws._NUMBERS = SMALL
out = Path(sys.argv[1])
run_of(out / "copies").fit()
run_of(out / "killed").fit(resume=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal of POSIX")
def test_a_kill_in_the_middle_of_a_save_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "_NUMBERS", SMALL)
    for name, content in (("killed.py", KILLED), ("resumed.py", RESUMED)):
        (tmp_path / name).write_text(content)
    done = launch(str(tmp_path / "killed.py"), tmp_path / "killed")
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or str(-signal.SIGKILL) in done.stderr
    left = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert left == [f".unfinished_step_{STEPS:08d}", f"step_{HALF:08d}"]
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    done = launch(str(tmp_path / "resumed.py"), tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_equal(tmp_path / "killed", tmp_path / "copies", STEPS)
    assert lines(tmp_path / "killed") == lines(tmp_path / "copies")
    run_of(tmp_path / "alone").fit(resume=True)
    assert_same(tmp_path / "alone", tmp_path / "copies")
