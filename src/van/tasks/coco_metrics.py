"""COCO's twelve figures of detection, overall and for each class, by torchmetrics with faster-coco-eval.

AP is the mean over IoU thresholds 0.50, 0.55, ..., 0.95; AP50 and AP75 are those at one; small, medium and large
things have at most 32², at most 96², and more pixels; AR is recall with at most 1, 10 or 100 answers of a class in a
picture. How large a thing is, its annotation says; an answer is as large as its box, and where masks are measured as
its mask (COCO's own code goes by the box if a result has one: take ``bbox`` out before it measures masks).
A figure for which there is nothing to find is left out. Source: Lin et al. 2014, arXiv:1405.0312, and its evaluator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from van.errors import DataError
from van.tasks.gather import everyone, on_cpu

FIGURES = {
    "ap": "map", "ap50": "map_50", "ap75": "map_75",
    "ap_small": "map_small", "ap_medium": "map_medium", "ap_large": "map_large",
    "ar1": "mar_1", "ar10": "mar_10", "ar100": "mar_100",
    "ar_small": "mar_small", "ar_medium": "mar_medium", "ar_large": "mar_large",
}  # fmt: skip
"""Our name of each figure, and torchmetrics'."""
_THRESHOLDS = {
    "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
    "rec_thresholds": np.linspace(0.0, 1.0, 101).tolist(),
}
"""COCO's. torchmetrics' own are rounded to float32, which an IoU of exactly 0.6 or a recall of 0.1 does not reach."""
CURVES = {"0.50": slice(0, 1), "0.75": slice(5, 6), "0.50:0.95": slice(None)}
"""The IoU thresholds that a curve of precision over recall is the mean of."""
_STATES = (
    "detection_box", "detection_mask", "detection_scores", "detection_labels", "groundtruth_box",
    "groundtruth_mask", "groundtruth_labels", "groundtruth_crowds", "groundtruth_area",
)  # fmt: skip
"""What torchmetrics keeps, one entry a picture in each list."""


class CocoMeter:
    """Answers and targets of pictures, and what COCO says of them.

    Args:
        labels: names of the classes.
        masks: measure masks beside boxes.
    """

    def __init__(self, labels: Sequence[str], *, masks: bool) -> None:
        self.labels = tuple(labels)
        self._kinds = {"box": "bbox", "mask": "segm"} if masks else {"box": "bbox"}
        self._metric = self._fresh()
        self._names: list[str] = []

    def add(self, name: str, found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        """Count one picture.

        Args:
            name: the picture's, no other's.
            found: ``boxes`` (K, 4), ``labels``, ``scores`` and, where masks are measured, ``masks`` (K, H, W) bool.
            target: ``boxes``, ``labels``, ``masks`` and, where known, ``iscrowd`` and ``area``.
        """
        asked = ("boxes", "labels", "scores", *(["masks"] if "mask" in self._kinds else []))
        given = (*(key for key in asked if key != "scores"), "iscrowd", "area")
        self._names.append(name)
        self._metric.update([_plain(found, asked)], [_plain(target, [key for key in given if key in target])])

    def compute(self) -> dict[str, Any]:
        """``metrics`` such as ``box_ap50``, and the same ``per_class``; the same in every process.

        ``precision_recall`` has ``recall`` (101), and for ``box`` and perhaps ``mask`` ``all``, the mean over classes,
        and ``per_class``: precision at each recall by IoU, "0.50", "0.75" and their mean "0.50:0.95"; lists of floats.

        Raises:
            DataError: there is nothing to find in any picture.
        """
        whole = self._of_all_processes()
        if all(bool(crowds.all()) for crowds in whole.groundtruth_crowds):
            raise DataError(
                "no picture of the set has anything marked in it but crowds, so there is nothing to measure"
            )
        found = whole.compute()
        labels = [self.labels[index] for index in found["classes"].reshape(-1).tolist()]
        metrics: dict[str, float] = {}
        per_class: dict[str, dict[str, float]] = {label: {} for label in self.labels if label in labels}
        curves: dict[str, Any] = {"recall": _THRESHOLDS["rec_thresholds"]}
        for kind, theirs in self._kinds.items():
            prefix = f"{theirs}_" if len(self._kinds) > 1 else ""
            figures = {f"{kind}_{ours}": float(found[prefix + name]) for ours, name in FIGURES.items()}
            metrics |= {name: value for name, value in figures.items() if value > -1}
            precision, recall = (found[f"{prefix}{name}"].numpy() for name in ("precision", "recall"))
            for place, label in enumerate(labels):
                figures = _figures_of_class(precision[:, :, place], recall[:, place])
                per_class[label] |= {f"{kind}_{name}": value for name, value in figures.items() if value > -1}
            curves[kind] = _curves(precision[:, :, :, 0, 2], labels)
        return {
            "metrics": metrics,
            "per_class": {label: values for label, values in per_class.items() if values},
            "precision_recall": curves,
        }

    def _fresh(self) -> MeanAveragePrecision:
        metric = MeanAveragePrecision(
            iou_type=tuple(self._kinds.values()),  # pyrefly: ignore[bad-argument-type]
            backend="faster_coco_eval",
            extended_summary=True,
            sync_on_compute=False,
            **_THRESHOLDS,
        )
        metric.warn_on_many_detections = False  # COCO, too, counts the best 100 only
        return metric

    def _of_all_processes(self) -> MeanAveragePrecision:
        """The metric with every process's pictures, in the order of their names, whoever counted them."""
        kept = {name: getattr(self._metric, name) for name in _STATES}
        mine = [
            (name, {state: values[place] for state, values in kept.items() if values})
            for place, name in enumerate(self._names)
        ]
        every = sorted(everyone(mine), key=lambda one: one[0])
        whole = self._fresh()
        for state in _STATES:
            setattr(whole, state, [picture[state] for _, picture in every if state in picture])
        whole._update_count = max(1, len(every))
        return whole


def _plain(values: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors on the CPU, boxes in float64: their widths are then those that a result file has."""
    plain = on_cpu({name: values[name] for name in names})
    return plain | {"boxes": plain["boxes"].double()}


def _figures_of_class(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """The twelve figures of one class.

    Args:
        precision: (10 IoU thresholds, 101 recalls, 4 areas, 3 limits), -1 where there is nothing to find.
        recall: (10, 4, 3), likewise.
    """
    figures = {
        "ap": _mean(precision[:, :, 0, 2]),
        "ap50": _mean(precision[0, :, 0, 2]),
        "ap75": _mean(precision[5, :, 0, 2]),
    }
    figures |= {
        f"ap_{area}": _mean(precision[:, :, place, 2]) for place, area in enumerate(("small", "medium", "large"), 1)
    }
    figures |= {f"ar{most}": _mean(recall[:, 0, place]) for place, most in enumerate((1, 10, 100))}
    figures |= {f"ar_{area}": _mean(recall[:, place, 2]) for place, area in enumerate(("small", "medium", "large"), 1)}
    return figures


def _curves(precision: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Precision over recall as ``CocoMeter.compute`` gives it, of the classes that have something to find.

    Args:
        precision: (10 IoU thresholds, 101 recalls, classes) of things of all sizes, -1 where there is nothing to find.
    """
    there = np.flatnonzero((precision > -1).all(axis=(0, 1))).tolist()
    return {
        "all": {name: precision[part][:, :, there].mean(axis=(0, 2)).tolist() for name, part in CURVES.items()},
        "per_class": {
            labels[place]: {name: precision[part, :, place].mean(axis=0).tolist() for name, part in CURVES.items()}
            for place in there
        },
    }


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
