"""Set-up decides rightly on every machine, mends what is half-made, and says what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "setup.py"


def _load():
    spec = importlib.util.spec_from_file_location("flowmatch_setup_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = _load()
Found = script.Found

CUDA = ["filelock", 'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"', "cuda-toolkit[cublas]==13.0.3"]
CPU = ["filelock", "sympy>=1.13.3", 'opt-einsum>=3.3; extra == "opt-einsum"']


def _never():
    raise AssertionError("the GPU was looked for where it does not matter")


# --- decisions ---


@pytest.mark.parametrize(
    ("own", "system", "gpu", "way"),
    [
        ("2.9.1+cu128", "Linux", _never, "keep"),
        ("2.9.0a0+git1234", "Linux", _never, "keep"),
        ("2.4", "Darwin", _never, "keep"),
        (None, "Darwin", _never, "pip"),
        (None, "Windows", _never, "pip"),
        (None, "Linux", lambda: "NVIDIA", "pip"),
        (None, "Linux", lambda: "AMD", "pip"),
        (None, "Linux", lambda: None, "cpu"),
        ("2.3.1", "Linux", lambda: None, "cpu"),
        ("1.13.1+cu117", "Linux", lambda: "NVIDIA", "pip"),
    ],
)
def test_where_torch_comes_from(own, system, gpu, way):
    found = Found(own, Path("/somewhere")) if own else None
    plan = script.plan_torch(found, "2.4", system, gpu)
    assert plan.way == way
    assert own is None or own in plan.why


@pytest.mark.parametrize(("needs", "is_cuda"), [(CUDA, True), (CPU, False), ([], False)])
def test_a_cuda_build_is_known_by_what_it_requires(needs, is_cuda):
    assert script.is_cuda_build({"install": [{"metadata": {"requires_dist": needs}}]}) is is_cuda
    assert not script.is_cuda_build({"install": [{"metadata": {"name": "torch"}}]})


def test_versions_compare_by_number():
    assert script.release("2.10.0+cpu") > script.release("2.9.1") > script.release("2.4")
    assert script.release("2.13.0a0+abc") == (2, 13, 0)


def test_the_project_files_say_what_the_script_reads_from_them():
    minimum, extras = script.project_facts((ROOT / "pyproject.toml").read_text())
    assert minimum == "2.4"
    assert {"train", "cli", "docs", "dev", "all"} <= set(extras)
    constraints = (ROOT / "constraints.txt").read_text()
    assert script.torch_pin(constraints).startswith("torch==2.")
    own = script.pin_own(constraints, "2.9.1+cu128")
    assert "torch==2.9.1+cu128\n" in own
    assert own.count("\n") == constraints.count("\n")


def test_an_unknown_extra_and_a_damaged_file_are_named():
    assert script.check_extras(" docs,dev,,docs", ["dev", "docs"]) == ["dev", "docs"]
    with pytest.raises(script.SetupError, match="no extra is called doc; choose from dev, docs"):
        script.check_extras("doc,dev", ["dev", "docs"])
    with pytest.raises(script.SetupError, match="constraints.txt has no line torch==VERSION"):
        script.torch_pin("numpy==2.0\n")
    with pytest.raises(script.SetupError, match=r"pyproject.toml lacks torch>=VERSION"):
        script.project_facts("[project]\n")


# --- the work, on a machine made of paper: `run` writes down what it is asked and answers from a script ---


class Machine:
    """Answers commands as pip, uv and Python would; ``fails`` names the word that makes a command fail."""

    pin = script.torch_pin((ROOT / "constraints.txt").read_text()).split("==")[1]

    def __init__(self, tmp_path, own=None, gpu=None, system="Linux", needs=CPU, fails=None, pip="26.0"):
        self.root, self.venv = tmp_path / "project", tmp_path / "project" / ".venv"
        self.root.mkdir(exist_ok=True)
        for name in ("pyproject.toml", "constraints.txt"):
            (self.root / name).write_text((ROOT / name).read_text())
        self.own, self.gpu, self.system, self.needs, self.fails, self.pip = own, gpu, system, needs, fails, pip
        self.seen: list[str] = []

    @property
    def site(self) -> Path:
        return self.venv / "lib" / "python3.x" / "site-packages"

    def find_torch(self, path=None):
        if path is None:
            return self.own
        inside = self.site / "torch-version"
        return Found(inside.read_text(), self.site) if str(self.site) in path and inside.exists() else None

    def run(self, command):
        line = " ".join(map(str, command)).replace(str(self.root), "ROOT")
        self.seen.append(line)
        if self.fails and self.fails in line:
            raise script.SetupError(f"failed: {line}")
        if "-m venv" in line:
            for file in (self.venv / "pyvenv.cfg", self.venv / "bin" / "python"):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            self.site.mkdir(parents=True)
        elif "--report" in line:
            return json.dumps({"install": [{"metadata": {"requires_dist": self.needs}}]})
        elif "uninstall --yes torch" in line:
            (self.site / "torch-version").unlink()
        elif " install " in line and f"torch=={self.pin}" in line:
            (self.site / "torch-version").write_text(self.pin)
        elif "sysconfig" in line:
            return f"{self.site}\n"
        elif "import pip, sys" in line:
            return "{}.{}\n".format(*sys.version_info)
        elif "import pip" in line:
            return f"{self.pip}\n"
        elif "torch.__version__" in line:
            inside = self.find_torch([str(self.site)])
            return (inside or self.own).version
        return ""

    def setup(self, extras="cli"):
        looks = {"run": self.run, "find_torch": self.find_torch, "find_gpu": lambda: self.gpu}
        paper = {name: staticmethod(look) for name, look in looks.items()}
        kind = type("Paper", (script.Setup,), {**paper, "system": self.system})
        return kind(self.venv, extras, self.root)

    def go(self, extras="cli"):
        self.seen = []
        self.setup(extras).go()
        return "\n".join(self.seen)


def test_no_gpu_and_pips_build_is_for_the_cpu(tmp_path):
    seen = Machine(tmp_path).go()
    assert "uv" not in seen
    assert "pip install -c ROOT/constraints.txt torch==" in seen
    assert "pip install -c ROOT/constraints.txt -e ROOT[cli]" in seen


def test_no_gpu_and_pips_build_is_for_cuda(tmp_path):
    seen = Machine(tmp_path, needs=CUDA).go()
    assert "uv pip install -q --python ROOT/.venv/bin/python --torch-backend cpu torch==" in seen
    assert "pip install -c ROOT/constraints.txt torch==" not in seen


def test_no_way_to_the_cpu_build_falls_back_on_pip(tmp_path, capsys):
    seen = Machine(tmp_path, needs=CUDA, fails="--torch-backend").go()
    assert "pip install -c ROOT/constraints.txt torch==" in seen
    assert "cannot fetch the CPU build" in capsys.readouterr().out


def test_an_old_pip_is_renewed_before_it_is_asked(tmp_path):
    assert "--upgrade pip" in Machine(tmp_path, pip="23.2.1").go()
    other = tmp_path / "other"
    other.mkdir()
    assert "--upgrade pip" not in Machine(other, pip="23.3").go()


@pytest.mark.parametrize("machine", [{"gpu": "NVIDIA"}, {"gpu": "AMD"}, {"system": "Darwin"}, {"system": "Windows"}])
def test_pip_alone_elsewhere(tmp_path, machine):
    seen = Machine(tmp_path, needs=CUDA, **machine).go()
    assert "--report" not in seen
    assert "pip install -c ROOT/constraints.txt torch==" in seen


def test_the_users_own_torch_is_kept_seen_and_pinned(tmp_path):
    machine = Machine(tmp_path, own=Found("2.9.1+cu128", tmp_path / "theirs"))
    seen = machine.go()
    assert "install -c ROOT/constraints.txt torch" not in seen
    assert "install -c ROOT/.venv/constraints.txt -e" in seen
    assert "torch==2.9.1+cu128\n" in (machine.venv / "constraints.txt").read_text()
    [link] = machine.site.glob("*.pth")
    assert str(tmp_path / "theirs") in link.read_text()
    assert machine.go() == ""


def test_a_torch_got_later_replaces_ours(tmp_path):
    machine = Machine(tmp_path)
    machine.go()
    machine.own = Found("2.9.1+cu128", tmp_path / "theirs")
    assert "uninstall --yes torch" in machine.go()


def test_an_environment_of_the_users_keeps_its_torch(tmp_path):
    machine = Machine(tmp_path)
    machine.run(["python", "-m venv"])
    (machine.site / "torch-version").write_text("2.9.1+cu128")
    seen = machine.go()
    assert "-m venv" not in seen
    assert "torch==" not in seen
    assert "torch==2.9.1+cu128" in (machine.venv / "constraints.txt").read_text()
    assert machine.go() == ""


def test_the_second_run_does_nothing_and_extras_add_up(tmp_path):
    machine = Machine(tmp_path)
    machine.go("cli")
    assert machine.go("cli") == ""
    seen = machine.go("docs,dev")
    assert "-e ROOT[cli,dev,docs]" in seen
    assert "torch==" not in seen
    assert machine.go("cli") == ""
    assert machine.go("dev") == ""


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_project_file_runs_it_again(tmp_path, name):
    machine = Machine(tmp_path)
    machine.go()
    file = machine.root / name
    file.write_text(file.read_text() + "# changed\n")
    assert "-e ROOT[cli]" in machine.go()


@pytest.mark.parametrize("word", ["-m venv", "torch==", "-e ROOT", "import flowmatch"])
def test_a_failure_at_any_stage_is_mended_by_the_next_run(tmp_path, word):
    machine = Machine(tmp_path, fails=word)
    with pytest.raises(script.SetupError, match="failed"):
        machine.go()
    machine.fails = None
    assert "import flowmatch" in machine.go()
    assert machine.go() == ""


def test_a_half_made_environment_is_made_anew(tmp_path):
    machine = Machine(tmp_path)
    machine.go()
    (machine.venv / "pyvenv.cfg").unlink()
    (machine.venv / script.MARKER).write_text('{"made": true}')
    assert "-m venv" in machine.go()


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    machine = Machine(tmp_path)
    machine.venv.mkdir()
    (machine.venv / "thesis.txt").write_text("mine")
    with pytest.raises(script.SetupError, match="is not a virtual environment; this script did not make it"):
        machine.go()
    assert (machine.venv / "thesis.txt").read_text() == "mine"


def test_without_ensurepip_the_way_out_is_named(tmp_path):
    with pytest.raises(script.SetupError, match=r"python3\.\d+-venv"):
        Machine(tmp_path, fails="-m venv").go()


# --- the real script ---


def test_a_command_that_fails_is_told_with_its_last_words_without_the_noise():
    code = "import sys; print('WARNING: Location x is ignored: it', file=sys.stderr); sys.exit('no space left')"
    with pytest.raises(script.SetupError) as caught:
        script.run([sys.executable, "-c", code])
    assert str(caught.value).splitlines()[1:] == ["no space left"]


def test_the_command_line_refuses_an_unknown_extra():
    command = [sys.executable, str(SCRIPT), "--extras", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no extra is called nonsense" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as a stand-in for nvidia-smi")
@pytest.mark.parametrize(("answer", "code", "kind"), [("GPU 0: H100", 0, "NVIDIA"), ("No devices were found", 6, None)])
def test_a_gpu_is_found_by_asking_the_driver(tmp_path, monkeypatch, answer, code, kind):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\necho '{answer}'\nexit {code}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    monkeypatch.setattr(script.Path, "exists", lambda self: False)
    assert script.find_gpu() == kind
