"""The data of a report: settings and log of the run, an evaluation on its validation images, and inference speed."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from van.device import to_channels_last
from van.errors import DataError, VanError
from van.model import Model
from van.report.error_collection import ErrorCollectingTask
from van.report.speed import Speed, count_macs, measure_speed, network_input_size
from van.report.validation_data import EvenSubset, ValidationData, find_validation_data
from van.report.views import IllustratedError, illustrate
from van.tasks.base import Task
from van.tasks.registry import make_task
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """The file of the best checkpoint, its size in bytes and its hash."""

    path: Path
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkInfo:
    """The network of the best checkpoint.

    Args:
        parameters: number of parameters.
        input_size: (rows, columns) of the network's input.
        macs: multiply-accumulates of one image of that size; None if they could not be counted.
    """

    loaded: Model
    task: Task
    parameters: int
    input_size: tuple[int, int]
    macs: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """An evaluation of the best checkpoint.

    Args:
        source: description of the dataset.
        available: number of validation images, of which ``evaluation.samples`` were evaluated.
        errors: the worst predictions, with their views.
    """

    source: str
    available: int
    evaluation: Evaluation
    errors: tuple[IllustratedError, ...]

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % confidence interval of each metric that has one."""
        return self.evaluation.details.get("intervals", {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page shows; ``missing`` has the reasons for values that are None or empty."""

    run: Path
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    records: list[dict[str, Any]]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()
    checkpoint: CheckpointFile | None = None
    network: NetworkInfo | None = None
    validation: ValidationResult | None = None
    speed: Speed | None = None

    @property
    def monitor(self) -> str | None:
        """The name of the monitored metric, if it is known."""
        return _logged_monitor(self.records) if self.network is None else self.network.task.monitor

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without images; values that are not finite are None."""
        plain: dict[str, Any] = {
            "run": str(self.run),
            "recipe": dict(self.recipe),
            "versions": dict(self.versions),
            "checkpoint": self.checkpoint and dataclasses.asdict(self.checkpoint) | {"path": str(self.checkpoint.path)},
            "network": self.network and _network_to_dict(self.network),
            "data": None,
            "metrics": None,
            "speed": self.speed and self.speed.to_dict(),
            "evaluations": [record for record in self.records if record["kind"] == "eval"],
            "missing": list(self.missing),
            "notes": list(self.notes),
        }
        if self.validation is not None:
            evaluation = self.validation.evaluation
            plain |= {
                "data": self.validation.source,
                "samples": evaluation.samples,
                "available": self.validation.available,
                "metrics": evaluation.metrics,
                "intervals": self.validation.intervals,
                "per_class": evaluation.details["per_class"],
                "unreadable": [{"image": name, "reason": reason} for name, reason in evaluation.unreadable],
                "errors": [error.to_dict() for error in self.validation.errors],
            }
        return _to_plain(plain)


def collect_report_data(run: Path, options: ReportOptions) -> ReportData:
    """Read the run folder, evaluate the best checkpoint and measure its speed, as far as the files exist.

    Raises:
        DataError: ``run`` is not a run folder, or ``options.data`` does not fit the network.
        UsageError: the device is unavailable.
    """
    settings = read_settings(run)
    recipe = settings.get("recipe") if isinstance(settings, dict) else None
    if not isinstance(recipe, dict):
        raise DataError(f"{run / 'settings.json'}: recipe: expected the settings of van train, got {recipe!r}")
    records = [record for record in read_log(run / "log.jsonl") if _is_record(record)]
    collector = _Collector(run, recipe, records, options)
    collector.collect()
    return ReportData(
        run=run,
        recipe=recipe,
        versions={**settings.get("versions", {}), "machine": settings.get("machine", "")},
        records=records,
        missing=tuple(collector.missing),
        notes=tuple(collector.notes),
        checkpoint=collector.checkpoint,
        network=collector.network,
        validation=collector.validation,
        speed=collector.speed,
    )


class _Collector:
    """The steps of the collection; a step that fails adds its reason to ``missing`` and the others continue."""

    def __init__(
        self, run: Path, recipe: Mapping[str, Any], records: list[dict[str, Any]], options: ReportOptions
    ) -> None:
        self.run, self.recipe, self.records, self.options = run, recipe, records, options
        self.missing: list[str] = []
        self.notes: list[str] = []
        self.checkpoint: CheckpointFile | None = None
        self.network: NetworkInfo | None = None
        self.validation: ValidationResult | None = None
        self.speed: Speed | None = None

    def collect(self) -> None:
        """Run all steps for which the files exist."""
        with accelerator_context(device=self.options.device) as accelerator:
            best = self.run / "best.safetensors"
            if not best.exists():
                self.missing.append(_why_no_checkpoint(best, self.records))
                return
            self.checkpoint = CheckpointFile(path=best, bytes=best.stat().st_size, sha256=_sha256(best))
            try:
                loaded = Model.load(best)
                loaded.check_can_predict()
            except VanError as error:
                self.missing.append(f"Metrics, errors and speed: the checkpoint cannot be loaded: {error}")
                return
            data = self._find_data(loaded)
            self.network = self._describe_network(loaded, data)
            if data is not None:
                self._evaluate(self.network, data, accelerator)
            if self.options.speed:
                self._measure_speed(self.network, accelerator.device)

    def _find_data(self, loaded: Model) -> ValidationData | None:
        self.options.on_progress("loading the validation images")
        try:
            return find_validation_data(self.run, self.recipe, loaded, data=self.options.data, log=self.notes.append)
        except VanError as error:
            if self.options.data is not None:
                raise
            self.missing.append(
                f"Metrics, per-class metrics and errors: the validation images were not found. {_sentence(error)} "
                "Give their folder with --data."
            )
            return None

    def _describe_network(self, loaded: Model, data: ValidationData | None) -> NetworkInfo:
        self.options.on_progress("counting multiply-accumulates")
        task = make_task(loaded.task, loaded.class_names, loaded.task_options)
        input_size, macs = network_input_size(loaded, _first_image_size(data)), None
        try:
            macs = count_macs(loaded, task, input_size)
        except (VanError, RuntimeError, ValueError) as error:
            self.missing.append(f"Multiply-accumulates: {_sentence(error)}")
        parameters = sum(parameter.numel() for parameter in loaded.network.parameters())
        return NetworkInfo(loaded=loaded, task=task, parameters=parameters, input_size=input_size, macs=macs)

    def _evaluate(self, network: NetworkInfo, data: ValidationData, accelerator: Accelerator) -> None:
        samples = data.samples
        self._compare_counts(len(samples))
        count = min(self.options.limit or len(samples), len(samples))
        loaded = network.loaded
        self.options.on_progress(f"evaluating {count:,} images")
        try:
            evaluation = evaluate(
                ErrorCollectingTask(network.task, max_errors=self.options.num_errors),
                to_channels_last(loaded.network.eval(), accelerator.device),
                EvenSubset(samples, count),
                accelerator,
                batch_size=self.options.batch_size or (64 if loaded.task == "classify" else 4),
                on_batch=lambda done, total: self.options.on_progress(f"evaluated batch {done} of {total}"),
            )
        except VanError as error:
            self.missing.append(f"Metrics: the network could not be evaluated: {_sentence(error)}")
            return
        if not all(math.isfinite(value) for value in evaluation.metrics.values()):
            self.notes.append("The network returns NaN or infinity: its metrics are meaningless; check the weights.")
        errors = evaluation.details["errors"]
        self.options.on_progress(f"explaining {len(errors)} predictions")
        illustrated, reason = illustrate(errors, samples, loaded, device=accelerator.device)
        if reason:
            self.missing.append(f"Explanations: {_sentence(reason)}")
        self.validation = ValidationResult(
            source=data.source, available=len(samples), evaluation=evaluation, errors=illustrated
        )

    def _compare_counts(self, num_images: int) -> None:
        expected = self.recipe.get("validation_images")
        if isinstance(expected, int) and expected != num_images:
            self.notes.append(
                f"The dataset has {num_images:,} validation images; the run was validated on {expected:,}. The metrics "
                "of this report are not comparable with those of training."
            )

    def _measure_speed(self, network: NetworkInfo, device: torch.device) -> None:
        self.options.on_progress("measuring inference speed")
        large_batch = 16 if network.loaded.task == "classify" else 4
        try:
            self.speed = measure_speed(
                network.loaded, network.task, network.input_size, device, batch_sizes=(1, large_batch)
            )
        except (VanError, RuntimeError) as error:
            self.missing.append(f"Inference speed: {_sentence(error)}")


def _logged_monitor(records: list[dict[str, Any]]) -> str | None:
    """Return the monitored metric of the evaluations in a log."""
    logged = {name for record in records if record["kind"] == "eval" for name in record}
    return next((name for name in MONITORS if name in logged), None)


def _why_no_checkpoint(best: Path, records: list[dict[str, Any]]) -> str:
    """Return why there is no best checkpoint: none was written yet, or the file was removed."""
    name = _logged_monitor(records)
    if name is not None and any(math.isfinite(record.get(name, math.nan)) for record in records):
        return f"{best} is missing, although the log has evaluations; restore it and run van report again."
    return (
        "There is no best checkpoint yet, because no evaluation of this run has finished with a finite metric; "
        "run van report again later."
    )


def _first_image_size(data: ValidationData | None) -> tuple[int, int] | None:
    """Return rows and columns of the first readable image, for tasks on whole images."""
    if data is None:
        return None
    for index in range(min(8, len(data.samples))):
        sample = data.samples[index]
        if "original_size" in sample:
            return sample["original_size"]
    return None


def _network_to_dict(network: NetworkInfo) -> dict[str, Any]:
    loaded = network.loaded
    return {
        "model": loaded.name,
        "options": dict(loaded.options),
        "task": loaded.task,
        "classes": len(loaded.class_names),
        "parameters": network.parameters,
        "macs": network.macs,
        "rows": network.input_size[0],
        "columns": network.input_size[1],
        "preprocess": loaded.preprocess.to_dict(),
        "metrics_when_saved": dict(loaded.metrics),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)


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
