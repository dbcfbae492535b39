"""Train on your own folder of class folders, starting from public or your own weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from van.data.augment import AugmentSettings
from van.engine.settings import TrainSettings
from van.recipes.begin import check_settings, flat, parts, seeded_model, tell
from van.recipes.classification import train_classifier
from van.tasks.mix import MixSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from van.engine.fit import Summary
    from van.models.load import Loaded


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Train on a folder of class folders."""

    data: Path
    """ROOT/CLASS/*.jpg, or ROOT/train/CLASS/*.jpg beside ROOT/val/CLASS/*.jpg."""
    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out."""
    model: str = "van_b1"
    """A timm model name."""
    start: Annotated[str, tyro.conf.arg(name="from")] = "pretrained"
    """pretrained: the model's public weights; scratch: none; or the path of a checkpoint."""
    size_px: int = 0
    """Side of the square that the network sees; 0 keeps that of the starting weights."""
    validation_share: float = 0.2
    """Share of each class held out, where the folder has no split of its own."""
    drop_path_rate: float = 0.1
    """Share of blocks skipped in training, rising to this at the last block."""
    train: TrainSettings = TrainSettings(
        epochs=20, batch_size=32, lr=2e-4, weight_decay=0.05, layer_decay=0.8, warmup_epochs=1, clip_grad=5.0
    )
    augment: AugmentSettings = AugmentSettings(scale=(0.35, 1.0), flip=0.5)
    mix: MixSettings = MixSettings(label_smoothing=0.1)

    def __post_init__(self) -> None:
        check_settings(self, least_size_px=0)


def run(settings: FinetuneSettings) -> Summary:
    """Train as the settings say.

    Raises:
        VanError: see ``van.engine.fit.fit``, ``van.data.folder.read_split`` and ``van.models.load.load``.
    """
    from van.data.folder import read_split
    from van.engine.run_folder import check_run
    from van.preprocess import Preprocess

    check_run(settings.out, {}, resume=settings.resume)
    split = read_split(settings.data, validation_share=settings.validation_share, seed=settings.train.seed)
    settings = dataclasses.replace(settings, train=_fitting(settings.train, len(split.train)))
    seeded_model(settings.train.seed)
    start = _start(settings, split.labels)
    if start.name != settings.model:
        tell(f"the network is {start.name}, which {settings.start} holds, and not --model {settings.model}")
        settings = dataclasses.replace(settings, model=start.name)
    preprocess = start.preprocess
    assert isinstance(preprocess, Preprocess)  # as of every network that classifies
    if settings.size_px:
        preprocess = dataclasses.replace(preprocess, size_px=settings.size_px)
    return train_classifier(
        start.model,
        split,
        model_name=start.name,
        model_options={key: value for key, value in start.options.items() if key != "drop_path_rate"},
        preprocess=preprocess,
        train=settings.train,
        augment=settings.augment,
        mix=settings.mix,
        recipe=flat(settings),
        out=settings.out,
        resume=settings.resume,
    )


def _fitting(train: TrainSettings, pictures: int) -> TrainSettings:
    """The settings, with a batch that is not larger than what there is to train on."""
    largest = pictures // parts(train) * parts(train)
    if not 0 < largest < train.batch_size:
        return train
    tell(f"--batch-size lowered to {largest}: there are {pictures} pictures to train on")
    return dataclasses.replace(train, batch_size=largest)


def _start(settings: FinetuneSettings, labels: Sequence[str]) -> Loaded:
    """The network to train: untrained, from public or own weights, or as the run to resume left it."""
    from van.data.folder import are_synsets
    from van.models.load import Loaded, create, load
    from van.preprocess import Preprocess

    options = {"drop_path_rate": settings.drop_path_rate} if settings.drop_path_rate else {}
    last = settings.out / "last.safetensors"
    if settings.resume and last.exists():  # it holds all that is needed; the weights at the start may be gone
        return load(last, num_classes=len(labels), options=options)
    if settings.start == "scratch":
        model = create(settings.model, num_classes=len(labels), options=options)
        return Loaded(
            model=model,
            name=settings.model,
            options=options,
            task="classify",
            labels=tuple(labels),
            preprocess=Preprocess(),
        )
    source = settings.model if settings.start == "pretrained" else settings.start
    loaded = load(source, num_classes=len(labels), options=options, backbone_only=True)
    loaded.want_classifier()
    for note in loaded.notes:
        tell(note)
    if loaded.labels != tuple(labels) and not loaded.new_head and not are_synsets(labels):
        tell(f"the classifier of {source} was left out: it has as many classes, but other ones")
        network: Any = loaded.model
        network.reset_classifier(len(labels))
    return loaded
