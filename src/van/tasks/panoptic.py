"""Panoptic segmentation: every pixel belongs to a thing that is counted or to stuff that is not.

Shapes: pictures are a list of (3, h, w); targets a list of dictionaries with labels (K,) and masks (K, rows, columns)
bool of the segments; outputs, for each picture, class_logits (Q, classes + 1) and mask_logits (Q, h, w).

The metric is Kirillov et al. 2019, arXiv:1801.00868, section 4. An answer's segment matches a target's of its class if
their IoU is above a half; pixels without a target count in neither, and an unmatched answer that lies mostly on
them is no error. Pixels without an answer are not excused (torchmetrics' PanopticQuality takes them out, too).
One thing differs from the paper: it excuses an answer on a group ("crowd") of its own class; here targets have no
groups, so that their pixels are pixels without a target for answers of every class.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from van.errors import DataError, ShapeError
from van.models.panoptic import panoptic_segments
from van.results import Masks, Region
from van.tasks.base import Batch, Frame
from van.tasks.gather import everyone
from van.tasks.whole import WholePictures, want_finite

_NOTHING = -1
"""The class of pixels that belong to no segment."""
_Segments = tuple[Tensor, Mapping[int, int]]
"""Ids (rows, columns), 0 for none, and the label of each."""


class Panoptic(WholePictures):
    """The panoptic task.

    Args:
        labels: names of the classes.
        things: for each of them, whether it is countable.

    Raises:
        ShapeError: ``things`` does not say it for each label.
    """

    name = "panoptic"
    headline = "pq"

    def __init__(self, labels: Sequence[str], *, things: Sequence[bool]) -> None:
        if len(things) != len(labels):
            raise ShapeError(f"things is said of {len(things)} classes, and there are {len(labels)}; wanted as many")
        self.labels = tuple(labels)
        self.things = tuple(bool(thing) for thing in things)
        self.options: Mapping[str, Any] = {"things": list(self.things)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the network's losses."""
        return torch.stack([value.float() for value in model(batch.pictures, batch.targets).values()]).sum()

    def meter(self) -> "PanopticMeter":
        """Panoptic, segmentation and recognition quality."""
        return PanopticMeter(self.labels, self.things)

    def decode(self, outputs: Sequence[Mapping[str, Tensor]], frames: Sequence[Frame]) -> list[Masks]:
        """Each picture's segments in its own pixels.

        Raises:
            ShapeError: see ``own_segments``.
        """
        answers = []
        for output, frame in zip(outputs, frames, strict=True):
            ids, segments = own_segments(output, frame, self.things)
            regions = tuple(
                Region(number, self.labels[label], label, score, self.things[label])
                for number, label, score in segments
            )
            ids = torch.where(ids == 0, torch.full_like(ids, _NOTHING), ids).cpu().numpy().astype(np.int32)
            answers.append(Masks(labels=self.labels, ids=ids, regions=regions, name=frame.name, panoptic=True))
        return answers


class PanopticMeter:
    """Matches segments of answers and targets; stuff of one class is one segment."""

    def __init__(self, labels: Sequence[str], things: Sequence[bool]) -> None:
        self.labels, self.things = tuple(labels), tuple(things)
        self._overlaps: list[tuple[int, float]] = []  # class and IoU of each match
        self._unmatched = np.zeros((2, len(self.labels)), np.int64)  # answers, and targets, of each class

    def update(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch) -> None:
        """Count one batch in the pixels of the pictures' files.

        Raises:
            ShapeError: see ``own_segments``.
        """
        for output, target, frame, valid in zip(
            outputs, batch.targets, batch.frames, batch.valid.tolist(), strict=True
        ):
            if valid:
                ids, segments = own_segments(output, frame, self.things)
                self._count((ids, {number: label for number, label, _ in segments}), self._target(target, frame))

    def compute(self) -> dict[str, Any]:
        """``metrics`` pq, sq, rq, and pq of things and of stuff; ``per_class`` the three of each class.

        Raises:
            DataError: no picture has a segment.
        """
        parts = everyone([(self._overlaps, self._unmatched)])
        wrong, missed = np.sum([unmatched for _, unmatched in parts], axis=0)
        overlaps: list[list[float]] = [[] for _ in self.labels]
        for label, overlap in (one for part, _ in parts for one in part):
            overlaps[label].append(overlap)
        if not (any(overlaps) or missed.any()):
            raise DataError("no picture of the set has a segment, so there is nothing to measure")
        per_class: dict[str, dict[str, float]] = {}
        for index, name in enumerate(self.labels):
            right = len(overlaps[index])
            weight = right + (int(wrong[index]) + int(missed[index])) / 2
            if weight:
                # exact, whatever process counted which picture
                quality = math.fsum(overlaps[index]) / right if right else 0.0
                per_class[name] = {"pq": quality * right / weight, "sq": quality, "rq": right / weight}
        metrics = {name: _mean_of(per_class, name, self.labels) for name in ("pq", "sq", "rq")}
        for name, kind in (("pq_things", True), ("pq_stuff", False)):
            labels = [label for label, thing in zip(self.labels, self.things, strict=True) if thing is kind]
            if any(label in per_class for label in labels):
                metrics[name] = _mean_of(per_class, "pq", labels)
        return {"metrics": metrics, "per_class": per_class}

    def to(self, device: torch.device) -> "PanopticMeter":
        """Itself: there is little to count, and it stays on the CPU."""
        return self

    def _target(self, target: Mapping[str, Tensor], frame: Frame) -> _Segments:
        """A picture's target as an answer is: ids and their labels, stuff of one class put together."""
        ids = torch.zeros(frame.size, dtype=torch.int32, device=target["masks"].device)
        labels: dict[int, int] = {}
        for number, (label, mask) in enumerate(zip(target["labels"].tolist(), target["masks"], strict=True), 1):
            same = [known for known, other in labels.items() if other == label and not self.things[label]]
            own = same[0] if same else number
            ids[mask] = own
            labels[own] = label
        return ids, labels

    def _count(self, found: _Segments, target: _Segments) -> None:
        """Match one picture's segments."""
        found_labels, target_labels = (_label_of_each(labels) for _, labels in (found, target))
        rows, columns = len(target_labels), len(found_labels)
        pairs = target[0].long() * columns + found[0].to(target[0].device).long()
        shared = torch.bincount(pairs.flatten(), minlength=rows * columns).reshape(rows, columns).cpu().numpy()
        there, said = shared.sum(1), shared.sum(0)
        union = there[:, None] + said - shared[0] - shared
        matched = np.equal.outer(target_labels, found_labels) & (2 * shared > union) & (target_labels >= 0)[:, None]
        for row, column in np.argwhere(matched).tolist():
            self._overlaps.append((int(target_labels[row]), float(shared[row, column] / union[row, column])))
        wrong = (found_labels >= 0) & ~matched.any(0) & (2 * shared[0] <= said)
        missed = (target_labels >= 0) & ~matched.any(1) & (there > 0)
        np.add.at(self._unmatched[0], found_labels[wrong], 1)
        np.add.at(self._unmatched[1], target_labels[missed], 1)


def own_segments(
    output: Mapping[str, Tensor], frame: Frame, things: Sequence[bool]
) -> tuple[Tensor, list[tuple[int, int, float]]]:
    """The map of segment ids (rows, columns), 0 for none, and each segment's id, label and score.

    Raises:
        ShapeError: an answer is no number, or has another shape than ``panoptic_segments`` wants.
    """
    for name in ("class_logits", "mask_logits"):
        want_finite(output[name], name, frame.name)
    return panoptic_segments(output["class_logits"], output["mask_logits"], frame.size, things=things)


def _label_of_each(labels: Mapping[int, int]) -> np.ndarray:
    """The label of each id from 0 on, -1 where there is no segment of that id."""
    table = np.full(max(labels, default=0) + 1, _NOTHING)
    table[list(labels)] = list(labels.values())
    return table


def _mean_of(per_class: Mapping[str, Mapping[str, float]], name: str, labels: Sequence[str]) -> float:
    return float(np.mean([per_class[label][name] for label in labels if label in per_class]))
