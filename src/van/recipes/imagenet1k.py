"""The paper's recipe for ImageNet-1K, from scratch.

300 epochs of AdamW, 5 to warm up and 10 to cool down, RandAugment, mixup, cutmix, random erasing,
label smoothing and EMA. Source: Guo et al. 2022, arXiv:2202.09741, section 4.1, and the released script.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from van.data.augment import AugmentSettings
from van.engine.settings import TrainSettings
from van.errors import UsageError
from van.models.catalogue import VARIANTS
from van.recipes.begin import check_settings, flat, seeded_model
from van.recipes.classification import train_classifier
from van.tasks.mix import MixSettings

if TYPE_CHECKING:
    from van.engine.fit import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imagenet1kSettings:
    """Train on ImageNet-1K as in the paper."""

    data: Path
    """The folder with train/n01440764/*.JPEG and val/n01440764/*.JPEG."""
    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out."""
    model: str = "van_b0"
    """van_b0 ... van_b6, or any timm model name."""
    size_px: int = 224
    """Side of the square that the network sees."""
    drop_path_rate: float = -1.0
    """Share of blocks skipped in training, rising to this at the last block; -1: the paper's for the model."""
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
        scale=(0.08, 1.0), flip=0.5, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25
    )
    mix: MixSettings = MixSettings(label_smoothing=0.1, mixup=0.8, cutmix=1.0)

    def __post_init__(self) -> None:
        check_settings(self, least_drop_path_rate=-1)


def run(settings: Imagenet1kSettings) -> Summary:
    """Train as the settings say.

    Raises:
        VanError: see ``van.engine.fit.fit`` and ``van.data.folder.read_split``.
        UsageError: no drop path rate is known for the model.
    """
    from van.data.folder import read_split
    from van.engine.run_folder import check_run
    from van.models.load import create
    from van.preprocess import Preprocess

    check_run(settings.out, {}, resume=settings.resume)
    rate = settings.drop_path_rate
    if rate < 0:
        if settings.model not in VARIANTS:
            raise UsageError(f"--drop-path-rate: the paper has none for {settings.model}; give one")
        rate = VARIANTS[settings.model].drop_path_rate
        settings = dataclasses.replace(settings, drop_path_rate=rate)
    split = read_split(settings.data, seed=settings.train.seed)
    seeded_model(settings.train.seed)
    return train_classifier(
        create(settings.model, num_classes=len(split.labels), options={"drop_path_rate": rate}),
        split,
        model_name=settings.model,
        model_options={},
        preprocess=Preprocess(size_px=settings.size_px),
        train=settings.train,
        augment=settings.augment,
        mix=settings.mix,
        recipe=flat(settings),
        out=settings.out,
        resume=settings.resume,
    )
