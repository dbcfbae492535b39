"""Image classification on a folder with one subfolder per class, from pretrained weights or from scratch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from van.datasets.augment import AugmentSettings
from van.recipes.classification import train_classifier
from van.recipes.validation import check_recipe_settings, clamp_batch_size, flatten_settings, log, seed_weights
from van.tasks.mixup import MixupSettings
from van.training.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from van.model import Model
    from van.training.trainer import Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifySettings:
    """Image classification on a folder with one subfolder per class."""

    data: Path
    """Dataset folder: DATA/CLASS/*.jpg, or DATA/train/CLASS/*.jpg and DATA/val/CLASS/*.jpg."""
    out: Path
    """Run folder, for settings, log and checkpoints."""
    resume: bool = False
    """Resume the run in --out."""
    model: str = "van_b1"
    """Model name in timm, such as van_b0 ... van_b6."""
    init_from: str = "pretrained"
    """Initial weights: pretrained (public weights of --model), scratch, or the path of a checkpoint."""
    image_size: int = 0
    """Height and width of the network's input in pixels; 0 keeps that of the initial weights."""
    val_fraction: float = 0.2
    """Fraction of each class used for validation if the folder has no train/ and val/."""
    drop_path_rate: float = 0.1
    """Stochastic depth rate of the last block; the rate increases linearly from 0 at the first block."""
    train: TrainSettings = TrainSettings(
        epochs=20, batch_size=32, lr=2e-4, weight_decay=0.05, layer_decay=0.8, warmup_epochs=1, clip_grad=5.0
    )
    augment: AugmentSettings = AugmentSettings(scale=(0.35, 1.0), hflip=0.5)
    mix: MixupSettings = MixupSettings(label_smoothing=0.1)

    def __post_init__(self) -> None:
        check_recipe_settings(self, min_image_size=0)


def run(settings: ClassifySettings) -> Summary:
    """Train the network that the settings describe.

    Raises:
        VanError: see ``van.training.trainer.fit``, ``van.datasets.folder.load_image_folder`` and
            ``van.model.load``.
    """
    from van.datasets.folder import load_image_folder
    from van.preprocess import CenterCropPreprocess
    from van.training.run_folder import check_run

    check_run(settings.out, {}, resume=settings.resume)
    split = load_image_folder(settings.data, val_fraction=settings.val_fraction, seed=settings.train.seed)
    settings = dataclasses.replace(settings, train=clamp_batch_size(settings.train, len(split.train)))
    seed_weights(settings.train.seed)
    initial = _load_initial_model(settings, split.class_names)
    if initial.name != settings.model:
        log(f"--model {settings.model} ignored: {settings.init_from} contains {initial.name}")
        settings = dataclasses.replace(settings, model=initial.name)
    preprocess = initial.preprocess
    assert isinstance(preprocess, CenterCropPreprocess)  # every classifier has this rule
    if settings.image_size:
        preprocess = dataclasses.replace(preprocess, image_size=settings.image_size)
    return train_classifier(
        initial.network,
        split,
        model_name=initial.name,
        model_options={key: value for key, value in initial.options.items() if key != "drop_path_rate"},
        preprocess=preprocess,
        train=settings.train,
        augment=settings.augment,
        mix=settings.mix,
        recipe=flatten_settings(settings),
        out=settings.out,
        resume=settings.resume,
    )


def _load_initial_model(settings: ClassifySettings, class_names: Sequence[str]) -> Model:
    """Return the network to train: with random, pretrained or given weights, or from the run to resume."""
    from van.datasets.folder import are_imagenet_synsets
    from van.heads import create_model
    from van.model import Model
    from van.preprocess import CenterCropPreprocess

    options = {"drop_path_rate": settings.drop_path_rate} if settings.drop_path_rate else {}
    last = settings.out / "last.safetensors"
    if settings.resume and last.exists():  # the initial weights may no longer exist
        return Model.load(last, num_classes=len(class_names), options=options)
    if settings.init_from == "scratch":
        model = create_model(settings.model, num_classes=len(class_names), options=options)
        return Model(
            model,
            name=settings.model,
            options=options,
            task="classify",
            class_names=tuple(class_names),
            preprocess=CenterCropPreprocess(),
        )
    source = settings.model if settings.init_from == "pretrained" else settings.init_from
    loaded = Model.load(source, num_classes=len(class_names), options=options, backbone_only=True)
    loaded.check_can_predict()
    for note in loaded.notes:
        log(note)
    if loaded.class_names != tuple(class_names) and not loaded.new_head and not are_imagenet_synsets(class_names):
        log(f"{source}: the classifier is replaced, because its class names differ from those of the dataset")
        network: Any = loaded.network
        network.reset_classifier(len(class_names))
    return loaded
