"""COCO's twelve detection metrics, overall and for each class, by torchmetrics with faster-coco-eval.

AP is the mean over the IoU thresholds 0.50, 0.55, ..., 0.95; AP50 and AP75 are the values at one threshold; small,
medium and large objects have at most 32², at most 96², and more pixels; AR is the recall with at most 1, 10 or 100
detections of a class per image. The size of an object is the area of its annotation; the size of a detection is the
area of its box, and of its mask if masks are evaluated (COCO's own code uses the box of a result that has one: remove
``bbox`` before it evaluates masks).
A metric without any ground truth is omitted. Source: Lin et al. 2014, arXiv:1405.0312, and its evaluator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from van.errors import DataError
from van.tasks.all_gather import all_gather, to_cpu

METRIC_NAMES = {
    "ap": "map", "ap50": "map_50", "ap75": "map_75",
    "ap_small": "map_small", "ap_medium": "map_medium", "ap_large": "map_large",
    "ar1": "mar_1", "ar10": "mar_10", "ar100": "mar_100",
    "ar_small": "mar_small", "ar_medium": "mar_medium", "ar_large": "mar_large",
}  # fmt: skip
"""Metric names of this package, and torchmetrics' names."""
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


class CocoMetric:
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

    def add(self, name: str, detections: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        """Add one image.

        Args:
            name: the image's name, unique in the dataset.
            detections: ``boxes`` (K, 4), ``labels``, ``scores`` and, if masks are evaluated, ``masks`` (K, H, W) bool.
            target: ``boxes``, ``labels``, ``masks`` and, if known, ``iscrowd`` and ``area``.
        """
        keys = ("boxes", "labels", "scores", *(["masks"] if "mask" in self._iou_types else []))
        target_keys = [key for key in (*keys, "iscrowd", "area") if key != "scores" and key in target]
        self._image_names.append(name)
        self._metric.update([_prepare(detections, keys)], [_prepare(target, target_keys)])

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
            values = {f"{kind}_{name}": float(results[prefix + key]) for name, key in METRIC_NAMES.items()}
            metrics |= {name: value for name, value in values.items() if value > -1}
            precision, recall = (results[f"{prefix}{key}"].numpy() for key in ("precision", "recall"))
            for index, label in enumerate(class_names):
                values = _class_metrics(precision[:, :, index], recall[:, index])
                per_class[label] |= {f"{kind}_{name}": value for name, value in values.items() if value > -1}
            curves[kind] = _precision_recall_curves(precision[:, :, :, 0, 2], class_names)
        return {
            "metrics": metrics,
            "per_class": {label: values for label, values in per_class.items() if values},
            "precision_recall": curves,
        }

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


def _prepare(values: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Tensor]:
    """Copy the tensors to the CPU, boxes as float64, so that their widths equal those in a result file."""
    prepared = to_cpu({key: values[key] for key in keys})
    return prepared | {"boxes": prepared["boxes"].double()}


def _class_metrics(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Return the twelve metrics of one class, -1 for those without ground truth.

    Args:
        precision: (10 IoU thresholds, 101 recalls, 4 area ranges, 3 detection limits), -1 without ground truth.
        recall: (10, 4, 3), likewise.
    """
    areas = list(enumerate(("small", "medium", "large"), start=1))
    return {
        "ap": _mean(precision[:, :, 0, 2]),
        "ap50": _mean(precision[0, :, 0, 2]),
        "ap75": _mean(precision[5, :, 0, 2]),
        **{f"ap_{area}": _mean(precision[:, :, index, 2]) for index, area in areas},
        **{f"ar{limit}": _mean(recall[:, 0, index]) for index, limit in enumerate((1, 10, 100))},
        **{f"ar_{area}": _mean(recall[:, index, 2]) for index, area in areas},
    }


def _precision_recall_curves(precision: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the precision-recall curves of ``CocoMetric.compute`` for the classes with ground truth.

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


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not -1, or -1 if there are none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
