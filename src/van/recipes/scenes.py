"""Detection and segmentation of handwritten digits in generated scenes; no download.

The backbone is initialized from a classifier of the digits, which is trained first (about a minute) by default.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from van.datasets.augment import JointAugmentSettings
from van.errors import UsageError
from van.recipes.dense import DenseSettings, train_dense
from van.recipes.validation import log
from van.training.settings import TrainSettings

if TYPE_CHECKING:
    from van.training.trainer import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesSettings(DenseSettings):
    """Settings shared by the four recipes on digit scenes."""

    data: Path | None = None
    """Dataset folder of the scenes, generated first if it does not exist; default: OUT/scenes."""
    train_scenes: int = 2000
    """Number of training scenes to generate."""
    val_scenes: int = 100
    """Number of validation scenes to generate; they show digits that no training scene has."""
    init_from: str = "digits"
    """Initial weights: digits (a classifier that is trained first, in OUT/digits), scratch, or a checkpoint."""
    model: str = "van_b0"
    """Backbone: van_b0 ... van_b6."""
    min_size: int = 128
    """Size in pixels that the shorter side of an image is resized to, unless --max-size limits it."""
    max_size: int = 256
    """Maximum size of the longer side in pixels."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; the rate increases linearly from 0 at the first block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_scenes", "val_scenes"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")


_AUGMENT = JointAugmentSettings(hflip=0.0)
"""No flips: a flipped digit is another digit, or none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesDetectSettings(ScenesSettings):
    """Object detection on digit scenes with Faster R-CNN."""

    train: TrainSettings = TrainSettings(
        epochs=8, batch_size=8, lr=1e-3, warmup_updates=60, clip_grad=5.0, ema_decay=0.995, precision="bf16"
    )
    augment: JointAugmentSettings = _AUGMENT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesInstancesSettings(ScenesSettings):
    """Instance segmentation on digit scenes with Mask R-CNN."""

    train: TrainSettings = TrainSettings(
        epochs=7, batch_size=8, lr=1e-3, warmup_updates=60, clip_grad=5.0, ema_decay=0.995, precision="bf16"
    )
    augment: JointAugmentSettings = _AUGMENT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesSegmentSettings(ScenesSettings):
    """Semantic segmentation on digit scenes with Semantic FPN."""

    min_size: int = 192
    """Size in pixels that the shorter side of an image is resized to, unless --max-size limits it."""
    train: TrainSettings = TrainSettings(
        epochs=13, batch_size=8, lr=2e-3, warmup_updates=100, clip_grad=5.0, ema_decay=0.995, precision="bf16"
    )
    augment: JointAugmentSettings = JointAugmentSettings(hflip=0.0, crop_size=96)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesPanopticSettings(ScenesSettings):
    """Panoptic segmentation on digit scenes with Mask2Former (needs the extra transformers)."""

    train: TrainSettings = TrainSettings(
        epochs=8, batch_size=8, lr=1e-3, warmup_updates=100, clip_grad=1.0, ema_decay=0.995, precision="bf16"
    )
    augment: JointAugmentSettings = _AUGMENT


_FEW_BOXES = {
    "channels": 64,
    "anchor_sizes": (12, 20, 32, 48, 64),
    "rpn_batch_size_per_image": 64,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 100,
    "box_batch_size_per_image": 32,
}
"""Fewer proposals than torchvision's defaults, which are for COCO: a scene has at most six digits."""
_FEW_SEGMENTS = {"queries": 20, "channels": 64, "encoder_layers": 1, "decoder_layers": 3, "points": 1024}
_HEADS: dict[type[ScenesSettings], tuple[str, str, dict[str, Any]]] = {
    ScenesDetectSettings: ("detect", "faster_rcnn", _FEW_BOXES),
    ScenesInstancesSettings: ("instances", "mask_rcnn", _FEW_BOXES),
    ScenesSegmentSettings: ("segment", "semantic_fpn", {"channels": 48}),
    ScenesPanopticSettings: ("panoptic", "mask2former", _FEW_SEGMENTS),
}
"""The task, the head and its options for small images, by settings class."""


def run(settings: ScenesSettings) -> Summary:
    """Train the network that the settings describe.

    Raises:
        VanError: see ``van.recipes.dense.train_dense``; MissingExtra without scikit-learn.
    """
    from van.datasets.scenes import find_or_write_digit_scenes
    from van.training.run_folder import check_run

    check_run(settings.out, {}, resume=settings.resume)
    folder = settings.data or settings.out / "scenes"
    find_or_write_digit_scenes(folder, train=settings.train_scenes, validation=settings.val_scenes)
    if settings.init_from == "digits":
        settings = dataclasses.replace(settings, init_from=str(_train_classifier(settings)))
    name, head, options = _HEADS[type(settings)]
    return train_dense(settings, task_name=name, data=folder, head=head, head_options=options)


def _train_classifier(settings: ScenesSettings) -> Path:
    """Train or resume a classifier of single digits, unless the run has started, and return its best checkpoint."""
    from van.recipes import digits

    out = settings.out / "digits"
    best = out / "best.safetensors"
    if (settings.out / "last.safetensors").exists():
        return best
    log(f"training a classifier of single digits first, in {out}")
    started = (out / "settings.json").exists()
    digits.run(digits.DigitsSettings(out=out, resume=started, model=settings.model))
    return best
