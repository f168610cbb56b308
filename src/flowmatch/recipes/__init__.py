"""Recipes: how the nouns are put together for a task."""

from flowmatch.recipes.folder import prepare_folder
from flowmatch.recipes.image_runs import ImageRun, ImageRunConfig, train_image_run
from flowmatch.recipes.images import (
    ImageConfig,
    ImageDataConfig,
    fit_images,
    make_image_model,
    make_job,
    suggest_images,
)
from flowmatch.recipes.matching import MatchingConfig, make_objective, make_path
from flowmatch.recipes.paper import RECIPES, Recipe, recipe
from flowmatch.recipes.runs import Run, RunConfig, train_run
from flowmatch.recipes.tabular import FlowConfig, fit_flow, make_model, suggest

__all__ = [
    "RECIPES",
    "FlowConfig",
    "ImageConfig",
    "ImageDataConfig",
    "ImageRun",
    "ImageRunConfig",
    "MatchingConfig",
    "Recipe",
    "Run",
    "RunConfig",
    "fit_flow",
    "fit_images",
    "make_image_model",
    "make_job",
    "make_model",
    "make_objective",
    "make_path",
    "prepare_folder",
    "recipe",
    "suggest",
    "suggest_images",
    "train_image_run",
    "train_run",
]
