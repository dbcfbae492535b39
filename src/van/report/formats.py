"""Titles and descriptions of tasks and metrics on the page, and the formatting of their values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from van.report.errors import THIN_SPACE, format_percent


class MetricName(NamedTuple):
    """A metric's title and description; ``is_fraction`` metrics are shown in percent."""

    title: str
    description: str
    is_fraction: bool = True


TASK_TITLES = {
    "classify": "Image classification",
    "detect": "Object detection",
    "instances": "Instance segmentation",
    "segment": "Semantic segmentation",
    "panoptic": "Panoptic segmentation",
}
METRICS = {
    "top1": MetricName("Top-1 accuracy", "fraction of images whose class with the highest score is correct"),
    "top5": MetricName("Top-5 accuracy", "fraction of images whose true class is among the five highest scores"),
    "loss": MetricName("Loss", "cross entropy on the validation images; lower is better", is_fraction=False),
    "ece": MetricName(
        "Expected calibration error",
        "mean distance between confidence and accuracy over 15 confidence bins; lower is better",
    ),
    "box_ap": MetricName("Box AP", "average precision of boxes, mean over IoU thresholds 0.50 to 0.95"),
    "mask_ap": MetricName("Mask AP", "average precision of masks, mean over IoU thresholds 0.50 to 0.95"),
    "mean_iou": MetricName("Mean IoU", "intersection over union of predicted and true pixels, mean over classes"),
    "mean_accuracy": MetricName(
        "Mean accuracy", "fraction of a class's pixels with the correct class, mean over classes"
    ),
    "pixel_accuracy": MetricName("Pixel accuracy", "fraction of all labeled pixels with the correct class"),
    "iou": MetricName("IoU", "intersection over union of predicted and true pixels of the class"),
    "pq": MetricName("Panoptic quality", "recognition quality times segmentation quality, mean over classes"),
    "sq": MetricName("Segmentation quality", "mean IoU of matched segments"),
    "rq": MetricName("Recognition quality", "F1 score of the matching of segments"),
    "pq_things": MetricName("Panoptic quality of things", "mean over thing classes (countable objects)"),
    "pq_stuff": MetricName("Panoptic quality of stuff", "mean over stuff classes (uncountable regions)"),
}
"""Metrics by the names in ``van eval``; ``metric_name`` adds COCO's other metrics."""
_COCO_METRICS = {
    "ap50": ("AP50", "average precision at IoU 0.50"),
    "ap75": ("AP75", "average precision at IoU 0.75"),
    "ap_small": ("AP, small objects", "objects of at most 32 x 32 pixels"),
    "ap_medium": ("AP, medium objects", "objects of at most 96 x 96 pixels"),
    "ap_large": ("AP, large objects", "objects of more than 96 x 96 pixels"),
    "ar1": ("AR, 1 detection", "recall with at most 1 detection of a class per image"),
    "ar10": ("AR, 10 detections", "recall with at most 10 detections of a class per image"),
    "ar100": ("AR, 100 detections", "recall with at most 100 detections of a class per image"),
    "ar_small": ("AR, small objects", "recall of objects of at most 32 x 32 pixels"),
    "ar_medium": ("AR, medium objects", "recall of objects of at most 96 x 96 pixels"),
    "ar_large": ("AR, large objects", "recall of objects of more than 96 x 96 pixels"),
}


def metric_name(name: str) -> MetricName:
    """Return a metric's title and description; an unknown metric has its own name as title."""
    if name in METRICS:
        return METRICS[name]
    kind, _, metric = name.partition("_")
    if kind in ("box", "mask") and metric in _COCO_METRICS:
        title, description = _COCO_METRICS[metric]
        return MetricName(f"{kind.capitalize()} {title}", description)
    return MetricName(name.replace("_", " "), "")


def format_metric(name: str, value: float | None) -> str:
    """Format a metric's value: fractions in percent, other values as numbers, a dash for None and NaN."""
    if value is None or value != value:
        return "–"
    return format_percent(value, places=2) if metric_name(name).is_fraction else f"{value:.4g}"


def format_interval(interval: tuple[float, float] | None) -> str:
    """Format the bounds of an interval of a fraction in percent; empty for None."""
    return "" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}{THIN_SPACE}%"


def pluralize(count: int, noun: str, suffix: str = "") -> str:
    """Format a count with its noun in singular or plural, and a suffix."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}{suffix}"


def format_count(count: float) -> str:
    """Format a count in thousands (k), millions (M) or billions (G) with three digits."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{THIN_SPACE}{name}"
    return f"{count:.3g}"


def format_decimal(value: float) -> str:
    """Format a duration or a rate: with a decimal below 100."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def format_compact(count: int) -> str:
    """Format a count with at most four characters; empty for 0."""
    if count < 1000:
        return f"{count}" if count else ""
    units = ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))
    unit, name = next((unit, name) for unit, name in units if count < 999.5 * unit)
    return f"{count / unit:.1f}{name}" if count < 9.95 * unit else f"{count / unit:.0f}{name}"


def format_setting(value: Any) -> str:
    """Format the value of a setting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        value = ", ".join(map(format_setting, value))
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {format_setting(inner)}" for key, inner in value.items())
    return "none" if value is None or value == "" else str(value)
