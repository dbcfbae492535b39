"""Steps shared by all recipes: validate settings and batch size, flatten settings, seed, and log messages."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from van.errors import UsageError
from van.recipes import recipe_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from van.training.settings import TrainSettings


def check_recipe_settings(settings: Any, *, min_image_size: int = 1, min_drop_path_rate: float = 0.0) -> None:
    """Check the image size and the drop path rate of a classification recipe's settings.

    Raises:
        UsageError: one of them is out of range.
    """
    if settings.image_size < min_image_size:
        raise UsageError(f"--image-size: expected at least {min_image_size}, got {settings.image_size}")
    if not min_drop_path_rate <= settings.drop_path_rate < 1:
        raise UsageError(
            f"--drop-path-rate: expected at least {min_drop_path_rate:g} and below 1, got {settings.drop_path_rate}"
        )


def check_dataset_unchanged(out: Path, images: Mapping[str, int], *, resume: bool) -> None:
    """Check that a run is resumed with the dataset that it was started with.

    With another number of images or classes the batches would differ from those of the original run.

    Args:
        images: numbers of classes and images by name, as the recipe stores them.

    Raises:
        UsageError: a number has changed.
    """
    from van.training.run_folder import read_settings

    if not resume or not (out / "settings.json").exists():
        return
    before = read_settings(out).get("recipe", {})
    changed = [f"{name} {before[name]} -> {now}" for name, now in images.items() if before.get(name, now) != now]
    if changed:
        raise UsageError(
            f"--resume: the dataset has changed since {out} was started ({', '.join(changed).replace('_', ' ')}); "
            f"restore it, or start a new run with --init-from {out / 'best.safetensors'}"
        )


def check_batch_size(model: nn.Module, train: TrainSettings, *, images: int, image_size: int) -> None:
    """Check that a batch can be filled and that BatchNorm can compute statistics of it.

    Args:
        images: number of training images.
        image_size: shorter side of the network's input in pixels.

    Raises:
        UsageError: there are fewer images than in a batch; or a step has one image and the last feature map,
            whose stride is 32 pixels, has a single position, so that each BatchNorm channel has one value.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if images < train.batch_size:
        raise UsageError(
            f"--batch-size: expected at most {images}, the number of training images, got {train.batch_size}"
        )
    images_per_step = train.batch_size // batch_divisor(train)
    if train.batch_norm != "train" or train.freeze_backbone or image_size > 32 or images_per_step > 1:
        return
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UsageError(
            f"--batch-size {train.batch_size}: BatchNorm needs at least 2 images of {image_size} px per step, got 1; "
            "increase --batch-size or --image-size, or use --batch-norm frozen"
        )


def batch_divisor(train: TrainSettings) -> int:
    """Return the number of processes times accumulation steps, which must divide the batch size."""
    return train.grad_accum_steps * int(os.environ.get("WORLD_SIZE", "1"))


def clamp_batch_size(train: TrainSettings, num_images: int) -> TrainSettings:
    """Return the settings with the batch size lowered to the largest valid one for ``num_images`` images."""
    divisor = batch_divisor(train)
    largest = num_images // divisor * divisor
    if not 0 < largest < train.batch_size:
        return train
    log(f"--batch-size lowered from {train.batch_size} to {largest}: the dataset has {num_images} training images")
    return dataclasses.replace(train, batch_size=largest)


def log(text: str) -> None:
    """Print a message to stderr in the first process."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)  # noqa: T201


def flatten_settings(settings: Any) -> dict[str, Any]:
    """Return the recipe's name and its settings, nested ones included, as one dictionary of plain values.

    ``out`` and ``resume`` are omitted: a run folder may be moved.
    """
    values: dict[str, Any] = {"recipe": recipe_name(type(settings))}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            values |= dataclasses.asdict(value)  # pyrefly: ignore[bad-argument-type]
        elif field.name not in ("out", "resume"):
            values[field.name] = str(value) if isinstance(value, Path) else value
    return values


def seed_weights(seed: int) -> None:
    """Seed torch, so that the initial weights created next depend on ``seed`` only."""
    import torch

    torch.manual_seed(seed)
