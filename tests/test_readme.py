"""README and ARCHITECTURE.md hold: their code runs, their commands are the real ones, their links lead somewhere."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README, ARCHITECTURE = ROOT / "README.md", ROOT / "ARCHITECTURE.md"
PAGES = [README, ARCHITECTURE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block(page: Path, *words: str) -> str:
    """The one Python block that holds all the words."""
    [found] = [code for code in blocks(page, "python") if all(word in code for word in words)]
    return found


def commands(page: Path) -> list[str]:
    """Lines typed at a prompt, without remarks."""
    lines = [line for code in blocks(page, "console") for line in code.splitlines() if line.startswith("$ ")]
    return [re.sub(r"\s+#.*", "", line[2:]) for line in lines]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from a second thread, and lose much when another process wants it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_twelve_lines_are_the_example_and_they_learn(capsys):
    example = ROOT / "examples" / "twelve_lines.py"
    docstring, _, code = example.read_text(encoding="utf-8").partition('"""\n\n')
    assert docstring.startswith('"""')
    assert code in blocks(README, "python")
    assert len([line for line in code.partition("\n\ndata")[2].splitlines() if line]) == 12
    left = runpy.run_path(str(example))
    assert left["x"].shape == (1000, 2)
    # Ten times what a longer training leaves, so that only something broken fails.
    entropy, log_p = left["data"].entropy, left["log_p"]
    assert -log_p.mean() < entropy + 0.3 + 4 * log_p.std() / len(log_p) ** 0.5
    assert f"the true density gives {-entropy:.2f}" in capsys.readouterr().out


def test_the_exact_field_of_the_readme_ends_in_its_two_modes(capsys):
    import flowmatch as fm

    left: dict = {"torch": torch, "fm": fm}
    exec(block(README, "MixtureField"), left)
    ends = left["solution"].x[:, 0].abs()
    assert ((ends - 2).abs() < 6 * 0.5).all()
    assert "torch.Size([100, 2])" in capsys.readouterr().out


def test_the_estimator_of_the_readme(capsys):
    pytest.importorskip("sklearn", reason="needs the extra tables")
    code = block(README, "FlowDensity").replace("(random_state=0)", "(max_steps=10, random_state=0)")
    assert "max_steps" in code
    exec(code, {})
    assert "(3, 13)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "code", blocks(ARCHITECTURE, "python"), ids=lambda code: re.findall(r"^class (\w+)", code, re.M)[0]
)
def test_a_skeleton_runs(code):
    exec(code, {"__name__": "skeleton"})


def test_there_is_a_skeleton_for_a_path_a_schedule_and_two_solvers():
    assert len(blocks(ARCHITECTURE, "python")) == 4


def test_the_commands_without_make_are_those_of_make():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    typed = commands(README)
    for target in ("demo", "test"):
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
        assert recipe, target
        for line in recipe[1].splitlines():
            line = line.strip().replace("$(SETUP)", "python3 scripts/setup.py --extras")
            # The default of the script is the extra cli, so the README leaves it out.
            assert line.removesuffix(" --extras cli") in typed


def test_the_command_line_has_what_the_readme_types():
    app = pytest.importorskip("flowmatch.cli.app", reason="needs the extra cli")
    typer = pytest.importorskip("typer")
    known = typer.main.get_command(app.app).commands
    typed = [
        line.partition("flowmatch ")[2].split()
        for line in commands(README)
        if re.match(r"(\.venv/bin/)?flowmatch ", line)
    ]
    assert {words[0] for words in typed} == {"train", "sample", "score", "evaluate", "export", "recipes"}
    for name, *words in typed:
        options = {flag for parameter in known[name].params for flag in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_layers_are_those_of_the_linter():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r"^layers = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert layers
    built = {path.stem for path in (ROOT / "src" / "flowmatch").iterdir() if path.suffix == ".py" or path.is_dir()}
    demanded = [set(re.findall(r"\w+", line)) & built for line in re.findall(r'"(.*)"', layers[1])]
    [written] = [code for code in blocks(ARCHITECTURE, "text") if code.startswith("cli")]
    assert [set(re.findall(r"\w+", line.partition("   ")[0])) for line in written.splitlines()] == demanded
