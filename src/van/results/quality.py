"""Charts of how good a network is: confusion, reliability, each class, precision over recall.

They are drawn from what a task's meter tells; ``charts_of`` names those that its details allow. Every function writes
one PNG, the same bytes for the same input; colours are safe for colour-blind readers. Sources: reliability diagrams and
the expected calibration error are Guo et al. 2017, arXiv:1706.04599; precision over recall is COCO's, cocodataset.org.
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
from van.results.charts import BLUE, GREEN, GREY, ORANGE, dress, save_figure, say_nothing, short_label
from van.results.drawing import class_colour

_MOST_NUMBERED, _MOST_NAMED = 20, 60
_WORST, _BEST = 30, 10
_MOST_CURVES, _WORST_CURVES = 8, 5
"""So many classes have curves of their own colour; of more, the worst."""
_LEFT_TO_RIGHT = "\u200e"
"""Keeps a number before a name in a script that is written from the right."""
_KINDS = {"box": "boxes", "mask": "masks"}
_THRESHOLDS = {"0.50": BLUE, "0.75": ORANGE, "0.50:0.95": GREEN}


def charts_of(details: Mapping[str, Any], *, labels: Sequence[str], headline: str) -> dict[str, Callable[[Path], None]]:
    """The charts that a meter's ``details`` allow: a function that writes the PNG for each file name.

    Args:
        details: what ``Meter.compute`` gives beside the metrics.
        labels: names of the classes.
        headline: the task's, such as ``mean_iou``; its figure of each class is drawn.
    """
    charts: dict[str, Callable[[Path], None]] = {}
    if details.get("confusion") is not None and len(labels) > 1:
        charts["confusion.png"] = functools.partial(draw_confusion, details["confusion"], labels)
    if details.get("reliability") is not None:
        charts["reliability.png"] = functools.partial(draw_reliability, details["reliability"])
    if details.get("per_class"):
        coloured = () if headline == "top1" else labels  # as in pictures with boxes and masks
        name = headline.removeprefix("mean_")
        charts["per_class.png"] = functools.partial(draw_per_class, details["per_class"], name, labels=coloured)
    if details.get("precision_recall") is not None:
        curves = details["precision_recall"]
        charts["precision_recall.png"] = functools.partial(draw_precision_recall, curves, labels=labels)
    return charts


def draw_confusion(counts: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """A confusion matrix: rows are true classes, columns predicted ones, each row as shares of its class.

    Numbers are written into the cells up to 20 classes, names beside them up to 60. The colours
    follow the root of the share, so that a few mistakes in a hundred are seen.

    Raises:
        ShapeError: ``counts`` is not a square with a row for each label.
    """
    classes = len(labels)
    if counts.shape != (classes, classes) or not classes:
        raise ShapeError(f"counts are {counts.shape} for {classes} labels; wanted a row and a column for each label")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [short_label(label) for label in labels] if classes <= _MOST_NAMED else []
    side = float(np.clip(2.5 + 0.42 * classes, 4, 14)) + 0.06 * max(map(len, names), default=0)  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    if classes <= _MOST_NUMBERED:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.35 else "black"
            text = _compact(int(counts[row, column]))
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    if names:
        size = 10 if classes <= 30 else 8
        axis.set_xticks(range(classes), names, rotation=90, fontsize=size, parse_math=False)
        axis.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    save_figure(figure, path)


def draw_reliability(reliability: Mapping[str, Sequence[float]], path: Path) -> None:
    """How often a classifier is right where it is how sure, and how often it is that sure.

    On the dashed line a network is right as often as it says. The title has the expected calibration error.

    Args:
        reliability: for equal bins of confidence from 0 to 1 ``count``, how many answers were ``right``, and the sum
            of their ``confidence``, which is NaN where an answer was no number.

    Raises:
        ShapeError: the three differ in length, or are empty.
    """
    count, right, sure = (np.asarray(reliability[name], float) for name in ("count", "right", "confidence"))
    if not len(count) or not len(count) == len(right) == len(sure):
        lengths = f"{len(count)}, {len(right)} and {len(sure)}"
        raise ShapeError(f"count, right and confidence have {lengths} bins; wanted as many each, and some")
    total, edges = count.sum(), np.linspace(0, 1, len(count) + 1)
    figure = Figure(figsize=(5.6, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1.2, label="right as often as it is sure")
    title = "no answers"
    lower.set_ylim(0, 100)
    if total:
        there = count > 0
        style: dict[str, Any] = {"width": 100 * np.diff(edges)[there], "align": "edge", "edgecolor": "white"}
        accuracy, mean = (100 * values[there] / count[there] for values in (right, sure))
        upper.bar(100 * edges[:-1][there], accuracy, color=BLUE, label="how often it is right", **style)
        upper.hlines(
            mean, 100 * edges[:-1][there], 100 * edges[1:][there], color=ORANGE, linewidth=3, label="how sure it is"
        )
        lower.bar(100 * edges[:-1][there], 100 * count[there] / total, color=GREY, **style)
        lower.set_ylim(0, 105 * count.max() / total)
        error = np.abs(right - sure).sum() / total
        title = (
            f"expected calibration error {100 * error:.2f} %" if np.isfinite(error) else "some answers are no numbers"
        )
    upper.set(xlim=(0, 100), ylim=(0, 100))
    upper.set_ylabel("right, %")
    lower.set_ylabel("answers, %")
    upper.legend(frameon=True, framealpha=0.85, edgecolor="none", loc="upper left")
    dress(upper, title, "")
    dress(lower, "", "confidence, %")
    save_figure(figure, path)


def draw_per_class(
    per_class: Mapping[str, Mapping[str, float]],
    name: str,
    path: Path,
    *,
    labels: Sequence[str] = (),
    in_order: bool = False,
) -> None:
    """A bar for each class, the worst first; of more than 60 classes the worst 30 and the best 10.

    Args:
        per_class: figures of each class by their names, fractions; a class without a finite one is left out.
        name: the figure, such as ``top1`` or ``iou``.
        labels: names of all classes, to give each bar the colour that its class has in pictures.
        in_order: up to 60 classes keep their order.
    """
    pairs = [(label, float(values.get(name, np.nan))) for label, values in per_class.items()]
    known = [(label, value) for label, value in pairs if np.isfinite(value)]
    ranked = sorted(known, key=lambda pair: pair[1])
    rows: list[tuple[str, float]] = known if in_order and len(known) <= _MOST_NAMED else ranked
    between = ""
    if len(ranked) > _MOST_NAMED:
        between = f"... {len(ranked) - _WORST - _BEST:,} classes between ..."
        rows = [*ranked[:_WORST], (between, np.nan), *ranked[-_BEST:]]
    places = {label: index for index, label in enumerate(labels)}
    figure = Figure(figsize=(7.5, 1.4 + 0.24 * max(len(rows), 3)), layout="constrained")
    axis = figure.subplots()
    title = f"{name} of each class, %"
    if rows:
        values = np.array([100 * value for _, value in rows])
        colours = [_share_of_one(class_colour(places[label])) if label in places else BLUE for label, _ in rows]
        axis.barh(range(len(rows)), np.nan_to_num(values), color=colours, edgecolor="black", linewidth=0.4, height=0.75)
        for row, value in enumerate(values):
            if np.isfinite(value):
                text = axis.text(max(value, 0) + 0.8, row, f"{value:.1f}", va="center", fontsize=8)
                text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # over the line of the mean
        names = [label if label == between else short_label(label) for label, _ in rows]
        axis.set_yticks(range(len(rows)), names, fontsize=9, parse_math=False)
        mean = 100 * float(np.mean([value for _, value in known]))
        axis.axvline(mean, color="black", linewidth=1, linestyle=":")
        axis.set(xlim=(0, 106), ylim=(len(rows) - 0.4, -0.6), xticks=range(0, 101, 20))
        alike = sum(value == ranked[0][1] for _, value in ranked) - 1
        more = f" and {alike} more" if alike else ""
        title += f": worst {short_label(ranked[0][0])}{more}, {100 * ranked[0][1]:.1f}"
        classes = "1 class" if len(known) == 1 else f"{len(known):,} classes"
        dress(axis, title, f"dotted: the mean of {classes}, {mean:.1f} %")
        axis.grid(axis="y", visible=False)
    else:
        say_nothing(axis, "no class has this figure")
        dress(axis, title, "")
    save_figure(figure, path)


def draw_precision_recall(curves: Mapping[str, Any], path: Path, *, labels: Sequence[str] = ()) -> None:
    """Precision over recall, a row for boxes and one for masks: left over all classes, right each class at IoU 0.50.

    Up to 8 classes have curves of their colour; of more the 5 worst, before all others in grey.

    Args:
        curves: ``recall`` (R,) and, for ``box`` and perhaps ``mask``, ``all`` and each of ``per_class``: precision (R,)
            by IoU threshold, "0.50", "0.75" and "0.50:0.95".
        labels: names of all classes, to give each curve the colour that its class has in pictures.
    """
    recall = 100 * np.asarray(curves["recall"], float)
    kinds = [kind for kind in _KINDS if kind in curves]
    figure = Figure(figsize=(12, 0.4 + 3.8 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, (whole, single) in zip(kinds, axes, strict=True):
        means = curves[kind]["all"]
        lines = [_Line(f"IoU {threshold}", means[threshold], colour) for threshold, colour in _THRESHOLDS.items()]
        _draw_precisions(whole, recall, lines)
        dress(whole, f"{_KINDS[kind]}, mean over classes", "recall, %")
        classes = {label: found["0.50"] for label, found in curves[kind]["per_class"].items()}
        _draw_precisions(single, recall, _lines_of_classes(classes, labels))
        dress(single, f"{_KINDS[kind]}, each class at IoU 0.50", "recall, %")
    save_figure(figure, path)


class _Line(NamedTuple):
    """Precision (R,) with the name that the legend gives it; None for one among others."""

    name: str | None
    precision: Sequence[float]
    colour: Any


def _lines_of_classes(classes: Mapping[str, Sequence[float]], labels: Sequence[str]) -> list[_Line]:
    """The classes that are named, the worst first, after others in grey."""
    places = {label: index for index, label in enumerate(labels or classes)}
    worst_first = sorted(classes, key=lambda label: float(np.mean(classes[label])))
    most = len(classes) if len(classes) <= _MOST_CURVES else _WORST_CURVES
    others = [_Line(None, classes[label], GREY) for label in worst_first[most:]]
    named = worst_first[:most]
    return others + [_Line(label, classes[label], _share_of_one(class_colour(places[label]))) for label in named]


def _draw_precisions(axis: Axes, recall: np.ndarray, lines: Sequence[_Line]) -> None:
    """Curves, and a legend beside them with the mean of each that has a name."""
    handles, names = [], []
    for line in lines:
        style: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.35} if line.name is None else {"linewidth": 2}
        handles += axis.plot(recall, 100 * np.asarray(line.precision, float), color=line.colour, **style)
        names.append(
            "" if line.name is None else f"{_LEFT_TO_RIGHT}{_percent(line.precision)}  {short_label(line.name)}"
        )
    axis.set(xlim=(0, 101), ylim=(0, 103))
    axis.set_ylabel("precision, %")
    if not lines:
        say_nothing(axis, "nothing to find")
        return
    others = names.count("")
    if others:
        handles, names = [*handles[others:], handles[0]], [*names[others:], f"{others:,} other classes"]
    legend = axis.legend(
        handles, names, title="average precision, %", alignment="left", frameon=False, loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _percent(values: Sequence[float]) -> str:
    """The mean over recalls, which is COCO's average precision."""
    return f"{100 * float(np.mean(values)):.1f}"


def _share_of_one(colour: tuple[int, int, int]) -> tuple[float, ...]:
    """A colour as matplotlib wants it."""
    return tuple(value / 255 for value in colour)


def _compact(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"
