"""Learn to read real handwritten digits in less than a minute on two cores, from nothing but this package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from van.data.augment import AugmentSettings
from van.engine.settings import TrainSettings
from van.recipes.begin import check_settings, flat, seeded_model
from van.recipes.classification import train_classifier
from van.tasks.mix import MixSettings

if TYPE_CHECKING:
    from van.engine.fit import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Learn the embedded digits."""

    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out."""
    pictures: Path | None = None
    """Train from PNG files there, written first if the folder is new; else the digits stay in memory."""
    model: str = "van_b0"
    """A timm model name."""
    size_px: int = 32
    """Side of the square that the network sees."""
    drop_path_rate: float = 0.0
    """Share of blocks skipped in training, rising to this at the last block."""
    train: TrainSettings = TrainSettings(
        epochs=12, batch_size=48, lr=2e-3, weight_decay=0.05, warmup_epochs=2, ema_decay=0.99, clip_grad=5.0
    )
    augment: AugmentSettings = AugmentSettings(scale=(0.6, 1.0), flip=0.0)
    mix: MixSettings = MixSettings(label_smoothing=0.1)

    def __post_init__(self) -> None:
        check_settings(self)


def run(settings: DigitsSettings) -> Summary:
    """Train as the settings say.

    Raises:
        VanError: see ``van.engine.fit.fit``; MissingExtra without scikit-learn.
    """
    from van.data.digits import find_or_write_digits, load_digits
    from van.engine.run_folder import check_run
    from van.models.load import create
    from van.preprocess import Preprocess

    check_run(settings.out, {}, resume=settings.resume)
    split = load_digits() if settings.pictures is None else find_or_write_digits(settings.pictures)
    options = {"drop_path_rate": settings.drop_path_rate} if settings.drop_path_rate else {}
    seeded_model(settings.train.seed)
    return train_classifier(
        create(settings.model, num_classes=len(split.labels), options=options),
        split,
        model_name=settings.model,
        model_options={},
        preprocess=Preprocess(size_px=settings.size_px, crop_fraction=1.0),
        train=settings.train,
        augment=settings.augment,
        mix=settings.mix,
        recipe=flat(settings),
        out=settings.out,
        resume=settings.resume,
    )
