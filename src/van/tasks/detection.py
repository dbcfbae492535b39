"""Object detection and instance segmentation: boxes of objects, and their masks.

Shapes: images are a list of (3, h, w); targets a list of dictionaries with boxes (K, 4) as x1, y1, x2, y2,
labels (K,) from 0 and, for instances, masks (K, h, w). Outputs likewise, with scores (K,) and masks
(K, 1, h, w) of probabilities, in pixels of the network's input.

The metrics are COCO's twelve, overall and for each class, by torchmetrics with faster-coco-eval: AP is the mean over
the IoU thresholds 0.50, 0.55, ..., 0.95; AP50 and AP75 are the values at one threshold; small, medium and large objects
have at most 32², at most 96², and more pixels; AR is the recall with at most 1, 10 or 100 detections of a class per
image. The size of an object is the area of its annotation; the size of a detection is the area of its box, and of its
mask if masks are evaluated (COCO's own code uses the box of a result that has one: remove ``bbox`` before it evaluates
masks). A metric without any ground truth is omitted. Source: Lin et al. 2014, arXiv:1405.0312, and its evaluator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import clip_boxes_to_image

from van.errors import DataError, ShapeError, UsageError
from van.predictions import Detection, Detections
from van.tasks.base import Batch, ImageMeta, Metric, Task, all_gather, check_finite

MASK_THRESHOLD = 0.5
"""Minimum probability of a pixel that belongs to the object."""
METRIC_NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100",
    "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
_THRESHOLDS = {
    "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
    "rec_thresholds": np.linspace(0.0, 1.0, 101).tolist(),
}
"""COCO's thresholds. torchmetrics' defaults are float32, which an IoU of exactly 0.6 or a recall of 0.1 misses."""
CURVES = {"0.50": slice(0, 1), "0.75": slice(5, 6), "0.50:0.95": slice(None)}
"""The IoU thresholds over which each precision-recall curve is averaged."""
_STATES = (
    "detection_box", "detection_mask", "detection_scores", "detection_labels", "groundtruth_box",
    "groundtruth_mask", "groundtruth_labels", "groundtruth_crowds", "groundtruth_area",
)  # fmt: skip
"""The states of torchmetrics' metric: lists with one entry per image."""


class DetectionTask(Task):
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
            got = f"one per class name, got {len(category_ids)}"
            raise ShapeError(f"category_ids: expected {len(class_names)} ids, {got}")
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

    def decode_image(self, output: Mapping[str, Tensor], image_meta: ImageMeta) -> Detections:
        """Return the objects of at least ``min_score``, highest score first."""
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


class DetectionMetric(Metric):
    """COCO's metrics over detections and targets of images.

    Args:
        class_names: names of the classes.
        masks: evaluate masks as well as boxes.
    """

    def __init__(self, class_names: Sequence[str], *, masks: bool) -> None:
        self.class_names = tuple(class_names)
        self._iou_types = {"box": "bbox", "mask": "segm"} if masks else {"box": "bbox"}
        self._metric = self._make_metric()
        self._image_names: list[str] = []

    def add(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor], image_meta: ImageMeta) -> None:
        """Add one image, whose name is unique in the dataset; a target may have ``iscrowd`` and ``area``."""
        keys = ["boxes", "labels", "scores", *(["masks"] if "mask" in self._iou_types else [])]
        target_keys = [key for key in (*keys, "iscrowd", "area") if key != "scores" and key in target]
        self._image_names.append(image_meta.name)
        detections = to_original_size(output, image_meta)
        # on the CPU, so that the state takes no device memory; boxes as float64, so that their widths equal those in
        # a result file
        prepared = [
            {key: values[key].detach().cpu() for key in names} | {"boxes": values["boxes"].detach().cpu().double()}
            for values, names in ((detections, keys), (target, target_keys))
        ]
        self._metric.update([prepared[0]], [prepared[1]])

    def compute(self) -> dict[str, Any]:
        """Return ``metrics`` such as ``box_ap50``, and the same ``per_class``; equal in every process.

        ``precision_recall`` has ``recall`` (101), and for ``box`` and possibly ``mask`` the precision at each recall,
        as lists of floats: ``all``, the mean over classes, and ``per_class``, each by IoU: "0.50", "0.75" and the mean
        over all thresholds, "0.50:0.95".

        Raises:
            DataError: no image has an annotated object that is not a crowd.
        """
        metric = self._gather()
        if all(bool(crowds.all()) for crowds in metric.groundtruth_crowds):
            raise DataError("validation set: expected at least 1 annotated object that is not a crowd, got 0")
        results = metric.compute()
        class_names = [self.class_names[index] for index in results["classes"].reshape(-1).tolist()]
        metrics: dict[str, float] = {}
        per_class: dict[str, dict[str, float]] = {label: {} for label in self.class_names if label in class_names}
        curves: dict[str, Any] = {"recall": _THRESHOLDS["rec_thresholds"]}
        for kind, iou_type in self._iou_types.items():
            prefix = f"{iou_type}_" if len(self._iou_types) > 1 else ""
            precision, recall = (results[f"{prefix}{key}"].numpy() for key in ("precision", "recall"))
            metrics |= {f"{kind}_{name}": value for name, value in _summarize(precision, recall).items()}
            for index, label in enumerate(class_names):
                values = _summarize(precision[:, :, [index]], recall[:, [index]])
                per_class[label] |= {f"{kind}_{name}": value for name, value in values.items()}
            curves[kind] = _precision_recall_curves(precision[:, :, :, 0, 2], class_names)
        per_class = {label: values for label, values in per_class.items() if values}
        return {"metrics": metrics, "per_class": per_class, "precision_recall": curves}

    def _make_metric(self) -> MeanAveragePrecision:
        metric = MeanAveragePrecision(
            iou_type=tuple(self._iou_types.values()),  # pyrefly: ignore[bad-argument-type]
            backend="faster_coco_eval",
            extended_summary=True,
            sync_on_compute=False,
            **_THRESHOLDS,
        )
        metric.warn_on_many_detections = False  # as in COCO, only the best 100 detections count
        return metric

    def _gather(self) -> MeanAveragePrecision:
        """Return a metric with the images of every process, sorted by name so that the result is deterministic."""
        states = {name: getattr(self._metric, name) for name in _STATES}
        own = [
            (name, {state: values[index] for state, values in states.items() if values})
            for index, name in enumerate(self._image_names)
        ]
        images = sorted(all_gather(own), key=lambda image: image[0])
        gathered = self._make_metric()
        for state in _STATES:
            setattr(gathered, state, [values[state] for _, values in images if state in values])
        gathered._update_count = max(1, len(images))  # torchmetrics warns about a metric without updates
        return gathered


def _summarize(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Return the twelve metrics over some classes, without those that have no ground truth.

    Args:
        precision: (10 IoU thresholds, 101 recalls, classes, 4 areas, 3 detection limits), -1 without ground truth.
        recall: (10, classes, 4, 3), likewise.
    """
    by_threshold = [precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2]]
    by_area = [precision[..., area, 2] for area in (1, 2, 3)]
    recalls = [recall[..., 0, limit] for limit in (0, 1, 2)] + [recall[..., area, 2] for area in (1, 2, 3)]
    known = {name: each[each > -1] for name, each in zip(METRIC_NAMES, by_threshold + by_area + recalls, strict=True)}
    return {name: float(values.mean()) for name, values in known.items() if values.size}


def _precision_recall_curves(precision: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the precision-recall curves of ``DetectionMetric.compute`` for the classes with ground truth.

    Args:
        precision: (10 IoU thresholds, 101 recalls, classes) over objects of all sizes, -1 without ground truth.
    """
    present = np.flatnonzero((precision > -1).all(axis=(0, 1))).tolist()
    return {
        "all": {iou: precision[rows][:, :, present].mean(axis=(0, 2)).tolist() for iou, rows in CURVES.items()},
        "per_class": {
            class_names[index]: {iou: precision[rows, :, index].mean(axis=0).tolist() for iou, rows in CURVES.items()}
            for index in present
        },
    }


def to_original_size(output: Mapping[str, Tensor], image_meta: ImageMeta) -> dict[str, Tensor]:
    """Resize boxes and masks from the network's input to the image's file; masks become bool (K, H, W).

    Boxes and scores are float32 for every precision of the network; boxes are clipped to the image.

    Raises:
        ShapeError: a box or a score is not finite.
    """
    check_finite(output["boxes"], "boxes", image_meta.name)
    check_finite(output["scores"], "scores", image_meta.name)
    size = image_meta.original_size
    row_scale, column_scale = (whole / resized for whole, resized in zip(size, image_meta.input_size, strict=True))
    boxes = output["boxes"].float()
    boxes = boxes * boxes.new_tensor([column_scale, row_scale, column_scale, row_scale])
    # rounding may exceed the image's edge
    resized = {**output, "scores": output["scores"].float(), "boxes": clip_boxes_to_image(boxes, size)}
    if "masks" in output:
        masks = []
        for mask in output["masks"]:  # one by one, to save memory
            if tuple(mask.shape[1:]) != size:
                mask = F.interpolate(mask[None].float(), size=size, mode="bilinear", align_corners=False)[0]
            masks.append(mask[0] >= MASK_THRESHOLD)
        resized["masks"] = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool)
    return resized
