"""Training recipes: each module holds one or more recipes, their settings beside the function that runs them.

``RECIPES`` lists them by name for the command line. Importing this package does not import torch.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from van.errors import UsageError
from van.settings import build_settings, field_names


class Recipe(NamedTuple):
    """A recipe's one-line description, its module in this package (with ``run``) and its settings class there."""

    description: str
    module: str
    settings: str


RECIPES = {
    "digits": Recipe(
        "Image classification: the 1,797 handwritten digits of scikit-learn; no download", "digits", "DigitsSettings"
    ),
    "scenes-detect": Recipe(
        "Object detection: digits in generated scenes; no download", "scenes", "ScenesDetectSettings"
    ),
    "scenes-instances": Recipe(
        "Instance segmentation: digits in generated scenes", "scenes", "ScenesInstancesSettings"
    ),
    "scenes-segment": Recipe("Semantic segmentation: digits in generated scenes", "scenes", "ScenesSegmentSettings"),
    "scenes-panoptic": Recipe("Panoptic segmentation: digits in generated scenes", "scenes", "ScenesPanopticSettings"),
    "classify": Recipe("Image classification: one folder of images per class", "classify", "ClassifySettings"),
    "detect": Recipe("Object detection: COCO, YOLO or Pascal VOC", "dense_tasks", "DetectSettings"),
    "instances": Recipe("Instance segmentation: COCO or YOLO", "dense_tasks", "InstancesSettings"),
    "segment": Recipe(
        "Semantic segmentation: images and masks, ADE20K or Cityscapes", "dense_tasks", "SegmentSettings"
    ),
    "panoptic": Recipe("Panoptic segmentation: COCO panoptic", "dense_tasks", "PanopticSettings"),
    "imagenet1k": Recipe(
        "Image classification: the paper's recipe for ImageNet-1K, from scratch", "imagenet1k", "Imagenet1kSettings"
    ),
    "coco-retinanet": Recipe(
        "Object detection: the paper's RetinaNet on COCO, 1x or 3x", "coco", "CocoRetinanetSettings"
    ),
    "coco-mask-rcnn": Recipe(
        "Instance segmentation: the paper's Mask R-CNN on COCO, 1x or 3x", "coco", "CocoMaskRcnnSettings"
    ),
    "ade20k-fpn": Recipe("Semantic segmentation: the paper's Semantic FPN on ADE20K", "ade20k", "Ade20kFpnSettings"),
    "ade20k-upernet": Recipe("Semantic segmentation: the paper's UPerNet on ADE20K", "ade20k", "Ade20kUpernetSettings"),
}
ALIASES = {"finetune": "classify"}
"""Other names that the command line accepts; settings files hold the name in ``RECIPES``."""


def resolve_recipe(name: str) -> str:
    """Return the name in ``RECIPES`` for a recipe's name or alias.

    Raises:
        UsageError: there is no such recipe.
    """
    resolved = ALIASES.get(name, name)
    if resolved not in RECIPES:
        raise UsageError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}; see van train --help")
    return resolved


def recipe_name(settings_class: type[Any]) -> str:
    """Return the name in ``RECIPES`` of the recipe with this settings class."""
    return next(name for name, recipe in RECIPES.items() if recipe.settings == settings_class.__name__)


def make_settings(recipe: str, values: Mapping[str, Any]) -> Any:
    """Build the settings of a recipe from one flat mapping; fields of nested dataclasses are given by their own names.

    Raises:
        UsageError: there is no such recipe or setting, a required one is missing, or a value is wrong.
    """
    entry = RECIPES[resolve_recipe(recipe)]
    settings_class = getattr(importlib.import_module(f"van.recipes.{entry.module}"), entry.settings)
    names = field_names(settings_class)
    if unknown := [name for name in values if name not in names]:
        similar = difflib.get_close_matches(unknown[0], names, n=1) or names
        raise UsageError(f"{unknown[0]}: recipe {recipe} has no such setting; expected {', '.join(similar)}")
    try:
        return build_settings(settings_class, values)
    except TypeError as error:  # a setting without a default is missing
        raise UsageError(f"recipe {recipe}: {error}") from error


def run_recipe(settings: Any) -> Any:
    """Train the network that the settings of a recipe describe; return the summary of the run."""
    return importlib.import_module(type(settings).__module__).run(settings)
