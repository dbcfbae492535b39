"""Charts of evaluation metrics: confusion matrix, reliability diagram, metric per class, precision-recall curves.

They are drawn from the details of a task's metric; ``build_metric_charts`` selects those that the details allow. Every
function writes one PNG, the same bytes for the same input; colors are safe for color-blind readers. Sources:
reliability diagrams and the expected calibration error, Guo et al. 2017, arXiv:1706.04599; precision over recall,
COCO, cocodataset.org; error bars of proportions, Wilson 1927, see ``van.visualization.intervals``.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from van.errors import ShapeError
from van.visualization.charts import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    draw_placeholder,
    save_figure,
    style_axes,
    truncate_label,
)
from van.visualization.drawing import class_color
from van.visualization.intervals import SMALL_SAMPLE, wilson_interval

_MAX_NUMBERED, _MAX_NAMED = 20, 60
_NUM_WORST, _NUM_BEST = 30, 10
_MAX_CURVES, _NUM_WORST_CURVES = 8, 5
"""Number of classes with curves of their own color; with more classes, the number of the worst that have one."""
_LEFT_TO_RIGHT = "\u200e"
"""Keeps a number before a name in a right-to-left script."""
_KINDS = {"box": "boxes", "mask": "masks"}
_THRESHOLDS = {"0.50": BLUE, "0.75": ORANGE, "0.50:0.95": GREEN}


def build_metric_charts(
    details: Mapping[str, Any], *, class_names: Sequence[str], monitor: str
) -> dict[str, Callable[[Path], None]]:
    """Return the charts that the details of a metric allow, as functions that write a PNG, by file name.

    Args:
        details: the result of ``Metric.compute`` without the metrics.
        class_names: names of the classes.
        monitor: the task's monitor metric, such as ``mean_iou``; its value of each class is drawn.
    """
    charts: dict[str, Callable[[Path], None]] = {}
    if details.get("confusion") is not None and len(class_names) > 1:
        charts["confusion.png"] = functools.partial(draw_confusion_matrix, details["confusion"], class_names)
    if details.get("reliability") is not None:
        charts["reliability.png"] = functools.partial(draw_reliability_diagram, details["reliability"])
    if details.get("per_class"):
        apply_diverging_colormap = () if monitor == "top1" else class_names  # the colors of boxes and masks in images
        name = monitor.removeprefix("mean_")
        charts["per_class.png"] = functools.partial(
            draw_per_class_metric, details["per_class"], name, class_names=apply_diverging_colormap
        )
    if details.get("precision_recall") is not None:
        curves = details["precision_recall"]
        charts["precision_recall.png"] = functools.partial(
            draw_precision_recall_curves, curves, class_names=class_names
        )
    return charts


def draw_confusion_matrix(counts: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, each row as fractions of its class.

    Counts are written into the cells up to 20 classes, class names beside them up to 60. The colors follow the square
    root of the fraction, so that a few errors in a hundred are visible.

    Raises:
        ShapeError: ``counts`` is not a square with a row for each class.
    """
    classes = len(class_names)
    if counts.shape != (classes, classes) or not classes:
        raise ShapeError(
            f"counts: expected {(classes, classes)}, a row and a column for each class, got {counts.shape}"
        )
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [truncate_label(label) for label in class_names] if classes <= _MAX_NAMED else []
    side = float(np.clip(2.5 + 0.42 * classes, 4, 14)) + 0.06 * max(map(len, names), default=0)  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(100 * fractions, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    figure.colorbar(image, ax=axis, label="fraction of the true class (%)", shrink=0.8)
    if classes <= _MAX_NUMBERED:
        for row, column in np.argwhere(counts > 0):
            color = "white" if fractions[row, column] > 0.35 else "black"
            text = _abbreviate(int(counts[row, column]))
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    if names:
        size = 10 if classes <= 30 else 8
        axis.set_xticks(range(classes), names, rotation=90, fontsize=size, parse_math=False)
        axis.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    save_figure(figure, path)


def draw_reliability_diagram(reliability: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw a reliability diagram: accuracy over confidence, above the distribution of confidence.

    On the dashed line accuracy equals confidence. The title has the expected calibration error. Bins of at most 30
    samples have 95 % Wilson intervals.

    Args:
        reliability: for equal bins of confidence from 0 to 1: ``count`` of predictions, how many were ``right``, and
            the sum of their ``confidence``, which is NaN where a score was NaN.

    Raises:
        ShapeError: the three differ in length, or are empty.
    """
    count, right, confidence = (np.asarray(reliability[name], float) for name in ("count", "correct", "confidence"))
    if not len(count) or not len(count) == len(right) == len(confidence):
        lengths = f"{len(count)}, {len(right)} and {len(confidence)}"
        raise ShapeError(f"count, right, confidence: expected the same number of bins, at least 1, got {lengths}")
    total, edges = count.sum(), np.linspace(0, 1, len(count) + 1)
    figure = Figure(figsize=(5.6, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color=GRAY, linestyle="--", linewidth=1.2, label="perfect calibration")
    title = "no predictions"
    lower.set_ylim(0, 100)
    if total:
        filled = count > 0
        left, widths = 100 * edges[:-1][filled], 100 * np.diff(edges)[filled]
        style: dict[str, Any] = {"width": widths, "align": "edge", "edgecolor": "white"}
        accuracy, mean = (100 * values[filled] / count[filled] for values in (right, confidence))
        upper.bar(left, accuracy, color=BLUE, label="accuracy", **style)
        upper.hlines(mean, left, left + widths, color=ORANGE, linewidth=3, label="mean confidence")
        few = [place for place in np.flatnonzero(filled) if count[place] <= SMALL_SAMPLE]
        if few:
            _draw_intervals(
                upper,
                50 * (edges[:-1] + edges[1:])[few],
                [wilson_interval(right[place], int(count[place])) for place in few],
                vertical=True,
            )
        lower.bar(left, 100 * count[filled] / total, color=GRAY, **style)
        lower.set_ylim(0, 105 * count.max() / total)
        error = np.abs(right - confidence).sum() / total
        title = f"expected calibration error {100 * error:.2f} %" if np.isfinite(error) else "some scores are NaN"
    upper.set(xlim=(0, 100), ylim=(0, 100))
    upper.legend(frameon=True, framealpha=0.85, edgecolor="none", loc="upper left")
    style_axes(upper, title, "", "accuracy (%)")
    style_axes(lower, "", "confidence (%)", "predictions (%)")
    save_figure(figure, path)


def draw_per_class_metric(
    per_class: Mapping[str, Mapping[str, float]],
    name: str,
    path: Path,
    *,
    class_names: Sequence[str] = (),
    in_order: bool = False,
) -> None:
    """Draw a bar for each class, the worst first; of more than 60 classes the worst 30 and the best 10.

    A proportion of at most 30 ``samples``, such as ``top1``, has its 95 % Wilson interval as error bar.

    Args:
        per_class: metrics of each class by name, fractions; a class without a finite value is left out.
        name: the metric to draw, such as ``top1`` or ``iou``.
        class_names: names of all classes, to give each bar the color that its class has in images.
        in_order: up to 60 classes keep their order.
    """
    pairs = [(label, float(values.get(name, np.nan))) for label, values in per_class.items()]
    known = [(label, value) for label, value in pairs if np.isfinite(value)]
    ranked = sorted(known, key=lambda pair: pair[1])
    rows: list[tuple[str, float]] = known if in_order and len(known) <= _MAX_NAMED else ranked
    between = ""
    if len(ranked) > _MAX_NAMED:
        between = f"... {len(ranked) - _NUM_WORST - _NUM_BEST:,} classes between ..."
        rows = [*ranked[:_NUM_WORST], (between, np.nan), *ranked[-_NUM_BEST:]]
    indices = {label: index for index, label in enumerate(class_names)}
    figure = Figure(figsize=(7.5, 1.4 + 0.24 * max(len(rows), 3)), layout="constrained")
    axis = figure.subplots()
    title = f"{name} per class"
    if rows:
        values = np.array([100 * value for _, value in rows])
        colors = [_to_unit_range(class_color(indices[label])) if label in indices else BLUE for label, _ in rows]
        axis.barh(range(len(rows)), np.nan_to_num(values), color=colors, edgecolor="black", linewidth=0.4, height=0.75)
        intervals = _wilson_intervals(per_class, name, [label for label, _ in rows])
        _draw_intervals(axis, np.array(list(intervals)), list(intervals.values()), vertical=False)
        for row, value in enumerate(values):
            if np.isfinite(value):
                # Behind the error bar, where there is one.
                end = max(value, 100 * intervals[row][1] if row in intervals else 0)
                text = axis.text(end + 0.8, row, f"{value:.1f}", va="center", fontsize=8)
                text.set_path_effects(
                    [withStroke(linewidth=2.5, foreground="white")]
                )  # readable over the line of the mean
        names = [label if label == between else truncate_label(label) for label, _ in rows]
        axis.set_yticks(range(len(rows)), names, fontsize=9, parse_math=False)
        mean = 100 * float(np.mean([value for _, value in known]))
        axis.axvline(mean, color="black", linewidth=1, linestyle=":")
        axis.set(xlim=(0, 106), ylim=(len(rows) - 0.4, -0.6), xticks=range(0, 101, 20))
        ties = sum(value == ranked[0][1] for _, value in ranked) - 1
        more = f" and {ties} more" if ties else ""
        title += f": worst {truncate_label(ranked[0][0])}{more}, {100 * ranked[0][1]:.1f} %"
        classes = "1 class" if len(known) == 1 else f"{len(known):,} classes"
        note = f"dotted: mean of {classes}, {mean:.1f} %" + ("; error bars: 95 % interval" if intervals else "")
        style_axes(axis, title, f"{name} (%)\n{note}", "class")
        axis.grid(axis="y", visible=False)
    else:
        draw_placeholder(axis, f"no class has {truncate_label(name)}")
        style_axes(axis, title, f"{name} (%)", "class")
    save_figure(figure, path)


def draw_precision_recall_curves(curves: Mapping[str, Any], path: Path, *, class_names: Sequence[str] = ()) -> None:
    """Draw precision over recall, a row for boxes and one for masks: left the mean over classes, right each class.

    The curves of each class are at IoU 0.50. Up to 8 classes have curves of their own color; of more the
    5 worst, in front of all others in gray.

    Args:
        curves: ``recall`` (R,) and, for ``box`` and optionally ``mask``: ``all`` and each of ``per_class``: precision
            (R,) by IoU threshold, "0.50", "0.75" and "0.50:0.95".
        class_names: names of all classes, to give each curve the color that its class has in images.
    """
    recall = 100 * np.asarray(curves["recall"], float)
    kinds = [kind for kind in _KINDS if kind in curves]
    figure = Figure(figsize=(12, 0.4 + 3.8 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, (mean_axis, class_axis) in zip(kinds, axes, strict=True):
        means = curves[kind]["all"]
        lines = [_Line(f"IoU {threshold}", means[threshold], color) for threshold, color in _THRESHOLDS.items()]
        _draw_precisions(mean_axis, recall, lines)
        style_axes(mean_axis, f"{_KINDS[kind]}, mean over classes", "recall (%)", "precision (%)")
        classes = {label: precisions["0.50"] for label, precisions in curves[kind]["per_class"].items()}
        _draw_precisions(class_axis, recall, _class_lines(classes, class_names))
        style_axes(class_axis, f"{_KINDS[kind]}, each class at IoU 0.50", "recall (%)", "precision (%)")
    save_figure(figure, path)


class _Line(NamedTuple):
    """Precision (R,) with its name in the legend; None for a curve without its own entry."""

    name: str | None
    precision: Sequence[float]
    color: Any


def _class_lines(classes: Mapping[str, Sequence[float]], class_names: Sequence[str]) -> list[_Line]:
    """Return the classes with their own entry, the worst first, after the others in gray."""
    indices = {label: index for index, label in enumerate(class_names or classes)}
    worst_first = sorted(classes, key=lambda label: float(np.mean(classes[label])))
    num_named = len(classes) if len(classes) <= _MAX_CURVES else _NUM_WORST_CURVES
    others = [_Line(None, classes[label], GRAY) for label in worst_first[num_named:]]
    named = worst_first[:num_named]
    return others + [_Line(label, classes[label], _to_unit_range(class_color(indices[label]))) for label in named]


def _draw_precisions(axis: Axes, recall: np.ndarray, lines: Sequence[_Line]) -> None:
    """Draw curves, and a legend beside them with the average precision of each named one."""
    handles, names = [], []
    for line in lines:
        style: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.35} if line.name is None else {"linewidth": 2}
        handles += axis.plot(recall, 100 * np.asarray(line.precision, float), color=line.color, **style)
        names.append(
            "" if line.name is None else f"{_LEFT_TO_RIGHT}{_percent(line.precision)}  {truncate_label(line.name)}"
        )
    axis.set(xlim=(0, 101), ylim=(0, 103))
    if not lines:
        draw_placeholder(axis, "no annotations")
        return
    others = names.count("")
    if others:
        handles, names = [*handles[others:], handles[0]], [*names[others:], f"{others:,} other classes"]
    legend = axis.legend(
        handles, names, title="average precision (%)", alignment="left", frameon=False, loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _percent(values: Sequence[float]) -> str:
    """Return the mean over recalls, which is COCO's average precision, in percent."""
    return f"{100 * float(np.mean(values)):.1f}"


def _wilson_intervals(
    per_class: Mapping[str, Mapping[str, float]], name: str, labels: Sequence[str]
) -> dict[int, tuple[float, float]]:
    """Return the intervals, by row, of proportions of few samples; other metrics than top-k are no proportions."""
    if not name.startswith("top"):
        return {}
    intervals = {}
    for row, label in enumerate(labels):
        samples = int(per_class.get(label, {}).get("samples", 0))
        if 1 <= samples <= SMALL_SAMPLE:
            intervals[row] = wilson_interval(min(round(per_class[label][name] * samples), samples), samples)
    return intervals


def _draw_intervals(
    axis: Axes, positions: np.ndarray, intervals: Sequence[tuple[float, float]], *, vertical: bool
) -> None:
    """Draw intervals (fractions) in percent as error bars at the given positions."""
    if not len(positions):
        return
    low, high = (100 * np.array([interval[side] for interval in intervals]) for side in (0, 1))
    center, half = (low + high) / 2, (high - low) / 2
    style: dict[str, Any] = {"fmt": "none", "ecolor": "black", "elinewidth": 1, "capsize": 2.5, "capthick": 1}
    if vertical:
        axis.errorbar(positions, center, yerr=half, label="95 % interval", **style)
    else:
        axis.errorbar(center, positions, xerr=half, **style)


def _to_unit_range(color: tuple[int, int, int]) -> tuple[float, ...]:
    """Return a color with channels in 0..1, as matplotlib expects."""
    return tuple(value / 255 for value in color)


def _abbreviate(count: int) -> str:
    """Return a count of at most five characters, such as ``60k``."""
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"
