"""The paper's recipes for COCO: RetinaNet and Mask R-CNN, 1x and 3x.

AdamW at 1e-4, weight decay 0.05, 16 pictures an update; 12 epochs, the rate falling tenfold after 8 and 11, or 36
with falls after 27 and 33 and pictures 480 to 800 pixels high. Sources: Guo et al. 2022, arXiv:2202.09741,
section 4.2; the lengths and the first 500 updates' rise are mmdetection's schedules of that name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from van.data.scene_augment import SceneAugmentSettings
from van.engine.settings import TrainSettings
from van.errors import UsageError
from van.recipes.dense import DenseSettings, train_dense

if TYPE_CHECKING:
    from van.engine.fit import Summary

_LENGTHS: dict[str, dict[str, Any]] = {
    "1x": {"epochs": 12, "milestones": (8, 11)},
    "3x": {"epochs": 36, "milestones": (27, 33)},
}
_MULTI_SCALE = (0.6, 1.0)
"""What 3x adds: the shorter side from 480 to 800."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoRetinanetSettings(DenseSettings):
    """RetinaNet on COCO as in the paper."""

    data: Path
    """The folder with annotations/instances_train2017.json, train2017/ and val2017/."""
    length: Literal["1x", "3x", "own"] = "1x"
    """12 or 36 epochs; own: as --epochs says."""
    model: str = "van_b0"
    """The backbone: van_b0 ... van_b6."""
    train: TrainSettings = TrainSettings(
        epochs=12,
        batch_size=16,
        lr=1e-4,
        weight_decay=0.05,
        schedule="step",
        warmup_updates=500,
        batch_norm="frozen",
        precision="bf16",
        workers=4,
    )
    augment: SceneAugmentSettings = SceneAugmentSettings(flip=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoMaskRcnnSettings(CocoRetinanetSettings):
    """Mask R-CNN on COCO as in the paper."""


def run(settings: CocoRetinanetSettings) -> Summary:
    """Train as the settings say.

    Raises:
        VanError: see ``van.recipes.dense.train_dense``.
    """
    if settings.length != "own":
        _check_epochs(settings)
        train = dataclasses.replace(settings.train, **_LENGTHS[settings.length])
        settings = dataclasses.replace(settings, train=train)
    if settings.length == "3x":
        augment = dataclasses.replace(settings.augment, scale=_MULTI_SCALE)
        settings = dataclasses.replace(settings, augment=augment)
    masks = isinstance(settings, CocoMaskRcnnSettings)
    name, head = ("instances", "mask_rcnn") if masks else ("detect", "retinanet")
    return train_dense(settings, task_name=name, data=settings.data, head=head)


def _check_epochs(settings: CocoRetinanetSettings) -> None:
    """Refuse a number of epochs that the length would pass over in silence.

    Raises:
        UsageError: it is neither that of the length nor left alone.
    """
    epochs = _LENGTHS[settings.length]["epochs"]
    if settings.train.epochs not in (epochs, type(settings).train.epochs):
        raise UsageError(
            f"--epochs is {settings.train.epochs} and --length {settings.length} has {epochs}; "
            "leave --epochs out, or say --length own"
        )
