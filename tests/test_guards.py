"""The guards of conftest.py catch what they are there for: each leak is made, and must be reported."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.conftest import fixed_seed, nothing_leaks


def _leak_thread(stop: threading.Event) -> None:
    threading.Thread(target=stop.wait, name="left-over").start()


def _leak_figure(_: threading.Event) -> None:
    pytest.importorskip("matplotlib.pyplot").figure()


LEAKS: dict[str, Callable[[threading.Event], object]] = {
    "default dtype torch.float64": lambda _: torch.set_default_dtype(torch.float64),
    "gradient mode False": lambda _: torch.set_grad_enabled(False),
    "environment variable FLOWMATCH_LEAK": lambda _: os.environ.update(FLOWMATCH_LEAK="1"),
    "thread left-over": _leak_thread,
    "an open figure": _leak_figure,
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_reported_and_undone(name):
    stop = threading.Event()
    try:
        with pytest.raises(pytest.fail.Exception, match=name), nothing_leaks():
            LEAKS[name](stop)
    finally:
        stop.set()
        for thread in threading.enumerate():
            if thread.name == "left-over":
                thread.join()
    with nothing_leaks():
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert "FLOWMATCH_LEAK" not in os.environ


def _draw():
    return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def test_every_test_starts_at_the_same_seed_and_gives_the_old_state_back():
    first = _draw()
    before = torch.get_rng_state()
    with fixed_seed():
        assert _draw() == first
    assert torch.equal(torch.get_rng_state(), before)
