"""``flowmatch recipes``."""

from __future__ import annotations

from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from flowmatch.cli.errors import reported, say
from flowmatch.recipes import RECIPES, ImageRunConfig, recipe

__all__ = ["recipes"]


@reported
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show the options of this one.", show_default=False)] = None,
) -> None:
    """List the recipes for images, or show one as a config to change.

    flowmatch train IMAGES --recipe NAME uses one; --dry-run tells what it takes.
    """
    if name is not None:
        options = ImageRunConfig.parse({"data": ".", **recipe(name)}).model_dump(mode="json", exclude={"data"})
        say(yaml.safe_dump(options, sort_keys=False).rstrip())
        return
    table = Table(box=None, pad_edge=False)
    for column, side in (
        ("recipe", "left"),
        ("what", "left"),
        ("images", "right"),
        ("batch", "right"),
        ("steps", "right"),
    ):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for known, about in RECIPES.items():
        train = about.options()["train"]
        sides = " x ".join(map(str, about.shape))
        table.add_row(known, about.about, sides, str(train["batch_size"]), f"{train['steps']:,}")
    Console(soft_wrap=True).print(table)
