"""The paper's recipes for ADE20K: Semantic FPN for 40,000 or 80,000 updates, UPerNet for 160,000.

Images with a shorter side of 512 pixels, scaled by 0.5 to 2, crops of 512 pixels of which at most 75 % belong to one
class, photometric distortion, horizontal flips with probability 0.5; ImageNet's mean and standard deviation.
Source: Guo et al. 2022, arXiv:2202.09741, section 4.3.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from van.datasets.augment import JointAugmentSettings
from van.errors import UsageError
from van.recipes.dense import DenseSettings, train_dense
from van.training.settings import TrainSettings

if TYPE_CHECKING:
    from van.training.trainer import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ade20kFpnSettings(DenseSettings):
    """Semantic segmentation on ADE20K with Semantic FPN as in the paper."""

    data: Path
    """Dataset folder with images/{training,validation} and annotations/{training,validation}."""
    updates: int = 40_000
    """Number of updates, rounded to whole epochs; 80000 for the longer schedule, 0 uses --epochs."""
    model: str = "van_b0"
    """Backbone: van_b0 ... van_b6."""
    min_size: int = 512
    """Size in pixels that the shorter side of an image is resized to, unless --max-size limits it."""
    max_size: int = 2048
    """Maximum size of the longer side in pixels."""
    train: TrainSettings = TrainSettings(
        batch_size=32, lr=2e-4, weight_decay=1e-4, schedule="poly", poly_power=0.9, warmup_epochs=0, workers=4
    )
    augment: JointAugmentSettings = JointAugmentSettings(
        scale=(0.5, 2.0), crop_size=512, hflip=0.5, photometric_distort=0.5
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates < 0:
            raise UsageError(f"--updates: expected at least 0, got {self.updates}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ade20kUpernetSettings(Ade20kFpnSettings):
    """Semantic segmentation on ADE20K with UPerNet as in the paper."""

    updates: int = 160_000
    """Number of updates, rounded to whole epochs; 0 uses --epochs."""
    model: str = "van_b2"
    """Backbone: van_b0 ... van_b6."""
    train: TrainSettings = TrainSettings(
        batch_size=16, lr=6e-5, weight_decay=0.01, schedule="poly", warmup_updates=1500, workers=4
    )


def run(settings: Ade20kFpnSettings) -> Summary:
    """Train the network that the settings describe.

    Raises:
        VanError: see ``van.recipes.dense.train_dense``.
    """
    from van.preprocess import IMAGENET_MEAN, IMAGENET_STD

    return train_dense(
        settings,
        task_name="segment",
        data=settings.data,
        head="upernet" if isinstance(settings, Ade20kUpernetSettings) else "semantic_fpn",
        normalization=(IMAGENET_MEAN, IMAGENET_STD),
        updates=settings.updates,
    )
