"""Every check of the project in turn, stopping at the first failure: ``.venv/bin/python scripts/gate.py``.

With names of stages, only these run: ``gate.py lint types``. It has to be called with the Python of
the environment that ``scripts/setup.py`` made.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MADE = ["run/config.yaml", "run/model.safetensors", "run/metrics.jsonl", "run/report.html", "samples.csv"]
MADE += ["images/samples.png", "new.png", "images/report.html", "images/diffusers/README.md", "images/onnx/README.md"]


def commands(scratch: Path) -> dict[str, list[list[str]]]:
    """Stages and their commands; ``scratch`` takes what they write."""
    run = str(scratch / "run")
    images, pictures = str(scratch / "images"), str(scratch / "digits")
    short = ["--samples", "150", "--steps", "5", "--likelihood-rows", "2"]
    train = ["flowmatch", "train", "sklearn:digits", "--condition", "target", "--steps", "60", "--out", run]
    return {
        "lint": [["ruff", "check", "."], ["ruff", "format", "--check", "."]],
        "types": [["mypy"]],
        "imports": [["lint-imports", "--no-logo"]],
        "tests": [["python", "-m", "pytest", "-m", "not slow", "-n", "auto", "--durations", "5"]],
        "docs": [["mkdocs", "build", "--strict", "--site-dir", str(scratch / "site")]],
        "demo": [
            train,
            ["flowmatch", "sample", run, "-n", "100", "--out", str(scratch / "samples.csv")],
            ["flowmatch", "evaluate", run, "--samples", "300", "--likelihood-rows", "50", "--steps", "10"],
            ["python", "scripts/digits_folder.py", pictures],
            ["flowmatch", "train", pictures, "--steps", "40", "--out", images],
            ["flowmatch", "sample", images, "-n", "20", "--given", "3", "--out", str(scratch / "new.png")],
            ["flowmatch", "evaluate", images, *short],
            ["flowmatch", "export", images, "--to", "diffusers"],
            ["flowmatch", "export", images, "--to", "onnx"],
        ],
    }


def check(stage: str, todo: list[list[str]], scratch: Path) -> str:
    """Run one stage; returns what failed, empty if nothing did."""
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    for command in todo:
        print(f"$ {' '.join(command)}", flush=True)
        tool = [sys.executable, *command[1:]] if command[0] == "python" else [str(BIN / command[0]), *command[1:]]
        try:
            code = subprocess.run(tool, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, check=False).returncode
        except FileNotFoundError:
            return f"{command[0]} is not installed; run: python3 scripts/setup.py --extras dev,docs"
        if code:
            return f"exit code {code} of: {' '.join(command)}"
    if stage == "demo":
        missing = [name for name in MADE if not (scratch / name).is_file() or not (scratch / name).stat().st_size]
        return f"the demo did not write {', '.join(missing)}" if missing else ""
    return ""


def main(wanted: list[str]) -> int:
    """Run the stages wanted, or all; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="flowmatch-gate-") as folder:
        stages = commands(Path(folder))
        if unknown := set(wanted) - set(stages):
            print(f"gate: no stage {', '.join(sorted(unknown))}; choose from {', '.join(stages)}", file=sys.stderr)
            return 2
        seconds: dict[str, float] = {}
        for stage, todo in stages.items():
            if wanted and stage not in wanted:
                continue
            print(f"\n== {stage}", flush=True)
            start = time.monotonic()
            failure = check(stage, todo, Path(folder))
            seconds[stage] = time.monotonic() - start
            if failure:
                print(f"\ngate: {stage} FAILED after {seconds[stage]:.1f} s: {failure}", flush=True)
                return 1
    summary = ", ".join(f"{stage} {duration:.1f} s" for stage, duration in seconds.items())
    print(f"\ngate: passed in {sum(seconds.values()):.1f} s: {summary}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
