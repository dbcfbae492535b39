"""Classification: one label for a picture.

Shapes: pictures (N, 3, H, W), targets (N,) int64 or (N, K) soft, outputs (N, K) logits.
The expected calibration error is that of Guo et al. 2017, arXiv:1706.04599.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from van.results import Classes
from van.tasks.base import Batch, Frame, Sample, unreadable_of
from van.tasks.mix import MixSettings

MOST_CLASSES_IN_A_TABLE = 2_000
"""Above this no confusion matrix is kept: 22K classes would need 4 GB."""
CONFIDENCE_BINS = 15
"""As many as the paper has."""
_FIXED_POINT_BITS = 32


class Classify:
    """The classification task over ``labels``."""

    name = "classify"
    headline = "top1"

    def __init__(self, labels: Sequence[str], mix: MixSettings | None = None) -> None:
        self.labels = tuple(labels)
        self.options: Mapping[str, Any] = {}
        self.mix = mix or MixSettings()
        self._mixup = None
        if self.mix.mixup or self.mix.cutmix:
            self._mixup = Mixup(
                mixup_alpha=self.mix.mixup,
                cutmix_alpha=self.mix.cutmix,
                label_smoothing=self.mix.label_smoothing,
                num_classes=len(self.labels),
            )

    def stack(self, pictures: Sequence[Tensor]) -> Tensor:
        """(N, 3, H, W)."""
        return torch.stack(list(pictures)) if pictures else torch.empty(0)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack the readable samples: pictures (N, 3, H, W), targets (N,)."""
        read = [sample for sample in samples if "unreadable" not in sample]
        return Batch(
            pictures=self.stack([sample["picture"] for sample in read]),
            targets=torch.tensor([sample["target"] for sample in read], dtype=torch.int64),
            frames=tuple(Frame(sample["name"]) for sample in read),
            valid=torch.tensor([sample.get("valid", True) for sample in read], dtype=torch.bool),
            unreadable=unreadable_of(samples),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy, after mixup or cutmix where they are on."""
        pictures, targets = batch.pictures, batch.targets
        if self._mixup is None:
            return F.cross_entropy(model(pictures), targets, label_smoothing=self.mix.label_smoothing)
        if len(pictures) % 2:  # mixup pairs pictures; an odd one out is paired with the first
            pictures, targets = torch.cat([pictures, pictures[:1]]), torch.cat([targets, targets[:1]])
        pictures, targets = self._mixup(pictures.clone(), targets)
        return F.cross_entropy(model(pictures), targets)

    def meter(self) -> "ClassifyMeter":
        """Top-1, top-5, loss and, up to 2,000 classes, the confusion matrix."""
        return ClassifyMeter(self.labels)

    def decode(self, outputs: Tensor, frames: Sequence[Frame]) -> list[Classes]:
        """Logits (N, K) to one ``Classes`` for each frame."""
        probabilities = outputs.float().softmax(dim=1).tolist()
        return [
            Classes(labels=self.labels, probabilities=tuple(row), name=frame.name)
            for row, frame in zip(probabilities, frames, strict=True)
        ]


class Reliability(Metric):
    """Answers, right answers and summed confidence in bins of confidence, (m/15, (m+1)/15] for m = 0 ... 14.

    Confidences are counted as whole multiples of 2**-32, so that the sums are the same in any order, over any number of
    processes, and on devices without float64.
    """

    full_state_update = False
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("table", torch.zeros(4, CONFIDENCE_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count answers: logits (N, K) against targets (N,)."""
        confidence, answers = logits.softmax(dim=1).max(dim=1)
        known = confidence.isfinite()
        fixed = (confidence.nan_to_num() * 2**_FIXED_POINT_BITS).to(torch.int64)
        bins = ((fixed * CONFIDENCE_BINS - 1) >> _FIXED_POINT_BITS).clamp(min=0)
        inside = bins[:, None] == torch.arange(CONFIDENCE_BINS, device=bins.device)
        rows = torch.stack([torch.ones_like(fixed), (known & (answers == targets)).long(), fixed, (~known).long()])
        self.table += (rows[:, :, None] * inside).sum(dim=1)

    def compute(self) -> Tensor:
        """(4, 15) int64: answers, right ones, confidence in units of 2**-32, answers that were no numbers."""
        return self.table


class ClassifyMeter(MetricCollection):
    """Top-1, top-5 and mean loss, how well calibrated the answers are, and counts by true and predicted class."""

    def __init__(self, labels: Sequence[str]) -> None:
        num_classes = len(labels)
        metrics: dict[str, Any] = {"loss": MeanMetric(nan_strategy="disable")}  # a loss of NaN is to be seen
        if num_classes > 1:
            for k in (1, 5):
                metrics[f"top{k}"] = MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            if num_classes <= MOST_CLASSES_IN_A_TABLE:
                metrics["confusion"] = MulticlassConfusionMatrix(num_classes)
            metrics["reliability"] = Reliability()
        super().__init__(metrics, compute_groups=False)
        self.labels = tuple(labels)

    def update(self, outputs: Tensor, batch: Batch) -> None:  # pyrefly: ignore[bad-override]
        """Count one batch: logits (N, K) against ``batch.targets`` where ``batch.valid``."""
        logits, targets = outputs.float()[batch.valid], batch.targets[batch.valid]
        if len(targets) == 0:
            return
        self["loss"].update(F.cross_entropy(logits, targets, reduction="none"))
        for name in ("top1", "top5", "confusion", "reliability"):
            if name in self:
                self[name].update(logits, targets)

    def compute(self) -> dict[str, Any]:
        """``metrics`` with top1, top5, loss and, of more classes than one, ece, the expected calibration error.

        ``confusion`` (K, K), rows the true classes, or None; ``reliability`` with ``count``, ``right`` and the sum of
        ``confidence`` in each bin, NaN in the first if an answer was no number, or None; ``per_class``.
        """
        values = super().compute()
        counts = values.pop("confusion", None)
        confusion = None if counts is None else counts.cpu().numpy()
        reliability = _reliability_of(values.pop("reliability")) if "reliability" in values else None
        metrics = {name: float(value) for name, value in values.items()}
        if len(self.labels) == 1:
            metrics |= {"top1": 1.0, "top5": 1.0}
        if reliability is not None:
            metrics["ece"] = _calibration_error(**reliability)
        return {
            "metrics": metrics,
            "confusion": confusion,
            "reliability": reliability,
            "per_class": self._per_class(confusion),
        }

    def _per_class(self, confusion: np.ndarray | None) -> dict[str, dict[str, float]]:
        """How many pictures of each class there were, and the share that was recognised."""
        if confusion is None:
            return {}
        counts, right = confusion.sum(axis=1), confusion.diagonal()
        rows = zip(self.labels, counts.tolist(), right.tolist(), strict=True)
        return {label: {"samples": count, "top1": good / count} for label, count, good in rows if count}


def _reliability_of(table: Tensor) -> dict[str, list[Any]]:
    count, right, fixed, no_number = table.tolist()
    confidence = [
        math.nan if unknown else total / 2**_FIXED_POINT_BITS for total, unknown in zip(fixed, no_number, strict=True)
    ]
    return {"count": count, "right": right, "confidence": confidence}


def _calibration_error(count: Sequence[int], right: Sequence[int], confidence: Sequence[float]) -> float:
    """How far accuracy and mean confidence are apart in each bin, weighted by its share of the answers."""
    gaps = (abs(good - sure) for good, sure in zip(right, confidence, strict=True))
    return math.fsum(gaps) / sum(count) if sum(count) else math.nan
