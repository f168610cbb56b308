"""Recipes: how the nouns are put together for a task."""

from flowmatch.recipes.runs import Run, RunConfig, prepare_folder, train_run
from flowmatch.recipes.tabular import FlowConfig, fit_flow, make_model, make_objective, make_path, suggest

__all__ = [
    "FlowConfig",
    "Run",
    "RunConfig",
    "fit_flow",
    "make_model",
    "make_objective",
    "make_path",
    "prepare_folder",
    "suggest",
    "train_run",
]
