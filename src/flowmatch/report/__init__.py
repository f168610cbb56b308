"""Report: a trained flow measured on rows it never saw, and a page that shows it.

:func:`evaluate` measures, draws and writes everything, and :func:`evaluate_image_run` does for images;
:func:`write_html` makes the page again from what was measured.
"""

from __future__ import annotations

from importlib.util import find_spec

for _name, _package in (("jinja2", "jinja2"), ("sklearn", "scikit-learn"), ("pandas", "pandas")):
    if find_spec(_name) is None:
        raise ImportError(
            f'flowmatch.report needs {_package}, which is not installed; run: pip install "flowmatch[cli]"'
        )

from flowmatch.report.evaluate import evaluate
from flowmatch.report.images import evaluate_image_run
from flowmatch.report.page import write_html
from flowmatch.report.readings import readings

__all__ = ["evaluate", "evaluate_image_run", "readings", "write_html"]
