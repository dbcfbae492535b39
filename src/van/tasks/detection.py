"""Object detection and instance segmentation: boxes of objects, and their masks.

Shapes: images are a list of (3, h, w); targets a list of dictionaries with boxes (K, 4) as x1, y1, x2, y2,
labels (K,) from 0 and, for instances, masks (K, h, w). Outputs likewise, with scores (K,) and masks
(K, 1, h, w) of probabilities, in pixels of the network's input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from van.errors import ShapeError, UsageError
from van.predictions import Detection, Detections
from van.tasks.base import Batch, ImageMeta
from van.tasks.coco_metrics import CocoMetric
from van.tasks.variable_size import VariableSizeTask, check_finite

MASK_THRESHOLD = 0.5
"""Minimum probability of a pixel that belongs to the object."""


class DetectionTask(VariableSizeTask):
    """The object detection task; with ``masks`` it is instance segmentation.

    Args:
        class_names: names of the classes.
        masks: whether targets and outputs have masks.
        category_ids: the category ids of the classes in result files; 0, 1, ... if empty.
        min_score: minimum score of decoded detections; metrics use all detections. It is not in ``options``, because
            callers choose it for each use.

    Raises:
        ShapeError: the numbers of category ids and classes differ.
        UsageError: ``min_score`` is not between 0 and 1.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        masks: bool = False,
        category_ids: Sequence[int] = (),
        min_score: float = 0.3,
    ) -> None:
        if category_ids and len(category_ids) != len(class_names):
            raise ShapeError(
                f"category_ids: expected {len(class_names)} ids, one per class name, got {len(category_ids)}"
            )
        if not 0 <= min_score <= 1:
            raise UsageError(f"min_score: expected 0 to 1, got {min_score}")
        self.class_names = tuple(class_names)
        self.masks = masks
        self.name = "instances" if masks else "detect"
        self.monitor = "mask_ap" if masks else "box_ap"
        self.category_ids = tuple(category_ids)
        self.min_score = min_score
        self.options: Mapping[str, Any] = {"category_ids": list(self.category_ids)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of the network's losses."""
        names = ("boxes", "labels", "masks") if self.masks else ("boxes", "labels")
        targets = [{name: target[name] for name in names} for target in batch.targets]
        return torch.stack([value.float() for value in model(batch.images, targets).values()]).sum()

    def metric(self) -> "DetectionMetric":
        """Return COCO's twelve metrics for boxes and, with ``masks``, for masks."""
        return DetectionMetric(self.class_names, masks=self.masks)

    def decode(self, outputs: Sequence[Mapping[str, Tensor]], image_metas: Sequence[ImageMeta]) -> list[Detections]:
        """Return the ``Detections`` of each image in pixels of its file, highest score first.

        Raises:
            ShapeError: a box or a score is not finite, or an output is not a valid detection.
        """
        return [self._decode_image(output, image_meta) for output, image_meta in zip(outputs, image_metas, strict=True)]

    def _decode_image(self, output: Mapping[str, Tensor], image_meta: ImageMeta) -> Detections:
        check_finite(output["scores"], "scores", image_meta.name)
        keep = output["scores"] >= self.min_score  # before masks are resized, which takes most of the time
        output = to_original_size({name: values[keep] for name, values in output.items()}, image_meta)
        masks = output["masks"].cpu().numpy() if "masks" in output else [None] * len(output["boxes"])
        rows = zip(output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist(), masks, strict=True)
        return Detections(
            class_names=self.class_names,
            detections=tuple(
                Detection(self.class_names[label], label, score, tuple(box), mask) for box, label, score, mask in rows
            ),
            image_size=image_meta.original_size,
            name=image_meta.name,
            category_ids=self.category_ids,
        )


class DetectionMetric:
    """COCO's detection metrics over batches; see ``CocoMetric``."""

    def __init__(self, class_names: Sequence[str], *, masks: bool) -> None:
        self._coco = CocoMetric(class_names, masks=masks)

    def update(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch) -> None:
        """Add one batch, in pixels of the images' files.

        Raises:
            ShapeError: a box or a score is not finite.
        """
        for output, target, image_meta, valid in zip(
            outputs, batch.targets, batch.image_metas, batch.valid.tolist(), strict=True
        ):
            if valid:
                self._coco.add(image_meta.name, to_original_size(output, image_meta), target)

    def compute(self) -> dict[str, Any]:
        """Return ``metrics``, ``per_class`` and ``precision_recall``."""
        return self._coco.compute()

    def to(self, device: torch.device) -> "DetectionMetric":
        """Return the metric; its state stays on the CPU."""
        return self


def to_original_size(output: Mapping[str, Tensor], image_meta: ImageMeta) -> dict[str, Tensor]:
    """Resize boxes and masks from the network's input to the image's file; masks become bool (K, H, W).

    Boxes and scores are float32 for every precision of the network; boxes are clipped to the image.

    Raises:
        ShapeError: a box or a score is not finite.
    """
    check_finite(output["boxes"], "boxes", image_meta.name)
    check_finite(output["scores"], "scores", image_meta.name)
    original_size = image_meta.original_size
    row_scale, column_scale = (
        original / resized for original, resized in zip(original_size, image_meta.input_size, strict=True)
    )
    boxes = output["boxes"].float()
    scale = boxes.new_tensor([column_scale, row_scale, column_scale, row_scale])
    resized_output = {**output, "scores": output["scores"].float()}
    resized_output["boxes"] = clip_boxes_to_image(boxes * scale, original_size)  # rounding may exceed the image's edge
    if "masks" in output:
        resized_output["masks"] = (
            torch.stack([_resize_mask(mask, original_size) for mask in output["masks"]])
            if len(output["masks"])
            else torch.zeros((0, *original_size), dtype=torch.bool)
        )
    return resized_output


def _resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize and threshold one mask of probabilities (1, h, w) to bool (rows, columns)."""
    if tuple(mask.shape[1:]) != size:
        mask = F.interpolate(mask[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return mask[0] >= MASK_THRESHOLD
