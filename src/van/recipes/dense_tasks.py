"""Object detection and instance, semantic and panoptic segmentation on annotated images."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from van.datasets.augment import JointAugmentSettings
from van.heads import heads_of
from van.recipes.dense import DenseSettings, train_dense
from van.settings import Choices
from van.training.settings import TrainSettings

if TYPE_CHECKING:
    from van.training.trainer import Summary

_FINETUNING = TrainSettings(
    epochs=24,
    batch_size=8,
    lr=1e-4,
    weight_decay=0.05,
    warmup_updates=500,
    clip_grad=5.0,
    batch_norm="frozen",
    ema_decay=0.999,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectSettings(DenseSettings):
    """Object detection on annotated images."""

    data: Path
    """Dataset folder with boxes, in COCO, YOLO or Pascal VOC format."""
    head: Annotated[str, Choices(functools.partial(heads_of, "detect"))] = "retinanet"
    """Detector; d_fine, rt_detr_v2 and deformable_detr need the extra transformers."""
    train: TrainSettings = _FINETUNING
    augment: JointAugmentSettings = JointAugmentSettings(scale=(0.6, 1.2), hflip=0.5, photometric_distort=0.25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstancesSettings(DenseSettings):
    """Instance segmentation on annotated images with Mask R-CNN."""

    data: Path
    """Dataset folder with polygons or masks of objects, in COCO or YOLO format."""
    train: TrainSettings = _FINETUNING
    augment: JointAugmentSettings = JointAugmentSettings(scale=(0.6, 1.2), hflip=0.5, photometric_distort=0.25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentSettings(DenseSettings):
    """Semantic segmentation on annotated images."""

    data: Path
    """Dataset folder: images/ and masks/, ADE20K or Cityscapes."""
    head: Annotated[str, Choices(functools.partial(heads_of, "segment"))] = "semantic_fpn"
    """Head; UPerNet is larger and has a higher mean IoU in the paper."""
    min_size: int = 512
    """Size in pixels that the shorter side of an image is resized to, unless --max-size limits it."""
    max_size: int = 2048
    """Maximum size of the longer side in pixels."""
    train: TrainSettings = TrainSettings(
        epochs=40,
        batch_size=8,
        lr=2e-4,
        weight_decay=0.01,
        schedule="poly",
        warmup_updates=200,
        clip_grad=5.0,
        ema_decay=0.999,
    )
    augment: JointAugmentSettings = JointAugmentSettings(
        scale=(0.5, 2.0), crop_size=512, hflip=0.5, photometric_distort=0.5
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanopticSettings(DenseSettings):
    """Panoptic segmentation on annotated images with Mask2Former (needs the extra transformers)."""

    data: Path
    """Dataset folder in COCO panoptic format."""
    queries: int = 100
    """Number of queries, the maximum number of segments per image; 200 for B6 in the paper."""
    train: TrainSettings = dataclasses.replace(_FINETUNING, epochs=50)
    augment: JointAugmentSettings = JointAugmentSettings(
        scale=(0.5, 1.5), crop_size=1024, hflip=0.5, photometric_distort=0.25, max_class_fraction=1.0
    )


def run(settings: DetectSettings | InstancesSettings | SegmentSettings | PanopticSettings) -> Summary:
    """Train the network that the settings describe.

    Raises:
        VanError: see ``van.recipes.dense.train_dense``.
    """
    if isinstance(settings, PanopticSettings):
        options = {"queries": settings.queries}
        return train_dense(settings, task_name="panoptic", data=settings.data, head="mask2former", head_options=options)
    if isinstance(settings, InstancesSettings):
        return train_dense(settings, task_name="instances", data=settings.data, head="mask_rcnn")
    name = "detect" if isinstance(settings, DetectSettings) else "segment"
    return train_dense(settings, task_name=name, data=settings.data, head=settings.head)
