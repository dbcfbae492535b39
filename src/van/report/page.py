"""The HTML page: the template's context, and rendering.

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
from van.preprocess import CenterCropPreprocess
from van.report.data import NetworkInfo, ReportData, ValidationResult
from van.report.metric_names import (
    MAIN_SETTINGS,
    TASK_TITLES,
    format_count,
    format_interval,
    format_metric,
    format_setting,
    metric_name,
    pluralize,
)
from van.report.tables import confusion_matrix_table, metrics_table, most_confused_pairs, per_class_table
from van.report.views import IllustratedError
from van.tasks.base import Task
from van.tasks.detection import DetectionTask
from van.visualization.svg_charts import (
    THIN_SPACE,
    Chart,
    format_percent,
    precision_recall_chart,
    reliability_chart,
    training_curve_charts,
)

_MIN_CARDS, _MAX_CARDS = 4, {"classify": 8, "dense": 6}
"""Fewer errors are filled up with correct predictions of low confidence; more are folded away."""
TIMES = f"{THIN_SPACE}×{THIN_SPACE}"
_JOINERS = "\u200c\u200d"
"""Invisible characters that Persian, Hindi and emoji need."""
_KEPT = _JOINERS + "\u00a0" + THIN_SPACE


class SummaryMetric(NamedTuple):
    """The metric at the top of the page: title, value, 95 % interval, description, and number of images."""

    title: str
    value: str
    interval: str
    description: str
    context: str


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
    environment.filters["percent"] = format_percent
    environment.filters["pluralize"] = pluralize
    environment.filters["sentence"] = _sentence
    return environment.get_template("page.html.jinja").render(_context(data, version))


def _context(data: ReportData, version: str) -> dict[str, Any]:
    validation, network = data.validation, data.network
    return {
        "data": data,
        "title": _title(data),
        "summary_metric": _summary_metric(data),
        "tiles": _tiles(data),
        "curves": _training_curves(data),
        "progress": _progress(data),
        "events": [record for record in data.records if record["kind"] == "event"],
        "errors": _errors(validation, None if network is None else network.task),
        "metrics": metrics_table(data),
        "has_intervals": validation is not None and bool(validation.intervals),
        "classes": per_class_table(validation, data.monitor),
        "matrix": confusion_matrix_table(validation, network),
        "pairs": most_confused_pairs(validation, network),
        "calibration": _calibration_chart(validation),
        "precision_recall": _precision_recall_charts(validation),
        "network": _network_rows(network),
        "settings": _setting_rows(data.recipe),
        "made": {"date": today(), "version": version, "with": _versions(version)},
    }


def _sanitize(value: Any) -> Any:
    """Replace characters that break lines or hide text: control characters, surrogates and bidirectional overrides."""
    if value is None:
        return ""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in _KEPT else " " for c in value)


def _versions(version: str) -> list[tuple[str, str]]:
    """Return the versions that the report was made with."""
    values = {"van": version, **versions(), "python": platform.python_version(), "machine": platform.machine()}
    shown = ("van", "torch", "timm", "python", "machine")
    return [(name, text) for name, text in values.items() if text and name in shown]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _title(data: ReportData) -> str:
    if data.network is None:
        return f"{data.recipe.get('model', 'Network')}, no checkpoint yet"
    loaded = data.network.loaded
    head = f" with {loaded.options['head']}" if "head" in loaded.options else ""
    num_classes = len(loaded.class_names)
    classes = f"{num_classes:,} class{'' if num_classes == 1 else 'es'}"
    return f"{TASK_TITLES[loaded.task]}, {classes}: {loaded.name}{head}"


def _summary_metric(data: ReportData) -> SummaryMetric | None:
    """Return the monitored metric of this report's evaluation, else the best one in the log, if any."""
    name = data.monitor
    if name is None:
        return None
    title, description = metric_name(name).title, metric_name(name).description
    if data.validation is not None:
        return SummaryMetric(
            title,
            format_metric(name, data.validation.evaluation.metrics.get(name)),
            format_interval(data.validation.intervals.get(name)),
            description,
            _metric_context(data.validation, name),
        )
    known = [r for r in data.records if r["kind"] == "eval" and _is_number(r.get(name))]
    if not known:
        return None
    best = max(known, key=lambda record: record[name])
    context = f"Best of {len(known)} evaluations during training, at step {best['step']:,}; not evaluated again."
    return SummaryMetric(title, format_metric(name, best[name]), "", description, context)


def _metric_context(validation: ValidationResult, name: str) -> str:
    """Return the number of evaluated images and a reference value of the metric, if there is one."""
    evaluation = validation.evaluation
    evaluated = f"Evaluated on {evaluation.samples:,} validation images"
    if evaluation.samples < validation.available - len(evaluation.unreadable):
        evaluated = f"Evaluated on {evaluation.samples:,} of {validation.available:,} validation images, evenly spaced"
    counts = evaluation.details.get("confusion")
    if name == "top1" and counts is not None and counts.sum():
        wrong, most_frequent = int(counts.sum() - counts.trace()), counts.sum(axis=1).max() / counts.sum()
        return (
            f"{evaluated}; {wrong:,} are misclassified. Always predicting the most frequent class gives "
            f"{format_percent(most_frequent)}."
        )
    if name in ("box_ap", "mask_ap") and f"{name}50" in evaluation.metrics:
        return f"{evaluated}. AP50 is {format_percent(evaluation.metrics[f'{name}50'])}."
    return f"{evaluated}."


def _tiles(data: ReportData) -> list[tuple[str, str, str]]:
    """Return further values of the summary: title, value, and unit or condition."""
    tiles = []
    if data.network is not None:
        rows, columns = data.network.input_size
        tiles.append(("Parameters", format_count(data.network.parameters), "weights"))
        if data.network.macs is not None:
            tiles.append(
                ("MACs", format_count(data.network.macs), f"per image of {columns}{TIMES}{rows}{THIN_SPACE}px")
            )
    if data.speed is not None:
        large_batch = max(data.speed.timings)
        tiles.append(("Latency", _milliseconds(data.speed.timings[1].median_ms), "median, batch size 1"))
        tiles.append(("Throughput", _rate(data.speed.images_per_s(large_batch)), f"images/s, batch size {large_batch}"))
    if data.checkpoint is not None:
        tiles.append(("Checkpoint", f"{data.checkpoint.bytes / 1e6:.3g}{THIN_SPACE}MB", "best.safetensors"))
    training_images = data.recipe.get("training_images")
    if isinstance(training_images, int):
        tiles.append(("Training set", f"{training_images:,}", "images"))
    return tiles


def _milliseconds(value: float) -> str:
    return f"{value:.1f}{THIN_SPACE}ms" if value < 100 else f"{value:,.0f}{THIN_SPACE}ms"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _training_curves(data: ReportData) -> list[Chart]:
    name = data.monitor or "top1"
    return training_curve_charts(data.records, name, metric_name(name).title)


def _progress(data: ReportData) -> str:
    """Return the number of updates and epochs and the throughput of training."""
    if not data.records:
        return "The log is empty."
    evals = [record for record in data.records if record["kind"] == "eval"]
    rates = [r["images_per_s"] for r in data.records if _is_number(r.get("images_per_s"))]
    text = f"{data.records[-1]['step']:,} updates"
    if evals:
        epochs, planned = evals[-1].get("epoch"), data.recipe.get("epochs")
        text += f", {epochs} of {planned} epochs" if isinstance(epochs, int) and isinstance(planned, int) else ""
    else:
        text += ", no evaluation yet"
    return text + (f", {np.median(rates):,.0f} images/s." if rates else ".")


def _errors(validation: ValidationResult | None, task: Task | None) -> dict[str, Any] | None:
    """Return the errors and the correct predictions of low confidence or quality, as cards."""
    if validation is None or not validation.errors:
        return None
    wrong = [_card(error) for error in validation.errors if error.error.is_error]
    correct = [_card(error) for error in validation.errors if not error.error.is_error]
    is_classification = isinstance(validation.errors[0].error.prediction, Classification)
    shown = _MAX_CARDS["classify" if is_classification else "dense"]
    fill = max(0, _MIN_CARDS - len(wrong))
    maps = [view for error in validation.errors for view in error.views if view.layer]
    return {
        "wrong": wrong[:shown],
        "more_wrong": wrong[shown:],
        "correct": correct[:fill],
        "more_correct": correct[fill:],
        "count": validation.evaluation.details["num_errors"],
        "samples": validation.evaluation.samples,
        "is_classification": is_classification,
        "method": maps[0].method if maps else "",
        "layer": maps[0].layer if maps else "",
        "min_score": f"{task.min_score:g}" if isinstance(task, DetectionTask) else "",
    }


def _card(illustrated: IllustratedError) -> dict[str, Any]:
    """Return an error with the three classes of highest score, the true one among them."""
    error = illustrated.error
    card: dict[str, Any] = {"illustrated": illustrated, "error": error, "bars": []}
    if isinstance(error.prediction, Classification):
        ranked = error.prediction.top(len(error.prediction.class_names))
        shown = ranked[:3]
        if error.target not in [score.index for score in shown]:
            shown = [*ranked[:2], next(score for score in ranked if score.index == error.target)]
        card["bars"] = [(score.label, score.score, score.index == error.target) for score in shown]
    return card


def _calibration_chart(validation: ValidationResult | None) -> Chart | None:
    """Return the reliability diagram of a classifier."""
    reliability = None if validation is None else validation.evaluation.details.get("reliability")
    return None if reliability is None else reliability_chart(reliability)


def _precision_recall_charts(validation: ValidationResult | None) -> list[Chart]:
    """Return the precision-recall curves of a detector."""
    curves = (None if validation is None else validation.evaluation.details.get("precision_recall")) or {}
    titles = {"mask": "Masks", "box": "Boxes"}
    charts = [precision_recall_chart(curves, kind, title) for kind, title in titles.items() if kind in curves]
    return [chart for chart in charts if chart is not None]


def _network_rows(network: NetworkInfo | None) -> list[tuple[str, str]]:
    """Return the properties of the network as pairs of title and text."""
    if network is None:
        return []
    loaded, rule = network.loaded, network.loaded.preprocess
    rows, columns = network.input_size
    options = {name: value for name, value in loaded.options.items() if name != "head"}
    if isinstance(rule, CenterCropPreprocess):
        resize = (
            f"resize shorter side to {rule.resize_size} px, center crop {rule.image_size}{TIMES}{rule.image_size} px"
        )
    else:
        resize = f"resize shorter side to {rule.min_size} px, longer side to at most {rule.max_size} px"
    normalize = f"mean {format_setting(rule.mean)}, standard deviation {format_setting(rule.std)}"
    pairs = [
        ("Task", TASK_TITLES[loaded.task]),
        ("Network", f"{loaded.name}{' with ' + loaded.options['head'] if 'head' in loaded.options else ''}"),
        ("Options", format_setting(options) if options else ""),
        ("Parameters", f"{network.parameters:,}"),
        ("Multiply-accumulates", "" if network.macs is None else f"{network.macs:,} for {columns}{TIMES}{rows} px"),
        ("Preprocessing", f"{resize} ({rule.interpolation}); {normalize}"),
        ("Classes", f"{len(loaded.class_names):,}"),
    ]
    return [(title, text) for title, text in pairs if text]


def _setting_rows(recipe: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    pairs = {name: (name.replace("_", " "), format_setting(value)) for name, value in recipe.items()}
    first = [name for name in MAIN_SETTINGS if name in pairs]
    return {"first": [pairs[name] for name in first], "rest": [pairs[n] for n in pairs if n not in first]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
