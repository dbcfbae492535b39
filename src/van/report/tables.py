"""The page's tables: metrics, per-class metrics, the confusion matrix and the most frequent confusions."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from van.report.data import NetworkInfo, ReportData, ValidationResult
from van.report.metric_names import format_interval, format_metric, metric_name
from van.visualization.intervals import wilson_interval
from van.visualization.svg_charts import format_percent

_MAX_MATRIX_CLASSES = 24
_MAX_PAIRS = 8
_MAX_CLASS_ROWS = 20
_UNITS = ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))


class Cell(NamedTuple):
    """A cell of the confusion matrix: its count, the strength of its color, and whether it is on the diagonal.

    The strength is the square root of the fraction of the row, so that rare confusions are visible.
    """

    count: str
    strength: float
    on_diagonal: bool


def metrics_table(data: ReportData) -> list[dict[str, str]]:
    """Return each metric of the evaluation for this report, with its interval and its value in the checkpoint."""
    saved = {} if data.network is None else data.network.loaded.metrics
    measured = {} if data.validation is None else data.validation.evaluation.metrics
    intervals = {} if data.validation is None else data.validation.intervals
    return [
        {
            "title": metric_name(name).title,
            "description": metric_name(name).description,
            "value": format_metric(name, measured[name]) if name in measured else "",
            "interval": format_interval(intervals.get(name)),
            "saved": format_metric(name, saved[name]) if name in saved else "",
        }
        for name in dict.fromkeys([*measured, *saved])
    ]


def per_class_table(validation: ValidationResult | None, monitor: str | None) -> dict[str, Any] | None:
    """Return a row of metrics for each class, ordered from the lowest value of the class's monitored metric."""
    if validation is None or not validation.evaluation.details.get("per_class"):
        return None
    per_class: Mapping[str, Mapping[str, float]] = validation.evaluation.details["per_class"]
    columns = list(dict.fromkeys(column for values in per_class.values() for column in values))
    main_coco = [column for column in columns if column.endswith(("_ap", "_ap50", "_ap75"))]
    columns = main_coco or columns
    first = (monitor or "").removeprefix("mean_")
    first = first if first in columns else columns[-1]
    columns = [first, *(column for column in columns if column != first)]
    ranked = sorted(per_class.items(), key=lambda item: _sort_key(item[1].get(first)))
    titles = [metric_name(column).title for column in columns]
    with_interval = first == "top1" and "samples" in columns
    if with_interval:
        titles.insert(1, "95 % interval")
    rows = []
    for label, values in ranked:
        texts = [_format_class_value(values.get(column)) for column in columns]
        if with_interval:
            texts.insert(1, _accuracy_interval(values))
        rows.append((label, values.get(first), texts))
    return {
        "titles": titles, "first": rows[:_MAX_CLASS_ROWS], "rest": rows[_MAX_CLASS_ROWS:], "count": len(rows),
    }  # fmt: skip


def _accuracy_interval(values: Mapping[str, float]) -> str:
    samples = int(values["samples"])
    return format_interval(wilson_interval(round(values["top1"] * samples), samples)) if samples else ""


def _sort_key(value: float | None) -> float:
    return -1.0 if value is None or math.isnan(value) else value


def _format_class_value(value: float | None) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return format_percent(value)


def confusion_matrix_table(validation: ValidationResult | None, network: NetworkInfo | None) -> dict[str, Any] | None:
    """Return the confusion matrix if it is small enough for the page."""
    counts = None if validation is None else validation.evaluation.details.get("confusion")
    if counts is None or network is None or not 1 < len(counts) <= _MAX_MATRIX_CLASSES:
        return None
    strengths = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).round(3)
    indices = range(len(counts))
    rows = [
        [Cell(_compact(int(counts[row, column])), float(strengths[row, column]), row == column) for column in indices]
        for row in indices
    ]
    unit = "pixels" if network.loaded.task == "segment" else "images"
    return {
        "labels": network.loaded.class_names,
        "rows": list(zip(network.loaded.class_names, rows, strict=True)),
        "unit": unit,
    }


def most_confused_pairs(validation: ValidationResult | None, network: NetworkInfo | None) -> list[dict[str, Any]]:
    """Return the most frequent confusions of two classes."""
    counts = None if validation is None else validation.evaluation.details.get("confusion")
    if counts is None or network is None:
        return []
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    class_names, totals = network.loaded.class_names, counts.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]
    cells = [divmod(int(cell), len(wrong)) for cell in order]
    return [
        {"true": class_names[row], "predicted": class_names[column], "count": f"{wrong[row, column]:,}",
         "fraction": format_percent(wrong[row, column] / totals[row])}
        for row, column in cells
        if wrong[row, column]
    ]  # fmt: skip


def _compact(count: int) -> str:
    """Format a count with at most four characters; empty for 0."""
    if count < 1000:
        return f"{count}" if count else ""
    unit, name = next((unit, name) for unit, name in _UNITS if count < 999.5 * unit)
    return f"{count / unit:.1f}{name}" if count < 9.95 * unit else f"{count / unit:.0f}{name}"
