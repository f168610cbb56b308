"""The report as one self-contained HTML file."""

from __future__ import annotations

import base64
import importlib
import struct
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowmatch.errors import InputError
from flowmatch.persist import write_atomically
from flowmatch.report.image_readings import image_readings
from flowmatch.report.readings import readings

__all__ = ["write_html"]


def write_html(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write ``report.html`` from what :func:`evaluate` measured and drew.

    The page holds its pictures and styles, loads nothing from elsewhere and runs no script.

    Args:
        result: what :func:`evaluate` or :func:`evaluate_image_run` returned, or what ``evaluation.json`` holds.
        path: the file. The pictures are read from the folder it lies in.

    Returns:
        The file written.

    Raises:
        InputError: a picture named in ``result`` is not there.
    """
    target = Path(path)
    figures = [_embedded(f, target.parent) for f in result["figures"]]
    images = result.get("kind") == "images"
    numbers = image_readings(result) if images else readings(result)
    # Names of columns and of the folder are the user's own text: they are escaped, not trusted.
    jinja2 = importlib.import_module("jinja2")
    loader = jinja2.FunctionLoader(lambda name: (files(__package__) / name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("images.html" if images else "table.html")
    write_atomically(target, template.render(result=result, readings=numbers, figures=figures).encode())
    return target


def _embedded(figure: Mapping[str, str], folder: Path) -> dict[str, Any]:
    try:
        content = (folder / figure["file"]).read_bytes()
    except OSError as error:
        raise InputError(
            f"the picture {figure['file']} is not in {folder}; run the evaluation again to draw it"
        ) from error
    # A PNG starts with its size: eight bytes of magic, eight of chunk header, then width and height.
    width, height = struct.unpack(">II", content[16:24])
    return {**figure, "data": base64.b64encode(content).decode(), "width": width, "height": height}
