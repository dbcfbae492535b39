"""Semantic segmentation: a class for every pixel.

Shapes: images are a list of (3, h, w), of one size in training; targets a list of label maps (rows, columns)
int64 with -1 for unlabeled pixels; outputs, for each image, logits (classes, h, w) or a label map (rows, columns).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from van.errors import DataError, ShapeError
from van.heads.sliding_window import upsample_argmax
from van.predictions import Segment, Segmentation
from van.tasks.base import Batch, ImageMeta, Metric, Task, check_finite

IGNORE_INDEX = -1
"""The label of pixels that the loss and the metrics ignore."""
AUXILIARY_WEIGHT = 0.4
"""The weight of the auxiliary head's loss, as in the paper."""


class SegmentationTask(Task):
    """The semantic segmentation task."""

    name = "segment"
    monitor = "mean_iou"

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.options: Mapping[str, Any] = {}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy over labeled pixels, plus that of the auxiliary head if there is one."""
        output = model(batch.images)  # first, because the network's error for different image sizes is clearer
        targets = torch.stack(list(batch.targets))
        loss = _cross_entropy(output.logits, targets)
        if output.auxiliary is not None:
            loss = loss + AUXILIARY_WEIGHT * _cross_entropy(output.auxiliary, targets)
        return loss

    def metric(self) -> "SegmentationMetric":
        """Return a metric of mean IoU, mean accuracy and pixel accuracy."""
        return SegmentationMetric(self.class_names)

    def decode_image(self, output: Tensor, image_meta: ImageMeta) -> Segmentation:
        """Return the class of each pixel."""
        label_map = to_label_map(output, image_meta, num_classes=len(self.class_names))
        ids = label_map.cpu().numpy().astype(np.int32)  # a class is one segment, whose id is the class index
        names = self.class_names
        segments = tuple(Segment(index, names[index], index, None, False) for index in np.unique(ids).tolist())
        return Segmentation(class_names=self.class_names, segment_ids=ids, segments=segments, name=image_meta.name)


class SegmentationMetric(Metric):
    """Mean IoU and accuracies from a confusion matrix over pixels of the images' files."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._counts: Any = MulticlassConfusionMatrix(max(2, len(self.class_names)), ignore_index=IGNORE_INDEX)

    def add(self, output: Tensor, target: Tensor, image_meta: ImageMeta) -> None:
        """Add one image; unlabeled pixels are ignored."""
        label_map = to_label_map(output, image_meta, num_classes=len(self.class_names))
        self._counts.update(label_map.reshape(-1), target.reshape(-1))

    def compute(self) -> dict[str, Any]:
        """Return ``metrics`` mean_iou, mean_accuracy and pixel_accuracy; ``per_class``; ``confusion`` in pixels.

        A class that is neither labeled nor predicted is in no mean; one that is only predicted has no accuracy.

        Raises:
            DataError: no pixel of the dataset has a label.
        """
        if not self._counts.update_called:  # this process had padding only, and torchmetrics would warn
            self._counts.update(*torch.empty(2, 0, dtype=torch.int64, device=self._counts.device))
        num_classes = len(self.class_names)
        confusion = self._counts.compute().cpu().numpy().astype(np.int64)[:num_classes, :num_classes]
        if not confusion.sum():
            raise DataError("validation set: expected at least 1 labeled pixel, got 0")
        correct, labeled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        union = labeled + predicted - correct
        iou = np.divide(correct, union, out=np.full(len(correct), np.nan), where=union > 0)
        accuracy = np.divide(correct, labeled, out=np.full(len(correct), np.nan), where=labeled > 0)
        rows = zip(self.class_names, labeled.tolist(), iou.tolist(), accuracy.tolist(), strict=True)
        metrics = {"mean_iou": float(np.nanmean(iou)), "mean_accuracy": float(np.nanmean(accuracy))}
        metrics["pixel_accuracy"] = float(correct.sum() / confusion.sum())
        per_class = {
            label: {"pixels": count, "iou": class_iou} | ({"accuracy": class_accuracy} if count else {})
            for label, count, class_iou, class_accuracy in rows
            if not np.isnan(class_iou)
        }
        return {"metrics": metrics, "per_class": per_class, "confusion": confusion}

    def to(self, device: torch.device) -> "SegmentationMetric":
        """Move the counts to ``device`` and return the metric."""
        self._counts = self._counts.to(device)
        return self


def to_label_map(output: Tensor, image_meta: ImageMeta, *, num_classes: int) -> Tensor:
    """Convert a network's output for one image into a label map (rows, columns) in pixels of its file.

    Args:
        output: logits (num_classes, h, w), or a label map of the file's size, which is returned unchanged.

    Raises:
        ShapeError: the label map has another size, or the logits another number of classes or non-finite values.
    """
    if output.ndim == 2 and tuple(output.shape) == image_meta.original_size:
        return output
    if output.ndim != 3 or len(output) != num_classes:
        expected = f"a label map {image_meta.original_size} or logits ({num_classes}, rows, columns)"
        raise ShapeError(f"{image_meta.name}: expected {expected}, got shape {tuple(output.shape)}")
    check_finite(output, "logits", image_meta.name)
    return upsample_argmax(output.float(), image_meta.original_size)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over labeled pixels; 0, with a gradient, if there are none."""
    losses = F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return losses / (targets != IGNORE_INDEX).sum().clamp(min=1)
