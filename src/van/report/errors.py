"""The worst predictions of an evaluation, collected while it runs, and a description of each, for every task.

Shapes: outputs and targets are those of ``van.tasks``; predictions and targets of an ``ErrorCase`` are in pixels of
the image's file. Boxes (K, 4) are x1, y1, x2, y2, masks (K, rows, columns) bool.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from van.errors import DataError
from van.predictions import Classification, Detection, Detections, Segment, Segmentation
from van.report.intervals import Intervals, panoptic_intervals, segmentation_intervals
from van.tasks.base import Batch, ImageMeta, Metric, Task
from van.tasks.detection import DetectionTask, to_original_size
from van.tasks.panoptic import PanopticTask
from van.tasks.segmentation import to_label_map
from van.visualization.intervals import wilson_interval

MIN_IOU = 0.5
"""Minimum IoU of a match, as in COCO's AP50."""
THIN_SPACE = "\u202f"
"""The narrow no-break space before a unit."""
_MAX_LISTED = 4
"""Number of classes or confusions that a description lists."""


def format_percent(value: float | None, *, places: int = 1) -> str:
    """Return a fraction in percent, or a dash if it is None or NaN; only 1 and more is rounded to 100 %."""
    if value is None or value != value:
        return "–"
    text = f"{100 * value:.{places}f}"
    if value < 1 and float(text) == 100:
        text = f"{100 - 10**-places:.{places}f}"
    return f"{text}{THIN_SPACE}%"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorCase:
    """An image with its ground truth and its prediction.

    Args:
        name: name of the image.
        is_error: whether the prediction is wrong; False for a correct one with low confidence or quality.
        summary: the error in a few words.
        prediction: the network's prediction.
        target: the ground truth; for classification the class index.
        details: further statements about the error.
        cam_classes: indices of the classes to explain by class activation maps, the predicted one first.
        box: for detection, the box of the detection to explain.
        views, problem: the images that the page shows, and the reason if some are missing.
    """

    name: str
    is_error: bool
    summary: str
    prediction: Classification | Detections | Segmentation
    target: int | Detections | Segmentation
    details: tuple[str, ...] = ()
    cam_classes: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    views: tuple[Any, ...] = ()
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the views."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in ("is_error", "summary", "details")}
        if isinstance(self.target, int):
            plain["target"] = self.prediction.class_names[self.target]
        prediction = self.prediction
        if isinstance(prediction, Classification):
            return {"image": self.name, **plain, "prediction": prediction.to_dict(3)}
        return {"image": self.name, **plain, "prediction": prediction.to_dict()}


class Rating(NamedTuple):
    """How bad a prediction is: at least 1 for an error, NaN if undefined; its counts for intervals; its description."""

    severity: float
    counts: np.ndarray | None
    describe: Callable[[], ErrorCase]


class ErrorCollector(Metric):
    """The metric of a task that also keeps the predictions of highest severity.

    Args:
        task: the task.
        max_errors: number of predictions to keep.
    """

    def __init__(self, task: Task, *, max_errors: int) -> None:
        self.image_size: tuple[int, int] = (1, 1)
        """Rows and columns of the first image."""
        self._task, self._metric, self._max_errors = task, task.metric(), max_errors
        self._kept: list[tuple[float, int, ErrorCase]] = []  # a heap with the least severe first
        self._counts: list[np.ndarray] = []
        self._num_samples, self._num_errors = 0, 0

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add one batch to the metric, and keep predictions that are worse than the least severe one kept."""
        self._metric.update(outputs, batch)
        rows = zip(outputs, batch.targets, batch.image_metas, batch.valid.tolist(), strict=True)
        for output, target, image_meta, valid in rows:
            if not valid:
                continue
            if self._num_samples == 0:
                self.image_size = image_meta.original_size
            self._num_samples += 1
            rating = rate(self._task, output, target, image_meta)
            self._num_errors += rating.severity >= 1
            self._counts += [] if rating.counts is None else [rating.counts]
            full = len(self._kept) == self._max_errors
            if (
                self._max_errors
                and not math.isnan(rating.severity)
                and not (full and rating.severity <= self._kept[0][0])
            ):
                heapq.heappush(self._kept, (rating.severity, -self._num_samples, rating.describe()))
                if full:
                    heapq.heappop(self._kept)  # of equal ones the first is kept

    def compute(self) -> dict[str, Any]:
        """Return the metric's results with ``errors``, ``num_errors`` and ``intervals``.

        ``errors`` are the kept ones, the worst first; ``num_errors`` counts all; ``intervals`` has the 95 % bounds of
        metrics: Wilson's for accuracies, bootstrapped for segmentation.
        """
        results = self._metric.compute()
        intervals: Intervals = {
            name: wilson_interval(round(results["metrics"][name] * self._num_samples), self._num_samples)
            for name in ("top1", "top5")
            if self._num_samples and 0 <= results["metrics"].get(name, -1) <= 1
        }
        if isinstance(self._task, PanopticTask):
            intervals = panoptic_intervals(self._counts, self._task.things)
        elif self._counts:
            intervals = segmentation_intervals(self._counts)
        kept = sorted(self._kept, key=lambda entry: entry[:2], reverse=True)
        errors = tuple(error for _, _, error in kept)
        return {**results, "errors": errors, "num_errors": self._num_errors, "intervals": intervals}

    def to(self, device: torch.device) -> "ErrorCollector":
        """Move the metric's state to ``device`` and return this metric."""
        self._metric = self._metric.to(device)
        return self


def rate(task: Any, output: Any, target: Any, image_meta: ImageMeta) -> Rating:
    """Return how bad the prediction for one image is, and a function that describes it."""
    if isinstance(task, DetectionTask):
        return _rate_detections(task, output, target, image_meta)
    if isinstance(task, PanopticTask):
        return _rate_panoptic(task, output, target, image_meta)
    rate_one = _rate_classification if task.name == "classify" else _rate_segmentation
    return rate_one(task, output, target, image_meta)


def _rate_classification(task: Task, output: Tensor, target: Tensor, image_meta: ImageMeta) -> Rating:
    """Rate a wrong class by 1 + confidence, a correct one by 1 - its probability.

    Both classes are explained, or the two most probable ones if the prediction is correct.
    """
    probabilities = output.float().softmax(dim=0)
    confidence, predicted = probabilities.max(dim=0)
    true_index, is_error = int(target), bool(predicted != target)

    def describe() -> ErrorCase:
        (prediction,) = task.decode(output[None], [image_meta])
        first, second = (prediction.top(2) * 2)[:2]
        true_label = prediction.class_names[true_index]
        summary = f"{true_label} predicted as {first.label}" if is_error else f"{true_label}, correct"
        return ErrorCase(
            name=image_meta.name,
            is_error=is_error,
            summary=f"{summary} ({format_percent(first.score)})",
            prediction=prediction,
            target=true_index,
            cam_classes=(first.index, true_index if is_error else second.index),
        )

    return Rating(float(1 + confidence if is_error else 1 - probabilities[true_index]), None, describe)


def _rate_detections(
    task: DetectionTask, output: Mapping[str, Tensor], target: Mapping[str, Tensor], image_meta: ImageMeta
) -> Rating:
    """Rate by the number of missed and confused objects and false positives plus, below 1, their fraction.

    The wrong detection of highest score is explained.
    """
    keep = output["scores"] >= task.min_score
    detections = to_original_size({name: values[keep] for name, values in output.items()}, image_meta)
    matches = match(detections, target)
    fraction = matches.num_errors / max(1, matches.num_errors + len(matches.correct))

    def describe() -> ErrorCase:
        names = task.class_names
        predicted, true = ([names[label] for label in side["labels"].tolist()] for side in (detections, target))
        false_positives = [predicted[detection] for detection in matches.false_positives]
        kinds = {
            "missed": [true[index] for index in matches.missed],
            "confused": [f"{true[index]} as {predicted[detection]}" for detection, index in matches.confused],
            "false positive" if len(false_positives) == 1 else "false positives": false_positives,
        }
        phrases = []
        for kind, found in kinds.items():
            more = [f"and {len(found) - _MAX_LISTED} more"] if len(found) > _MAX_LISTED else []
            phrases += [f"{len(found)} {kind} ({', '.join(found[:_MAX_LISTED] + more)})"] if found else []
        wrong = [detection for detection, _ in matches.confused] + matches.false_positives
        worst = max(wrong, key=lambda index: float(detections["scores"][index]), default=None)
        masks = target["masks"].cpu().numpy() if task.masks else [None] * len(true)
        rows = zip(true, target["labels"].tolist(), target["boxes"].tolist(), masks, strict=True)
        objects = tuple(Detection(name, label, 1.0, tuple(box), mask) for name, label, box, mask in rows)
        size = image_meta.original_size
        return ErrorCase(
            name=image_meta.name,
            is_error=matches.num_errors > 0,
            summary="; ".join(phrases) or "no errors",
            prediction=task.decode([output], [image_meta])[0],
            target=Detections(class_names=names, detections=objects, image_size=size, name=image_meta.name),
            cam_classes=() if worst is None else (int(detections["labels"][worst]),),
            box=None if worst is None else tuple(detections["boxes"][worst].tolist()),
        )

    return Rating(matches.num_errors + 0.9 * fraction, None, describe)


def _rate_segmentation(task: Task, output: Tensor, target: Tensor, image_meta: ImageMeta) -> Rating:
    """Rate by 2 - the mean IoU over labeled and predicted classes; 0 if every pixel is correct.

    The two classes of the largest confusion are explained.
    """
    names, classes = task.class_names, len(task.class_names)
    predicted = to_label_map(output, image_meta, num_classes=classes).to(target.device)
    labeled = target >= 0
    cells = torch.bincount(target[labeled] * classes + predicted[labeled], minlength=classes**2)
    confusion = cells.reshape(classes, classes).cpu().numpy()  # pixels by true and predicted class
    counts = np.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])
    union = counts[1] + counts[2] - counts[0]
    mean_iou = float((counts[0][union > 0] / union[union > 0]).mean()) if union.any() else math.nan

    def describe() -> ErrorCase:
        wrong = confusion.copy()
        np.fill_diagonal(wrong, 0)
        largest = [divmod(int(cell), classes) for cell in np.argsort(-wrong, axis=None)[:_MAX_LISTED]]
        details = [f"{wrong[t, p]:,} px of {names[t]} predicted as {names[p]}" for t, p in largest if wrong[t, p]]
        ids = target.cpu().numpy().astype(np.int32)
        segments = tuple(Segment(index, names[index], index) for index in np.unique(ids).tolist() if index >= 0)
        return ErrorCase(
            name=image_meta.name,
            is_error=bool(details),
            summary=f"mean IoU {format_percent(mean_iou, places=0)}" if details else "no errors",
            details=tuple(details),
            prediction=task.decode([output], [image_meta])[0],
            target=Segmentation(class_names=names, segment_ids=ids, segments=segments, name=image_meta.name),
            cam_classes=tuple(dict.fromkeys(largest[0][::-1])) if details else (),
        )

    return Rating(0.0 if mean_iou == 1 else 2 - mean_iou, counts, describe)


def _rate_panoptic(
    task: PanopticTask, output: Mapping[str, Tensor], target: Mapping[str, Tensor], image_meta: ImageMeta
) -> Rating:
    """Rate by 2 - the panoptic quality; 0 if it is 1, NaN without any segment.

    A class that is predicted but not annotated is explained.
    """
    metric = task.metric()
    valid = torch.ones(1, dtype=torch.bool)
    metric.update([output], Batch(images=[], targets=[target], image_metas=(image_meta,), valid=valid))
    try:
        metrics = metric.compute()["metrics"]
    except DataError:  # no annotated segments
        metrics = dict.fromkeys(("pq", "rq", "sq"), math.nan)

    def describe() -> ErrorCase:
        (prediction,) = task.decode([output], [image_meta])
        labels = target["labels"].tolist()
        ids = np.full(image_meta.original_size, -1, np.int32)
        for segment_id, mask in enumerate(target["masks"].cpu().numpy(), start=1):
            ids[mask] = segment_id
        names, things = task.class_names, task.things
        segments = tuple(Segment(id_, names[index], index, None, things[index]) for id_, index in enumerate(labels, 1))
        predicted = {segment.index for segment in prediction.segments}
        pq, rq, sq = (format_percent(metrics[name], places=0) for name in ("pq", "rq", "sq"))
        return ErrorCase(
            name=image_meta.name,
            is_error=metrics["pq"] < 1,
            summary=f"panoptic quality {pq}",
            details=(f"recognition quality {rq}", f"segmentation quality {sq}"),
            prediction=prediction,
            target=Segmentation(
                class_names=names, segment_ids=ids, segments=segments, name=image_meta.name, panoptic=True
            ),
            cam_classes=tuple(sorted(predicted - set(labels)) or sorted(predicted))[:1],
        )

    return Rating(0.0 if metrics["pq"] == 1 else 2 - metrics["pq"], metric.class_counts(), describe)


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
    # (detections, targets): the IoU of each pair, and the fraction of the detection that the target covers
    if "masks" in detections and "masks" in target:
        masks, target_masks = (side["masks"].cpu().flatten(1).float() for side in (detections, target))
        shared = masks @ target_masks.T
        areas = masks.sum(dim=1)[:, None]
        ious = shared / (areas + target_masks.sum(dim=1)[None] - shared).clamp(min=1)
        coverage = shared / areas.clamp(min=1)
    else:
        boxes, target_boxes = (side["boxes"].cpu().float() for side in (detections, target))
        top_left = torch.maximum(boxes[:, None, :2], target_boxes[None, :, :2])
        bottom_right = torch.minimum(boxes[:, None, 2:], target_boxes[:, 2:])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)[:, None]
        ious = box_iou(boxes, target_boxes)
        coverage = (bottom_right - top_left).clamp(min=0).prod(dim=2) / areas.clamp(min=1e-9)
    crowd = target.get("iscrowd", torch.zeros(len(target["labels"]))).bool().cpu()
    same_class = detections["labels"].cpu()[:, None] == target["labels"].cpu()[None]
    on_crowd = ((coverage >= MIN_IOU) & same_class & crowd).any(dim=1)
    rest = detections["scores"].cpu().argsort(descending=True, stable=True).tolist()
    unmatched = ~crowd
    pairs: list[list[tuple[int, int]]] = []
    for allowed in (ious * same_class, ious):
        pairs.append([])
        for detection in rest:
            row = allowed[detection] * unmatched
            if len(row) and row.max() >= MIN_IOU:
                unmatched[row.argmax()] = False
                pairs[-1].append((detection, int(row.argmax())))
        matched = {detection for detection, _ in pairs[-1]}
        rest = [detection for detection in rest if detection not in matched and not on_crowd[detection]]
    return Matches(pairs[0], pairs[1], rest, unmatched.nonzero()[:, 0].tolist())
