"""Paths under torch.func and torch.compile: one sample at a time, and in one graph."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from tests.problems import PATHS, pair

EACH = pytest.mark.parametrize("name", PATHS)


@EACH
@pytest.mark.parametrize("what", ["position", "velocity"])
def test_a_path_is_mapped_over_samples(name, what):
    call, (x0, x1) = getattr(PATHS[name].path, what), pair(5, 2, 3)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    each = torch.func.vmap(lambda t, x0, x1: call(t, x0[None], x1[None])[0])(t, x0, x1)
    torch.testing.assert_close(each, call(t, x0, x1), rtol=1e-12, atol=1e-12)


@EACH
def test_a_path_is_differentiated_in_its_ends(name):
    path, (x0, x1) = PATHS[name].path, pair(4, 2)
    tangents = pair(4, 2, seed=7)
    _, slope = torch.func.jvp(lambda a, b: path.velocity(0.4, a, b), (x0, x1), tangents)
    h = 1e-6
    moved = [path.velocity(0.4, x0 + s * h * tangents[0], x1 + s * h * tangents[1]) for s in (1, -1)]
    torch.testing.assert_close(slope, (moved[0] - moved[1]) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["linear", "vp", "gaussian-own-std", "function-bulge"])
def test_a_path_compiles_to_one_graph(name):
    path, (x0, x1) = PATHS[name].path, pair(5, 2)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    compiled = torch.compile(lambda t, x0, x1: path.sample(t, x0, x1)[:3], backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(t, x0, x1), path.sample(t, x0, x1)[:3], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_conversion_compiles_to_one_graph_and_is_mapped():
    path, (value, x) = fm.AffinePath(fm.Cosine()), pair(5, 2)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    expected = path.convert(value, t, x, "noise", "score")
    compiled = torch.compile(lambda *a: path.convert(*a, "noise", "score"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(value, t, x), expected)
    each = torch.func.vmap(lambda v, t, x: path.convert(v[None], t, x[None], "noise", "score")[0])(value, t, x)
    torch.testing.assert_close(each, expected)
