"""Image classification on handwritten digits; takes less than a minute on two CPU cores, without a download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from van.datasets.augment import AugmentSettings
from van.recipes.classification import train_classifier
from van.recipes.validation import check_recipe_settings, flatten_settings, seed_weights
from van.tasks.mixup import MixupSettings
from van.training.settings import TrainSettings

if TYPE_CHECKING:
    from van.training.trainer import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Image classification on the 1,797 handwritten digits of scikit-learn."""

    out: Path
    """Run folder, for settings, log and checkpoints."""
    resume: bool = False
    """Resume the run in --out."""
    images: Path | None = None
    """Folder of the digits as PNG files, written first if it does not exist; without it they stay in memory."""
    model: str = "van_b0"
    """Model name in timm, such as van_b0 ... van_b6."""
    image_size: int = 32
    """Height and width of the network's input in pixels."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; the rate increases linearly from 0 at the first block."""
    train: TrainSettings = TrainSettings(
        epochs=12, batch_size=48, lr=2e-3, weight_decay=0.05, warmup_epochs=2, ema_decay=0.99, clip_grad=5.0
    )
    augment: AugmentSettings = AugmentSettings(scale=(0.6, 1.0), hflip=0.0)
    mix: MixupSettings = MixupSettings(label_smoothing=0.1)

    def __post_init__(self) -> None:
        check_recipe_settings(self)


def run(settings: DigitsSettings) -> Summary:
    """Train the network that the settings describe.

    Raises:
        VanError: see ``van.training.trainer.fit``; MissingExtra without scikit-learn.
    """
    from van.datasets.digits import find_or_write_digits, load_digits
    from van.heads import create_model
    from van.preprocess import CenterCropPreprocess
    from van.training.run_folder import check_run

    check_run(settings.out, {}, resume=settings.resume)
    split = load_digits() if settings.images is None else find_or_write_digits(settings.images)
    options = {"drop_path_rate": settings.drop_path_rate} if settings.drop_path_rate else {}
    seed_weights(settings.train.seed)
    return train_classifier(
        create_model(settings.model, num_classes=len(split.class_names), options=options),
        split,
        model_name=settings.model,
        model_options={},
        preprocess=CenterCropPreprocess(image_size=settings.image_size, crop_fraction=1.0),
        train=settings.train,
        augment=settings.augment,
        mix=settings.mix,
        recipe=flatten_settings(settings),
        out=settings.out,
        resume=settings.resume,
    )
