"""The metrics of image classification: accuracy, loss, calibration, confusions.

Shapes: logits (N, K), targets (N,) int64. The expected calibration error is that of Guo et al. 2017, arXiv:1706.04599.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics import Metric as TorchMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from van.tasks.base import Batch, Metric

MAX_CONFUSION_CLASSES = 2_000
"""Above this number of classes there is no confusion matrix: with 22,000 classes it would need 4 GB."""
CONFIDENCE_BINS = 15
"""Number of bins of the calibration error, as in the paper."""
_FIXED_POINT_BITS = 32


class Reliability(TorchMetric):
    """Number of predictions, correct predictions and summed confidence per confidence bin (m/15, (m+1)/15], m < 15.

    Confidences are integers in units of 2**-32, so that the sums are exact in any order, over any number of
    processes, and on devices without float64.
    """

    full_state_update = False
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("table", torch.zeros(4, CONFIDENCE_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add predictions: logits (N, K), targets (N,)."""
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        finite = confidence.isfinite()
        fixed_point = (confidence.nan_to_num() * 2**_FIXED_POINT_BITS).to(torch.int64)
        bins = ((fixed_point * CONFIDENCE_BINS - 1) >> _FIXED_POINT_BITS).clamp(min=0)
        in_bin = bins[:, None] == torch.arange(CONFIDENCE_BINS, device=bins.device)
        correct = (finite & (predicted == targets)).long()
        rows = torch.stack([torch.ones_like(fixed_point), correct, fixed_point, (~finite).long()])
        self.table += (rows[:, :, None] * in_bin).sum(dim=1)

    def compute(self) -> Tensor:
        """Return (4, 15) int64: predictions, correct ones, confidence in units of 2**-32, non-finite predictions."""
        return self.table


class ClassificationMetric(Metric):
    """Top-1 and top-5 accuracy, mean loss, expected calibration error and confusion matrix."""

    def __init__(self, class_names: Sequence[str]) -> None:
        num_classes = len(class_names)
        metrics: dict[str, Any] = {"loss": MeanMetric(nan_strategy="disable")}  # report a NaN loss
        if num_classes > 1:
            for k in (1, 5):
                metrics[f"top{k}"] = MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            if num_classes <= MAX_CONFUSION_CLASSES:
                metrics["confusion"] = MulticlassConfusionMatrix(num_classes)
            metrics["reliability"] = Reliability()
        self._metrics: Any = MetricCollection(metrics, compute_groups=False)
        self.class_names = tuple(class_names)

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add one batch: logits (N, K) and ``batch.targets``, where ``batch.valid``."""
        logits, targets = outputs.float()[batch.valid], batch.targets[batch.valid]
        if len(targets) == 0:
            return
        for name, metric in self._metrics.items():
            values = (F.cross_entropy(logits, targets, reduction="none"),) if name == "loss" else (logits, targets)
            metric.update(*values)

    def compute(self) -> dict[str, Any]:
        """Return ``metrics``: top1, top5, loss and, for more than one class, ece, the expected calibration error.

        Details: ``confusion`` (K, K) with true classes in rows, or None; ``reliability``, or None, with the number of
        predictions ``count``, of ``correct`` ones, and the summed ``confidence`` of each bin, which is NaN in the
        first bin if a prediction was not finite; ``per_class`` with ``samples`` and ``top1``.
        """
        values = self._metrics.compute()
        counts = values.pop("confusion", None)
        confusion = None if counts is None else counts.cpu().numpy()
        table = values.pop("reliability", None)
        metrics = {name: float(value) for name, value in values.items()}
        if len(self.class_names) == 1:
            metrics |= {"top1": 1.0, "top5": 1.0}
        reliability = None
        if table is not None:
            count, correct, fixed_point, non_finite = table.tolist()
            confidence = [
                math.nan if invalid else total / 2**_FIXED_POINT_BITS
                for total, invalid in zip(fixed_point, non_finite, strict=True)
            ]
            reliability = {"count": count, "correct": correct, "confidence": confidence}
            # the mean distance between accuracy and mean confidence over bins, weighted by their predictions:
            # count * |correct / count - confidence / count| is |correct - confidence|
            distances = (abs(hits - total) for hits, total in zip(correct, confidence, strict=True))
            metrics["ece"] = math.fsum(distances) / sum(count) if sum(count) else math.nan
        per_class: dict[str, dict[str, float]] = {}
        if confusion is not None:
            rows = zip(self.class_names, confusion.sum(axis=1).tolist(), confusion.diagonal().tolist(), strict=True)
            per_class = {label: {"samples": count, "top1": hits / count} for label, count, hits in rows if count}
        return {"metrics": metrics, "confusion": confusion, "reliability": reliability, "per_class": per_class}

    def to(self, device: torch.device) -> Self:
        """Move the counts to ``device`` and return the metric."""
        self._metrics = self._metrics.to(device)
        return self
