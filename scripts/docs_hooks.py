r"""What the documentation build adds to its tools.

* Docstrings are written with reStructuredText roles, which editors and ``help()`` readers know; the
  site renders Markdown. :class:`Roles` translates, when the docstrings are collected.
* Formulas become MathML when a page is built, so a page needs no script and no network to show them.
  :func:`on_page_content` does it for Markdown pages, docstrings and notebooks alike. A formula that
  cannot be translated is a warning, which a strict build turns into a failure.
"""

from __future__ import annotations

import html
import logging
import re
from typing import TYPE_CHECKING, Any

from griffe import Extension
from latex2mathml.converter import convert

if TYPE_CHECKING:
    from griffe import Object
    from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.plugins.docs_hooks")

MATH_BLOCK = re.compile(
    r"^(?P<indent>[ ]*)\.\. math::[ ]*(?P<first>.*)\n(?P<rest>(?:[ ]*\n|(?P=indent)[ ]+.*\n)*)", re.M
)
MATH_ROLE = re.compile(r":math:`([^`]+)`")
NAME_ROLE = re.compile(r":(?:py:)?(?:class|meth|func|mod|attr|exc|data|obj|const):`~?([^`<]+?)(?:\s*<[^>]*>)?`")
EXAMPLE = re.compile(r"^( *)Example:[ ]*$", re.M)

MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
NOT_TEXT = re.compile(r"(<(pre|code|script|style|svg|math)\b.*?</\2>|<[^>]+>)", re.S)
DOLLARS = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?!\s)(?P<inline>[^$]+?)(?<!\s)\$", re.S)
UPRIGHT = re.compile(r"\\mathrm\{([A-Za-z0-9 ]+)\}")
MERMAID = re.compile(r"<script[^>]*>(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>", re.S)


def to_markdown(text: str) -> str:
    r"""Translate the roles of one docstring.

    Example:
        >>> to_markdown("the :math:`x_t` of :class:`~flowmatch.Path`")
        'the \\(x_t\\) of `Path`'
    """

    def block(match: re.Match[str]) -> str:
        indent, lines = match["indent"], [match["first"], *match["rest"].splitlines()]
        tex = " ".join(line.strip() for line in lines if line.strip())
        return f"\n{indent}$$\n{indent}{tex}\n{indent}$$\n\n"

    def name(match: re.Match[str]) -> str:
        return f"`{match[1].rsplit('.', 1)[-1] if '`~' in match[0] else match[1]}`"

    text = MATH_BLOCK.sub(block, text + "\n").rstrip()
    text = MATH_ROLE.sub(lambda match: rf"\({' '.join(match[1].split())}\)", text)
    return EXAMPLE.sub(r"\1Examples:", NAME_ROLE.sub(name, text))


class Roles(Extension):
    """Translate every docstring once it is collected."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Replace the text of the docstring, if there is one."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_mathml(tex: str, block: bool, where: str) -> str:
    """One formula as MathML; a command that is not understood is a warning of the build."""
    tex = html.unescape(tex).strip()
    known = UPRIGHT.sub(r"\\text{\1}", tex.replace("{aligned}", "{split}"))  # the same, in what the library shows well
    try:
        mathml: str = convert(known, display="block" if block else "inline")
    except Exception as error:  # the library raises many kinds
        log.warning("%s: formula %r cannot be shown: %r", where, tex, error)
        return f"<code>{html.escape(tex)}</code>"
    left = re.findall(r"\\\w+|\\\W", mathml)
    plain = re.sub(r"\\[{}]", "", tex)
    if left or plain.count("{") != plain.count("}"):
        trouble = f"uses {', '.join(left)}, which cannot be shown" if left else "has a brace without its partner"
        log.warning("%s: formula %r %s", where, tex, trouble)
    return mathml.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # a relation with its spaces, not a letter


def on_page_content(content: str, page: Page, **kwargs: Any) -> str:
    """Replace the formulas of a page by MathML; called by MkDocs once the page is HTML."""
    where = page.file.src_uri
    content = MARKED.sub(lambda match: to_mathml(match[3], match[2] == "[", where), content)
    if not where.endswith((".py", ".ipynb")):
        return content

    def dollars(match: re.Match[str]) -> str:
        return to_mathml(match["block"] or match["inline"], bool(match["block"]), where)

    content = MERMAID.sub("", content)  # notebooks bring a diagram script from elsewhere; none is used
    pieces, end = [], 0
    for tag in NOT_TEXT.finditer(content):
        pieces += [DOLLARS.sub(dollars, content[end : tag.start()]), tag[0]]
        end = tag.end()
    return "".join([*pieces, DOLLARS.sub(dollars, content[end:])])
