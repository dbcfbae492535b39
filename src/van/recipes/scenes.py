"""Find, outline and map real handwritten digits in scenes made by seed; nothing to download.

The backbone is the digits classifier's, which is trained first (about a minute) where none is given.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from van.data.scene_augment import SceneAugmentSettings
from van.engine.settings import TrainSettings
from van.errors import UsageError
from van.recipes.begin import tell
from van.recipes.dense import DenseSettings, train_dense

if TYPE_CHECKING:
    from van.engine.fit import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesSettings(DenseSettings):
    """What the four of them set."""

    scenes: Path | None = None
    """Folder of the scenes, written first where there is none; OUT/scenes if not given."""
    train_scenes: int = 2000
    """Scenes to learn from, where they are written."""
    val_scenes: int = 100
    """Scenes held out, which show held-out digits."""
    start: Annotated[str, tyro.conf.arg(name="from")] = "digits"
    """digits: a classifier of the digits, trained first into OUT/digits; scratch; or a checkpoint."""
    model: str = "van_b0"
    """The backbone: van_b0 ... van_b6."""
    short_px: int = 128
    """What the shorter side of a picture is resized to, where --long-px allows it."""
    long_px: int = 256
    """Most pixels of the longer side."""
    drop_path_rate: float = 0.0
    """Share of blocks skipped in training, rising to this at the last block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_scenes", "val_scenes"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; wanted at least 1")


_AUGMENT = SceneAugmentSettings(flip=0.0)
"""A mirrored digit is another one, or none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesDetectSettings(ScenesSettings):
    """Boxes around digits, by Faster R-CNN."""

    train: TrainSettings = TrainSettings(
        epochs=8, batch_size=8, lr=1e-3, warmup_updates=60, clip_grad=5.0, ema_decay=0.995, precision="bf16"
    )
    augment: SceneAugmentSettings = _AUGMENT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesInstancesSettings(ScenesSettings):
    """Boxes and outlines of digits, by Mask R-CNN."""

    train: TrainSettings = TrainSettings(
        epochs=7, batch_size=8, lr=1e-3, warmup_updates=60, clip_grad=5.0, ema_decay=0.995, precision="bf16"
    )
    augment: SceneAugmentSettings = _AUGMENT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesSegmentSettings(ScenesSettings):
    """A label for every pixel, by Semantic FPN."""

    short_px: int = 192
    """What the shorter side of a picture is resized to, where --long-px allows it."""
    train: TrainSettings = TrainSettings(
        epochs=13, batch_size=8, lr=2e-3, warmup_updates=100, clip_grad=5.0, ema_decay=0.995, precision="bf16"
    )
    augment: SceneAugmentSettings = SceneAugmentSettings(flip=0.0, crop_px=96)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesPanopticSettings(ScenesSettings):
    """Every pixel to a digit or to the ground, by Mask2Former (needs the extra transformers)."""

    train: TrainSettings = TrainSettings(
        epochs=8, batch_size=8, lr=1e-3, warmup_updates=100, clip_grad=1.0, ema_decay=0.995, precision="bf16"
    )
    augment: SceneAugmentSettings = _AUGMENT


_FEW_BOXES = {
    "channels": 64,
    "anchor_sizes_px": (12, 20, 32, 48, 64),
    "rpn_batch_size_per_image": 64,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 100,
    "box_batch_size_per_image": 32,
}
"""Scenes hold six digits at most, where torchvision's own numbers are for COCO."""
_FEW_SEGMENTS = {"queries": 20, "channels": 64, "encoder_layers": 1, "decoder_layers": 3, "points": 1024}
_HEADS: dict[type[ScenesSettings], tuple[str, str, dict[str, Any]]] = {
    ScenesDetectSettings: ("detect", "faster_rcnn", _FEW_BOXES),
    ScenesInstancesSettings: ("instances", "mask_rcnn", _FEW_BOXES),
    ScenesSegmentSettings: ("segment", "semantic_fpn", {"channels": 48}),
    ScenesPanopticSettings: ("panoptic", "mask2former", _FEW_SEGMENTS),
}
"""Task, head and its options for small pictures."""


def run(settings: ScenesSettings) -> Summary:
    """Train as the settings say.

    Raises:
        VanError: see ``van.recipes.dense.train_dense``; MissingExtra without scikit-learn.
    """
    from van.data.scene_files import find_or_write_digit_scenes
    from van.engine.run_folder import check_run

    check_run(settings.out, {}, resume=settings.resume)
    folder = settings.scenes or settings.out / "scenes"
    find_or_write_digit_scenes(folder, train=settings.train_scenes, validation=settings.val_scenes)
    if settings.start == "digits":
        settings = dataclasses.replace(settings, start=str(_classifier(settings)))
    name, head, options = _HEADS[type(settings)]
    return train_dense(settings, task_name=name, data=folder, head=head, head_options=options)


def _classifier(settings: ScenesSettings) -> Path:
    """The best checkpoint of a run that learns single digits, begun, gone on with, or there already."""
    from van.recipes import digits

    out = settings.out / "digits"
    best = out / "best.safetensors"
    if (settings.out / "last.safetensors").exists():
        return best
    tell(f"learning single digits first, into {out}")
    begun = (out / "settings.json").exists()
    digits.run(digits.DigitsSettings(out=out, resume=begun, model=settings.model))
    return best
