"""``van eval CHECKPOINT --data PATH``: evaluate a model on an annotated dataset."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from van import api
from van.cli.arguments import DISPLAY, INPUT, MODEL, OUTPUT, RUNTIME, Command, parse
from van.cli.verbs import VERBS
from van.settings import Positional

_MAX_COLUMNS = 6
"""Per-class metrics in the table; --json has all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Flags of ``van eval``."""

    checkpoint: Annotated[str, Positional("CHECKPOINT")]
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
    options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    result = api.evaluate(options.pop("checkpoint"), **{k: v for k, v in options.items() if k != "json"})
    status = 1 if result.unreadable or not result.is_finite else 0
    if os.environ.get("RANK", "0") != "0":  # torchrun starts several processes; one prints
        return status
    if settings.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        for name, value in result.metrics.items():
            print(f"{name:<16}{value:.4f}")
        print(f"{'samples':<16}{result.samples}")
        _print_classes(result.per_class)
    notes = list(result.notes)
    if not result.is_finite:
        notes.append(
            "the model outputs NaN or infinity, so the metrics are not valid; check its weights and --precision"
        )
    notes += [f"skipped, in no metric: {name}: {reason}" for name, reason in result.unreadable]
    if settings.confusion is not None:
        notes.append(f"confusion matrix: {settings.confusion}")
    if settings.charts is not None:
        notes.append(f"charts: {', '.join(result.charts) or 'none for this task'} in {settings.charts}")
    for note in notes:
        print(note, file=sys.stderr)
    return status


def _print_classes(per_class: Mapping[str, Mapping[str, float]]) -> None:
    """Print one line per class, with its metrics in columns; a class without a value gets a dash."""
    if not per_class:
        return
    columns = list(dict.fromkeys(column for values in per_class.values() for column in values))
    main = [column for column in columns if column.endswith(("_ap", "_ap50", "_ap75"))]
    columns = main if len(main) == _MAX_COLUMNS else columns[:_MAX_COLUMNS]  # of boxes and of masks
    width = max(9, *(len(column) + 2 for column in columns))
    print(f"\n{'class':<24}" + "".join(f"{column:>{width}}" for column in columns))
    for label, values in per_class.items():
        cells = [values.get(column, math.nan) for column in columns]
        shown = [
            "-" if not math.isfinite(cell) else f"{cell}" if isinstance(cell, int) else f"{cell:.3f}" for cell in cells
        ]
        print(f"{label[:23]:<24}" + "".join(f"{cell:>{width}}" for cell in shown))
