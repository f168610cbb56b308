"""The gate stops at the first failure, says which, and never passes for want of a tool or a file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OK, BAD = ["python", "-c", "print('fine')"], ["python", "-c", "raise SystemExit(3)"]


@pytest.fixture
def gate():
    spec = importlib.util.spec_from_file_location("flowmatch_gate_script", ROOT / "scripts" / "gate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plan(gate, monkeypatch, **stages):
    monkeypatch.setattr(gate, "commands", lambda scratch: stages)


def test_all_stages_pass(gate, monkeypatch, capfd):
    _plan(gate, monkeypatch, first=[OK, OK], second=[OK])
    assert gate.main([]) == 0
    out = capfd.readouterr().out
    assert out.count("fine\n") == 3
    assert "gate: passed in" in out.splitlines()[-1]


def test_the_first_failure_ends_it(gate, monkeypatch, capfd):
    _plan(gate, monkeypatch, first=[OK], second=[BAD, OK], third=[OK])
    assert gate.main([]) == 1
    out = capfd.readouterr().out
    assert out.count("fine\n") == 1
    assert "gate: second FAILED" in out
    assert "exit code 3 of: python" in out


def test_only_the_stages_named_run_and_an_unknown_one_is_refused(gate, monkeypatch, capfd):
    _plan(gate, monkeypatch, first=[BAD], second=[OK])
    assert gate.main(["second"]) == 0
    assert gate.main(["secnd"]) == 2
    assert "no stage secnd; choose from first, second" in capfd.readouterr().err


def test_a_missing_tool_is_a_failure(gate, monkeypatch, capfd):
    _plan(gate, monkeypatch, first=[["no-such-tool"]])
    assert gate.main([]) == 1
    assert "no-such-tool is not installed; run: python3 scripts/setup.py" in capfd.readouterr().out


@pytest.mark.parametrize("empty", [False, True])
def test_a_demo_that_writes_nothing_is_a_failure(gate, tmp_path, monkeypatch, empty):
    for name in gate.MADE[1:] + ([gate.MADE[0]] if empty else []):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == gate.MADE[0] else "x")
    assert gate.check("demo", [OK], tmp_path) == f"the demo did not write {gate.MADE[0]}"
    (tmp_path / gate.MADE[0]).write_text("x")
    assert gate.check("demo", [OK], tmp_path) == ""


def test_every_tool_of_the_gate_comes_with_the_extras():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in ("ruff", "mypy", "import-linter", "pytest", "mkdocs"):
        assert f'"{package}>=' in pyproject
