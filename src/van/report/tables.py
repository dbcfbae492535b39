"""The page's tables: every metric, a row for each class, the confusion matrix and its largest cells."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from van.report.facts import Facts, Measured, Network
from van.report.words import figure, metric_word
from van.results.svg import share

_MOST_IN_MATRIX = 24
_MOST_PAIRS = 8
_MOST_CLASSES = 20
_UNITS = ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))


class Cell(NamedTuple):
    """A cell of the confusion matrix: a count, how strong its colour is, and whether it is on the diagonal.

    The strength is the root of the share of the row, so that a few mistakes in a hundred are seen.
    """

    count: str
    strength: float
    right: bool


def metrics_of(facts: Facts) -> list[dict[str, str]]:
    """Every metric measured here, beside what it was when the checkpoint was saved."""
    saved = {} if facts.network is None else facts.network.loaded.metrics
    now = {} if facts.measured is None else facts.measured.found.metrics
    return [
        {
            "title": metric_word(name).title,
            "meaning": metric_word(name).meaning,
            "now": figure(name, now[name]) if name in now else "",
            "saved": figure(name, saved[name]) if name in saved else "",
        }
        for name in dict.fromkeys([*now, *saved])
    ]


def classes_of(measured: Measured | None, headline: str | None) -> dict[str, Any] | None:
    """A row for each class, the worst first by its own figure of the headline's kind."""
    if measured is None or not measured.found.details.get("per_class"):
        return None
    per_class: Mapping[str, Mapping[str, float]] = measured.found.details["per_class"]
    columns = list(dict.fromkeys(column for values in per_class.values() for column in values))
    of_coco = [column for column in columns if column.endswith(("_ap", "_ap50", "_ap75"))]
    columns = of_coco or columns
    first = (headline or "").removeprefix("mean_")
    first = first if first in columns else columns[-1]
    columns = [first, *(column for column in columns if column != first)]
    ranked = sorted(per_class.items(), key=lambda item: _or_worst(item[1].get(first)))
    rows = [(label, values.get(first), [_class_figure(c, values.get(c)) for c in columns]) for label, values in ranked]
    titles = [metric_word(column).title for column in columns]
    return {"titles": titles, "first": rows[:_MOST_CLASSES], "rest": rows[_MOST_CLASSES:], "count": len(rows)}


def _or_worst(value: float | None) -> float:
    return -1.0 if value is None or math.isnan(value) else value


def _class_figure(column: str, value: float | None) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return share(value)


def matrix_of(measured: Measured | None, network: Network | None) -> dict[str, Any] | None:
    """The confusion matrix, where it fits a page."""
    counts = None if measured is None else measured.found.details.get("confusion")
    if counts is None or network is None or not 1 < len(counts) <= _MOST_IN_MATRIX:
        return None
    strengths = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).round(3)
    places = range(len(counts))
    rows = [
        [Cell(_compact(int(counts[row, column])), float(strengths[row, column]), row == column) for column in places]
        for row in places
    ]
    unit = "pixels" if network.loaded.task == "segment" else "pictures"
    return {"labels": network.loaded.labels, "rows": list(zip(network.loaded.labels, rows, strict=True)), "unit": unit}


def pairs_of(measured: Measured | None, network: Network | None) -> list[dict[str, Any]]:
    """The most frequent confusions."""
    counts = None if measured is None else measured.found.details.get("confusion")
    if counts is None or network is None:
        return []
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    labels, totals = network.loaded.labels, counts.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    places = [divmod(int(place), len(wrong)) for place in order]
    return [
        {"true": labels[row], "said": labels[column], "count": f"{wrong[row, column]:,}",
         "share": share(wrong[row, column] / totals[row])}
        for row, column in places
        if wrong[row, column]
    ]  # fmt: skip


def _compact(count: int) -> str:
    """A count in at most four characters; nothing for none."""
    if count < 1000:
        return f"{count}" if count else ""
    unit, name = next((unit, name) for unit, name in _UNITS if count < 999.5 * unit)
    return f"{count / unit:.1f}{name}" if count < 9.95 * unit else f"{count / unit:.0f}{name}"
