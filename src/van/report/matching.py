"""Which answer of a detector is about which mark, in one picture.

Shapes: boxes (K, 4) as x1, y1, x2, y2 and masks (K, rows, columns) bool, in pixels of the picture's file.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

LEAST_IOU = 0.5
"""From this overlap on an answer is about a mark, as in COCO's AP50."""


class Matched(NamedTuple):
    """Places of answers and marks: pairs of one class, pairs of two classes, and what is left on either side."""

    right: list[tuple[int, int]]
    confused: list[tuple[int, int]]
    wrong: list[int]
    missed: list[int]

    @property
    def mistakes(self) -> int:
        """How many marks and answers are not as they should be; a thing that is taken for another counts once."""
        return len(self.confused) + len(self.wrong) + len(self.missed)


def match(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Matched:
    """Give each answer, the surest first, the mark that it overlaps most: of its own class, else of another.

    Marks of crowds are nobody's mistake, and neither are answers that lie mostly on one of their class.

    Args:
        found: ``boxes``, ``labels``, ``scores`` and, where outlines count, ``masks``.
        target: the same of the marks, without scores and perhaps with ``iscrowd``.
    """
    overlaps, covered = _overlaps(found, target)
    crowd = target.get("iscrowd", torch.zeros(len(target["labels"]))).bool().cpu()
    same = found["labels"].cpu()[:, None] == target["labels"].cpu()[None]
    order = found["scores"].cpu().argsort(descending=True, stable=True).tolist()
    free = ~crowd
    right = _pairs(order, overlaps * same, free)
    taken = {answer for answer, _ in right}
    left = [answer for answer in order if answer not in taken]
    on_crowd = ((covered >= LEAST_IOU) & same & crowd).any(dim=1)
    left = [answer for answer in left if not on_crowd[answer]]
    confused = _pairs(left, overlaps, free)
    taken = {answer for answer, _ in confused}
    return Matched(right, confused, [answer for answer in left if answer not in taken], free.nonzero()[:, 0].tolist())


def _pairs(order: list[int], overlaps: Tensor, free: Tensor) -> list[tuple[int, int]]:
    """Answers in their order with the free mark that each overlaps most; ``free`` is brought up to date."""
    pairs = []
    for answer in order:
        row = overlaps[answer] * free
        if len(row) and row.max() >= LEAST_IOU:
            mark = int(row.argmax())
            free[mark] = False
            pairs.append((answer, mark))
    return pairs


def _overlaps(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(answers, marks): the IoU of each pair, and the share of the answer that lies on the mark."""
    if "masks" not in found or "masks" not in target:
        ours, theirs = found["boxes"].cpu().float(), target["boxes"].cpu().float()
        corners = torch.maximum(ours[:, None, :2], theirs[None, :, :2]), torch.minimum(ours[:, None, 2:], theirs[:, 2:])
        shared = (corners[1] - corners[0]).clamp(min=0).prod(dim=2)
        areas = (ours[:, 2:] - ours[:, :2]).prod(dim=1)
        return box_iou(ours, theirs), shared / areas[:, None].clamp(min=1e-9)
    ours, theirs = (part["masks"].cpu().flatten(1).float() for part in (found, target))
    shared = ours @ theirs.T
    union = ours.sum(dim=1)[:, None] + theirs.sum(dim=1)[None] - shared
    return shared / union.clamp(min=1), shared / ours.sum(dim=1)[:, None].clamp(min=1)
