"""Training of a classifier, shared by the classification recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from van.recipes.validation import check_batch_size, check_dataset_unchanged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from van.datasets.augment import AugmentSettings
    from van.datasets.folder import TrainValSplits
    from van.preprocess import CenterCropPreprocess
    from van.tasks.mixup import MixupSettings
    from van.training.settings import TrainSettings
    from van.training.trainer import Summary


def train_classifier(
    model: nn.Module,
    split: TrainValSplits,
    *,
    model_name: str,
    model_options: Mapping[str, Any],
    preprocess: CenterCropPreprocess,
    train: TrainSettings,
    augment: AugmentSettings,
    mix: MixupSettings,
    recipe: Mapping[str, Any],
    out: Path,
    resume: bool,
) -> Summary:
    """Train ``model`` on ``split`` into the run folder ``out``.

    Raises:
        UsageError: the dataset differs from that of the run to resume, or is too small for a batch.
        VanError: see ``van.training.trainer.fit``.
    """
    from van.datasets.augment import training_transform
    from van.datasets.image_dataset import ImageDataset
    from van.tasks.classification import ClassificationTask
    from van.training.run import TrainingRun
    from van.training.trainer import fit

    images = {
        "classes": len(split.class_names),
        "training_images": len(split.train),
        "validation_images": len(split.validation),
    }
    check_dataset_unchanged(out, images, resume=resume)
    check_batch_size(model, train, images=len(split.train), image_size=preprocess.image_size)
    run = TrainingRun(
        task=ClassificationTask(split.class_names, mix),
        model=model,
        model_name=model_name,
        model_options=model_options,
        preprocess=preprocess,
        train_dataset=ImageDataset(split.train, training_transform(preprocess, augment)),
        val_dataset=ImageDataset(split.validation, preprocess),
        settings=train,
        recipe={**recipe, **images},
    )
    return fit(run, out, resume=resume)
