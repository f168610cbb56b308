"""Twelve oracle tests of flow matching, on this library and its peers: who is right where the answer is known.

Every question has a truth in closed form and takes seconds. Each library gets the call that its documentation gives;
a case that it does not offer is no failure, and a wrong answer is a number beyond the bound, an exception on a question
that has an answer, or silence on one that has none. Oracle 9, the resumed run that ends as the uninterrupted one, is
offered by no peer as a library call and is held by this project's own tests.

Run: ``python -m benchmarks correctness`` in an environment with ``benchmarks/peers.txt``; with
``python -m benchmarks.correctness --write docs/correctness.md`` the page of the documentation is written.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch

from benchmarks.correctness import couplings, likelihoods, paths, solving
from benchmarks.correctness.table import LIBRARIES, Answer, Case, ask, render, summary

__all__ = ["main", "page"]

PEERS = {"flowmatch": "flowmatch", "flow_matching": "flow_matching", "TorchCFM": "torchcfm", "diffusers": "diffusers"}
ALSO = ("torch", "torchdiffeq", "pot", "numpy")

INTRODUCTION = """\
---
hide: [toc]
---

# Correctness

Where the right answer is known in closed form, a library either has it or not. This page asks flowmatch and its peers
the same questions: exact Gaussian and mixture worlds, both ends of time, every shape and type, couplings, solvers,
likelihoods. Each library gets the call that its documentation gives, written out below the table. A case that a library
does not offer is a dash, and no failure. Bold is a wrong answer: a number beyond the bound, an exception on a question
that has an answer, or silence on one that has none.

The number before a case is that of its family of tests. The ninth, a resumed run that ends as the
uninterrupted one does, is offered by no peer as a call of its library; for flowmatch it is held by its own tests.
Made by `python -m benchmarks.correctness --write docs/correctness.md`, in an environment with `benchmarks/peers.txt`.
"""


def cases() -> list[Case]:
    """All cases in the order of the oracles."""
    found = [*solving.CASES, *paths.CASES, *couplings.CASES, *likelihoods.CASES]
    return sorted(found, key=lambda case: case.oracle)


def versions() -> str:
    """What was run."""
    named = [f"{name} {importlib.metadata.version(package)}" for name, package in PEERS.items()]
    named += [f"{name} {importlib.metadata.version(name)}" for name in ALSO]
    return f"python {platform.python_version()}, " + ", ".join(named) + "; CPU, one thread"


def page(answers: dict[tuple[str, str], Answer], asked: list[Case]) -> str:
    """The page of the documentation."""
    lines = [INTRODUCTION, f"Versions: {versions()}.", "", summary(answers), ""]
    lines += ['<div class="dense" markdown>', "", render(answers, asked), "", "</div>", "", "## Calls"]
    for case in asked:
        lines += ["", f"**{case.oracle}. {case.name}**", ""]
        lines += [f"* {name}: `{case.calls[name].written}`" for name in LIBRARIES if name in case.calls]
    return "\n".join(lines) + "\n"


def main(write: Path | None = None) -> int:
    """Ask, print, and write the page if a file is given; the exit code is 1 if flowmatch itself is wrong anywhere."""
    torch.set_num_threads(1)
    print(versions(), flush=True)  # fails here, by name, if a peer is missing
    asked = cases()
    answers = {(case.name, library): ask(case, library) for case in asked for library in LIBRARIES}
    print("\n" + render(answers, asked) + "\n\n" + summary(answers))
    if write is not None:
        write.write_text(page(answers, asked), encoding="utf-8")
    own = [case.name for case in asked if answers[case.name, "flowmatch"].right is False]
    if own:
        print("\nflowmatch is wrong in: " + "; ".join(own))
    return 1 if own else 0
