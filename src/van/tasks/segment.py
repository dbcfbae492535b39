"""Semantic segmentation: a label for every pixel.

Shapes: pictures are a list of (3, h, w), of one size in training; targets a list of maps (rows, columns) int64
with -1 where nothing is known; outputs, for each picture, logits (classes, h, w) or a finished map (rows, columns).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from van.errors import DataError, ShapeError
from van.models.tiles import upsampled_map
from van.results import Masks, Region
from van.tasks.base import Batch, Frame
from van.tasks.whole import WholePictures, want_finite

IGNORED = -1
"""The label of pixels that neither train nor count."""
AUXILIARY_WEIGHT = 0.4
"""Of the auxiliary head's loss, as in the paper."""


class Segment(WholePictures):
    """The semantic segmentation task over ``labels``."""

    name = "segment"
    headline = "mean_iou"

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.options: Mapping[str, Any] = {}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy over the labelled pixels, and that of the auxiliary head where there is one."""
        output = model(batch.pictures)  # first, because a network has words for pictures of different sizes
        targets = torch.stack(list(batch.targets))
        loss = _cross_entropy(output.logits, targets)
        if output.auxiliary is not None:
            loss = loss + AUXILIARY_WEIGHT * _cross_entropy(output.auxiliary, targets)
        return loss

    def meter(self) -> "SegmentMeter":
        """Mean IoU, mean accuracy and the share of right pixels."""
        return SegmentMeter(self.labels)

    def decode(self, outputs: Sequence[Tensor], frames: Sequence[Frame]) -> list[Masks]:
        """Each picture's map in its own pixels.

        Raises:
            ShapeError: see ``own_map``.
        """
        pairs = zip(outputs, frames, strict=True)
        return [self._masks(own_map(output, frame, classes=len(self.labels)), frame) for output, frame in pairs]

    def _masks(self, labels: Tensor, frame: Frame) -> Masks:
        ids = labels.cpu().numpy().astype(np.int32)
        present = np.unique(ids).tolist()
        regions = tuple(Region(index, self.labels[index], index, None, False) for index in present)
        return Masks(labels=self.labels, ids=ids, regions=regions, name=frame.name)


class SegmentMeter:
    """Counts of pixels by true and predicted class, in the pixels of the pictures' files."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._counts: Any = MulticlassConfusionMatrix(max(2, len(self.labels)), ignore_index=IGNORED)

    def update(self, outputs: Sequence[Tensor], batch: Batch) -> None:
        """Count one batch; pixels without a label do not count.

        Raises:
            ShapeError: see ``own_map``.
        """
        for output, target, frame, valid in zip(
            outputs, batch.targets, batch.frames, batch.valid.tolist(), strict=True
        ):
            if valid:
                found = own_map(output, frame, classes=len(self.labels))
                self._counts.update(found.reshape(-1), target.reshape(-1))

    def compute(self) -> dict[str, Any]:
        """``metrics`` mean_iou, mean_accuracy, pixel_accuracy; ``per_class`` iou and accuracy; ``confusion`` in pixels.

        A class that is neither there nor predicted is in no mean; one that is predicted only has no accuracy.

        Raises:
            DataError: no pixel of the set has a label.
        """
        if not self._counts.update_called:  # this process had nothing but padding
            self._counts.update(*torch.empty(2, 0, dtype=torch.int64, device=self._counts.device))
        confusion = self._counts.compute().cpu().numpy().astype(np.int64)[: len(self.labels), : len(self.labels)]
        if not confusion.sum():
            raise DataError("no pixel of the set has a label, so there is nothing to measure")
        right, true, answered = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        union = true + answered - right
        iou = np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)
        accuracy = np.divide(right, true, out=np.full(len(right), np.nan), where=true > 0)
        rows = zip(self.labels, true.tolist(), iou.tolist(), accuracy.tolist(), strict=True)
        return {
            "metrics": {
                "mean_iou": float(np.nanmean(iou)),
                "mean_accuracy": float(np.nanmean(accuracy)),
                "pixel_accuracy": float(right.sum() / confusion.sum()),
            },
            "per_class": {
                label: {"pixels": count, "iou": one_iou} | ({"accuracy": one_accuracy} if count else {})
                for label, count, one_iou, one_accuracy in rows
                if not np.isnan(one_iou)
            },
            "confusion": confusion,
        }

    def to(self, device: torch.device) -> "SegmentMeter":
        """The meter with its counts on ``device``."""
        self._counts = self._counts.to(device)
        return self


def own_map(output: Tensor, frame: Frame, *, classes: int) -> Tensor:
    """A network's output for one picture as a map of labels in the pixels of its file.

    Raises:
        ShapeError: a finished map has another size, or logits another number of classes or no numbers.
    """
    if output.ndim == 2 and tuple(output.shape) == frame.size:
        return output
    if output.ndim != 3 or len(output) != classes:
        wanted = f"a map {frame.size} or logits ({classes}, rows, columns)"
        raise ShapeError(f"the answer for {frame.name} is {tuple(output.shape)}; wanted {wanted}")
    want_finite(output, "logits", frame.name)
    return upsampled_map(output.float(), frame.size)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over labelled pixels; 0, with a gradient, where there is none."""
    losses = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return losses / (targets != IGNORED).sum().clamp(min=1)
