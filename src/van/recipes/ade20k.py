"""The paper's recipes for ADE20K: Semantic FPN for 40,000 or 80,000 updates, UPerNet for 160,000.

Pictures with a shorter side of 512 pixels, scaled by 0.5 to 2, crops of 512 that no class fills by more than three
quarters, photometric distortion, mirrored half of the time; ImageNet's mean and deviation.
Source: Guo et al. 2022, arXiv:2202.09741, section 4.3.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from van.data.scene_augment import SceneAugmentSettings
from van.engine.settings import TrainSettings
from van.errors import UsageError
from van.recipes.dense import DenseSettings, train_dense

if TYPE_CHECKING:
    from van.engine.fit import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ade20kFpnSettings(DenseSettings):
    """Semantic FPN on ADE20K as in the paper."""

    data: Path
    """The folder with images/{training,validation} and annotations/{training,validation}."""
    updates: int = 40_000
    """Length of the run, rounded to whole epochs; 80000 is the longer one, 0 leaves it to --epochs."""
    model: str = "van_b0"
    """The backbone: van_b0 ... van_b6."""
    short_px: int = 512
    """What the shorter side of a picture is resized to, where --long-px allows it."""
    long_px: int = 2048
    """Most pixels of the longer side."""
    train: TrainSettings = TrainSettings(
        batch_size=32, lr=2e-4, weight_decay=1e-4, schedule="poly", poly_power=0.9, warmup_epochs=0, workers=4
    )
    augment: SceneAugmentSettings = SceneAugmentSettings(scale=(0.5, 2.0), crop_px=512, flip=0.5, distort=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates < 0:
            raise UsageError(f"--updates is {self.updates}; wanted at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ade20kUpernetSettings(Ade20kFpnSettings):
    """UPerNet on ADE20K as in the paper."""

    updates: int = 160_000
    """Length of the run, rounded to whole epochs; 0 leaves it to --epochs."""
    model: str = "van_b2"
    """The backbone: van_b0 ... van_b6."""
    train: TrainSettings = TrainSettings(
        batch_size=16, lr=6e-5, weight_decay=0.01, schedule="poly", warmup_updates=1500, workers=4
    )


def run(settings: Ade20kFpnSettings) -> Summary:
    """Train as the settings say.

    Raises:
        VanError: see ``van.recipes.dense.train_dense``.
    """
    from van.preprocess import IMAGENET_MEAN, IMAGENET_STD

    return train_dense(
        settings,
        task_name="segment",
        data=settings.data,
        head="upernet" if isinstance(settings, Ade20kUpernetSettings) else "semantic_fpn",
        colours=(IMAGENET_MEAN, IMAGENET_STD),
        updates=settings.updates,
    )
