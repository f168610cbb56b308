"""Options of the command line made from the fields of a config, so that each is said once.

A field ``batch_size: int = Field(256, description="rows of one step")`` becomes ``--batch-size INTEGER  rows of one
step``. Its default stays open, because it is chosen from the size of the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from flowmatch.errors import InputError

__all__ = ["given_options", "refuse_for_tables", "with_options"]


def with_options(**models: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each field of the models; it receives them as keyword arguments.

    Args:
        **models: config classes by the title under which ``--help`` lists their options.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        # A field that two models share is one option, under the title of the first.
        fields: dict[str, tuple[str, Any]] = {}
        for title, model in models.items():
            for name, field in model.model_fields.items():
                if get_origin(field.annotation) is not dict:  # what is a mapping is given in a file
                    fields.setdefault(name, (title.replace("_", " ").capitalize(), field))
        added = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, field, title)
            )
            for name, (title, field) in fields.items()
        ]
        command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
        return command

    return decorate


def given_options(model: type[BaseModel], options: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``model`` that the user set, by name."""
    return {name: options[name] for name in model.model_fields if options.get(name) is not None}


def refuse_for_tables(run: Path, given: dict[str, Any]) -> None:
    """Raise if options of images were given for a run of a table.

    Args:
        run: its folder.
        given: the options by flag, ``None`` where left open.

    Raises:
        InputError: one of them was given.
    """
    told = [flag for flag, value in given.items() if value is not None]
    if told:
        raise InputError(f"{', '.join(told)}: for runs of images alone, and {run} is one of a table; leave it out")


def _annotation(name: str, field: Any, panel: str) -> Any:
    help_text = f"{field.description} (default: {_default(field)})"
    kind = _present(field.annotation)
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text, rich_help_panel=panel, show_default=False)
        return Annotated[bool | None, option]
    metavar = "|".join(get_args(kind)) if get_origin(kind) is Literal else None
    if get_origin(kind) is tuple:
        return Annotated[
            tuple[float, float] | None, typer.Option(flag, help=help_text, rich_help_panel=panel, show_default=False)
        ]
    if metavar:
        kind = str
    return Annotated[
        kind | None, typer.Option(flag, help=help_text, metavar=metavar, rich_help_panel=panel, show_default=False)
    ]


def _present(annotation: Any) -> Any:
    """The type of a value that is given, where ``None`` may stand for one that is not."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _default(field: Any) -> str:
    extra = field.json_schema_extra
    return "from the data's size" if isinstance(extra, dict) and extra.get("by_size") else str(field.default)
