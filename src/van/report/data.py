"""The data of a report: settings and log of the run, an evaluation on its validation images, and inference speed."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from van.datasets.dense_dataset import DenseDataset
from van.datasets.evaluation import evaluation_dataset, training_data_warnings
from van.datasets.folder import load_image_folder
from van.datasets.image_dataset import ImageDataset
from van.device import to_channels_last
from van.errors import DataError, VanError
from van.model import Model
from van.preprocess import CenterCropPreprocess, ResizePreprocess
from van.report.errors import ErrorCase, ErrorCollector
from van.report.speed import count_macs, measure_speed
from van.report.views import illustrate
from van.tasks.base import Sample, Task
from van.training.distributed import accelerator_context
from van.training.evaluate import Evaluation, evaluate
from van.training.run_folder import read_log, read_settings

MONITORS = ("top1", "mask_ap", "box_ap", "mean_iou", "pq")
"""The monitored metric of each task; masks before boxes, because instance segmentation logs both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of ``collect_report_data``.

    Args:
        data: dataset folder with the validation images; that of the run's settings if None.
        limit: maximum number of images to evaluate; 0 for all.
        num_errors: number of errors to show.
        speed: measure inference speed.
        device: cpu, cuda, mps or auto.
        batch_size: images per batch of the evaluation; by the task if None.
        on_progress: called with a message at each step.
    """

    data: Path | None = None
    limit: int = 0
    num_errors: int = 12
    speed: bool = True
    device: str = "auto"
    batch_size: int | None = None
    on_progress: Callable[[str], object] = lambda _: None


@dataclasses.dataclass(kw_only=True)
class ReportData:
    """Everything that the page shows; ``missing`` has the reasons for values that are None or empty.

    Args:
        run, recipe, versions, records: the run folder, its settings and its log.
        notes: remarks about the evaluation.
        checkpoint: path, size in bytes and hash of the best checkpoint.
        model, task: of that checkpoint; everything below was computed with them.
        input_size: (rows, columns) of the network's input.
        macs: multiply-accumulates of one image of that size.
        evaluation: of the checkpoint on images of the dataset ``source``, of which ``available`` are for validation.
        errors: the worst predictions, with their views.
        speed: see ``measure_speed``.
    """

    run: Path
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    records: list[dict[str, Any]]
    missing: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    checkpoint: dict[str, Any] | None = None
    model: Model | None = None
    task: Task | None = None
    input_size: tuple[int, int] = (0, 0)
    macs: int | None = None
    evaluation: Evaluation | None = None
    source: str = ""
    available: int = 0
    errors: tuple[ErrorCase, ...] = ()
    speed: dict[str, Any] | None = None

    @property
    def monitor(self) -> str | None:
        """The name of the monitored metric, if it is known."""
        logged = {name for record in self.records if record["kind"] == "eval" for name in record}
        return next((m for m in MONITORS if m in logged), None) if self.task is None else self.task.monitor

    @property
    def parameters(self) -> int:
        """The number of parameters of the network."""
        return 0 if self.model is None else sum(parameter.numel() for parameter in self.model.network.parameters())

    @property
    def details(self) -> dict[str, Any]:
        """The details of the evaluation; empty without one."""
        return {} if self.evaluation is None else self.evaluation.details

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % confidence interval of each metric that has one."""
        return self.details.get("intervals", {})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without images; values that are not finite are None."""
        plain: dict[str, Any] = {
            "run": str(self.run),
            "recipe": self.recipe,
            "versions": self.versions,
            "checkpoint": self.checkpoint,
            "network": None,
            "data": None,
            "metrics": None,
            "speed": self.speed,
            "evaluations": [record for record in self.records if record["kind"] == "eval"],
            "missing": self.missing,
            "notes": self.notes,
        }
        if self.model is not None:
            plain["network"] = {
                "model": self.model.name,
                "options": self.model.options,
                "task": self.model.task,
                "classes": len(self.model.class_names),
                "parameters": self.parameters,
                "macs": self.macs,
                "rows": self.input_size[0],
                "columns": self.input_size[1],
                "preprocess": self.model.preprocess.to_dict(),
                "metrics_when_saved": self.model.metrics,
            }
        if self.evaluation is not None:
            plain |= {
                "data": self.source,
                "samples": self.evaluation.samples,
                "available": self.available,
                "metrics": self.evaluation.metrics,
                "intervals": self.intervals,
                "per_class": self.details["per_class"],
                "unreadable": [{"image": name, "reason": reason} for name, reason in self.evaluation.unreadable],
                "errors": [error.to_dict() for error in self.errors],
            }
        return _to_plain(plain)


def collect_report_data(run: Path, options: ReportOptions, *, model: Model | None = None) -> ReportData:
    """Read the run folder, evaluate the best checkpoint and measure its speed, as far as the files exist.

    Args:
        run: the run folder.
        options: what to collect.
        model: the model of the best checkpoint, if it is loaded already.

    Raises:
        DataError: ``run`` is not a run folder, or ``options.data`` does not fit the network.
        UsageError: the device is unavailable.
    """
    settings = read_settings(run)
    recipe = settings.get("recipe") if isinstance(settings, dict) else None
    if not isinstance(recipe, dict):
        raise DataError(f"{run / 'settings.json'}: recipe: expected the settings of van train, got {recipe!r}")
    report = ReportData(
        run=run,
        recipe=recipe,
        versions={**settings.get("versions", {}), "machine": settings.get("machine", "")},
        records=[
            record
            for record in read_log(run / "log.jsonl")
            if isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)
        ],
    )
    with accelerator_context(device=options.device) as accelerator:
        best = run / "best.safetensors"
        if not best.exists():
            report.missing.append(_why_no_checkpoint(best, report))
            return report
        with best.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        report.checkpoint = {"path": str(best), "bytes": best.stat().st_size, "sha256": digest}
        try:
            model = model or Model.load(best)
            model.check_can_predict()
        except VanError as error:
            report.missing.append(f"Metrics, errors and speed: the checkpoint cannot be loaded: {error}")
            return report
        report.model, report.task = model, model.make_task()
        _measure(report, model, report.task, options, accelerator)
    return report


def _measure(report: ReportData, model: Model, task: Task, options: ReportOptions, accelerator: Accelerator) -> None:
    """Evaluate the model and measure its cost; a step that fails adds its reason and the others continue."""

    @contextlib.contextmanager
    def or_missing(part: str, *errors: type[Exception], hint: str = "") -> Generator[None, None, None]:
        try:
            yield
        except errors as error:
            report.missing.append(f"{part}: {_sentence(error)}{hint}")

    samples, image_size = None, (1, 1)
    options.on_progress("loading the validation images")
    parts = "Metrics, per-class metrics and errors: the validation images were not found"
    may_fail = () if options.data is not None else (VanError,)  # a folder that was given explicitly must exist
    with or_missing(parts, *may_fail, hint=" Give their folder with --data."):
        samples, report.source = find_validation_data(report, model, options.data)
    if samples is not None:
        report.available, expected = len(samples), report.recipe.get("validation_images")
        if isinstance(expected, int) and expected != len(samples):
            report.notes.append(
                f"The dataset has {len(samples):,} validation images; the run was validated on {expected:,}. The "
                "metrics of this report are not comparable with those of training."
            )
        count = min(options.limit or len(samples), len(samples))
        collector = ErrorCollector(task, max_errors=options.num_errors)
        options.on_progress(f"evaluating {count:,} images")
        with or_missing("Metrics: the network could not be evaluated", VanError):
            report.evaluation = evaluate(
                task,
                to_channels_last(model.network.eval(), accelerator.device),
                EvenSubset(samples, count),
                accelerator,
                batch_size=options.batch_size or (64 if model.task == "classify" else 4),
                on_batch=lambda done, total: options.on_progress(f"evaluated batch {done} of {total}"),
                metric=collector,
            )
            if not all(math.isfinite(value) for value in report.evaluation.metrics.values()):
                report.notes.append(
                    "The network returns NaN or infinity: its metrics are meaningless; check the weights."
                )
            options.on_progress(f"explaining {len(report.details['errors'])} predictions")
            report.errors, reason = illustrate(report.details["errors"], samples, model, device=accelerator.device)
            report.missing += [f"Explanations: {_sentence(reason)}"] if reason else []
        image_size = collector.image_size
    rule = model.preprocess
    is_resize = isinstance(rule, ResizePreprocess)
    report.input_size = rule.resized_size(image_size) if is_resize else (rule.image_size, rule.image_size)
    options.on_progress("counting multiply-accumulates")
    with or_missing("Multiply-accumulates", VanError, RuntimeError, ValueError):
        report.macs = count_macs(model, task, report.input_size, accelerator.device)
    if options.speed:
        options.on_progress("measuring inference speed")
        batch_sizes = (1, 16 if model.task == "classify" else 4)
        with or_missing("Inference speed", VanError, RuntimeError):
            report.speed = measure_speed(model, task, report.input_size, accelerator.device, batch_sizes=batch_sizes)


class EvenSubset:
    """A number of evenly spaced samples, so that a dataset sorted by class keeps all classes."""

    def __init__(self, samples: ImageDataset | DenseDataset, count: int) -> None:
        self._samples, self._count = samples, min(count, len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index * len(self._samples) // self._count]


def find_validation_data(
    report: ReportData, model: Model, data: Path | None = None
) -> tuple[ImageDataset | DenseDataset, str]:
    """Load the validation images of a run again, and return them with a description of their source.

    A run stores the path of its dataset, not the dataset.

    Args:
        report: with the run folder and its settings; warnings about invalid annotations and about images that the
            network was trained on are added to its notes.
        model: the run's model.
        data: dataset folder to use instead of the stored one; the training folder is split as in training.

    Raises:
        DataError: the settings name no dataset, or the dataset is missing or does not fit the network.
        MissingExtra: the digits are needed and scikit-learn is not installed.
    """
    recipe, classes = report.recipe, model.class_names
    trained_on = Path(recipe["data"]) if isinstance(recipe.get("data"), str) else None
    if data is None and recipe.get("recipe") == "digits" and recipe.get("images") is None:
        from van.datasets.digits import LABELS, load_digits

        if classes != LABELS or not isinstance(model.preprocess, CenterCropPreprocess):
            raise DataError(
                f"recipe digits: expected a classifier of {', '.join(LABELS)}, got the classes {', '.join(classes[:8])}"
            )
        return ImageDataset(load_digits().validation, model.preprocess), "the digits of scikit-learn"
    root = data or trained_on
    if root is None and isinstance(recipe.get("images"), str):
        root = Path(recipe["images"])
    elif root is None and str(recipe.get("recipe")).startswith("scenes-"):
        root = report.run / "scenes"  # written there by default, in a folder that may have been moved since
    if root is None:
        raise DataError(
            f"{report.run / 'settings.json'}: data: expected the dataset folder, got nothing; give it with --data"
        )
    if model.task == "classify" and trained_on is not None and root.resolve() == trained_on.resolve():
        split = load_image_folder(root, val_fraction=recipe.get("val_fraction", 0.2), seed=recipe.get("seed", 0))
        if split.class_names != classes:
            raise DataError(
                f"{root}: expected the classes {', '.join(classes[:8])} of the run, got "
                f"{', '.join(split.class_names[:8])}; give the unchanged folder with --data"
            )
        return ImageDataset(split.validation, model.preprocess), str(root)  # type: ignore[arg-type]
    if model.task == "classify":
        report.notes += training_data_warnings(root, recipe)
    samples = evaluation_dataset(
        root, task=model.task, class_names=classes, preprocess=model.preprocess, log=report.notes.append
    )
    return samples, str(root)


def _why_no_checkpoint(best: Path, report: ReportData) -> str:
    """Return why there is no best checkpoint: none was written yet, or the file was removed."""
    name = report.monitor or ""
    if any(math.isfinite(record.get(name, math.nan)) for record in report.records):
        return f"{best} is missing, although the log has evaluations; restore it and run van report again."
    return (
        "There is no best checkpoint yet, because no evaluation of this run has finished with a finite metric; "
        "run van report again later."
    )


def _sentence(error: Exception | str) -> str:
    """Return the first line of an error with a period at the end."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{line}."


def _to_plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _to_plain(inner) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_to_plain(inner) for inner in value]
    return value
