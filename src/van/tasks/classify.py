"""Classification: one label for a picture.

Shapes: pictures (N, 3, H, W), targets (N,) int64 or (N, K) soft, outputs (N, K) logits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from van.results import Classes
from van.tasks.base import Batch, Frame, Sample, unreadable_of
from van.tasks.mix import MixSettings

MOST_CLASSES_IN_A_TABLE = 2_000
"""Above this no confusion matrix is kept: 22K classes would need 4 GB."""


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


class ClassifyMeter(MetricCollection):
    """Top-1, top-5 and mean loss as fractions, and counts by true and predicted class."""

    def __init__(self, labels: Sequence[str]) -> None:
        num_classes = len(labels)
        metrics: dict[str, Any] = {"loss": MeanMetric(nan_strategy="disable")}  # a loss of NaN is to be seen
        if num_classes > 1:
            for k in (1, 5):
                metrics[f"top{k}"] = MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            if num_classes <= MOST_CLASSES_IN_A_TABLE:
                metrics["confusion"] = MulticlassConfusionMatrix(num_classes)
        super().__init__(metrics, compute_groups=False)
        self.labels = tuple(labels)

    def update(self, outputs: Tensor, batch: Batch) -> None:  # pyrefly: ignore[bad-override]
        """Count one batch: logits (N, K) against ``batch.targets`` where ``batch.valid``."""
        logits, targets = outputs.float()[batch.valid], batch.targets[batch.valid]
        if len(targets) == 0:
            return
        self["loss"].update(F.cross_entropy(logits, targets, reduction="none"))
        for name in ("top1", "top5", "confusion"):
            if name in self:
                self[name].update(logits, targets)

    def compute(self) -> dict[str, Any]:
        """``metrics`` with top1, top5 and loss; ``confusion`` (K, K), rows the true classes, or None; ``per_class``."""
        values = super().compute()
        counts = values.pop("confusion", None)
        confusion = None if counts is None else counts.cpu().numpy()
        metrics = {name: float(value) for name, value in values.items()}
        if len(self.labels) == 1:
            metrics |= {"top1": 1.0, "top5": 1.0}
        return {"metrics": metrics, "confusion": confusion, "per_class": self._per_class(confusion)}

    def _per_class(self, confusion: np.ndarray | None) -> dict[str, dict[str, float]]:
        """How many pictures of each class there were, and the share that was recognised."""
        if confusion is None:
            return {}
        counts, right = confusion.sum(axis=1), confusion.diagonal()
        rows = zip(self.labels, counts.tolist(), right.tolist(), strict=True)
        return {label: {"samples": count, "top1": good / count} for label, count, good in rows if count}
