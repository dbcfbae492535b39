"""What the classification recipes share: from a split and settings to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from van.recipes.begin import check_pictures, check_step

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from van.data.augment import AugmentSettings
    from van.data.folder import Split
    from van.engine.fit import Summary
    from van.engine.settings import TrainSettings
    from van.preprocess import Preprocess
    from van.tasks.mix import MixSettings


def train_classifier(
    model: nn.Module,
    split: Split,
    *,
    model_name: str,
    model_options: Mapping[str, Any],
    preprocess: Preprocess,
    train: TrainSettings,
    augment: AugmentSettings,
    mix: MixSettings,
    recipe: Mapping[str, Any],
    out: Path,
    resume: bool,
) -> Summary:
    """Train ``model`` on ``split`` into the run folder ``out``.

    Raises:
        UsageError: the pictures are others than when the run to resume began, or too few for a step.
        VanError: see ``van.engine.fit.fit``.
    """
    from van.data.augment import training_transform
    from van.data.pictures import PictureSet
    from van.engine.fit import fit
    from van.engine.job import Job
    from van.tasks.classify import Classify

    pictures = {
        "classes": len(split.labels),
        "training_pictures": len(split.train),
        "validation_pictures": len(split.validation),
    }
    check_pictures(out, pictures, resume=resume)
    check_step(model, train, pictures=len(split.train), size_px=preprocess.size_px)
    job = Job(
        task=Classify(split.labels, mix),
        model=model,
        model_name=model_name,
        model_options=model_options,
        preprocess=preprocess,
        train_set=PictureSet(split.train, training_transform(preprocess, augment)),
        validation_set=PictureSet(split.validation, preprocess),
        settings=train,
        recipe={**recipe, **pictures},
    )
    return fit(job, out, resume=resume)
