"""Create the virtual environment of this project: ``python3 scripts/setup.py --extras dev,docs``.

Needs nothing but Python 3.10 or newer. Which torch is installed:

==================================================  =============================================
the calling Python (or the environment) has one     it is kept: seen from the environment, pinned
a GPU, or not Linux                                 pip takes the build of ``constraints.txt``
Linux without a GPU, pip's build is for CUDA        uv fetches the CPU build (several GB less)
Linux without a GPU, pip's build is for the CPU     pip takes it
==================================================  =============================================

A stamp in the environment (the hash of all that decides the result) makes the next run take no time;
an environment left half-made by a failure or an interruption is repaired by the next run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MARKER = "flowmatch-setup.json"
CUDA_PACKAGES = ("nvidia-", "cuda-", "triton")
HARMLESS = re.compile(r"^\s*$|^WARNING: Location .* is ignored|^DEPRECATION|^\[notice\]")


class SetupError(Exception):
    """Set-up cannot go on; the text says what failed and how to mend it."""


class Found(NamedTuple):
    """A torch that the user already has: its version and the folder it is imported from."""

    version: str
    folder: Path


class Plan(NamedTuple):
    """Where torch comes from: ``keep`` the user's, ``pip``, or ``cpu`` (the small build, by whichever tool has it)."""

    way: str
    why: str


# --- what is there: every look at the machine is one small function, so that tests can replace it ---


def run(command: Sequence[str]) -> str:
    """Run a command quietly and return what it printed; raise SetupError with its last words if it failed."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        words = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if not HARMLESS.match(line)]
        raise SetupError("\n".join([f"failed: {' '.join(map(str, command))}", *words[-15:]]))
    return done.stdout


def find_torch(path: list[str] | None = None) -> Found | None:
    """Find torch on ``sys.path``, or in the folders given, without importing it."""
    for item in metadata.distributions(name="torch", path=sys.path if path is None else path):
        return Found(item.version, Path(str(item.locate_file(""))))
    return None


def find_gpu() -> str | None:
    """Kind of GPU on this machine, ``"NVIDIA"`` or ``"AMD"``, or ``None``."""
    try:
        if "GPU" in run(["nvidia-smi", "-L"]):
            return "NVIDIA"
    except (SetupError, OSError):
        pass
    return "AMD" if Path("/dev/kfd").exists() or shutil.which("rocminfo") else None


# --- decisions: pure functions, tests/test_setup.py holds them ---


def release(version: str) -> tuple[int, ...]:
    """Numbers of a version: ``"2.9.0a0+cu128" -> (2, 9, 0)``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def plan_torch(own: Found | None, minimum: str, system: str, gpu: Callable[[], str | None]) -> Plan:
    """Decide where torch comes from; ``gpu`` is asked only where the answer matters."""
    if own and release(own.version) >= release(minimum):
        return Plan("keep", f"your own torch {own.version} is kept")
    old = f"your torch {own.version} is older than {minimum} and is left alone; " if own else ""
    if system != "Linux":
        return Plan("pip", f"{old}pip's build for {system}")
    kind = gpu()
    if kind == "AMD":
        hint = "pip's build (for an AMD GPU install a ROCm torch in your Python first: it is then kept)"
        return Plan("pip", old + hint)
    return Plan("pip", f"{old}NVIDIA GPU found, pip's build") if kind else Plan("cpu", f"{old}no GPU, CPU build")


def is_cuda_build(report: dict[str, Any]) -> bool:
    """Whether pip's installation report names a torch that brings the CUDA libraries along."""
    needs = [need for item in report["install"] for need in item["metadata"].get("requires_dist", [])]
    return any(need.lower().startswith(CUDA_PACKAGES) and "extra ==" not in need for need in needs)


def torch_pin(constraints: str) -> str:
    """The line of the constraints that pins torch, such as ``torch==2.13.0``."""
    match = re.search(r"^torch\s*==\s*([\w.+]+)", constraints, re.MULTILINE)
    if not match:
        raise SetupError("constraints.txt has no line torch==VERSION; restore it from the repository")
    return f"torch=={match.group(1)}"


def pin_own(constraints: str, version: str) -> str:
    """Constraints with the torch line replaced by the user's own version."""
    return re.sub(r"^torch\s*==.*$", f"torch=={version}", constraints, flags=re.MULTILINE)


def project_facts(pyproject: str) -> tuple[str, list[str]]:
    """Smallest torch version and names of the extras, read from ``pyproject.toml`` (no TOML reader before 3.11)."""
    minimum = re.search(r'"torch>=([\d.]+)', pyproject)
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)(?=^\[|\Z)", pyproject, re.MULTILINE | re.DOTALL)
    if not minimum or not section:
        raise SetupError("pyproject.toml lacks torch>=VERSION or its extras; restore it from the repository")
    return minimum.group(1), re.findall(r"^([\w-]+)\s*=", section.group(1), re.MULTILINE)


def short(path: Path) -> str:
    """A path as a person would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def check_extras(text: str, known: Sequence[str]) -> list[str]:
    """Sorted names from ``"dev,docs"``; an unknown one raises, where pip would only warn."""
    names = sorted({name.strip() for name in text.split(",") if name.strip()})
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SetupError(f"no extra is called {', '.join(unknown)}; choose from {', '.join(known)}")
    return names


# --- the work ---


class Setup:
    """One run: environment, torch, packages. ``say`` prints; ``run`` and the probes can be replaced by tests."""

    run: Callable[[Sequence[str]], str] = staticmethod(run)
    find_torch: Callable[..., Found | None] = staticmethod(find_torch)
    find_gpu: Callable[[], str | None] = staticmethod(find_gpu)
    system = platform.system()

    def __init__(self, venv: Path, extras: str, root: Path = ROOT) -> None:
        """Read the project's files; nothing is changed yet."""
        self.root, self.venv = root, venv
        self.python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.constraints = (root / "constraints.txt").read_text(encoding="utf-8")
        pyproject = (root / "pyproject.toml").read_text(encoding="utf-8")
        self.minimum, known = project_facts(pyproject)
        self.extras = check_extras(extras, known)
        self.marker = self.read_marker()
        self.own = self.find_own()
        version = "{}.{}".format(*sys.version_info)
        self.key = hashlib.sha256(repr((pyproject, self.constraints, version, self.own)).encode()).hexdigest()

    def read_marker(self) -> dict[str, Any]:
        """What an earlier run left: ``{}`` if there was none or it cannot be read."""
        try:
            content = json.loads((self.venv / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_marker(self, **content: Any) -> None:
        """Record whose and how far the environment is; written before the first change and after the last."""
        content["made"] = self.marker.get("made", False)
        self.venv.mkdir(parents=True, exist_ok=True)
        temporary = self.venv / (MARKER + ".new")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(self.venv / MARKER)

    def find_inside(self) -> Found | None:
        """Torch that lies in the environment itself."""
        folders = [*self.venv.glob("lib/python*/site-packages"), *self.venv.glob("Lib/site-packages")]
        return self.find_torch([str(folder) for folder in folders]) if folders else None

    def find_own(self) -> Found | None:
        """Torch of the calling Python, or of an environment that the user made; not what an earlier run installed."""
        own = self.find_torch()
        if own and self.venv.resolve() not in own.folder.resolve().parents:
            return own
        return None if self.marker.get("made") else self.find_inside()

    def up_to_date(self) -> bool:
        """Whether an earlier run already made what is asked for."""
        have = self.marker.get("extras", [])
        return self.marker.get("key") == self.key and set(self.extras) <= set(have) and self.python.exists()

    def go(self) -> None:
        """Do what is missing, one printed line a stage."""
        if self.up_to_date():
            say(f"{short(self.venv)} is up to date")
            return
        have = self.marker.get("extras", []) if self.marker.get("key") == self.key else []
        self.extras = sorted({*self.extras, *have})
        with stage(f"virtual environment {short(self.venv)}"):
            self.make_venv()
            self.write_marker()
        plan = plan_torch(self.own, self.minimum, self.system, self.find_gpu)
        with stage(f"torch ({plan.why})"):
            constraints = self.provide_torch(plan)
        target = f"{self.root}[{','.join(self.extras)}]" if self.extras else str(self.root)
        with stage(f"flowmatch with extras: {', '.join(self.extras) or 'none'}"):
            self.pip("install", "-c", str(constraints), "-e", target)
        with stage("first import"):
            seen = self.run([str(self.python), "-c", "import flowmatch, torch; print(torch.__version__)"]).strip()
        if plan.way == "keep" and self.own and seen != self.own.version:
            raise SetupError(f"torch {seen} hides your own torch {self.own.version}; remove {self.venv}")
        self.write_marker(key=self.key, extras=self.extras)
        say(f"ready: torch {seen}, Python {platform.python_version()}, in {short(self.venv)}")

    def pip(self, *arguments: str) -> str:
        """Run the environment's own pip, quietly."""
        return self.run([str(self.python), "-m", "pip", *arguments, "-q"])

    def make_venv(self) -> None:
        """Create the environment, or keep it if it works, or make it anew if it is ours and broken."""
        filled = self.venv.is_dir() and any(self.venv.iterdir())
        if filled:
            trouble = self.trouble()
            if not trouble:
                return
            if not self.marker.get("made"):
                raise SetupError(f"{self.venv} {trouble}; this script did not make it: remove it or give --venv PATH")
            shutil.rmtree(self.venv)
        self.marker = {"made": True}
        self.write_marker()
        base = getattr(sys, "_base_executable", None) or sys.executable
        try:
            self.run([base, "-m", "venv", str(self.venv)])
        except SetupError as error:
            version = "{}.{}".format(*sys.version_info)
            hint = f"on Debian and Ubuntu install python{version}-venv, or use another Python"
            raise SetupError(f"{error}\nmend it: {hint}") from None

    def trouble(self) -> str:
        """What is wrong with the environment on disk; empty if nothing is."""
        if not (self.venv / "pyvenv.cfg").is_file():
            return "is not a virtual environment"
        version = "{}.{}".format(*sys.version_info)
        ask = "import pip, sys; print('{}.{}'.format(*sys.version_info))"
        try:
            found = self.run([str(self.python), "-c", ask]).strip()
        except (SetupError, OSError):
            return "has no working Python with pip"
        return "" if found == version else f"has Python {found} where {version} was asked for"

    def provide_torch(self, plan: Plan) -> Path:
        """Put the torch of the plan into the environment; returns the constraints to install the rest with."""
        constraints = self.root / "constraints.txt"
        pin = torch_pin(self.constraints)
        if plan.way == "keep" and self.own:
            if self.marker.get("made") and self.find_inside():
                self.pip("uninstall", "--yes", "torch")
            self.show_own(self.own)
            constraints = self.venv / "constraints.txt"
            constraints.write_text(pin_own(self.constraints, self.own.version), encoding="utf-8")
            return constraints
        inside = self.find_inside()
        if inside and release(inside.version) == release(pin.split("==")[1]):
            return constraints
        if plan.way == "cpu":
            self.install_cpu(pin, constraints)
        else:
            self.pip("install", "-c", str(constraints), pin)
        return constraints

    def show_own(self, own: Found) -> None:
        """Let the environment see the folder that holds the user's torch, after its own packages."""
        if self.venv.resolve() in own.folder.resolve().parents:
            return
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(self.run([str(self.python), "-c", code]).strip())
        line = f"import site; site.addsitedir({str(own.folder)!r})\n"
        (site / "flowmatch_own_torch.pth").write_text(line, encoding="utf-8")

    def install_cpu(self, pin: str, constraints: Path) -> None:
        """Install the CPU build: pip's if it is one, else uv's, which knows where PyTorch keeps its CPU builds."""
        pip_version = self.run([str(self.python), "-c", "import pip; print(pip.__version__)"])
        if release(pip_version) < (23, 3):  # older ones download the whole archive to answer a dry run
            self.pip("install", "--upgrade", "pip>=23.3")
        report = self.pip("install", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", pin)
        if is_cuda_build(json.loads(report)):
            try:
                self.pip("install", "uv")
                uv = [str(self.python), "-m", "uv", "pip", "install", "-q", "--python", str(self.python)]
                self.run([*uv, "--torch-backend", "cpu", pin])
                return
            except SetupError:
                print(" cannot fetch the CPU build, taking pip's larger one ...", end="", flush=True)
        self.pip("install", "-c", str(constraints), pin)


def say(text: str) -> None:
    """Print one line at once."""
    print(f"setup: {text}", flush=True)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print a stage and its seconds."""
    start = time.monotonic()
    print(f"setup: {name} ...", end="", flush=True)
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" {time.monotonic() - start:.1f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 for a failure, 2 for a wrong call, 130 if interrupted."""
    if sys.version_info < (3, 10):  # noqa: UP036 (whoever calls with an older one is told)
        print(f"setup: Python 3.10 or newer is needed, this is {platform.python_version()}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(description="Create the virtual environment of flowmatch.")
    parser.add_argument("--extras", default="cli", help="comma-separated extras of pyproject.toml (default: cli)")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment (default: .venv)")
    options = parser.parse_args(arguments)
    try:
        setup = Setup(options.venv, options.extras)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    try:
        setup.go()
    except (SetupError, OSError) as error:
        print(f"setup: {error}\nsetup: run the same command again once this is mended", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
