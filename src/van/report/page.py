"""The HTML page of a report: the template's context, and rendering.

The template escapes all text, because class names and file names may contain anything. The page loads no external
resources, and its Content-Security-Policy forbids them.
"""

import math
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from van.bench.machine import today, versions
from van.predictions import Classification
from van.report.data import ReportData
from van.report.errors import THIN_SPACE, format_percent
from van.report.formats import (
    TASK_TITLES,
    format_compact,
    format_count,
    format_decimal,
    format_interval,
    format_metric,
    format_setting,
    metric_name,
    pluralize,
)
from van.tasks.detection import DetectionTask
from van.visualization.charts import plot_learning_rate, plot_losses, plot_metric, svg_chart
from van.visualization.intervals import wilson_interval
from van.visualization.metric_charts import plot_mean_precision, plot_reliability

_MIN_CARDS, _MAX_CARDS = 4, {"classify": 8, "dense": 6}
"""Fewer errors are filled up with correct predictions of low confidence; more are folded away."""
_MAX_MATRIX_CLASSES, _MAX_PAIRS, _MAX_CLASS_ROWS = 24, 8, 20
_MAIN_SETTINGS = (
    "recipe", "data", "init_from", "epochs", "batch_size", "lr", "weight_decay", "precision", "training_images",
    "validation_images", "seed",
)  # fmt: skip
"""The settings that the page shows first; the others are folded away."""
_KEPT = "\u200c\u200d\u00a0" + THIN_SPACE
"""Invisible characters that Persian, Hindi and emoji need, and spaces that do not break."""


class Chart(NamedTuple):
    """A chart of the page: its heading, its ``<svg>`` element, and what it shows in words."""

    title: str
    svg: str
    description: str


def render(data: ReportData, *, version: str) -> str:
    """Return the page as HTML.

    Args:
        version: the version of this package.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("van.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_sanitize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions: dict[str, Any] = {"metric_name": metric_name, "format_metric": format_metric}
    environment.globals.update(functions)
    environment.filters |= {
        "count": "{:,}".format,
        "decimal": format_decimal,
        "interval": format_interval,
        "median": np.median,
        "percent": format_percent,
        "pluralize": pluralize,
        "setting": format_setting,
        "short": format_count,
    }
    network = task_title = ""
    title = f"{data.recipe.get('model', 'Network')}, no checkpoint yet"
    if data.model is not None:
        head, classes = data.model.options.get("head"), len(data.model.class_names)
        network = f"{data.model.name} with {head}" if head else data.model.name
        task_title = TASK_TITLES[data.model.task]
        title = f"{task_title}, {classes:,} {'class' if classes == 1 else 'classes'}: {network}"
    software = {"van": version, **versions(), "python": platform.python_version(), "machine": platform.machine()}
    shown = ("van", "torch", "timm", "python", "machine")
    context = {
        "data": data,
        "title": title,
        "network": network,
        "task_title": task_title,
        "input_size": f"{data.input_size[1]}{THIN_SPACE}×{THIN_SPACE}{data.input_size[0]}{THIN_SPACE}px",
        "summary_metric": _summary_metric(data),
        "curves": _training_charts(data),
        "evals": [record for record in data.records if record["kind"] == "eval"],
        "events": [record for record in data.records if record["kind"] == "event"],
        "rates": [r["images_per_s"] for r in data.records if _is_number(r.get("images_per_s"))],
        "errors": _errors(data),
        "saved": {} if data.model is None else data.model.metrics,
        "measured": {} if data.evaluation is None else data.evaluation.metrics,
        "classes": _class_table(data),
        **_confusions(data),
        "calibration": _calibration_chart(data),
        "precision_recall": _precision_recall_charts(data),
        "main_settings": _MAIN_SETTINGS,
        "date": today(),
        "version": version,
        "versions": {name: text for name, text in software.items() if name in shown and text},
    }
    return environment.get_template("page.html.jinja").render(context)


def _sanitize(value: Any) -> Any:
    """Replace characters that break lines or hide text: control characters, surrogates and bidirectional overrides."""
    if value is None:
        return ""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in _KEPT else " " for c in value)


def _summary_metric(data: ReportData) -> dict[str, str] | None:
    """Return the monitored metric of this report's evaluation, else the best one in the log, if any."""
    name, evaluation = data.monitor, data.evaluation
    if name is None:
        return None
    description = metric_name(name).description
    summary = {"title": metric_name(name).title, "description": f"{description[:1].upper()}{description[1:]}."}
    if evaluation is None:
        known = [r for r in data.records if r["kind"] == "eval" and _is_number(r.get(name))]
        if not known:
            return None
        best = max(known, key=lambda record: record[name])
        context = f"Best of {len(known)} evaluations during training, at step {best['step']:,}; not evaluated again."
        return summary | {"value": format_metric(name, best[name]), "interval": "", "context": context}
    context = f"Evaluated on {evaluation.samples:,} validation images"
    if evaluation.samples < data.available - len(evaluation.unreadable):
        context = f"Evaluated on {evaluation.samples:,} of {data.available:,} validation images, evenly spaced"
    counts = data.details.get("confusion")
    if name == "top1" and counts is not None and counts.sum():
        wrong, most_frequent = int(counts.sum() - counts.trace()), counts.sum(axis=1).max() / counts.sum()
        frequent = f"Always predicting the most frequent class gives {format_percent(most_frequent)}"
        context += f"; {wrong:,} are misclassified. {frequent}"
    elif f"{name}50" in evaluation.metrics:
        context += f". AP50 is {format_percent(evaluation.metrics[f'{name}50'])}"
    return summary | {
        "value": format_metric(name, evaluation.metrics.get(name)),
        "interval": format_interval(data.intervals.get(name)),
        "context": f"{context}.",
    }


def _training_charts(data: ReportData) -> list[Chart]:
    """Return charts of loss, monitored metric and learning rate, as far as the log has values."""
    name = data.monitor or "top1"
    title, records = metric_name(name).title, data.records
    logged = [record[name] for record in records if record["kind"] == "eval" and _is_number(record.get(name))]
    losses = [record["loss"] for record in records if record["kind"] == "train" and _is_number(record.get("loss"))]
    trend = f", from {losses[0]:.3g} to {losses[-1]:.3g}" if losses else ""
    best = f", best {format_percent(max(logged), places=2)}" if logged else ""
    panels = [
        ("Loss", lambda axis: plot_losses(axis, records), f"The loss over the training steps{trend}."),
        (
            f"{title}, validation",
            lambda axis: plot_metric(axis, records, name, title),
            f"{title} on the validation images over the training steps{best}.",
        ),
        ("Learning rate", lambda axis: plot_learning_rate(axis, records), "The learning rate over the training steps."),
    ]
    drawn = [Chart(heading, svg_chart(plot, description), description) for heading, plot, description in panels]
    return [chart for chart in drawn if chart.svg]


def _errors(data: ReportData) -> dict[str, Any] | None:
    """Return the errors and the correct predictions of low confidence or quality, as cards."""
    if not data.errors:
        return None
    cards: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for error in data.errors:
        bars = []
        if isinstance(error.prediction, Classification):  # the three best classes, the true one among them
            ranked = error.prediction.top(len(error.prediction.class_names))
            best = ranked[:3]
            if error.target not in [score.index for score in best]:
                best = [*ranked[:2], next(score for score in ranked if score.index == error.target)]
            bars = [(score.label, score.score, score.index == error.target) for score in best]
        cards[error.is_error].append({"error": error, "bars": bars})
    is_classification = isinstance(data.errors[0].prediction, Classification)
    shown = _MAX_CARDS["classify" if is_classification else "dense"]
    fill = max(0, _MIN_CARDS - len(cards[True]))
    maps = [view for error in data.errors for view in error.views if view.layer]
    return {
        "wrong": cards[True][:shown],
        "more_wrong": cards[True][shown:],
        "correct": cards[False][:fill],
        "more_correct": cards[False][fill:],
        "count": data.details["num_errors"],
        "is_classification": is_classification,
        "method": maps[0].method if maps else "",
        "layer": maps[0].layer if maps else "",
        "min_score": f"{data.task.min_score:g}" if isinstance(data.task, DetectionTask) else "",
    }


def _class_table(data: ReportData) -> dict[str, Any] | None:
    """Return a row of metrics for each class, ordered from the lowest value of the class's monitored metric."""
    per_class: Mapping[str, Mapping[str, float]] = data.details.get("per_class") or {}
    if not per_class:
        return None
    columns = list(dict.fromkeys(column for values in per_class.values() for column in values))
    columns = [column for column in columns if column.endswith(("_ap", "_ap50", "_ap75"))] or columns
    first = (data.monitor or "").removeprefix("mean_")
    first = first if first in columns else columns[-1]
    columns = [first, *(column for column in columns if column != first)]
    titles = [metric_name(column).title for column in columns]
    with_interval = first == "top1" and "samples" in columns
    if with_interval:
        titles.insert(1, "95 % interval")
    rows = []
    for label, values in per_class.items():
        found = [values.get(column) for column in columns]
        texts = [f"{value:,}" if isinstance(value, int) else format_percent(value) for value in found]
        if with_interval:
            samples = int(values["samples"])
            interval = wilson_interval(round(values["top1"] * samples), samples) if samples else None
            texts.insert(1, format_interval(interval))
        rows.append((label, found[0], texts))
    rows.sort(key=lambda row: row[1] if _is_number(row[1]) else -1.0)
    return {"titles": titles, "first": rows[:_MAX_CLASS_ROWS], "rest": rows[_MAX_CLASS_ROWS:]}


def _confusions(data: ReportData) -> dict[str, Any]:
    """Return the confusion matrix, if it is small enough for the page, and the most frequent confusions."""
    counts = data.details.get("confusion")
    if counts is None or data.model is None:
        return {"matrix": None, "pairs": []}
    names, totals = data.model.class_names, counts.sum(axis=1, keepdims=True)
    matrix = None
    if 1 < len(counts) <= _MAX_MATRIX_CLASSES:
        strengths = np.sqrt(counts / np.maximum(totals, 1)).round(3)  # a root, so that rare confusions are visible
        rows = [
            [(format_compact(int(counts[cell])), float(strengths[cell]), cell[0] == cell[1]) for cell in row]
            for row in ([(index, column) for column in range(len(counts))] for index in range(len(counts)))
        ]
        unit = "pixels" if data.model.task == "segment" else "images"
        matrix = {"labels": names, "rows": list(zip(names, rows, strict=True)), "unit": unit}
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]
    cells = [divmod(int(cell), len(wrong)) for cell in largest if wrong.flat[cell]]
    pairs = [
        (names[row], names[column], f"{wrong[row, column]:,}", format_percent(wrong[row, column] / totals[row, 0]))
        for row, column in cells
    ]
    return {"matrix": matrix, "pairs": pairs}


def _calibration_chart(data: ReportData) -> Chart | None:
    """Return the reliability diagram of a classifier."""
    reliability = data.details.get("reliability")
    if reliability is None or not sum(reliability["count"]) or not np.isfinite(reliability["confidence"]).all():
        return None
    confidence, accuracy = (sum(reliability[n]) / sum(reliability["count"]) for n in ("confidence", "correct"))
    description = (
        "Bars: accuracy of the predictions in each bin of confidence; orange: their mean confidence. Bins of few "
        f"predictions have 95 % intervals. Mean confidence is {format_percent(confidence)}, accuracy is "
        f"{format_percent(accuracy)}."
    )
    svg = svg_chart(lambda axis: plot_reliability(axis, reliability), description)
    return Chart("Reliability diagram", svg, description)


def _precision_recall_charts(data: ReportData) -> list[Chart]:
    """Return the precision-recall curves of a detector."""
    curves = data.details.get("precision_recall") or {}
    drawn = []
    for kind, title in {"mask": "Masks", "box": "Boxes"}.items():
        if kind in curves:
            means = curves[kind]["all"]
            at_50, at_75 = (format_percent(float(np.mean(means[iou]))) for iou in ("0.50", "0.75"))
            description = f"{title}: the area under the curve at IoU 0.50 is {at_50}, at 0.75 {at_75}."
            svg = svg_chart(lambda axis, kind=kind: plot_mean_precision(axis, curves, kind), description)
            drawn.append(Chart(title, svg, description))
    return drawn


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
