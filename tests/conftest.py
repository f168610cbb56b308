"""What holds for every test: a fixed seed of its own, and nothing left behind for the next one."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

settings.register_profile("fixed", deadline=None, derandomize=True)  # the same examples on every machine
settings.load_profile("fixed")

SET_BY_LIBRARIES = ("ACCELERATE_", "FORK_LAUNCHED", "KMP_", "PYTEST_", "PYDEVD_", "TORCHELASTIC_", "TORCHINDUCTOR_")


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """One thread everywhere: sums come out alike on every machine, and small tensors do not wait for a second core."""
    torch.set_num_threads(1)


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Every test starts at the same seeds, whatever ran before, and leaves the generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the point is the global generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves a default type, a gradient mode, an environment variable, a thread or a figure behind."""
    dtype, grad, env = torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ)
    alive = set(threading.enumerate())
    yield
    leaks = []
    if torch.get_default_dtype() != dtype:
        leaks.append(f"default dtype {torch.get_default_dtype()}")
        torch.set_default_dtype(dtype)
    if torch.is_grad_enabled() != grad:
        leaks.append(f"gradient mode {torch.is_grad_enabled()}")
        torch.set_grad_enabled(grad)
    changed = {name for name in env.keys() | os.environ.keys() if env.get(name) != os.environ.get(name)}
    leaks += [f"environment variable {name}" for name in sorted(changed) if not name.startswith(SET_BY_LIBRARIES)]
    for name in changed:
        os.environ.pop(name, None)
        if name in env:
            os.environ[name] = env[name]
    leaks += [f"thread {thread.name}" for thread in set(threading.enumerate()) - alive if not thread.daemon]
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot and pyplot.get_fignums():
        leaks.append("an open figure; close it, or draw on a Figure of your own")
        pyplot.close("all")
    if leaks:
        pytest.fail("the test left behind: " + ", ".join(leaks))


@pytest.fixture(autouse=True)
def guards() -> Iterator[None]:
    """Both guards around every test."""
    with nothing_leaks(), fixed_seed():
        yield
