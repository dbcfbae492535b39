"""``van eval CHECKPOINT --data PATH``: evaluate a model on an annotated dataset."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from van.cli.arguments import DISPLAY, INPUT, MODEL, OUTPUT, RUNTIME, Command, parse
from van.cli.verbs import VERBS
from van.errors import UsageError

if TYPE_CHECKING:
    from van.models.load import LoadedModel
    from van.tasks.base import Task
    from van.training.evaluate import Evaluation

MAX_COLUMNS = 6
"""Per-class metrics in the table; --json has all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Flags of ``van eval``."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, an exported model, a public weights file, or a model name such as van_b2."""
    data: Path
    """The dataset, in any format that van train reads; the val split is evaluated."""
    batch_size: int | None = None
    """Images per batch in each process; if not given, 64 for classification and 4 for other tasks."""
    workers: int = 0
    """Data loading processes."""
    device: str = "auto"
    """cpu, cuda, mps, or auto, which takes the first one available of cuda, mps and cpu."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward pass."""
    confusion: Path | None = None
    """Write the confusion matrix to this PNG file; it counts images, or pixels for segmentation."""
    charts: Path | None = None
    """Write the charts of the task to this folder: confusion matrix, reliability diagram, per-class metrics,
    precision-recall curves."""
    tile_size: int = 0
    """Segmentation: predict at the original image size with a sliding window of this side, in pixels; 0 resizes."""
    multi_scale: bool = False
    """Segmentation: average over six scales and horizontal flips."""
    json: bool = False
    """Print JSON instead of tables."""


COMMAND = Command(
    "eval",
    EvalSettings,
    summary=VERBS["eval"],
    details="Metrics depend on the model's task. Unreadable images are reported, count in no metric and set status 1.",
    examples=(
        "van eval runs/digits/best.safetensors --data digits",
        "van eval van_b2 --data imagenet --workers 4 --confusion confusion.png --json",
        "van eval runs/scenes-detect/best.safetensors --data scenes --charts charts",
        "van eval runs/streets/best.safetensors --data streets --multi-scale",
        "van eval digits.onnx --data digits",
        "torchrun --nproc-per-node 2 -m van eval runs/flowers/best.safetensors --data flowers",
    ),
    groups={
        INPUT: ("checkpoint", "data"),
        MODEL: ("tile_size", "multi_scale"),
        OUTPUT: ("confusion", "charts"),
        RUNTIME: ("batch_size", "workers", "device", "precision"),
        DISPLAY: ("json",),
    },
)


def run(arguments: Sequence[str]) -> int:
    """Evaluate, print metrics and draw charts; status 1 if an image could not be read or an output is not finite."""
    settings = parse(COMMAND, arguments)
    _check(settings)
    from van.datasets.evaluation import evaluation_dataset
    from van.export.session import ExportedNetwork
    from van.models.load import to_channels_last
    from van.models.sliding_window import wrap_inference
    from van.predict import load_network
    from van.tasks.build import make_task
    from van.training.distributed import accelerator_context
    from van.training.evaluate import evaluate

    loaded = load_network(settings.checkpoint, device=settings.device)
    exported = isinstance(loaded.model, ExportedNetwork)
    if exported and settings.precision != "fp32":
        raise UsageError(
            f"--precision: expected none for the exported model {settings.checkpoint}, whose precision is fixed, "
            f"got {settings.precision}"
        )
    loaded.check_can_predict()
    _check_confusion(settings, loaded.task, len(loaded.class_names))
    model = wrap_inference(
        loaded.model, task=loaded.task, tile_size=settings.tile_size, multi_scale=settings.multi_scale
    )
    task = make_task(loaded.task, loaded.class_names, loaded.task_options)
    samples = evaluation_dataset(
        settings.data,
        task=loaded.task,
        class_names=loaded.class_names,
        preprocess=loaded.preprocess,
        without_resize=settings.tile_size > 0,
        log=lambda text: print(text, file=sys.stderr),
    )
    with accelerator_context(
        device="cpu" if exported else settings.device, precision=settings.precision
    ) as accelerator:
        evaluation = evaluate(
            task,
            to_channels_last(model.eval(), accelerator.device),
            samples,
            accelerator,
            batch_size=settings.batch_size or (64 if loaded.task == "classify" else 4),
            workers=settings.workers,
            on_batch=_show_progress if accelerator.is_main_process and sys.stderr.isatty() else None,
        )
        is_main_process = accelerator.is_main_process
    if is_main_process:
        _print_notes(settings, loaded)
        _report(settings, task, evaluation)
    return 1 if evaluation.unreadable or not _is_finite(evaluation) else 0


def _print_notes(settings: EvalSettings, loaded: "LoadedModel") -> None:
    """Print what qualifies the metrics: notes on the weights, and training images among the evaluated ones."""
    from van.datasets.evaluation import training_data_warnings

    notes = training_data_warnings(settings.data, loaded.recipe) if loaded.task == "classify" else []
    for note in (*loaded.notes, *notes):
        print(note, file=sys.stderr)


def _check(settings: EvalSettings) -> None:
    """Reject settings that would otherwise fail only after the evaluation."""
    if settings.batch_size is not None and settings.batch_size < 1:
        raise UsageError(f"--batch-size: expected at least 1, got {settings.batch_size}")
    if settings.workers < 0:
        raise UsageError(f"--workers: expected at least 0, got {settings.workers}")
    if settings.confusion is not None and settings.confusion.suffix.lower() != ".png":
        raise UsageError(f"--confusion: expected a file name ending in .png, got {settings.confusion}")
    if settings.charts is not None:
        _check_folder(settings.charts)


def _check_folder(folder: Path) -> None:
    """Reject a folder for charts that is a file or not writable; it need not exist yet."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path())
    if not existing.is_dir():
        raise UsageError(f"--charts {folder}: expected a folder, got the file {existing}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--charts {folder}: {existing} is not writable; choose another folder")


def _check_confusion(settings: EvalSettings, task: str, num_classes: int) -> None:
    """Reject --confusion for a task or a number of classes that has no confusion matrix."""
    from van.tasks.classification import MAX_CONFUSION_CLASSES

    if settings.confusion is None:
        return
    if task not in ("classify", "segment"):
        raise UsageError(f"--confusion: expected a model of the task classify or segment, got {task}; remove it")
    if not 1 < num_classes <= MAX_CONFUSION_CLASSES:
        raise UsageError(f"--confusion: expected 2 to {MAX_CONFUSION_CLASSES:,} classes, got {num_classes}")


def _report(settings: EvalSettings, task: "Task", evaluation: "Evaluation") -> None:
    if settings.json:
        print(json.dumps(_record(settings, task.name, evaluation), indent=2))
    else:
        for name, value in evaluation.metrics.items():
            print(f"{name:<16}{value:.4f}")
        print(f"{'samples':<16}{evaluation.samples}")
        _print_classes(evaluation.details["per_class"])
    if not _is_finite(evaluation):
        print(
            "the model outputs NaN or infinity, so the metrics are not valid; check its weights and --precision",
            file=sys.stderr,
        )
    for name, reason in evaluation.unreadable:
        print(f"skipped, in no metric: {name}: {reason}", file=sys.stderr)
    if settings.confusion is not None or settings.charts is not None:
        _draw(settings, task, evaluation)


def _draw(settings: EvalSettings, task: "Task", evaluation: "Evaluation") -> None:
    from van.checkpoint import atomic_path
    from van.visualization.metric_charts import build_metric_charts, draw_confusion_matrix

    if settings.confusion is not None:
        with atomic_path(settings.confusion) as temporary:
            draw_confusion_matrix(evaluation.details["confusion"], task.class_names, temporary)
        print(f"confusion matrix: {settings.confusion}", file=sys.stderr)
    if settings.charts is not None:
        charts = build_metric_charts(evaluation.details, class_names=task.class_names, monitor=task.monitor)
        for name, draw in charts.items():
            with atomic_path(settings.charts / name) as temporary:
                draw(temporary)
        print(f"charts: {', '.join(charts) or 'none for this task'} in {settings.charts}", file=sys.stderr)


def _print_classes(per_class: Mapping[str, Mapping[str, float]]) -> None:
    """Print one line per class, with its metrics in columns."""
    if not per_class:
        return
    columns = list(dict.fromkeys(column for values in per_class.values() for column in values))
    main = [column for column in columns if column.endswith(("_ap", "_ap50", "_ap75"))]
    columns = main if len(main) == MAX_COLUMNS else columns[:MAX_COLUMNS]  # of boxes and of masks
    width = max(9, *(len(column) + 2 for column in columns))
    print("\n" + f"{'class':<24}" + "".join(f"{column:>{width}}" for column in columns))
    for label, values in per_class.items():
        print(f"{label[:23]:<24}" + "".join(_format_metric(values.get(column), width) for column in columns))


def _format_metric(value: float | None, width: int) -> str:
    """Right-align a count or a fraction; a class without a value gets a dash."""
    if value is None or not math.isfinite(value):
        return f"{'-':>{width}}"
    return f"{value:>{width}}" if isinstance(value, int) else f"{value:>{width}.3f}"


def _record(settings: EvalSettings, task: str, evaluation: "Evaluation") -> dict[str, Any]:
    return {
        "task": task,
        "checkpoint": settings.checkpoint,
        "data": str(settings.data),
        "samples": evaluation.samples,
        "metrics": _without_nan(evaluation.metrics),
        "per_class": {label: _without_nan(values) for label, values in evaluation.details["per_class"].items()},
        "unreadable": [{"image": name, "reason": reason} for name, reason in evaluation.unreadable],
    }


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN and infinity, which JSON does not have, by null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _is_finite(evaluation: "Evaluation") -> bool:
    return all(math.isfinite(value) for value in evaluation.metrics.values())


def _show_progress(done: int, total: int) -> None:
    print(f"\rbatch {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
