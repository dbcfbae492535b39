"""``van eval CHECKPOINT --data FOLDER``: how good a network is on labelled pictures."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from van.cli.arguments import parse
from van.errors import UsageError

if TYPE_CHECKING:
    from van.engine.evaluate import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Flags of ``van eval``."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, a public weights file, or a model name such as van_b2."""
    data: Path
    """A folder of class folders; its val, valid, validation or test folder is taken where there is one."""
    batch_size: int = 64
    """Pictures at once, in each process."""
    workers: int = 0
    """Processes that read pictures."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the first there is."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass."""
    confusion: Path | None = None
    """Draw the confusion matrix into this PNG."""
    json: bool = False
    """Print JSON instead of tables."""


def run(arguments: Sequence[str]) -> int:
    """Measure, print, draw; status 1 if a picture could not be read."""
    settings = parse(
        EvalSettings,
        arguments,
        verb="eval",
        description="Measure top-1, top-5 and loss. Unreadable pictures are named, count in no metric, give status 1.",
        examples=(
            "van eval runs/digits/best.safetensors --data digits",
            "van eval van_b2 --data imagenet --workers 4 --confusion confusion.png --json",
            "torchrun --nproc-per-node 2 -m van eval runs/flowers/best.safetensors --data flowers",
        ),
    )
    _check(settings)
    from van.data.folder import evaluation_items
    from van.data.pictures import PictureSet
    from van.engine.distributed import started
    from van.engine.evaluate import evaluate
    from van.models.load import in_channels_last, load
    from van.tasks.classify import MOST_CLASSES_IN_A_TABLE, Classify

    loaded = load(settings.checkpoint)
    loaded.want_classifier()
    classes = len(loaded.labels)
    if settings.confusion is not None and not 1 < classes <= MOST_CLASSES_IN_A_TABLE:
        raise UsageError(f"--confusion: there are {classes} classes; wanted 2 to {MOST_CLASSES_IN_A_TABLE:,}")
    samples = PictureSet(evaluation_items(settings.data, loaded.labels), loaded.preprocess)
    with started(device=settings.device, precision=settings.precision) as accelerator:
        model = in_channels_last(loaded.model, accelerator.device)
        found = evaluate(
            Classify(loaded.labels),
            model,
            samples,
            accelerator,
            batch_size=settings.batch_size,
            workers=settings.workers,
            on_batch=_show_progress if accelerator.is_main_process and sys.stderr.isatty() else None,
        )
        main = accelerator.is_main_process
    if main:
        for note in (*loaded.notes, *_flattered(settings.data, loaded.recipe)):
            print(note, file=sys.stderr)
        _report(settings, loaded.labels, found)
    return 1 if found.unreadable or not _is_finite(found) else 0


def _check(settings: EvalSettings) -> None:
    """Refuse what would only fail after the work is done."""
    if settings.batch_size < 1 or settings.workers < 0:
        raise UsageError(
            f"--batch-size is {settings.batch_size}, --workers {settings.workers}; wanted at least 1 and 0"
        )
    if settings.confusion is not None and settings.confusion.suffix.lower() != ".png":
        raise UsageError(f"--confusion is {settings.confusion}; wanted a name ending in .png")


def _flattered(data: Path, recipe: Mapping[str, Any]) -> list[str]:
    """A warning where the network has learnt from the very folder that it is measured on."""
    from van.data.folder import evaluation_folder

    learnt = recipe.get("data")
    if not isinstance(learnt, str):
        return []
    if evaluation_folder(data).resolve() not in (Path(learnt).resolve(), Path(learnt, "train").resolve()):
        return []
    return [f"{data} holds the pictures that this network learnt from: it will do worse on new ones"]


def _report(settings: EvalSettings, labels: Sequence[str], found: "Evaluation") -> None:
    confusion = found.details["confusion"]
    if settings.json:
        print(json.dumps(_record(settings, labels, found), indent=2))
    else:
        for name, value in found.metrics.items():
            print(f"{name:<8}{value:.4f}")
        print(f"samples {found.samples}")
        if confusion is not None:
            print(f"\n{'class':<24}{'pictures':>9}{'right':>9}{'share':>9}")
            for label, count, right in _per_class(labels, confusion):
                print(f"{label[:23]:<24}{count:>9}{right:>9}{right / count:>9.3f}")
    if not _is_finite(found):
        print("the network answers with NaN or infinity, so these figures mean nothing; look at it", file=sys.stderr)
    for name, reason in found.unreadable:
        print(f"unreadable, in no metric: {name}: {reason}", file=sys.stderr)
    if settings.confusion is not None and confusion is not None:
        from van.checkpoint import atomic_path
        from van.results.charts import draw_confusion

        with atomic_path(settings.confusion) as temporary:
            draw_confusion(confusion, labels, temporary)
        print(f"confusion matrix: {settings.confusion}", file=sys.stderr)


def _record(settings: EvalSettings, labels: Sequence[str], found: "Evaluation") -> dict[str, Any]:
    confusion = found.details["confusion"]
    per_class = [] if confusion is None else _per_class(labels, confusion)
    return {
        "task": "classify",
        "checkpoint": settings.checkpoint,
        "data": str(settings.data),
        "samples": found.samples,
        "metrics": {name: value if math.isfinite(value) else None for name, value in found.metrics.items()},
        "per_class": {label: {"samples": count, "top1": right / count} for label, count, right in per_class},
        "unreadable": [{"picture": name, "reason": reason} for name, reason in found.unreadable],
    }


def _is_finite(found: "Evaluation") -> bool:
    return all(math.isfinite(value) for value in found.metrics.values())


def _per_class(labels: Sequence[str], confusion: Any) -> list[tuple[str, int, int]]:
    counts, right = confusion.sum(axis=1), confusion.diagonal()
    return [(label, int(counts[i]), int(right[i])) for i, label in enumerate(labels) if counts[i]]


def _show_progress(done: int, total: int) -> None:
    print(f"\rbatch {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
