"""Collection of the worst predictions while an evaluation runs."""

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from van.report.error_ranking import ErrorCase, ErrorRanking, make_error_ranking
from van.tasks.base import Batch, ImageMeta, Metric, Sample, Task


class ErrorCollectingTask(Task):
    """A task whose metric also collects the worst predictions, as ``errors`` in its details.

    Args:
        task: the task to wrap.
        max_errors: number of predictions to collect.
    """

    def __init__(self, task: Task, *, max_errors: int) -> None:
        self._task, self._max_errors = task, max_errors
        self.name, self.monitor, self.class_names = task.name, task.monitor, task.class_names
        self.options: Mapping[str, Any] = task.options

    def stack(self, images: Sequence[Tensor]) -> Any:
        """Call the task's ``stack``."""
        return self._task.stack(images)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Call the task's ``collate``."""
        return self._task.collate(samples)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call the task's ``loss``."""
        return self._task.loss(model, batch)

    def metric(self) -> "ErrorCollectingMetric":
        """Return the task's metric, which also collects errors."""
        return ErrorCollectingMetric(self._task.metric(), make_error_ranking(self._task), max_errors=self._max_errors)

    def decode(self, outputs: Any, image_metas: Sequence[ImageMeta]) -> Sequence[Any]:
        """Call the task's ``decode``."""
        return self._task.decode(outputs, image_metas)


class ErrorCollectingMetric(Metric):
    """A metric that also keeps the predictions of highest severity.

    Args:
        metric: the metric to wrap.
        ranking: severity and description of errors.
        max_errors: number of predictions to keep.
    """

    def __init__(self, metric: Metric, ranking: ErrorRanking, *, max_errors: int) -> None:
        self._metric, self._ranking, self._max_errors = metric, ranking, max_errors
        self._kept: list[tuple[float, int, ErrorCase]] = []  # a heap with the least severe first
        self._num_samples, self._num_errors = 0, 0

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add one batch to the metric, and keep predictions that are worse than the least severe one kept."""
        self._metric.update(outputs, batch)
        severities = self._ranking.severities(outputs, batch)
        for index, (severity, valid) in enumerate(zip(severities, batch.valid.tolist(), strict=True)):
            if not valid:
                continue
            self._num_samples += 1
            self._num_errors += severity >= 1
            full = len(self._kept) == self._max_errors
            if self._max_errors and not math.isnan(severity) and not (full and severity <= self._kept[0][0]):
                error = self._ranking.describe(outputs[index], batch.targets[index], batch.image_metas[index])
                heapq.heappush(self._kept, (severity, -self._num_samples, error))  # of equal ones the first is kept
                if full:
                    heapq.heappop(self._kept)

    def compute(self) -> dict[str, Any]:
        """Return the metric's results with ``errors``, ``num_errors`` and ``intervals``.

        ``errors`` are the kept ones, the worst first; ``num_errors`` counts all; ``intervals`` has the 95 % bounds of
        metrics.
        """
        kept = sorted(self._kept, key=lambda entry: entry[:2], reverse=True)
        results = self._metric.compute()
        return {
            **results,
            "errors": tuple(error for _, _, error in kept),
            "num_errors": self._num_errors,
            "intervals": self._ranking.intervals(results["metrics"]),
        }

    def to(self, device: torch.device) -> "ErrorCollectingMetric":
        """Move the metric's state to ``device`` and return this metric."""
        self._metric = self._metric.to(device)
        return self
