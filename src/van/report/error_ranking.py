"""Ranking of predictions by their error, and a description of each error, for every task.

Shapes: outputs and targets are those of ``van.tasks``; predictions and targets of an ``ErrorCase`` are in pixels of
the image's file.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from van.errors import DataError
from van.predictions import Classification, Detection, Detections, Segment, Segmentation
from van.report.intervals import Intervals, accuracy_intervals, panoptic_intervals, segmentation_intervals
from van.report.matching import Matches, match
from van.tasks.base import Batch, ImageMeta, Task
from van.tasks.detection import DetectionTask, to_original_size
from van.tasks.panoptic import PanopticTask
from van.tasks.segmentation import to_label_map
from van.visualization.svg_charts import format_percent

_MAX_LISTED = 4
"""Number of classes or confusions that a description lists."""


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
    """

    name: str
    is_error: bool
    summary: str
    prediction: Classification | Detections | Segmentation
    target: int | Detections | Segmentation
    details: tuple[str, ...] = ()
    cam_classes: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None


class ErrorRanking(Protocol):
    """Severity and description of the errors of one task."""

    def severities(self, outputs: Any, batch: Batch) -> Sequence[float]:
        """Return the severity of each prediction: higher is worse, at least 1 for an error, NaN if undefined."""
        ...

    def describe(self, output: Any, target: Any, image_meta: ImageMeta) -> ErrorCase:
        """Describe the prediction for one image."""
        ...

    def intervals(self, metrics: Mapping[str, float]) -> Intervals:
        """Return the 95 % intervals of the metrics over the valid samples so far, where they can be computed."""
        ...


def make_error_ranking(task: Task) -> ErrorRanking:
    """Return the error ranking of a task."""
    if isinstance(task, DetectionTask):
        return DetectionErrorRanking(task)
    if isinstance(task, PanopticTask):
        return PanopticErrorRanking(task)
    return ClassificationErrorRanking(task) if task.name == "classify" else SegmentationErrorRanking(task)


class ClassificationErrorRanking:
    """Misclassified images by descending confidence, then correct ones by ascending probability of the true class."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._num_samples = 0

    def severities(self, outputs: Tensor, batch: Batch) -> list[float]:
        """Return 1 + confidence for a wrong class, else 1 - the probability of the true class."""
        self._num_samples += int(batch.valid.sum())
        probabilities = outputs.float().softmax(dim=1)
        confidence, predicted = probabilities.max(dim=1)
        of_target = probabilities.gather(1, batch.targets[:, None])[:, 0]
        return torch.where(predicted == batch.targets, 1 - of_target, 1 + confidence).tolist()

    def describe(self, output: Tensor, target: Tensor, image_meta: ImageMeta) -> ErrorCase:
        """Describe the true and the predicted class; explain both, or the two most probable ones if correct."""
        (prediction,) = self.task.decode(output[None], [image_meta])
        true_index = int(target)
        first, second = (*prediction.top(2), None)[:2]
        is_error = first.index != true_index
        runner_up = second.index if second is not None else true_index
        true_label = prediction.class_names[true_index]
        summary = f"{true_label} predicted as {first.label}" if is_error else f"{first.label}, correct"
        return ErrorCase(
            name=image_meta.name,
            is_error=is_error,
            summary=f"{summary} ({format_percent(first.score)})",
            prediction=prediction,
            target=true_index,
            cam_classes=(first.index, true_index if is_error else runner_up),
        )

    def intervals(self, metrics: Mapping[str, float]) -> Intervals:
        """Return the Wilson intervals of top1 and top5."""
        return accuracy_intervals(metrics, self._num_samples)


class DetectionErrorRanking:
    """Images by the number of missed and confused objects and false positives."""

    def __init__(self, task: DetectionTask) -> None:
        self.task = task

    def severities(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch) -> list[float]:
        """Return the number of errors plus, below 1, their fraction of all detections and objects."""
        values = []
        for output, target, image_meta in zip(outputs, batch.targets, batch.image_metas, strict=True):
            matches = match(self._above_min_score(output, image_meta), target)
            fraction = matches.num_errors / max(1, matches.num_errors + len(matches.correct))
            values.append(matches.num_errors + 0.9 * fraction)
        return values

    def describe(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor], image_meta: ImageMeta) -> ErrorCase:
        """Describe missed and confused objects and false positives; explain the wrong detection of highest score."""
        detections = self._above_min_score(output, image_meta)
        matches = match(detections, target)
        (prediction,) = self.task.decode([output], [image_meta])
        errors = _describe_matches(matches, detections, target, self.task.class_names)
        wrong = [detection for detection, _ in matches.confused] + matches.false_positives
        wrong.sort(key=lambda index: -float(detections["scores"][index]))
        return ErrorCase(
            name=image_meta.name,
            is_error=matches.num_errors > 0,
            summary="; ".join(errors) or "no errors",
            prediction=prediction,
            target=self._target_detections(target, image_meta),
            cam_classes=tuple(int(detections["labels"][index]) for index in wrong[:1]),
            box=tuple(detections["boxes"][wrong[0]].tolist()) if wrong else None,
        )

    def intervals(self, metrics: Mapping[str, float]) -> Intervals:
        """Return none; see ``van.report.intervals``."""
        return {}

    def _above_min_score(self, output: Mapping[str, Tensor], image_meta: ImageMeta) -> dict[str, Tensor]:
        keep = output["scores"] >= self.task.min_score
        return to_original_size({name: values[keep] for name, values in output.items()}, image_meta)

    def _target_detections(self, target: Mapping[str, Tensor], image_meta: ImageMeta) -> Detections:
        masks = target["masks"].cpu().numpy() if self.task.masks else [None] * len(target["labels"])
        rows = zip(target["boxes"].tolist(), target["labels"].tolist(), masks, strict=True)
        objects = tuple(
            Detection(self.task.class_names[label], label, 1.0, tuple(box), mask) for box, label, mask in rows
        )
        return Detections(
            class_names=self.task.class_names,
            detections=objects,
            image_size=image_meta.original_size,
            name=image_meta.name,
        )


class SegmentationErrorRanking:
    """Images by ascending mean IoU."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._counts: list[np.ndarray] = []

    def severities(self, outputs: Sequence[Tensor], batch: Batch) -> list[float]:
        """Return 2 - the mean IoU over labeled and predicted classes; 0 if every pixel is correct."""
        values = []
        rows = zip(outputs, batch.targets, batch.image_metas, batch.valid.tolist(), strict=True)
        for output, target, image_meta, valid in rows:
            confusion = self._confusion(output, target, image_meta)
            values.append(_segmentation_severity(confusion))
            if valid:
                self._counts.append(np.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)]))
        return values

    def describe(self, output: Tensor, target: Tensor, image_meta: ImageMeta) -> ErrorCase:
        """Describe the largest confusions in pixels; explain the two classes of the largest one."""
        confusion = self._confusion(output, target, image_meta)
        (prediction,) = self.task.decode([output], [image_meta])
        class_names = self.task.class_names
        wrong = confusion.copy()
        np.fill_diagonal(wrong, 0)
        largest = [divmod(int(cell), len(wrong)) for cell in np.argsort(-wrong, axis=None)[:_MAX_LISTED]]
        details = [
            f"{wrong[true, predicted]:,} px of {class_names[true]} predicted as {class_names[predicted]}"
            for true, predicted in largest
            if wrong[true, predicted]
        ]
        mean_iou = 2 - _segmentation_severity(confusion)
        return ErrorCase(
            name=image_meta.name,
            is_error=bool(wrong.any()),
            summary=f"mean IoU {format_percent(mean_iou, places=0)}" if details else "no errors",
            details=tuple(details),
            prediction=prediction,
            target=_to_segmentation(target.cpu().numpy(), class_names, image_meta.name),
            cam_classes=tuple(dict.fromkeys(largest[0][::-1])) if details else (),
        )

    def intervals(self, metrics: Mapping[str, float]) -> Intervals:
        """Return bootstrap intervals of the mean IoU and the accuracies."""
        return segmentation_intervals(self._counts)

    def _confusion(self, output: Tensor, target: Tensor, image_meta: ImageMeta) -> np.ndarray:
        """Return (classes, classes): pixels by true and predicted class."""
        classes = len(self.task.class_names)
        predicted = to_label_map(output, image_meta, num_classes=classes).to(target.device)
        labeled = target >= 0
        cells = target[labeled] * classes + predicted[labeled]
        return torch.bincount(cells, minlength=classes**2).reshape(classes, classes).cpu().numpy()


class PanopticErrorRanking:
    """Images by ascending panoptic quality."""

    def __init__(self, task: PanopticTask) -> None:
        self.task = task
        self._counts: list[np.ndarray] = []

    def severities(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch) -> list[float]:
        """Return 2 - the panoptic quality of each image; 0 if it is 1, NaN without any segment."""
        values = []
        rows = zip(outputs, batch.targets, batch.image_metas, batch.valid.tolist(), strict=True)
        for output, target, image_meta, valid in rows:
            metrics, counts = self._evaluate_image(output, target, image_meta)
            quality = metrics.get("pq", float("nan"))
            values.append(2 - quality if quality != 1 else 0.0)
            if valid:
                self._counts.append(counts)
        return values

    def describe(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor], image_meta: ImageMeta) -> ErrorCase:
        """Describe the image's metrics; explain a class that is predicted but not annotated."""
        metrics, _ = self._evaluate_image(output, target, image_meta)
        (prediction,) = self.task.decode([output], [image_meta])
        target_labels = target["labels"].tolist()
        ids = np.full(image_meta.original_size, -1, np.int32)
        for segment_id, mask in enumerate(target["masks"].cpu().numpy(), start=1):
            ids[mask] = segment_id
        class_names, things = self.task.class_names, self.task.things
        segments = tuple(
            Segment(segment_id, class_names[label], label, None, things[label])
            for segment_id, label in enumerate(target_labels, start=1)
        )
        predicted = {segment.index for segment in prediction.segments}
        return ErrorCase(
            name=image_meta.name,
            is_error=metrics["pq"] < 1,
            summary=f"panoptic quality {format_percent(metrics['pq'], places=0)}",
            details=(
                f"recognition quality {format_percent(metrics['rq'], places=0)}",
                f"segmentation quality {format_percent(metrics['sq'], places=0)}",
            ),
            prediction=prediction,
            target=Segmentation(
                class_names=class_names, segment_ids=ids, segments=segments, name=image_meta.name, panoptic=True
            ),
            cam_classes=tuple(sorted(predicted - set(target_labels)) or sorted(predicted))[:1],
        )

    def intervals(self, metrics: Mapping[str, float]) -> Intervals:
        """Return bootstrap intervals of the panoptic, segmentation and recognition quality."""
        return panoptic_intervals(self._counts, self.task.things)

    def _evaluate_image(self, output: Any, target: Any, image_meta: ImageMeta) -> tuple[dict[str, float], np.ndarray]:
        """Return the metrics and the ``class_counts`` of one image."""
        metric = self.task.metric()
        valid = torch.ones(1, dtype=torch.bool)
        metric.update([output], Batch(images=[], targets=[target], image_metas=(image_meta,), valid=valid))
        try:
            return metric.compute()["metrics"], metric.class_counts()
        except DataError:  # no annotated segments
            return {}, metric.class_counts()


def _describe_matches(
    matches: Matches, detections: Mapping[str, Tensor], target: Mapping[str, Tensor], class_names: Sequence[str]
) -> list[str]:
    """Return one phrase for each kind of error in an image."""
    predicted, true = ([class_names[label] for label in side["labels"].tolist()] for side in (detections, target))
    phrases = []
    if matches.missed:
        phrases.append(f"{len(matches.missed)} missed ({_join([true[index] for index in matches.missed])})")
    if matches.confused:
        pairs = [f"{true[index]} as {predicted[detection]}" for detection, index in matches.confused]
        phrases.append(f"{len(pairs)} confused ({_join(pairs)})")
    if matches.false_positives:
        names = _join([predicted[detection] for detection in matches.false_positives])
        noun = "false positive" if len(matches.false_positives) == 1 else "false positives"
        phrases.append(f"{len(matches.false_positives)} {noun} ({names})")
    return phrases


def _join(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
    return ", ".join([*names[:_MAX_LISTED], *more])


def _segmentation_severity(confusion: np.ndarray) -> float:
    """Return 2 - the mean IoU over the labeled and predicted classes of an image; 0 if every pixel is correct."""
    correct, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    if not union.any():
        return float("nan")
    mean_iou = float((correct[union > 0] / union[union > 0]).mean())
    return 2 - mean_iou if mean_iou < 1 else 0.0


def _to_segmentation(ids: np.ndarray, class_names: tuple[str, ...], name: str) -> Segmentation:
    segments = tuple(Segment(index, class_names[index], index) for index in np.unique(ids).tolist() if index >= 0)
    return Segmentation(class_names=class_names, segment_ids=ids.astype(np.int32), segments=segments, name=name)
