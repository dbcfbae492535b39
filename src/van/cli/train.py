"""``van train RECIPE``: train a model; settings, log and checkpoints go to a run folder."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from van.cli.arguments import (
    AUGMENTATION,
    DATA,
    MODEL,
    OPTIMIZATION,
    OUTPUT,
    REGULARIZATION,
    SYSTEM,
    TRAINING,
    Command,
    parse,
)
from van.cli.help import format_list
from van.cli.suggestions import RECIPES as RECIPE_ALIASES
from van.cli.suggestions import unknown_name
from van.cli.train_settings import load_stored_settings
from van.cli.verbs import VERBS
from van.errors import UsageError
from van.recipes import ALIASES, RECIPES, resolve_recipe

EXAMPLES = {
    "digits": (
        "van train digits --out runs/digits",
        "van train digits --out runs/digits --resume",
        "van train digits --out runs/digits-b1 --model van_b1 --epochs 20 --lr 1e-3",
    ),
    "scenes-detect": (
        "van train scenes-detect --out runs/scenes-detect",
        "van train scenes-detect --out runs/scenes-detect --resume",
        "van train scenes-detect --out runs/scenes-detect-500 --train-scenes 500 --epochs 4",
    ),
    "scenes-instances": (
        "van train scenes-instances --out runs/scenes-instances",
        "van train scenes-instances --out runs/scenes-instances --resume",
        "van train scenes-instances --out runs/scenes-instances-scratch --init-from scratch --epochs 12",
    ),
    "scenes-segment": (
        "van train scenes-segment --out runs/scenes-segment",
        "van train scenes-segment --out runs/scenes-segment --resume",
        "van train scenes-segment --out runs/scenes-segment-b1 --model van_b1 --batch-size 4",
    ),
    "scenes-panoptic": (
        "van train scenes-panoptic --out runs/scenes-panoptic",
        "van train scenes-panoptic --out runs/scenes-panoptic --resume",
        "van train scenes-panoptic --out runs/scenes-panoptic-500 --train-scenes 500 --val-scenes 50",
    ),
    "classify": (
        "van train classify --data flowers --out runs/flowers",
        "van train classify --data flowers --model van_b2 --init-from van_b2.pth --out runs/flowers-b2",
        "van train classify --data flowers --init-from scratch --image-size 160 --mixup 0.8 --out runs/scratch",
        "torchrun --nproc-per-node 2 -m van train classify --data flowers --out runs/flowers",
    ),
    "detect": (
        "van train detect --data apples --model van_b1 --out runs/apples",
        "van train detect --data apples --head d_fine --min-size 640 --max-size 640 --out runs/d-fine",
        "van train detect --data apples --out runs/apples --resume",
    ),
    "instances": (
        "van train instances --data apples --out runs/masks",
        "van train instances --data apples --init-from runs/apples/best.safetensors --out runs/masks",
        "van train instances --data apples --out runs/masks --resume",
    ),
    "segment": (
        "van train segment --data streets --out runs/streets",
        "van train segment --data streets --head upernet --model van_b2 --out runs/streets-b2",
        "van train segment --data streets --crop-size 512 --scale 0.5 2 --photometric-distort 0.5 --out runs/crops",
    ),
    "panoptic": (
        "van train panoptic --data coco --out runs/panoptic",
        "van train panoptic --data coco --model van_b2 --batch-size 8 --out runs/panoptic-b2",
        "van train panoptic --data coco --out runs/panoptic --resume",
    ),
    "imagenet1k": (
        "van train imagenet1k --data imagenet --out runs/b0",
        "torchrun --nproc-per-node 8 -m van train imagenet1k --data imagenet --model van_b2 --out runs/b2",
        "torchrun --nproc-per-node 8 -m van train imagenet1k --data imagenet --out runs/b0 --resume",
    ),
    "coco-retinanet": (
        "van train coco-retinanet --data coco --out runs/retinanet --batch-size 4",
        "torchrun --nproc-per-node 8 -m van train coco-retinanet --data coco --out runs/retinanet",
        "torchrun --nproc-per-node 8 -m van train coco-retinanet --data coco --length 3x --out runs/retinanet-3x",
    ),
    "coco-mask-rcnn": (
        "van train coco-mask-rcnn --data coco --out runs/mask-rcnn --batch-size 4",
        "torchrun --nproc-per-node 8 -m van train coco-mask-rcnn --data coco --out runs/mask-rcnn",
        "torchrun --nproc-per-node 8 -m van train coco-mask-rcnn --data coco --length 3x --model van_b2 --out runs/3x",
    ),
    "ade20k-fpn": (
        "van train ade20k-fpn --data ade20k --out runs/fpn --batch-size 8",
        "torchrun --nproc-per-node 8 -m van train ade20k-fpn --data ade20k --out runs/fpn",
        "torchrun --nproc-per-node 8 -m van train ade20k-fpn --data ade20k --updates 80000 --out runs/fpn-80k",
    ),
    "ade20k-upernet": (
        "van train ade20k-upernet --data ade20k --out runs/upernet --batch-size 4",
        "torchrun --nproc-per-node 8 -m van train ade20k-upernet --data ade20k --out runs/upernet",
        "torchrun --nproc-per-node 8 -m van train ade20k-upernet --data ade20k --model van_b4 --out runs/upernet-b4",
    ),
}

GROUPS = {
    DATA: ("data", "images", "val_fraction", "train_scenes", "val_scenes", "image_size", "min_size", "max_size"),
    OUTPUT: ("out", "resume"),
    MODEL: ("model", "head", "queries", "init_from", "freeze_backbone", "batch_norm"),
    TRAINING: ("epochs", "updates", "length", "batch_size", "grad_accum_steps", "ema_decay", "precision", "seed"),
    OPTIMIZATION: ("lr", "schedule", "warmup_epochs", "weight_decay", "layer_decay", "clip_grad"),
    AUGMENTATION: ("scale", "crop_size", "hflip", "rand_augment", "photometric_distort"),
    REGULARIZATION: ("drop_path_rate", "label_smoothing", "mixup", "cutmix"),
    SYSTEM: ("device", "workers", "strategy"),
    "Advanced": (
        "milestones", "poly_power", "warmup_updates", "cooldown_epochs", "random_erasing", "max_class_fraction",
        "max_unreadable", "save_every", "log_every",
    ),
}  # fmt: skip
"""Headings of --help for all recipes; each recipe has some of these fields."""


def make_command(name: str) -> Command[Any]:
    """Build the command of a recipe, which imports the recipe's module."""
    settings_class = _settings_class(name)
    return Command(
        f"train {name}",
        settings_class,
        summary=RECIPES[name].description,
        examples=EXAMPLES[name],
        groups=GROUPS,
    )


def run(arguments: Sequence[str]) -> int:
    """Train by the recipe that the first argument names, and print a summary."""
    if not arguments or arguments[0] in ("-h", "--help"):
        entries = {name: recipe.description for name, recipe in RECIPES.items()}
        examples = [EXAMPLES[name][0] for name in ("digits", "classify", "detect", "segment")]
        print(format_list("van train RECIPE --out PATH [OPTIONS]", VERBS["train"], entries, examples, title="Recipes"))
        print('\nSee "van train RECIPE --help" for the options of one.')
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in RECIPES and name not in ALIASES:
        raise UsageError(unknown_name("recipe", name, RECIPES, RECIPE_ALIASES, of="van train"))
    name = resolve_recipe(name)
    settings_class = _settings_class(name)
    settings = parse(make_command(name), rest, default=load_stored_settings(settings_class, rest))
    summary = importlib.import_module(f"van.recipes.{RECIPES[name].module}").run(settings)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several processes; one prints
        print_summary(settings.out, summary)
    return 0


def _settings_class(name: str) -> Any:
    recipe = RECIPES[name]
    return getattr(importlib.import_module(f"van.recipes.{recipe.module}"), recipe.settings)


def print_summary(out: Path, summary: Any) -> None:
    """Print the best metrics, time, throughput, skipped images, the files written and the next command."""
    from van.training.trainer import MAX_METRICS_SHOWN

    minutes, seconds = divmod(round(summary.seconds), 60)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in list(summary.metrics.items())[:MAX_METRICS_SHOWN])
    throughput = f", {summary.images_per_s:.0f} images/s" if summary.images_per_s else "; the run was already complete"
    print(f"\nbest        {shown} (update {summary.best_update} of {summary.updates})")
    print(f"time        {minutes} min {seconds} s{throughput}")
    if summary.unreadable:
        names = list(summary.unreadable)
        print(f"skipped     {len(names)} unreadable images: {', '.join(names[:5])}")
    print(f"curves      {out / 'curves.png'}")
    print(f"checkpoint  {out / 'best.safetensors'}")
    print(f"next        van predict {out / 'best.safetensors'} IMAGES")
