"""Training for detection and segmentation, shared by the recipes of these tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from van.datasets.augment import JointAugmentSettings
from van.errors import UsageError
from van.heads import HEADS, heads_of
from van.recipes.validation import (
    batch_divisor,
    check_batch_size,
    check_dataset_unchanged,
    clamp_batch_size,
    flatten_settings,
    log,
    seed_weights,
)
from van.training.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from van.datasets.annotations import AnnotatedDataset
    from van.model import Model
    from van.preprocess import ResizePreprocess
    from van.tasks.base import Task
    from van.training.trainer import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """Settings shared by the detection and segmentation recipes."""

    out: Path
    """Run folder, for settings, log and checkpoints."""
    resume: bool = False
    """Resume the run in --out."""
    model: str = "van_b1"
    """Backbone: van_b0 ... van_b6."""
    init_from: str = "pretrained"
    """Initial weights of the backbone: pretrained (public weights), scratch, or the path of a checkpoint."""
    min_size: int = 800
    """Size in pixels that the shorter side of an image is resized to, unless --max-size limits it."""
    max_size: int = 1333
    """Maximum size of the longer side in pixels."""
    drop_path_rate: float = 0.1
    """Stochastic depth rate of the last block; the rate increases linearly from 0 at the first block."""
    train: TrainSettings = TrainSettings()
    augment: JointAugmentSettings = JointAugmentSettings()

    def __post_init__(self) -> None:
        if not 0 < self.min_size <= self.max_size:
            raise UsageError(
                f"expected 0 < --min-size <= --max-size, got --min-size {self.min_size} --max-size {self.max_size}"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise UsageError(f"--drop-path-rate: expected at least 0 and below 1, got {self.drop_path_rate}")


def train_dense(
    settings: Any,
    *,
    task_name: str,
    data: Path,
    head: str,
    head_options: Mapping[str, Any] | None = None,
    normalization: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None,
    updates: int = 0,
) -> Summary:
    """Train a VAN backbone with ``head`` on the annotated dataset ``data``.

    Args:
        settings: the recipe's settings, a subclass of ``DenseSettings``.
        task_name: a key of ``van.datasets.annotations.TASK_TARGETS``.
        head: one of ``van.heads.HEADS``, for this task.
        head_options: options of the head, stored with the network.
        normalization: mean and standard deviation; those of the initial weights if None.
        updates: length of the run in updates, rounded to whole epochs; 0 uses ``epochs``.

    Raises:
        VanError: see ``van.training.trainer.fit``, ``van.datasets.formats.load_split`` and ``van.model.load``.
    """
    from van.datasets.annotations import TASK_TARGETS
    from van.datasets.check import load_splits
    from van.datasets.dense_dataset import DenseDataset
    from van.training.run import TrainingRun
    from van.training.run_folder import check_run
    from van.training.trainer import fit

    if head not in heads_of(task_name):
        raise UsageError(f"--head: expected one of {', '.join(heads_of(task_name))}, got {head!r}")
    check_run(settings.out, {}, resume=settings.resume)
    target_type = TASK_TARGETS[task_name]
    train, validation = load_splits(data, target_type=target_type, log=log)
    train_settings = clamp_batch_size(settings.train, len(train.images))
    if updates:
        train_settings = _set_epochs(train_settings, len(train.images), updates)
    settings = dataclasses.replace(settings, train=train_settings)
    counts = {"classes": len(train.class_names), "training_images": len(train.images)}
    counts["validation_images"] = len(validation.images)
    check_dataset_unchanged(settings.out, counts, resume=settings.resume)
    options = {"head": head, **(head_options or {})}
    initial = _load_initial_backbone(settings)
    if initial is not None and initial.name != settings.model:
        log(f"--model {settings.model} ignored: {settings.init_from} contains {initial.name}")
        settings = dataclasses.replace(settings, model=initial.name)
    network, preprocess = _create_network(settings, len(train.class_names), options, initial)
    if normalization is not None:
        preprocess = dataclasses.replace(preprocess, mean=normalization[0], std=normalization[1])
    image_size = settings.augment.crop_size or round(settings.min_size * settings.augment.scale[0])
    check_batch_size(network, settings.train, images=len(train.images), image_size=image_size)
    _check_head_batch_norm(network, settings.train, image_size=1 if HEADS[head].pools_globally else image_size)
    run = TrainingRun(
        task=_make_task(task_name, train),
        model=network,
        model_name=settings.model,
        model_options=options,
        preprocess=preprocess,
        train_dataset=DenseDataset(train, preprocess, target_type=target_type, augment=settings.augment),
        val_dataset=DenseDataset(validation, preprocess, target_type=target_type),
        settings=settings.train,
        recipe={**flatten_settings(settings), **counts},
    )
    return fit(run, settings.out, resume=settings.resume)


def _set_epochs(train: TrainSettings, num_images: int, updates: int) -> TrainSettings:
    """Return the settings with the number of whole epochs closest to ``updates``."""
    epochs = max(1, round(updates / max(1, num_images // train.batch_size)))
    log(f"--updates {updates}: training for {epochs} {'epoch' if epochs == 1 else 'epochs'} of {num_images} images")
    return dataclasses.replace(train, epochs=epochs)


def _load_initial_backbone(settings: Any) -> Model | None:
    """Return the model whose backbone weights are the initial ones, or None for random weights."""
    from van.model import Model

    last = settings.out / "last.safetensors"
    if settings.resume and last.exists():  # the initial weights may no longer exist
        return Model.load(last, num_classes=0)
    if settings.init_from == "scratch":
        if settings.train.batch_norm == "frozen":
            log("--init-from scratch with --batch-norm frozen: statistics stay at their initial values; use train")
        return None
    return Model.load(settings.model if settings.init_from == "pretrained" else settings.init_from, num_classes=0)


def _create_network(
    settings: Any, num_classes: int, options: Mapping[str, Any], initial: Model | None
) -> tuple[nn.Module, ResizePreprocess]:
    """Create the network with its initial weights, and the preprocessing rule with their normalization."""
    from van.heads import create_model
    from van.model_sources import load_backbone_weights
    from van.preprocess import HALF, ResizePreprocess

    seed_weights(settings.train.seed)
    rate = {"drop_path_rate": settings.drop_path_rate} if settings.drop_path_rate else {}
    network = create_model(settings.model, num_classes=num_classes, options={**options, **rate})
    mean, std = HALF, HALF
    if initial is not None:
        for note in load_backbone_weights(network, initial).notes:
            log(note)
        mean, std = initial.preprocess.mean, initial.preprocess.std
    return network, ResizePreprocess(min_size=settings.min_size, max_size=settings.max_size, mean=mean, std=std)


def _check_head_batch_norm(network: Any, train: TrainSettings, *, image_size: int) -> None:
    """Check that the head's BatchNorm, which is never frozen, gets more than one value per channel.

    Args:
        image_size: shorter side of a training image in pixels; 1 for a head with global pooling.

    Raises:
        UsageError: a step has one image, whose feature map has a single position.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if image_size > 32 or train.batch_size // batch_divisor(train) > 1:
        return
    backbone_modules = set(network.backbone.modules())
    if any(isinstance(module, _BatchNorm) and module not in backbone_modules for module in network.modules()):
        raise UsageError(
            f"--batch-size {train.batch_size}: the BatchNorm of this head needs at least 2 images per step, got 1; "
            "increase --batch-size"
        )


def _make_task(name: str, dataset: AnnotatedDataset) -> Task:
    from van.tasks.registry import make_task

    options: dict[str, Any] = {}
    if name in ("detect", "instances"):
        options = {"category_ids": dataset.category_ids}
    elif name == "panoptic":
        options = {"things": dataset.things}
    return make_task(name, dataset.class_names, options)
