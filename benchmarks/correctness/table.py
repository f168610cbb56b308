"""Cases, what one library answers to one of them, and the table of all answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["LIBRARIES", "Answer", "Case", "Told", "ask", "render", "summary"]

LIBRARIES = ("flowmatch", "flow_matching", "TorchCFM", "diffusers")


class Told(NamedTuple):
    """An answer that is no number: what happened, and whether that is right."""

    text: str
    right: bool


class Call(NamedTuple):
    """What one library is asked: the call as its documentation has it, and a function that makes it."""

    written: str
    make: Callable[[], float | Told]


@dataclass(frozen=True)
class Case:
    """One question to all libraries, whose right answer is known.

    Attributes:
        oracle: number of the family of tests.
        name: what is asked.
        measure: what the number is; 0 is perfect.
        bound: largest number that is right.
        calls: the call of each library that offers it.
    """

    oracle: int
    name: str
    measure: str
    bound: float
    calls: dict[str, Call] = field(default_factory=dict)

    def call(self, library: str, written: str) -> Callable[[Callable[[], float | Told]], Callable[[], float | Told]]:
        """Decorator that adds the call of a library."""
        if library not in LIBRARIES:
            raise ValueError(f"unknown library {library}")

        def add(make: Callable[[], float | Told]) -> Callable[[], float | Told]:
            self.calls[library] = Call(written, make)
            return make

        return add


class Answer(NamedTuple):
    """One cell of the table."""

    text: str
    right: bool | None  # None where it is not offered


def ask(case: Case, library: str) -> Answer:
    """The answer of a library; an exception is an answer too."""
    if library not in case.calls:
        return Answer("not offered", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning is not an answer
            value = case.calls[library].make()
    except Exception as error:  # noqa: BLE001 (whatever a library raises is what its user gets)
        reason = str(error).strip().splitlines() or [""]
        return Answer(f"{type(error).__name__}: {reason[0][:60]}", False)
    if isinstance(value, Told):
        return Answer(*value)
    return Answer(f"{value:.2g}", bool(math.isfinite(value) and abs(value) <= case.bound))


def render(answers: dict[tuple[str, str], Answer], cases: list[Case]) -> str:
    """The table in Markdown; a wrong answer is bold, one that is not offered a dash."""
    lines = ["| case, and what is measured | bound | " + " | ".join(LIBRARIES) + " |"]
    lines.append("| --- " * (2 + len(LIBRARIES)) + "|")
    for case in cases:
        cells = []
        for library in LIBRARIES:
            text, right = answers[case.name, library]
            text = "-" if right is None else text.replace("|", "\\|")
            cells.append(f"**{text}**" if right is False else text)
        bound = f"{case.bound:.2g}" if case.bound else "-"
        lines.append(f"| {case.oracle}. {case.name}: {case.measure} | {bound} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(answers: dict[tuple[str, str], Answer]) -> str:
    """How many of the cases that a library offers it answers rightly."""
    lines = ["| library | offered | right | wrong |", "| --- | --- | --- | --- |"]
    for library in LIBRARIES:
        verdicts = [a.right for (_, whose), a in answers.items() if whose == library and a.right is not None]
        lines.append(f"| {library} | {len(verdicts)} | {sum(verdicts)} | {len(verdicts) - sum(verdicts)} |")
    return "\n".join(lines)
