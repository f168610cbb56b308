"""The documentation build: roles become Markdown, formulas become MathML, every room has its page."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("griffe", reason="needs the extra docs")
    pytest.importorskip("latex2mathml", reason="needs the extra docs")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "scripts" / "docs_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _page(name):
    return SimpleNamespace(file=SimpleNamespace(src_uri=name))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the :math:`x_t` here", r"the \(x_t\) here"),
        ("over :math:`x_0 +\n    x_1` lines", r"over \(x_0 + x_1\) lines"),
        ("a :class:`~flowmatch.paths.Path` and :func:`solve`", "a `Path` and `solve`"),
        ("a :class:`flowmatch.Path`, :meth:`the point <position>`", "a `flowmatch.Path`, `the point`"),
        ("code ``x :math`` stays", "code ``x :math`` stays"),
        ("    Example:\n        >>> 1\n        1", "    Examples:\n        >>> 1\n        1"),
        ("A.\n\n.. math:: a = b\n\nB.", "A.\n\n\n$$\na = b\n$$\n\nB."),
        ("A.\n\n.. math::\n\n    a = b\n    + c\n\nB.", "A.\n\n\n$$\na = b + c\n$$\n\nB."),
        ("A.\n\n    .. math:: a\n        + b\n\n    B.", "A.\n\n\n    $$\n    a + b\n    $$\n\n    B."),
    ],
)
def test_roles_become_markdown(hooks, text, expected):
    assert hooks.to_markdown(text) == expected


def test_a_page_shows_its_formulas_as_mathml(hooks):
    content = r'<p><span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[\frac{a}{b}\]</div>'
    shown = hooks.on_page_content(content, page=_page("index.md"))
    assert shown.count("<math") == 2
    assert 'display="block"' in shown
    assert "<mfrac>" in shown
    assert "&lt;" in shown or "&#x0003C;" in shown
    assert "arithmatex" not in shown


@pytest.mark.parametrize(
    ("tex", "part"),
    [
        (r"\sigma_{\mathrm{min}}", "<mtext>min</mtext>"),
        (r"x \sim p", "<mo>&#x0223C;</mo>"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", "<mtable"),
    ],
)
def test_what_the_library_shows_badly_is_mended(hooks, caplog, tex, part):
    assert part in hooks.to_mathml(tex, block=False, where="index.md")
    assert not caplog.records


def test_a_notebook_shows_its_formulas_but_keeps_its_code(hooks):
    content = "<p>Let $x_t$ be\n$$y = 1$$ for $5.</p><pre>cost = '$a$'</pre><img alt='$b$'/>"
    shown = hooks.on_page_content(content, page=_page("notebooks/demo.py"))
    assert shown.count("<math") == 2
    assert "<pre>cost = '$a$'</pre><img alt='$b$'/>" in shown
    assert "for $5." in shown


def test_a_notebook_asks_for_no_script_from_elsewhere(hooks):
    content = "<script>keep()</script><script type='module'>import mermaid from 'https://x'</script><p>a</p>"
    assert hooks.on_page_content(content, page=_page("a.py")) == "<script>keep()</script><p>a</p>"


@pytest.mark.parametrize("tex", [r"\nonsense x", r"\frac{a", r"\frac"])
def test_a_formula_that_cannot_be_shown_is_a_warning(hooks, caplog, tex):
    with caplog.at_level(logging.WARNING):
        hooks.on_page_content(rf'<span class="arithmatex">\({tex}\)</span>', page=_page("index.md"))
    [record] = caplog.records
    assert record.name.startswith("mkdocs.")  # a strict build counts these
    assert "index.md" in record.getMessage()


def test_every_room_has_a_page_in_the_reference():
    source = ROOT / "src" / "flowmatch"
    rooms = {path.stem for path in source.glob("*.py")} | {path.parent.name for path in source.glob("*/__init__.py")}
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: flowmatch\.(\w+)", pages, re.MULTILINE))
    assert rooms - documented - {"__init__", "__main__", "cli"} == set(), "add a page to docs/api and to mkdocs.yml"


@pytest.mark.parametrize(
    "page", ["paths.md", "couplings.md", "guidance.md", "likelihood.md", "solving.md", "images.md", "export.md"]
)
def test_the_blocks_of_a_guide_run_one_after_the_other(page, capsys):
    pytest.importorskip("accelerate", reason="needs the extra train")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    left: dict = {"__name__": "guide"}
    for block in blocks:
        exec(block, left)
    said = capsys.readouterr().out
    expected = {
        "paths.md": "does not end at the data",
        "couplings.md": "ConditionAware: label 1 starts at",
        "guidance.md": "guide: the unknown has mean 1.60, true 1.60",
        "solving.md": "1.6486, exactly 1.6487",
        "likelihood.md": "one of which nothing is known has 3",
        "images.md": "torch.Size([4, 1, 8, 8]) torch.uint8",
        "export.md": "onnxruntime and flowmatch agree: True",
    }[page]
    assert expected in said
