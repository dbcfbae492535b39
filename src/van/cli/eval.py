"""``van eval CHECKPOINT --data FOLDER``: how good a network is on labelled pictures."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from van.cli.arguments import parse
from van.errors import UsageError

if TYPE_CHECKING:
    from van.engine.evaluate import Evaluation
    from van.models.load import Loaded
    from van.tasks.base import Task


MOST_COLUMNS = 6
"""Figures of each class in the table; --json has them all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Flags of ``van eval``."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, an exported file, a public weights file, or a model name such as van_b2."""
    data: Path
    """Class folders, or a set with boxes or masks in any layout that can be trained on; its held-out part is taken."""
    batch_size: int | None = None
    """Pictures at once, in each process; 64 for classes, 4 for whole pictures if not given."""
    workers: int = 0
    """Processes that read pictures."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the first there is."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass."""
    confusion: Path | None = None
    """Draw the confusion matrix into this PNG; of pictures, or of pixels for segmentation."""
    charts: Path | None = None
    """Draw all charts that the task has into this folder: confusion, reliability, each class, precision over recall."""
    tile_px: int = 0
    """Segmentation: see pictures at their own size through a sliding window of so many pixels."""
    multi_scale: bool = False
    """Segmentation: the mean over six scales and their mirror images."""
    json: bool = False
    """Print JSON instead of tables."""


def run(arguments: Sequence[str]) -> int:
    """Measure, print, draw; status 1 if a picture could not be read."""
    settings = parse(
        EvalSettings,
        arguments,
        verb="eval",
        description="Measure a network by its task: top-1 and top-5; COCO's figures of boxes and masks; mean IoU; "
        "panoptic quality. Unreadable pictures are named, count in no metric, give status 1.",
        examples=(
            "van eval runs/digits/best.safetensors --data digits",
            "van eval van_b2 --data imagenet --workers 4 --confusion confusion.png --json",
            "van eval runs/scenes-detect/best.safetensors --data scenes --charts charts",
            "van eval runs/streets/best.safetensors --data streets --multi-scale",
            "van eval digits.onnx --data digits",
            "torchrun --nproc-per-node 2 -m van eval runs/flowers/best.safetensors --data flowers",
        ),
    )
    _check(settings)
    from van.data.evaluation import evaluation_set
    from van.engine.distributed import started
    from van.engine.evaluate import evaluate
    from van.export.session import ExportedNetwork
    from van.models.load import in_channels_last
    from van.models.tiles import in_view
    from van.predict import load_network
    from van.tasks.build import make_task

    loaded = load_network(settings.checkpoint, device=settings.device)
    exported = isinstance(loaded.model, ExportedNetwork)
    if exported and settings.precision != "fp32":
        raise UsageError(f"--precision is {settings.precision}, and {settings.checkpoint} has its own; leave it out")
    loaded.want_answers()
    _check_confusion(settings, loaded.task, len(loaded.labels))
    network = in_view(loaded.model, task=loaded.task, tile_px=settings.tile_px, multi_scale=settings.multi_scale)
    task = make_task(loaded.task, loaded.labels, loaded.task_options)
    samples = evaluation_set(
        settings.data,
        task=loaded.task,
        labels=loaded.labels,
        preprocess=loaded.preprocess,
        own_size=settings.tile_px > 0,
        tell=lambda text: print(text, file=sys.stderr),
    )
    with started(device="cpu" if exported else settings.device, precision=settings.precision) as accelerator:
        found = evaluate(
            task,
            in_channels_last(network.eval(), accelerator.device),
            samples,
            accelerator,
            batch_size=settings.batch_size or (64 if loaded.task == "classify" else 4),
            workers=settings.workers,
            on_batch=_show_progress if accelerator.is_main_process and sys.stderr.isatty() else None,
        )
        main = accelerator.is_main_process
    if main:
        _tell(settings, loaded)
        _report(settings, task, found)
    return 1 if found.unreadable or not _is_finite(found) else 0


def _tell(settings: EvalSettings, loaded: "Loaded") -> None:
    """What must be known of the network before its figures are believed."""
    from van.data.evaluation import flattered

    notes = flattered(settings.data, loaded.recipe) if loaded.task == "classify" else []
    for note in (*loaded.notes, *notes):
        print(note, file=sys.stderr)


def _check(settings: EvalSettings) -> None:
    """Refuse what would only fail after the work is done."""
    if (settings.batch_size is not None and settings.batch_size < 1) or settings.workers < 0:
        raise UsageError(
            f"--batch-size is {settings.batch_size}, --workers {settings.workers}; wanted at least 1 and 0"
        )
    if settings.confusion is not None and settings.confusion.suffix.lower() != ".png":
        raise UsageError(f"--confusion is {settings.confusion}; wanted a name ending in .png")
    if settings.charts is not None:
        _check_folder(settings.charts)


def _check_folder(folder: Path) -> None:
    """Refuse a folder for charts that is none, or that no file can be put into."""
    there = next((part for part in (folder, *folder.absolute().parents) if part.exists()), Path())
    if not there.is_dir():
        raise UsageError(f"--charts {folder}: {there} is a file; wanted a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--charts {folder}: {there} cannot be written to; choose another folder")


def _check_confusion(settings: EvalSettings, task: str, classes: int) -> None:
    from van.tasks.classify import MOST_CLASSES_IN_A_TABLE

    if settings.confusion is None:
        return
    if task not in ("classify", "segment"):
        raise UsageError(f"--confusion: a network that was made for the task {task} has none; leave it out")
    if not 1 < classes <= MOST_CLASSES_IN_A_TABLE:
        raise UsageError(f"--confusion: there are {classes} classes; wanted 2 to {MOST_CLASSES_IN_A_TABLE:,}")


def _report(settings: EvalSettings, task: "Task", found: "Evaluation") -> None:
    if settings.json:
        print(json.dumps(_record(settings, task.name, found), indent=2))
    else:
        for name, value in found.metrics.items():
            print(f"{name:<16}{value:.4f}")
        print(f"{'samples':<16}{found.samples}")
        _print_classes(found.details["per_class"])
    if not _is_finite(found):
        print("the network answers with NaN or infinity, so these figures mean nothing; look at it", file=sys.stderr)
    for name, reason in found.unreadable:
        print(f"unreadable, in no metric: {name}: {reason}", file=sys.stderr)
    if settings.confusion is not None or settings.charts is not None:
        _draw(settings, task, found)


def _draw(settings: EvalSettings, task: "Task", found: "Evaluation") -> None:
    from van.checkpoint import atomic_path
    from van.results.quality import charts_of, draw_confusion

    if settings.confusion is not None:
        with atomic_path(settings.confusion) as temporary:
            draw_confusion(found.details["confusion"], task.labels, temporary)
        print(f"confusion matrix: {settings.confusion}", file=sys.stderr)
    if settings.charts is not None:
        charts = charts_of(found.details, labels=task.labels, headline=task.headline)
        for name, draw in charts.items():
            with atomic_path(settings.charts / name) as temporary:
                draw(temporary)
        print(f"charts: {', '.join(charts) or 'the task has none'} in {settings.charts}", file=sys.stderr)


def _print_classes(per_class: Mapping[str, Mapping[str, float]]) -> None:
    """One line for each class, its figures in columns."""
    if not per_class:
        return
    columns = list(dict.fromkeys(column for values in per_class.values() for column in values))
    main = [column for column in columns if column.endswith(("_ap", "_ap50", "_ap75"))]
    columns = main if len(main) == MOST_COLUMNS else columns[:MOST_COLUMNS]  # those of boxes and of masks
    width = max(9, *(len(column) + 2 for column in columns))
    print("\n" + f"{'class':<24}" + "".join(f"{column:>{width}}" for column in columns))
    for label, values in per_class.items():
        print(f"{label[:23]:<24}" + "".join(_figure(values.get(column), width) for column in columns))


def _figure(value: float | None, width: int) -> str:
    """A count or a share, right-aligned; a dash where a class has none."""
    if value is None or not math.isfinite(value):
        return f"{'-':>{width}}"
    return f"{value:>{width}}" if isinstance(value, int) else f"{value:>{width}.3f}"


def _record(settings: EvalSettings, task: str, found: "Evaluation") -> dict[str, Any]:
    return {
        "task": task,
        "checkpoint": settings.checkpoint,
        "data": str(settings.data),
        "samples": found.samples,
        "metrics": _without_nan(found.metrics),
        "per_class": {label: _without_nan(values) for label, values in found.details["per_class"].items()},
        "unreadable": [{"picture": name, "reason": reason} for name, reason in found.unreadable],
    }


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN; what has no value is null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _is_finite(found: "Evaluation") -> bool:
    return all(math.isfinite(value) for value in found.metrics.values())


def _show_progress(done: int, total: int) -> None:
    print(f"\rbatch {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
