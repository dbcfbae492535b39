"""Image classification: one class per image.

Shapes: images (N, 3, H, W), targets (N,) int64 or (N, K) soft, outputs (N, K) logits.
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

from van.predictions import Classification
from van.tasks.base import Batch, ImageMeta, Sample, unreadable_of
from van.tasks.mixup import MixupSettings

MAX_CONFUSION_CLASSES = 2_000
"""Above this number of classes there is no confusion matrix: with 22,000 classes it would need 4 GB."""
CONFIDENCE_BINS = 15
"""Number of bins of the calibration error, as in the paper."""
_FIXED_POINT_BITS = 32


class ClassificationTask:
    """The image classification task, with mixup and cutmix if ``mix`` sets them."""

    name = "classify"
    monitor = "top1"

    def __init__(self, class_names: Sequence[str], mix: MixupSettings | None = None) -> None:
        self.class_names = tuple(class_names)
        self.options: Mapping[str, Any] = {}
        self.mix = mix or MixupSettings()
        self._mixup = None
        if self.mix.mixup or self.mix.cutmix:
            self._mixup = Mixup(
                mixup_alpha=self.mix.mixup,
                cutmix_alpha=self.mix.cutmix,
                label_smoothing=self.mix.label_smoothing,
                num_classes=len(self.class_names),
            )

    def stack(self, images: Sequence[Tensor]) -> Tensor:
        """Stack images (3, H, W) of one size into (N, 3, H, W)."""
        return torch.stack(list(images)) if images else torch.empty(0)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack the readable samples: images (N, 3, H, W), targets (N,)."""
        readable = [sample for sample in samples if "unreadable" not in sample]
        return Batch(
            images=self.stack([sample["image"] for sample in readable]),
            targets=torch.tensor([sample["target"] for sample in readable], dtype=torch.int64),
            image_metas=tuple(ImageMeta(sample["name"]) for sample in readable),
            valid=torch.tensor([sample.get("valid", True) for sample in readable], dtype=torch.bool),
            unreadable=unreadable_of(samples),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy, after mixup or cutmix if they are on."""
        images, targets = batch.images, batch.targets
        if self._mixup is None:
            return F.cross_entropy(model(images), targets, label_smoothing=self.mix.label_smoothing)
        if len(images) % 2:  # mixup needs pairs; the last image of an odd batch is paired with the first
            images, targets = torch.cat([images, images[:1]]), torch.cat([targets, targets[:1]])
        images, targets = self._mixup(images.clone(), targets)
        return F.cross_entropy(model(images), targets)

    def metric(self) -> "ClassificationMetric":
        """Return a metric of top-1 and top-5 accuracy, loss, calibration and, up to 2,000 classes, confusions."""
        return ClassificationMetric(self.class_names)

    def decode(self, outputs: Tensor, image_metas: Sequence[ImageMeta]) -> list[Classification]:
        """Return one ``Classification`` per image from logits (N, K)."""
        probabilities = outputs.float().softmax(dim=1).tolist()
        return [
            Classification(class_names=self.class_names, scores=tuple(row), name=image_meta.name)
            for row, image_meta in zip(probabilities, image_metas, strict=True)
        ]


class Reliability(Metric):
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


class ClassificationMetric(MetricCollection):
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
        super().__init__(metrics, compute_groups=False)
        self.class_names = tuple(class_names)

    def update(self, outputs: Tensor, batch: Batch) -> None:  # pyrefly: ignore[bad-override]
        """Add one batch: logits (N, K) and ``batch.targets``, where ``batch.valid``."""
        logits, targets = outputs.float()[batch.valid], batch.targets[batch.valid]
        if len(targets) == 0:
            return
        self["loss"].update(F.cross_entropy(logits, targets, reduction="none"))
        for name in ("top1", "top5", "confusion", "reliability"):
            if name in self:
                self[name].update(logits, targets)

    def compute(self) -> dict[str, Any]:
        """Return ``metrics``: top1, top5, loss and, for more than one class, ece, the expected calibration error.

        Details: ``confusion`` (K, K) with true classes in rows, or None; ``reliability``, or None, with the number of
        predictions ``count``, of ``correct`` ones, and the summed ``confidence`` of each bin, which is NaN in the
        first bin if a prediction was not finite; ``per_class`` with ``samples`` and ``top1``.
        """
        values = super().compute()
        counts = values.pop("confusion", None)
        confusion = None if counts is None else counts.cpu().numpy()
        reliability = _reliability_bins(values.pop("reliability")) if "reliability" in values else None
        metrics = {name: float(value) for name, value in values.items()}
        if len(self.class_names) == 1:
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
        """Return the number of images and the accuracy of each class that has images."""
        if confusion is None:
            return {}
        counts, correct = confusion.sum(axis=1), confusion.diagonal()
        rows = zip(self.class_names, counts.tolist(), correct.tolist(), strict=True)
        return {label: {"samples": count, "top1": hits / count} for label, count, hits in rows if count}


def _reliability_bins(table: Tensor) -> dict[str, list[Any]]:
    """Convert the table of ``Reliability`` into lists with one entry per bin."""
    count, correct, fixed_point, non_finite = table.tolist()
    confidence = [
        math.nan if invalid else total / 2**_FIXED_POINT_BITS
        for total, invalid in zip(fixed_point, non_finite, strict=True)
    ]
    return {"count": count, "correct": correct, "confidence": confidence}


def _calibration_error(count: Sequence[int], correct: Sequence[int], confidence: Sequence[float]) -> float:
    """Return the mean distance between accuracy and mean confidence over bins, weighted by their predictions."""
    # count * |correct / count - confidence / count| is |correct - confidence|
    distances = (abs(hits - total) for hits, total in zip(correct, confidence, strict=True))
    return math.fsum(distances) / sum(count) if sum(count) else math.nan
