"""What every recipe does before it trains: refuse what cannot be, write its settings down, seed, tell."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from van.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from van.engine.settings import TrainSettings


def check_settings(settings: Any, *, least_size_px: int = 1, least_drop_path_rate: float = 0.0) -> None:
    """Refuse what the recipes' own settings have in common and cannot mean.

    Raises:
        UsageError: the size or the drop path rate is out of bounds.
    """
    if settings.size_px < least_size_px:
        raise UsageError(f"--size-px is {settings.size_px}; wanted at least {least_size_px}")
    if not least_drop_path_rate <= settings.drop_path_rate < 1:
        raise UsageError(
            f"--drop-path-rate is {settings.drop_path_rate}; wanted at least {least_drop_path_rate:g} and below 1"
        )


def check_pictures(out: Path, pictures: Mapping[str, int], *, resume: bool) -> None:
    """Refuse to go on with a run on other pictures than it began with: its batches would be others, unseen.

    Raises:
        UsageError: there are more or fewer of them.
    """
    from van.engine.run_folder import read_settings

    if not resume or not (out / "settings.json").exists():
        return
    before = read_settings(out).get("recipe", {})
    changed = [f"{name} {before[name]} -> {now}" for name, now in pictures.items() if before.get(name, now) != now]
    if changed:
        raise UsageError(
            f"--resume: the pictures have changed since {out} began ({', '.join(changed).replace('_', ' ')}); put them "
            f"back, or start another run with --from {out / 'best.safetensors'}"
        )


def check_step(model: nn.Module, train: TrainSettings, *, pictures: int, size_px: int) -> None:
    """Refuse batches that cannot be filled, or that BatchNorm cannot take statistics of, before a run is begun.

    Raises:
        UsageError: there are fewer pictures than in a batch; or one in a step, whose last map, of a stride of
            32 pixels, would be a single pixel.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if pictures < train.batch_size:
        raise UsageError(
            f"--batch-size is {train.batch_size} and there are {pictures} training pictures; lower it to {pictures} "
            "or less"
        )
    if train.batch_norm != "train" or train.freeze_backbone or size_px > 32 or train.batch_size // parts(train) > 1:
        return
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UsageError(
            f"--batch-size {train.batch_size} is one picture of {size_px} px a step, and BatchNorm needs two; "
            "raise --batch-size or --size-px, or use --batch-norm frozen"
        )


def parts(train: TrainSettings) -> int:
    """How many steps and processes share a batch; its size is a multiple of this."""
    return train.accumulate * int(os.environ.get("WORLD_SIZE", "1"))


def tell(text: str) -> None:
    """Say something to the user, from one of the processes that there may be."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)  # noqa: T201


def flat(settings: Any) -> dict[str, Any]:
    """Settings with their parts' settings beside their own, as plain values, without the run's whereabouts."""
    values: dict[str, Any] = {"recipe": type(settings).__name__.removesuffix("Settings").lower()}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            values |= dataclasses.asdict(value)  # pyrefly: ignore[bad-argument-type]
        elif field.name not in ("out", "resume"):
            values[field.name] = str(value) if isinstance(value, Path) else value
    return values


def seeded_model(seed: int) -> None:
    """Make the weights drawn next depend on ``seed`` alone."""
    import torch

    torch.manual_seed(seed)
