"""Train on your own pictures with boxes, outlines or maps: detect, instances, segment, panoptic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from van.data.scene_augment import SceneAugmentSettings
from van.engine.settings import TrainSettings
from van.recipes.dense import DenseSettings, train_dense

if TYPE_CHECKING:
    from van.engine.fit import Summary

Detectors = Literal["retinanet", "fcos", "faster_rcnn", "d_fine", "rt_detr_v2", "deformable_detr"]
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
    """Find things in your own pictures."""

    data: Path
    """A COCO, YOLO or Pascal VOC folder with boxes."""
    head: Detectors = "retinanet"
    """The detector; the last three need the extra transformers."""
    train: TrainSettings = _FINETUNING
    augment: SceneAugmentSettings = SceneAugmentSettings(scale=(0.6, 1.2), flip=0.5, distort=0.25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstancesSettings(DenseSettings):
    """Find things and their outlines in your own pictures, by Mask R-CNN."""

    data: Path
    """A COCO or YOLO folder with outlines."""
    train: TrainSettings = _FINETUNING
    augment: SceneAugmentSettings = SceneAugmentSettings(scale=(0.6, 1.2), flip=0.5, distort=0.25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentSettings(DenseSettings):
    """Label every pixel of your own pictures."""

    data: Path
    """images/ and masks/, an ADE20K or a Cityscapes folder."""
    head: Literal["semantic_fpn", "upernet"] = "semantic_fpn"
    """The head; UPerNet is larger and, in the paper, better."""
    short_px: int = 512
    """What the shorter side of a picture is resized to, where --long-px allows it."""
    long_px: int = 2048
    """Most pixels of the longer side."""
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
    augment: SceneAugmentSettings = SceneAugmentSettings(scale=(0.5, 2.0), crop_px=512, flip=0.5, distort=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanopticSettings(DenseSettings):
    """Give every pixel of your own pictures to a thing or to stuff, by Mask2Former (needs the extra transformers)."""

    data: Path
    """A COCO panoptic folder."""
    queries: int = 100
    """Most segments in a picture; the paper's B6 has 200."""
    train: TrainSettings = dataclasses.replace(_FINETUNING, epochs=50)
    augment: SceneAugmentSettings = SceneAugmentSettings(
        scale=(0.5, 1.5), crop_px=1024, flip=0.5, distort=0.25, largest_class=1.0
    )


def run(settings: DetectSettings | InstancesSettings | SegmentSettings | PanopticSettings) -> Summary:
    """Train as the settings say.

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
