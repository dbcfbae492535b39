"""Charts of evaluation metrics: confusion matrix, reliability diagram, metric per class, precision-recall curves.

They are drawn from the details of a task's metric; ``build_metric_charts`` selects those that the details allow.
Sources: reliability diagrams and the expected calibration error, Guo et al. 2017, arXiv:1706.04599; precision over
recall, COCO, cocodataset.org; error bars of proportions, Wilson 1927, see ``van.visualization.intervals``.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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

Reliability = Mapping[str, Sequence[float]]
"""For equal bins of confidence from 0 to 1: ``count`` of predictions, how many were ``correct``, and the sum of their
``confidence``, which is NaN where a score was NaN."""
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
        colored = () if monitor == "top1" else class_names  # the colors of boxes and masks in images
        name = monitor.removeprefix("mean_")
        charts["per_class.png"] = functools.partial(
            draw_per_class_metric, details["per_class"], name, class_names=colored
        )
    if details.get("precision_recall") is not None:
        charts["precision_recall.png"] = functools.partial(
            draw_precision_recall_curves, details["precision_recall"], class_names=class_names
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
            count = int(counts[row, column])
            text = str(count) if count < 1e4 else f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M"
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    if names:
        size = 10 if classes <= 30 else 8
        axis.set_xticks(range(classes), names, rotation=90, fontsize=size, parse_math=False)
        axis.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    save_figure(figure, path)


def draw_reliability_diagram(reliability: Reliability, path: Path) -> None:
    """Draw a reliability diagram above the distribution of confidence; see ``plot_reliability``.

    Raises:
        ShapeError: the three sequences differ in length, or are empty.
    """
    count, correct, confidence = (np.asarray(reliability[name], float) for name in ("count", "correct", "confidence"))
    if not len(count) or not len(count) == len(correct) == len(confidence):
        lengths = f"{len(count)}, {len(correct)} and {len(confidence)}"
        raise ShapeError(f"count, right, confidence: expected the same number of bins, at least 1, got {lengths}")
    figure = Figure(figsize=(5.6, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    plot_reliability(upper, reliability)
    total = count.sum()
    title = "no predictions"
    lower.set_ylim(0, 100)
    if total:
        filled, width = count > 0, 100 / len(count)
        left = np.linspace(0, 100 - width, len(count))[filled]
        lower.bar(left, 100 * count[filled] / total, width, align="edge", color=GRAY, edgecolor="white")
        lower.set_ylim(0, 105 * count.max() / total)
        error = np.abs(correct - confidence).sum() / total
        title = f"expected calibration error {100 * error:.2f} %" if np.isfinite(error) else "some scores are NaN"
    upper.legend(frameon=True, framealpha=0.85, edgecolor="none", loc="upper left")
    style_axes(upper, title, "", "accuracy (%)")
    style_axes(lower, "", "confidence (%)", "predictions (%)")
    save_figure(figure, path)


def plot_reliability(axis: Axes, reliability: Reliability) -> None:
    """Plot accuracy and mean confidence of each bin of confidence; on the dashed line they are equal.

    Bins of at most 30 samples have 95 % Wilson intervals.
    """
    count, correct, confidence = (np.asarray(reliability[name], float) for name in ("count", "correct", "confidence"))
    edges, filled = np.linspace(0, 1, len(count) + 1), count > 0
    axis.plot([0, 100], [0, 100], color=GRAY, linestyle="--", linewidth=1.2, label="perfect calibration")
    if filled.any():
        left, widths = 100 * edges[:-1][filled], 100 * np.diff(edges)[filled]
        accuracy, mean = (100 * values[filled] / count[filled] for values in (correct, confidence))
        axis.bar(left, accuracy, widths, align="edge", color=BLUE, edgecolor="white", label="accuracy")
        axis.hlines(mean, left, left + widths, color=ORANGE, linewidth=3, label="mean confidence")
        few = [place for place in np.flatnonzero(filled) if count[place] <= SMALL_SAMPLE]
        intervals = [wilson_interval(correct[place], int(count[place])) for place in few]
        _draw_intervals(axis, 50 * (edges[:-1] + edges[1:])[few], intervals, vertical=True)
    axis.set(xlim=(0, 100), ylim=(0, 100))
    style_axes(axis, "", "confidence (%)", "accuracy (%)")


def draw_per_class_metric(
    per_class: Mapping[str, Mapping[str, float]], name: str, path: Path, *, class_names: Sequence[str] = ()
) -> None:
    """Draw a bar for each class, the worst first; of more than 60 classes the worst 30 and the best 10.

    A proportion of at most 30 ``samples``, such as ``top1``, has its 95 % Wilson interval as error bar.

    Args:
        per_class: metrics of each class by name, fractions; a class without a finite value is left out.
        name: the metric to draw, such as ``top1`` or ``iou``.
        class_names: names of all classes, to give each bar the color that its class has in images.
    """
    pairs = [(label, float(values.get(name, np.nan))) for label, values in per_class.items()]
    ranked = sorted([(label, value) for label, value in pairs if np.isfinite(value)], key=lambda pair: pair[1])
    rows, between = ranked, ""
    if len(ranked) > _MAX_NAMED:
        between = f"... {len(ranked) - _NUM_WORST - _NUM_BEST:,} classes between ..."
        rows = [*ranked[:_NUM_WORST], (between, np.nan), *ranked[-_NUM_BEST:]]
    figure = Figure(figsize=(7.5, 1.4 + 0.24 * max(len(rows), 3)), layout="constrained")
    axis = figure.subplots()
    title, x_label = f"{name} per class", f"{name} (%)"
    if not rows:
        draw_placeholder(axis, f"no class has {truncate_label(name)}")
        style_axes(axis, title, x_label, "class")
        save_figure(figure, path)
        return
    indices = {label: index for index, label in enumerate(class_names)}
    colors = [_color_of_class(indices[label]) if label in indices else BLUE for label, _ in rows]
    lengths = [0.0 if np.isnan(value) else 100 * value for _, value in rows]
    axis.barh(range(len(rows)), lengths, color=colors, edgecolor="black", linewidth=0.4, height=0.75)
    intervals = {}
    for row, (label, value) in enumerate(rows):
        samples = int(per_class.get(label, {}).get("samples", 0))
        if name.startswith("top") and 1 <= samples <= SMALL_SAMPLE:  # other metrics are no proportions
            intervals[row] = wilson_interval(min(round(value * samples), samples), samples)
        if label != between:
            end = 100 * max(value, intervals[row][1] if row in intervals else 0)  # beside the error bar, if any
            text = axis.text(end + 0.8, row, f"{100 * value:.1f}", va="center", fontsize=8)
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # legible on the line of the mean
    _draw_intervals(axis, np.array(list(intervals)), list(intervals.values()), vertical=False)
    names = [label if label == between else truncate_label(label) for label, _ in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=9, parse_math=False)
    mean = 100 * float(np.mean([value for _, value in ranked]))
    axis.axvline(mean, color="black", linewidth=1, linestyle=":")
    axis.set(xlim=(0, 106), ylim=(len(rows) - 0.4, -0.6), xticks=range(0, 101, 20))
    ties = sum(value == ranked[0][1] for _, value in ranked) - 1
    more = f" and {ties} more" if ties else ""
    title += f": worst {truncate_label(ranked[0][0])}{more}, {100 * ranked[0][1]:.1f} %"
    classes = "1 class" if len(ranked) == 1 else f"{len(ranked):,} classes"
    note = f"dotted: mean of {classes}, {mean:.1f} %" + ("; error bars: 95 % interval" if intervals else "")
    style_axes(axis, title, f"{x_label}\n{note}", "class")
    axis.grid(axis="y", visible=False)
    save_figure(figure, path)


def draw_precision_recall_curves(curves: Mapping[str, Any], path: Path, *, class_names: Sequence[str] = ()) -> None:
    """Draw precision over recall, a row for boxes and one for masks: left the mean over classes, right each class.

    The curves of each class are at IoU 0.50. Up to 8 classes have curves of their own color; of more the
    5 worst, in front of all others in gray. Legends have the average precision, the mean over recalls.

    Args:
        curves: ``recall`` (R,) and, for ``box`` and optionally ``mask``: ``all`` and each of ``per_class``: precision
            (R,) by IoU threshold, "0.50", "0.75" and "0.50:0.95".
        class_names: names of all classes, to give each curve the color that its class has in images.
    """
    kinds = [kind for kind in _KINDS if kind in curves]
    figure = Figure(figsize=(12, 0.4 + 3.8 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, (mean_axis, class_axis) in zip(kinds, axes, strict=True):
        plot_mean_precision(mean_axis, curves, kind, averages=True)
        mean_axis.set_title(f"{_KINDS[kind]}, mean over classes")
        classes = {label: precisions["0.50"] for label, precisions in curves[kind]["per_class"].items()}
        indices = {label: index for index, label in enumerate(class_names or classes)}
        worst_first = sorted(classes, key=lambda label: float(np.mean(classes[label])))
        num_named = len(classes) if len(classes) <= _MAX_CURVES else _NUM_WORST_CURVES
        others = worst_first[num_named:]
        for label in others:
            first = f"{len(others):,} other classes" if label == others[0] else None
            class_axis.plot(*_percent(curves["recall"], classes[label]), color=GRAY, lw=0.7, alpha=0.35, label=first)
        for label in worst_first[:num_named]:
            style = {"color": _color_of_class(indices[label]), "linewidth": 2}
            text = _with_average(label, classes[label])
            class_axis.plot(*_percent(curves["recall"], classes[label]), label=text, **style)
        _style_precision(class_axis, f"{_KINDS[kind]}, each class at IoU 0.50")
        for axis in (mean_axis, class_axis):
            if not axis.lines:
                draw_placeholder(axis, "no annotations")
                continue
            handles, names = axis.get_legend_handles_labels()
            if axis is class_axis and others:  # they are drawn first and listed last
                handles, names = [*handles[1:], handles[0]], [*names[1:], names[0]]
            legend = axis.legend(
                handles, names, title="average precision (%)", alignment="left", frameon=False, loc="upper left",
                bbox_to_anchor=(1.0, 1.0),
            )  # fmt: skip
            for text in legend.get_texts():
                text.set_parse_math(False)
    save_figure(figure, path)


def plot_mean_precision(axis: Axes, curves: Mapping[str, Any], kind: str, *, averages: bool = False) -> None:
    """Plot precision over recall of ``box`` or ``mask``, mean over classes, at three IoU thresholds.

    With ``averages`` the labels have the average precision.
    """
    for threshold, color in _THRESHOLDS.items():
        precision, label = curves[kind]["all"][threshold], f"IoU {threshold}"
        label = _with_average(label, precision) if averages else label
        axis.plot(*_percent(curves["recall"], precision), color=color, linewidth=2, label=label)
    _style_precision(axis, "")


def _with_average(label: str, precision: Sequence[float]) -> str:
    """Return a label with the mean over recalls, which is COCO's average precision, in percent."""
    return f"{_LEFT_TO_RIGHT}{100 * float(np.mean(precision)):.1f}  {truncate_label(label)}"


def _style_precision(axis: Axes, title: str) -> None:
    axis.set(xlim=(0, 101), ylim=(0, 103))
    style_axes(axis, title, "recall (%)", "precision (%)")


def _percent(*fractions: Sequence[float]) -> list[np.ndarray]:
    return [100 * np.asarray(values, float) for values in fractions]


def _draw_intervals(
    axis: Axes, positions: np.ndarray, intervals: Sequence[tuple[float, float]], *, vertical: bool
) -> None:
    """Draw intervals (fractions) in percent as error bars at the given positions."""
    if not len(positions):
        return
    low, high = 100 * np.array(intervals).T
    center, half = (low + high) / 2, (high - low) / 2
    style: dict[str, Any] = {"fmt": "none", "ecolor": "black", "elinewidth": 1, "capsize": 2.5, "capthick": 1}
    if vertical:
        axis.errorbar(positions, center, yerr=half, label="95 % interval", **style)
    else:
        axis.errorbar(center, positions, xerr=half, **style)


def _color_of_class(index: int) -> tuple[float, ...]:
    """Return the color of a class in images with channels in 0..1, as matplotlib expects."""
    return tuple(value / 255 for value in class_color(index))
