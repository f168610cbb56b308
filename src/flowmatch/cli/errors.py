"""From an exception to one message and an exit code."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from flowmatch.errors import InputError

__all__ = ["note", "reported", "say"]

F = TypeVar("F", bound=Callable[..., Any])


def reported(command: F) -> F:
    """Turn what a command raises into a message on stderr: exit code 2 if the input has to change, else 1."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *rest: note(str(message))
                return command(*args, **kwargs)
        except InputError as error:
            _complain("error", str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            _complain("stopped", "interrupted; a training goes on with the same command and --resume")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if os.environ.get("FLOWMATCH_DEBUG"):
                raise
            hint = "" if isinstance(error, OSError) else "; run flowmatch --debug ... to see where, and report it"
            _complain("error", f"{type(error).__name__}: {error}{hint}")
            raise typer.Exit(1) from None

    return wrapper  # type: ignore[return-value]  # the wrapper keeps the signature


def say(message: str) -> None:
    """A line for the user, on stdout."""
    Console(soft_wrap=True, highlight=False).print(Text(message))


def note(message: str) -> None:
    """Something worth knowing that is no error, on stderr."""
    _complain("note", message, style="yellow")


def _complain(kind: str, message: str, style: str = "bold red") -> None:
    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{kind}: ", style), message))
