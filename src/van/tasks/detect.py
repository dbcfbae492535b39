"""Detection and instance segmentation: boxes around things, and their masks.

Shapes: pictures are a list of (3, h, w); targets a list of dictionaries with boxes (K, 4) as x1, y1, x2, y2,
labels (K,) from 0 and, for instances, masks (K, h, w). Outputs likewise, with scores (K,) and masks
(K, 1, h, w) of probabilities, in the pixels of the picture that the network sees.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from van.errors import ShapeError, UsageError
from van.results import Boxes, FoundThing
from van.tasks.base import Batch, Frame
from van.tasks.coco_metrics import CocoMeter
from van.tasks.whole import WholePictures, want_finite

MASK_THRESHOLD = 0.5
"""Probability from which on a pixel belongs to the thing."""


class Detect(WholePictures):
    """The detection task over ``labels``; with ``masks`` it is instance segmentation.

    Args:
        labels: names of the classes.
        masks: whether targets and answers have masks.
        category_ids: the numbers that result files use for the classes; 0, 1, ... where empty.
        min_score: what scores less is no answer; metrics count it all the same. It is no part of ``options``: whoever
            asks chooses it.

    Raises:
        ShapeError: there are category_ids, and not one for each label.
        UsageError: ``min_score`` is not between 0 and 1.
    """

    def __init__(
        self, labels: Sequence[str], *, masks: bool = False, category_ids: Sequence[int] = (), min_score: float = 0.3
    ) -> None:
        if category_ids and len(category_ids) != len(labels):
            raise ShapeError(f"there are {len(category_ids)} category_ids for {len(labels)} labels; wanted as many")
        if not 0 <= min_score <= 1:
            raise UsageError(f"min_score is {min_score}; wanted 0 to 1")
        self.labels = tuple(labels)
        self.masks = masks
        self.name = "instances" if masks else "detect"
        self.headline = "mask_ap" if masks else "box_ap"
        self.category_ids = tuple(category_ids)
        self.min_score = min_score
        self.options: Mapping[str, Any] = {"category_ids": list(self.category_ids)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the network's losses."""
        names = ("boxes", "labels", "masks") if self.masks else ("boxes", "labels")
        targets = [{name: target[name] for name in names} for target in batch.targets]
        return torch.stack([value.float() for value in model(batch.pictures, targets).values()]).sum()

    def meter(self) -> "DetectMeter":
        """COCO's twelve figures for boxes and, where there are masks, for masks."""
        return DetectMeter(self.labels, masks=self.masks)

    def decode(self, outputs: Sequence[Mapping[str, Tensor]], frames: Sequence[Frame]) -> list[Boxes]:
        """Each picture's things in its own pixels, best first.

        Raises:
            ShapeError: a box or a score is no number, or no answer can be made of it.
        """
        return [self._boxes(found, frame) for found, frame in zip(outputs, frames, strict=True)]

    def _boxes(self, found: Mapping[str, Tensor], frame: Frame) -> Boxes:
        want_finite(found["scores"], "scores", frame.name)
        sure = found["scores"] >= self.min_score  # what is left out needs no mask in the picture's own size
        found = in_own_pixels({name: values[sure] for name, values in found.items()}, frame)
        masks = found["masks"].cpu().numpy() if "masks" in found else [None] * len(found["boxes"])
        rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), masks, strict=True)
        return Boxes(
            labels=self.labels,
            found=tuple(
                FoundThing(self.labels[label], label, score, tuple(box), mask) for box, label, score, mask in rows
            ),
            size=frame.size,
            name=frame.name,
            category_ids=self.category_ids,
        )


class DetectMeter:
    """COCO's figures; see ``CocoMeter``."""

    def __init__(self, labels: Sequence[str], *, masks: bool) -> None:
        self._coco = CocoMeter(labels, masks=masks)

    def update(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch) -> None:
        """Count one batch in the pixels of the pictures' files.

        Raises:
            ShapeError: a box or a score is no number.
        """
        for found, target, frame, valid in zip(outputs, batch.targets, batch.frames, batch.valid.tolist(), strict=True):
            if valid:
                self._coco.add(frame.name, in_own_pixels(found, frame), target)

    def compute(self) -> dict[str, Any]:
        """``metrics`` and ``per_class``."""
        return self._coco.compute()

    def to(self, device: torch.device) -> "DetectMeter":
        """Itself: what is counted stays on the CPU."""
        return self


def in_own_pixels(found: Mapping[str, Tensor], frame: Frame) -> dict[str, Tensor]:
    """Boxes and masks carried from the picture that the network saw to the one in the file, masks as bool (K, H, W).

    Boxes and scores are float32, whatever precision the network has; rounding puts no box over the picture's edge.

    Raises:
        ShapeError: a box or a score is no number.
    """
    want_finite(found["boxes"], "boxes", frame.name)
    want_finite(found["scores"], "scores", frame.name)
    rows, columns = (own / seen for own, seen in zip(frame.size, frame.seen, strict=True))
    boxes = found["boxes"].float()
    moved = {**found, "scores": found["scores"].float()}
    moved["boxes"] = clip_boxes_to_image(boxes * boxes.new_tensor([columns, rows, columns, rows]), frame.size)
    if "masks" in found:
        moved["masks"] = (
            torch.stack([_enlarged(mask, frame.size) for mask in found["masks"]])
            if len(found["masks"])
            else torch.zeros((0, *frame.size), dtype=torch.bool)
        )
    return moved


def _enlarged(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """One mask of probabilities (1, h, w) to bool (rows, columns)."""
    if tuple(mask.shape[1:]) != size:
        mask = F.interpolate(mask[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return mask[0] >= MASK_THRESHOLD
