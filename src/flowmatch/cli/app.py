"""The commands, put together."""

from __future__ import annotations

import os
from typing import Annotated

import typer

import flowmatch
from flowmatch.cli.average import average
from flowmatch.cli.evaluate import evaluate
from flowmatch.cli.export import export
from flowmatch.cli.features import features
from flowmatch.cli.recipes import recipes
from flowmatch.cli.sample import sample
from flowmatch.cli.score import score
from flowmatch.cli.train import train
from flowmatch.cli.tune import tune

__all__ = ["app", "run"]

app = typer.Typer(
    name="flowmatch",
    help="Train, sample, evaluate, score, tune and export generative models by flow matching.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, sample, evaluate, score, tune, average, features, export, recipes):
    app.command()(command)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
) -> None:
    if version:
        typer.echo(f"flowmatch {flowmatch.__version__}")
        raise typer.Exit
    if debug:
        os.environ["FLOWMATCH_DEBUG"] = "1"


def run() -> int:
    """Run the command line; returns the exit code."""
    try:
        app()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
