"""The paper's recipes for COCO: RetinaNet and Mask R-CNN, 1x and 3x.

AdamW with learning rate 1e-4, weight decay 0.05 and batch size 16. 1x: 12 epochs, learning rate divided by 10 after
epochs 8 and 11. 3x: 36 epochs, divided after 27 and 33, with shorter sides of 480 to 800 pixels.
Sources: Guo et al. 2022, arXiv:2202.09741, section 4.2; the schedules and the warm-up of 500 updates are those of
mmdetection with the same names.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from van.datasets.augment import JointAugmentSettings
from van.errors import UsageError
from van.recipes.dense import DenseSettings, train_dense
from van.training.settings import TrainSettings

if TYPE_CHECKING:
    from van.training.trainer import Summary

_LENGTHS: dict[str, dict[str, Any]] = {
    "1x": {"epochs": 12, "milestones": (8, 11)},
    "3x": {"epochs": 36, "milestones": (27, 33)},
}
_MULTI_SCALE = (0.6, 1.0)
"""Scale range of the 3x schedule: shorter sides of 480 to 800 pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoRetinanetSettings(DenseSettings):
    """Object detection on COCO with RetinaNet as in the paper."""

    data: Path
    """Dataset folder with annotations/instances_train2017.json, train2017/ and val2017/."""
    length: Literal["1x", "3x", "own"] = "1x"
    """Schedule: 1x (12 epochs), 3x (36 epochs), or own (uses --epochs and --milestones)."""
    model: str = "van_b0"
    """Backbone: van_b0 ... van_b6."""
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
    augment: JointAugmentSettings = JointAugmentSettings(hflip=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoMaskRcnnSettings(CocoRetinanetSettings):
    """Instance segmentation on COCO with Mask R-CNN as in the paper."""


def run(settings: CocoRetinanetSettings) -> Summary:
    """Train the network that the settings describe.

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
    """Check that --epochs, which --length overrides, is the default or the schedule's number of epochs.

    Raises:
        UsageError: it is another number.
    """
    epochs = _LENGTHS[settings.length]["epochs"]
    if settings.train.epochs not in (epochs, type(settings).train.epochs):
        raise UsageError(
            f"--epochs: expected {epochs} with --length {settings.length}, got {settings.train.epochs}; "
            "omit --epochs, or use --length own"
        )
