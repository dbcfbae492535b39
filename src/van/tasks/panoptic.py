"""Panoptic segmentation: every pixel belongs to an instance of a thing class, or to a stuff class.

Shapes: images are a list of (3, h, w); targets a list of dictionaries with labels (K,) and masks (K, rows, columns)
bool of the segments; outputs, for each image, class_logits (Q, classes + 1) and mask_logits (Q, h, w).

The metric is Kirillov et al. 2019, arXiv:1801.00868, section 4. A predicted segment matches a target segment of its
class if their IoU is above 0.5. Void pixels (without a target) are ignored in the IoU, and an unmatched prediction of
which more than half is void is no false positive. Pixels without a prediction are not ignored (torchmetrics'
PanopticQuality ignores them). One difference from the paper: it ignores predictions on a group ("crowd") of their own
class; targets here have no groups, so the pixels of a group are void for predictions of every class.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from van.errors import DataError, ShapeError
from van.heads.panoptic_segmenter import merge_panoptic
from van.predictions import Segment, Segmentation
from van.tasks.base import Batch, ImageMeta, Metric, Task, all_gather, check_finite

_VOID = -1
"""The class and the id of pixels that belong to no segment."""


class PanopticTask(Task):
    """The panoptic segmentation task.

    Args:
        class_names: names of the classes.
        things: for each class, True for a thing class (countable) and False for stuff.

    Raises:
        ShapeError: the lengths of ``things`` and ``class_names`` differ.
    """

    name = "panoptic"
    monitor = "pq"

    def __init__(self, class_names: Sequence[str], *, things: Sequence[bool]) -> None:
        if len(things) != len(class_names):
            raise ShapeError(f"things: expected {len(class_names)} values, one per class name, got {len(things)}")
        self.class_names = tuple(class_names)
        self.things = tuple(bool(thing) for thing in things)
        self.options: Mapping[str, Any] = {"things": list(self.things)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of the network's losses."""
        return torch.stack([value.float() for value in model(batch.images, batch.targets).values()]).sum()

    def metric(self) -> "PanopticMetric":
        """Return a metric of panoptic, segmentation and recognition quality."""
        return PanopticMetric(self.class_names, self.things)

    def decode_image(self, output: Mapping[str, Tensor], image_meta: ImageMeta) -> Segmentation:
        """Return the segments of an image."""
        ids, decoded = to_segments(output, image_meta, self.things)
        segments = tuple(
            Segment(segment_id, self.class_names[label], label, score, self.things[label])
            for segment_id, label, score in decoded
        )
        ids = torch.where(ids == 0, torch.full_like(ids, _VOID), ids).cpu().numpy().astype(np.int32)
        return Segmentation(
            class_names=self.class_names, segment_ids=ids, segments=segments, name=image_meta.name, panoptic=True
        )


class PanopticMetric(Metric):
    """Panoptic quality from matched segments; all pixels of a stuff class are one segment."""

    def __init__(self, class_names: Sequence[str], things: Sequence[bool]) -> None:
        self.class_names, self.things = tuple(class_names), tuple(things)
        self._matches: list[tuple[int, float]] = []  # class and IoU of each matched pair
        self._unmatched = np.zeros((2, len(self.class_names)), np.int64)  # false positives and false negatives

    def add(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor], image_meta: ImageMeta) -> None:
        """Match the segments of one image and count its true positives, false positives and false negatives."""
        predicted_ids, segments = to_segments(output, image_meta, self.things)
        predicted_labels = _label_table({segment_id: label for segment_id, label, _ in segments})
        ids = torch.zeros(image_meta.original_size, dtype=torch.int64, device=target["masks"].device)
        labels: dict[int, int] = {}
        for next_id, (label, mask) in enumerate(zip(target["labels"].tolist(), target["masks"], strict=True), 1):
            same_stuff = [known for known, other in labels.items() if other == label and not self.things[label]]
            segment_id = same_stuff[0] if same_stuff else next_id
            ids[mask] = segment_id
            labels[segment_id] = label
        target_labels = _label_table(labels)
        rows, columns = len(target_labels), len(predicted_labels)
        pairs = ids * columns + predicted_ids.to(ids)
        # (target ids, predicted ids) pixels in common; row 0 is void
        shared = torch.bincount(pairs.flatten(), minlength=rows * columns).reshape(rows, columns).cpu().numpy()
        target_area, predicted_area = shared.sum(1), shared.sum(0)
        union = target_area[:, None] + predicted_area - shared[0] - shared
        same_class = np.equal.outer(target_labels, predicted_labels) & (target_labels >= 0)[:, None]
        matched = same_class & (2 * shared > union)  # IoU above 0.5, so each segment has one match at most
        for row, column in np.argwhere(matched).tolist():
            self._matches.append((int(target_labels[row]), float(shared[row, column] / union[row, column])))
        mostly_void = 2 * shared[0] > predicted_area
        false_positives = (predicted_labels >= 0) & ~matched.any(0) & ~mostly_void
        false_negatives = (target_labels >= 0) & ~matched.any(1) & (target_area > 0)
        np.add.at(self._unmatched[0], predicted_labels[false_positives], 1)
        np.add.at(self._unmatched[1], target_labels[false_negatives], 1)

    def compute(self) -> dict[str, Any]:
        """Return ``metrics``: pq, sq, rq, and the pq of things and of stuff; ``per_class``: pq, sq and rq.

        Raises:
            DataError: no image has a target segment or a match.
        """
        gathered = all_gather([(self._matches, self._unmatched)])
        false_positives, false_negatives = np.sum([unmatched for _, unmatched in gathered], axis=0)
        ious: list[list[float]] = [[] for _ in self.class_names]
        for matches, _ in gathered:
            for label, iou in matches:
                ious[label].append(iou)
        if not (any(ious) or false_negatives.any()):
            raise DataError("validation set: expected at least 1 annotated segment, got 0")
        per_class: dict[str, dict[str, float]] = {}
        for index, name in enumerate(self.class_names):
            true_positives = len(ious[index])
            weight = true_positives + (int(false_positives[index]) + int(false_negatives[index])) / 2
            if weight:
                # fsum is exact, so the result does not depend on which process counted which image
                quality = math.fsum(ious[index]) / true_positives if true_positives else 0.0
                recognition = true_positives / weight
                per_class[name] = {"pq": quality * true_positives / weight, "sq": quality, "rq": recognition}
        metrics = {name: float(np.mean([each[name] for each in per_class.values()])) for name in ("pq", "sq", "rq")}
        is_thing = dict(zip(self.class_names, self.things, strict=True))
        for name, thing in (("pq_things", True), ("pq_stuff", False)):
            qualities = [each["pq"] for label, each in per_class.items() if is_thing[label] is thing]
            if qualities:
                metrics[name] = float(np.mean(qualities))
        return {"metrics": metrics, "per_class": per_class}

    def class_counts(self) -> np.ndarray:
        """Return (4, classes) of this process: sum of IoUs, true positives, false positives and false negatives."""
        counts = np.zeros((4, len(self.class_names)))
        for label, iou in self._matches:
            counts[:2, label] += iou, 1
        counts[2:] = self._unmatched
        return counts


def to_segments(
    output: Mapping[str, Tensor], image_meta: ImageMeta, things: Sequence[bool]
) -> tuple[Tensor, list[tuple[int, int, float]]]:
    """Convert a network's output for one image into segments in pixels of its file.

    Returns:
        Segment ids (rows, columns), 0 for void, and the id, class index and score of each segment.

    Raises:
        ShapeError: an output is not finite, or its shape is not that of ``merge_panoptic``.
    """
    for name in ("class_logits", "mask_logits"):
        check_finite(output[name], name, image_meta.name)
    return merge_panoptic(output["class_logits"], output["mask_logits"], image_meta.original_size, things=things)


def _label_table(labels: Mapping[int, int]) -> np.ndarray:
    """Return the class index of each id from 0 to the largest, -1 for ids without a segment."""
    table = np.full(max(labels, default=0) + 1, _VOID)
    table[list(labels)] = list(labels.values())
    return table
