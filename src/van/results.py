"""What the verbs return: a training run, the metrics of an evaluation, the report of a run. Imports no torch."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from van.model import Model
    from van.report.data import ReportData
    from van.tasks.base import Task
    from van.training.evaluate import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training run.

    Args:
        folder: with the settings, the log and the checkpoints.
        metrics: of the best checkpoint on the validation set, as fractions; the monitored one first.
        best_update, updates: the update of the best checkpoint, and the number of updates.
        seconds: training and evaluation time, over all resumed sessions.
        images_per_s: training throughput; 0 if the run was already complete.
        unreadable: names of the training images that were skipped, with the reasons.
    """

    folder: Path
    metrics: Mapping[str, float]
    best_update: int
    updates: int
    seconds: float
    images_per_s: float
    unreadable: Mapping[str, str]

    @property
    def checkpoint(self) -> Path:
        """The file of the best checkpoint."""
        return self.folder / "best.safetensors"

    def load(self) -> "Model":
        """Load the model of the best checkpoint."""
        from van.model import Model

        return Model.load(self.checkpoint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """The result of an evaluation.

    Args:
        task: of the model.
        model, data: what was evaluated, and on what.
        metrics: by name, as fractions (``top1``, ``box_ap``, ``mean_iou``, ``pq``), and losses.
        per_class: the metrics of each class, by its name.
        samples: number of samples that the metrics count.
        unreadable: names and reasons of samples that could not be read; no metric counts them.
        confusion: the confusion matrix (K, K) of classification (images) and segmentation (pixels), rows are true
            classes; None for other tasks, and for one class or more than 2,000.
        charts: names of the charts that were written.
        notes: messages for the user, such as a warning that the model was trained on these images.
    """

    task: str
    model: str
    data: str
    metrics: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    samples: int
    unreadable: tuple[tuple[str, str], ...]
    confusion: "np.ndarray | None" = None
    charts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    @property
    def is_finite(self) -> bool:
        """Whether all metrics are finite; otherwise the outputs of the network are not, and no metric is valid."""
        return all(math.isfinite(value) for value in self.metrics.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, those of ``van eval --json``; NaN and infinity, which JSON does not have, are None."""

        def finite(values: Mapping[str, float]) -> dict[str, float | None]:
            return {name: value if math.isfinite(value) else None for name, value in values.items()}

        return {
            "task": self.task,
            "checkpoint": self.model,
            "data": self.data,
            "samples": self.samples,
            "metrics": finite(self.metrics),
            "per_class": {label: finite(values) for label, values in self.per_class.items()},
            "unreadable": [{"image": name, "reason": reason} for name, reason in self.unreadable],
        }


class Report(NamedTuple):
    """The page of a report, and the data that it shows."""

    page: Path
    data: "ReportData"


def write_charts(
    evaluation: "Evaluation", task: "Task", *, confusion: str | Path | None, charts: str | Path | None
) -> tuple[str, ...]:
    """Write the confusion matrix to the file ``confusion`` and the charts of a task to the folder ``charts``, if given.

    Returns:
        The names of the charts in the folder.

    Raises:
        CheckpointError: a file cannot be written.
    """
    if confusion is None and charts is None:
        return ()
    from van.checkpoint import atomic_path
    from van.visualization.metric_charts import build_metric_charts, draw_confusion_matrix

    if confusion is not None:
        with atomic_path(Path(confusion)) as temporary:
            draw_confusion_matrix(evaluation.details["confusion"], task.class_names, temporary)
    if charts is None:
        return ()
    drawn = build_metric_charts(evaluation.details, class_names=task.class_names, monitor=task.monitor)
    for name, draw in drawn.items():
        with atomic_path(Path(charts) / name) as temporary:
            draw(temporary)
    return tuple(drawn)
