"""The package as a whole: what its import costs and leaves behind, and rules that hold in every file."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import flowmatch

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "flowmatch"
FILES = sorted(SOURCE.rglob("*.py"))

HEAVY = {"accelerate", "gradio", "jinja2", "matplotlib", "numba", "ot", "pandas", "PIL", "pyarrow", "pydantic", "rich"}
HEAVY |= {"safetensors", "scipy", "sklearn", "tensorboard", "typer", "yaml"}


def _python(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_needs_torch_and_numpy_only():
    code = f"""
import torch, numpy, sys
before = set(sys.modules)
import flowmatch
new = {{name.partition('.')[0] for name in set(sys.modules) - before}}
print(*sorted((new - {{'flowmatch'}}) & {HEAVY!r}))
"""
    assert _python(code).split() == []


def test_import_has_no_side_effect():
    code = """
import os, random, threading, warnings
import numpy, torch
def state():
    return [torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().tolist(),
            torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.get_default_device(),
            random.getstate(), str(numpy.random.get_state()), dict(os.environ), len(threading.enumerate()),
            list(warnings.filters), torch.get_float32_matmul_precision()]
before = state()
import flowmatch
assert state() == before
"""
    assert _python(code) == ""


def test_import_adds_at_most_a_third_of_a_second_to_torch():
    code = """
import time, torch, numpy
start = time.process_time()
import flowmatch
print(time.process_time() - start)
"""
    assert statistics.median(float(_python(code)) for _ in range(3)) <= 0.3


def test_every_public_name_exists_once_and_is_documented():
    assert len(set(flowmatch.__all__)) == len(flowmatch.__all__)
    for name in flowmatch.__all__:
        assert getattr(flowmatch, name, None) is not None, name
        if callable(getattr(flowmatch, name)):
            assert getattr(flowmatch, name).__doc__, f"{name} has no docstring"


def test_the_version_is_the_one_of_pyproject():
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert flowmatch.__version__ == declared
    assert re.search(rf'^version: "?{re.escape(declared)}"?$', (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


# --- rules for every file, read from its syntax tree ---

DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "poisson"}
DRAWS_IN_PLACE = {"normal_", "uniform_", "bernoulli_", "exponential_", "random_", "cauchy_", "geometric_"}
NO_GENERATOR = {"rand_like", "randn_like", "randint_like", "manual_seed", "seed"}


def _calls(tree: ast.AST) -> list[tuple[ast.Call, str, str]]:
    """Every call with the name called and the name of what it is called on: ``torch.randn(2)`` gives randn, torch."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found.append((node, node.func.attr, ast.unparse(node.func.value)))
    return found


def _global_draws(source: str) -> list[str]:
    """Calls that draw from the global generator of torch, numpy or Python, unless it is forked around them."""
    tree, found = ast.parse(source), []
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    forks = [node for node in scopes if any("fork_rng" in ast.unparse(item) for item in node.items)]
    forked = {call for node in forks for call, _, _ in _calls(node)}
    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    for call, name, owner in _calls(tree):
        if call in forked:
            continue
        keywords = {keyword.arg for keyword in call.keywords}
        without = "generator" not in keywords and None not in keywords
        if (
            (owner == "torch" and (name in NO_GENERATOR or (name in DRAWS and without)))
            or (name in DRAWS_IN_PLACE and without)
            or (owner == "random" and "random" in modules and name != "Random")
            or (owner in {"np.random", "numpy.random"} and name not in {"default_rng", "Generator", "SeedSequence"})
        ):
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


def _unpickles(source: str) -> list[str]:
    """Imports and calls that would run code from a file."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if {"pickle", "cloudpickle", "dill", "joblib", "shelve"} & {name.partition(".")[0] for name in names}:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    for call, name, owner in _calls(tree):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (
            (owner == "torch" and name == "load" and keywords.get("weights_only") != "True")
            or keywords.get("allow_pickle", "False") != "False"
            or (owner == "yaml" and name in {"load", "unsafe_load", "full_load"})
        ):
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


@pytest.mark.parametrize("rule", [_global_draws, _unpickles])
def test_no_file_breaks_the_rule(rule):
    broken = {str(file.relative_to(SOURCE)): rule(file.read_text(encoding="utf-8")) for file in FILES}
    assert {file: lines for file, lines in broken.items() if lines} == {}


def test_the_rule_for_draws_finds_what_it_forbids():
    bad = "import random\ntorch.randn(2)\nx.normal_()\nnp.random.rand()\nrandom.random()\n"
    bad += "torch.randn_like(x)\ntorch.manual_seed(0)"
    good = "with torch.random.fork_rng():\n    torch.manual_seed(0)\nrandom = check(seed)\nrandom.permutation(3)\n"
    good += "torch.randn(2, generator=g)\nx.normal_(generator=g)\nnp.random.default_rng(0)\ntorch.zeros(2)\nrandn(2, g)"
    assert len(_global_draws(bad)) == 6
    assert _global_draws(good) == []


def test_the_rule_for_pickle_finds_what_it_forbids():
    bad = "import pickle\nfrom joblib import load\ntorch.load(f)\nnp.load(f, allow_pickle=True)\nyaml.load(f)"
    good = "import json\ntorch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\nyaml.safe_load(f)"
    assert len(_unpickles(bad)) == 5
    assert _unpickles(good) == []
