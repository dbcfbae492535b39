"""What the recipes of detection and segmentation share: from a marked data set and settings to a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from van.data.scene_augment import SceneAugmentSettings
from van.engine.settings import TrainSettings
from van.errors import UsageError
from van.recipes.begin import check_pictures, check_step, flat, parts, seeded_model, tell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from van.data.marks import Marked
    from van.engine.fit import Summary
    from van.models.load import Loaded
    from van.preprocess import WholePreprocess
    from van.tasks.base import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """What all of them set."""

    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out."""
    model: str = "van_b1"
    """The backbone: van_b0 ... van_b6."""
    start: Annotated[str, tyro.conf.arg(name="from")] = "pretrained"
    """pretrained: the backbone's public weights; scratch: none; or a checkpoint whose backbone is taken."""
    short_px: int = 800
    """What the shorter side of a picture is resized to, where --long-px allows it."""
    long_px: int = 1333
    """Most pixels of the longer side."""
    drop_path_rate: float = 0.1
    """Share of blocks skipped in training, rising to this at the last block."""
    train: TrainSettings = TrainSettings()
    augment: SceneAugmentSettings = SceneAugmentSettings()

    def __post_init__(self) -> None:
        if not 0 < self.short_px <= self.long_px:
            raise UsageError(f"--short-px is {self.short_px}, --long-px {self.long_px}; wanted 0 < short <= long")
        if not 0 <= self.drop_path_rate < 1:
            raise UsageError(f"--drop-path-rate is {self.drop_path_rate}; wanted at least 0 and below 1")


def train_dense(
    settings: Any,
    *,
    task_name: str,
    data: Path,
    head: str,
    head_options: Mapping[str, Any] | None = None,
    colours: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None,
    updates: int = 0,
) -> Summary:
    """Train VAN with ``head`` on the marked pictures in ``data`` into the run folder.

    Args:
        settings: the recipe's own, of ``DenseSettings``.
        task_name: a key of ``van.data.marks.WANTED``.
        head: one of ``van.models.catalogue.HEADS``.
        head_options: of the network, stored with it.
        colours: mean and deviation; those of the starting weights if None.
        updates: length of the run, rounded to whole epochs; 0 leaves it to ``epochs``.

    Raises:
        VanError: see ``van.engine.fit.fit``, ``van.data.find.read_part`` and ``van.models.load.load``.
    """
    from van.data.marked_set import MarkedSet
    from van.data.marks import WANTED
    from van.engine.fit import fit
    from van.engine.job import Job
    from van.engine.run_folder import check_run

    check_run(settings.out, {}, resume=settings.resume)
    want = WANTED[task_name]
    train, validation = _read(data, want)
    settings = dataclasses.replace(settings, train=_fitting(settings.train, len(train.pictures), updates))
    counts = {"classes": len(train.labels), "training_pictures": len(train.pictures)}
    counts["validation_pictures"] = len(validation.pictures)
    check_pictures(settings.out, counts, resume=settings.resume)
    options = {"head": head, **(head_options or {})}
    start = _start(settings)
    if start is not None and start.name != settings.model:
        tell(f"the backbone is {start.name}, which {settings.start} holds, and not --model {settings.model}")
        settings = dataclasses.replace(settings, model=start.name)
    network, preprocess = _network(settings, len(train.labels), options, start)
    if colours is not None:
        preprocess = dataclasses.replace(preprocess, mean=colours[0], std=colours[1])
    seen_px = settings.augment.crop_px or round(settings.short_px * settings.augment.scale[0])
    check_step(network, settings.train, pictures=len(train.pictures), size_px=seen_px)
    _check_head(network, settings.train, size_px=1 if head == "upernet" else seen_px)
    job = Job(
        task=_task(task_name, train),
        model=network,
        model_name=settings.model,
        model_options=options,
        preprocess=preprocess,
        train_set=MarkedSet(train, preprocess, want=want, augment=settings.augment),
        validation_set=MarkedSet(validation, preprocess, want=want),
        settings=settings.train,
        recipe={**flat(settings), **counts},
    )
    return fit(job, settings.out, resume=settings.resume)


def _read(data: Path, want: str) -> tuple[Marked, Marked]:
    from van.data.check import quick_check
    from van.data.find import check_labels, read_part
    from van.data.marks import Problems

    parts_found = []
    for part in ("train", "val"):
        problems = Problems(collect=True)
        found = read_part(data, part, want=want, problems=problems)
        left_out = problems.tolerate(marks=sum(len(picture.marks) for picture in found.pictures))
        if left_out:
            tell(f"{part}: {len(left_out)} damaged marks, such as {left_out[0]}; see van data check {data}")
        quick_check(found, want=want)
        parts_found.append(found)
    train, validation = parts_found
    return train, check_labels(validation, train.labels)


def _fitting(train: TrainSettings, pictures: int, updates: int) -> TrainSettings:
    """The settings with a batch that can be filled, and with as many epochs as the updates make."""
    largest = pictures // parts(train) * parts(train)
    if 0 < largest < train.batch_size:
        tell(f"--batch-size lowered to {largest}: there are {pictures} pictures to train on")
        train = dataclasses.replace(train, batch_size=largest)
    if updates:
        epochs = max(1, round(updates / max(1, pictures // train.batch_size)))
        tell(f"{updates} updates are {epochs} {'epoch' if epochs == 1 else 'epochs'} of {pictures} pictures")
        train = dataclasses.replace(train, epochs=epochs)
    return train


def _start(settings: Any) -> Loaded | None:
    """The weights that the backbone starts from, if any."""
    from van.models.load import load

    last = settings.out / "last.safetensors"
    if settings.resume and last.exists():  # it holds all that is needed; the weights at the start may be gone
        return load(last, num_classes=0)
    if settings.start == "scratch":
        if settings.train.batch_norm == "frozen":
            tell("--from scratch with --batch-norm frozen: the statistics stay those of no picture; train learns them")
        return None
    return load(settings.model if settings.start == "pretrained" else settings.start, num_classes=0)


def _network(
    settings: Any, classes: int, options: Mapping[str, Any], start: Loaded | None
) -> tuple[nn.Module, WholePreprocess]:
    """The network with its starting weights, and the rule its pictures go through."""
    from van.models.load import create, start_backbone
    from van.preprocess import HALF, WholePreprocess

    seeded_model(settings.train.seed)
    rate = {"drop_path_rate": settings.drop_path_rate} if settings.drop_path_rate else {}
    network = create(settings.model, num_classes=classes, options={**options, **rate})
    mean, std = HALF, HALF
    if start is not None:
        for note in start_backbone(network, start).notes:
            tell(note)
        mean, std = start.preprocess.mean, start.preprocess.std
    return network, WholePreprocess(short_px=settings.short_px, long_px=settings.long_px, mean=mean, std=std)


def _check_head(network: Any, train: TrainSettings, *, size_px: int) -> None:
    """Refuse one picture a step where a head's BatchNorm, which is always learnt, would see a single pixel of it.

    Args:
        size_px: shorter side of a training picture; 1 for a head that pools all of it to a pixel.

    Raises:
        UsageError: it would.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if size_px > 32 or train.batch_size // parts(train) > 1:
        return
    of_backbone = set(network.backbone.modules())
    if any(isinstance(module, _BatchNorm) and module not in of_backbone for module in network.modules()):
        raise UsageError(
            f"--batch-size {train.batch_size} is one picture a step, of which the BatchNorm of this head sees a single "
            "pixel; raise --batch-size"
        )


def _task(name: str, marked: Marked) -> Task:
    from van.tasks.build import make_task

    options: dict[str, Any] = {}
    if name in ("detect", "instances"):
        options = {"category_ids": marked.category_ids}
    elif name == "panoptic":
        options = {"things": marked.things}
    return make_task(name, marked.labels, options)
