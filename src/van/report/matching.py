"""Matching of detections to annotated objects in one image.

Shapes: boxes (K, 4) as x1, y1, x2, y2 and masks (K, rows, columns) bool, in pixels of the image's file.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

MIN_IOU = 0.5
"""Minimum IoU of a match, as in COCO's AP50."""


class Matches(NamedTuple):
    """Indices of detections and targets: matched pairs of one class and of two classes, and the unmatched rest.

    Args:
        correct: (detection, target) pairs of the same class.
        confused: (detection, target) pairs of different classes.
        false_positives: detections without a target.
        missed: targets without a detection.
    """

    correct: list[tuple[int, int]]
    confused: list[tuple[int, int]]
    false_positives: list[int]
    missed: list[int]

    @property
    def num_errors(self) -> int:
        """The number of errors; a pair of different classes counts once."""
        return len(self.confused) + len(self.false_positives) + len(self.missed)


def match(detections: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Matches:
    """Match detections, highest score first, to the target with the highest IoU of the same class, else of another.

    Crowd targets are never missed, and detections that lie mostly on a crowd of their class are no false positives.

    Args:
        detections: ``boxes``, ``labels``, ``scores`` and, to match by masks, ``masks``.
        target: the same without ``scores``, and optionally ``iscrowd``.
    """
    ious, coverage = _overlaps(detections, target)
    crowd = target.get("iscrowd", torch.zeros(len(target["labels"]))).bool().cpu()
    same_class = detections["labels"].cpu()[:, None] == target["labels"].cpu()[None]
    order = detections["scores"].cpu().argsort(descending=True, stable=True).tolist()
    unmatched = ~crowd
    correct = _match_greedily(order, ious * same_class, unmatched)
    matched = {detection for detection, _ in correct}
    on_crowd = ((coverage >= MIN_IOU) & same_class & crowd).any(dim=1)
    rest = [detection for detection in order if detection not in matched and not on_crowd[detection]]
    confused = _match_greedily(rest, ious, unmatched)
    matched = {detection for detection, _ in confused}
    return Matches(
        correct,
        confused,
        [detection for detection in rest if detection not in matched],
        unmatched.nonzero()[:, 0].tolist(),
    )


def _match_greedily(order: list[int], ious: Tensor, unmatched: Tensor) -> list[tuple[int, int]]:
    """Match each detection in order to the unmatched target of highest IoU; updates ``unmatched`` in place."""
    pairs = []
    for detection in order:
        row = ious[detection] * unmatched
        if len(row) and row.max() >= MIN_IOU:
            target = int(row.argmax())
            unmatched[target] = False
            pairs.append((detection, target))
    return pairs


def _overlaps(detections: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return (detections, targets): the IoU of each pair, and the fraction of the detection that the target covers."""
    if "masks" not in detections or "masks" not in target:
        boxes, target_boxes = detections["boxes"].cpu().float(), target["boxes"].cpu().float()
        top_left = torch.maximum(boxes[:, None, :2], target_boxes[None, :, :2])
        bottom_right = torch.minimum(boxes[:, None, 2:], target_boxes[:, 2:])
        shared = (bottom_right - top_left).clamp(min=0).prod(dim=2)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        return box_iou(boxes, target_boxes), shared / areas[:, None].clamp(min=1e-9)
    masks, target_masks = (side["masks"].cpu().flatten(1).float() for side in (detections, target))
    shared = masks @ target_masks.T
    union = masks.sum(dim=1)[:, None] + target_masks.sum(dim=1)[None] - shared
    return shared / union.clamp(min=1), shared / masks.sum(dim=1)[:, None].clamp(min=1)
