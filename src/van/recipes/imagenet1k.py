"""The paper's recipe for ImageNet-1K, from scratch.

300 epochs of AdamW with 5 epochs of warm-up, then 10 epochs of cool-down; RandAugment, mixup, cutmix, random erasing,
label smoothing and EMA. Source: Guo et al. 2022, arXiv:2202.09741, section 4.1, and the released script.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from van.datasets.augment import AugmentSettings
from van.errors import UsageError
from van.recipes.classification import train_classifier
from van.recipes.validation import check_recipe_settings, flatten_settings, seed_weights
from van.tasks.mixup import MixupSettings
from van.training.settings import TrainSettings
from van.weights.published import VARIANTS

if TYPE_CHECKING:
    from van.training.trainer import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imagenet1kSettings:
    """Image classification on ImageNet-1K as in the paper."""

    data: Path
    """Dataset folder with train/n01440764/*.JPEG and val/n01440764/*.JPEG."""
    out: Path
    """Run folder, for settings, log and checkpoints."""
    resume: bool = False
    """Resume the run in --out."""
    model: str = "van_b0"
    """Model name: van_b0 ... van_b6, or any other in timm."""
    image_size: int = 224
    """Height and width of the network's input in pixels."""
    drop_path_rate: float = -1.0
    """Stochastic depth rate of the last block, rising linearly from 0; -1 uses the paper's rate for the model."""
    train: TrainSettings = TrainSettings(
        epochs=310,
        batch_size=1024,
        lr=5e-4,
        weight_decay=0.05,
        warmup_epochs=5,
        cooldown_epochs=10,
        ema_decay=0.9998,
        precision="bf16",
        workers=8,
    )
    augment: AugmentSettings = AugmentSettings(
        scale=(0.08, 1.0), hflip=0.5, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25
    )
    mix: MixupSettings = MixupSettings(label_smoothing=0.1, mixup=0.8, cutmix=1.0)

    def __post_init__(self) -> None:
        check_recipe_settings(self, min_drop_path_rate=-1)


def run(settings: Imagenet1kSettings) -> Summary:
    """Train the network that the settings describe.

    Raises:
        VanError: see ``van.training.trainer.fit`` and ``van.datasets.folder.load_image_folder``.
        UsageError: the paper has no drop path rate for the model.
    """
    from van.datasets.folder import load_image_folder
    from van.heads import create_model
    from van.preprocess import CenterCropPreprocess
    from van.training.run_folder import check_run

    check_run(settings.out, {}, resume=settings.resume)
    rate = settings.drop_path_rate
    if rate < 0:
        if settings.model not in VARIANTS:
            raise UsageError(
                f"--drop-path-rate: the paper has no rate for {settings.model}; expected a value from 0 to 1"
            )
        rate = VARIANTS[settings.model].drop_path_rate
        settings = dataclasses.replace(settings, drop_path_rate=rate)
    split = load_image_folder(settings.data, seed=settings.train.seed)
    seed_weights(settings.train.seed)
    return train_classifier(
        create_model(settings.model, num_classes=len(split.class_names), options={"drop_path_rate": rate}),
        split,
        model_name=settings.model,
        model_options={},
        preprocess=CenterCropPreprocess(image_size=settings.image_size),
        train=settings.train,
        augment=settings.augment,
        mix=settings.mix,
        recipe=flatten_settings(settings),
        out=settings.out,
        resume=settings.resume,
    )
