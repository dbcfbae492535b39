"""The page: facts put in order for the template, and the template filled in.

All text goes through the template's escaping: labels and file names are whatever somebody called them. The page asks
for nothing outside itself; its Content-Security-Policy forbids it to.
"""

import math
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from van.bench.machine import today, versions
from van.preprocess import Preprocess
from van.report.facts import Facts, Measured, Network
from van.report.tables import classes_of, matrix_of, metrics_of, pairs_of
from van.report.words import DOES, FIRST_SETTINGS, counted, figure, large, metric_word, setting
from van.results import Classes
from van.results.svg import THIN, Chart, learning_charts, precision_recall_chart, reliability_chart, share
from van.tasks.base import Task
from van.tasks.detect import Detect

_LEAST_CARDS, _MOST_CARDS = 4, {"pictures": 8, "scenes": 6}
"""Where there are fewer mistakes, right answers that were near to one fill up; more are folded away."""
TIMES = f"{THIN}×{THIN}"
_JOINERS = "\u200c\u200d"
"""Invisible, and yet part of how Persian, Hindi and emoji are written."""
_KEPT = _JOINERS + "\u00a0" + THIN


class Headline(NamedTuple):
    """The figure at the top: its title, the figure itself, what it means, and what to hold it against."""

    title: str
    figure: str
    meaning: str
    context: str


def render(facts: Facts, *, version: str) -> str:
    """The page as HTML.

    Args:
        version: of this package, which made it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("van.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = share
    environment.filters["counted"] = counted
    environment.filters["sentence"] = _sentence
    return environment.get_template("page.html.jinja").render(_context(facts, version))


def _context(facts: Facts, version: str) -> dict[str, Any]:
    measured, network = facts.measured, facts.network
    return {
        "facts": facts,
        "title": _title(facts),
        "headline": _headline(facts),
        "tiles": _tiles(facts),
        "curves": _curves(facts),
        "progress": _progress(facts),
        "events": [record for record in facts.records if record["kind"] == "event"],
        "mistakes": _mistakes(measured, None if network is None else network.task),
        "metrics": metrics_of(facts),
        "classes": classes_of(measured, facts.headline),
        "matrix": matrix_of(measured, network),
        "pairs": pairs_of(measured, network),
        "quality": _quality_chart(measured, facts.headline),
        "trained": _trained(network),
        "settings": _settings(facts.recipe),
        "made": {"date": today(), "version": version, "with": _versions(version)},
    }


def _plain(value: Any) -> Any:
    """Text without what breaks lines or hides: control characters, halves of characters, changes of direction."""
    if value is None:
        return ""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in _KEPT else " " for c in value)


def _versions(version: str) -> list[tuple[str, str]]:
    """What the page was measured and made with."""
    found = {"van": version, **versions(), "python": platform.python_version(), "machine": platform.machine()}
    return [
        (name, text) for name, text in found.items() if text and name in ("van", "torch", "timm", "python", "machine")
    ]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _title(facts: Facts) -> str:
    if facts.network is None:
        return f"{facts.recipe.get('model', 'a network')}, still without a checkpoint to measure"
    loaded = facts.network.loaded
    head = f" with {loaded.options['head']}" if "head" in loaded.options else ""
    return f"{loaded.name}{head}, trained {DOES[loaded.task].format(classes=f'{len(loaded.labels):,}')}"


def _headline(facts: Facts) -> Headline | None:
    """The figure measured here, else the one that training measured, if any."""
    name = facts.headline
    if name is None:
        return None
    word = metric_word(name)
    if facts.measured is not None:
        return Headline(
            word.title,
            figure(name, facts.measured.found.metrics.get(name)),
            word.meaning,
            _context_of(facts.measured, name),
        )
    known = [r for r in facts.records if r["kind"] == "eval" and _is_number(r.get(name))]
    if not known:
        return None
    best = max(known, key=lambda record: record[name])
    told = f"The best of {len(known)} evaluations during training, at step {best['step']:,}; not measured again here."
    return Headline(word.title, figure(name, best[name]), word.meaning, told)


def _context_of(measured: Measured, name: str) -> str:
    """What the headline figure counts, and what it would be by chance where that can be said."""
    found = measured.found
    of = f"Measured on {found.samples:,} held-out pictures"
    if found.samples < measured.available - len(found.unreadable):
        of = f"Measured on {found.samples:,} of {measured.available:,} held-out pictures, evenly taken"
    counts = found.details.get("confusion")
    if name == "top1" and counts is not None and counts.sum():
        wrong, most = int(counts.sum() - counts.trace()), counts.sum(axis=1).max() / counts.sum()
        return (
            f"{of}, {wrong:,} of them answered wrong. Always naming the most frequent class would give {share(most)}."
        )
    if name in ("box_ap", "mask_ap") and f"{name}50" in found.metrics:
        return f"{of}. Where half an overlap is enough (AP50) it is {share(found.metrics[f'{name}50'])}."
    return f"{of}."


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """A few more figures: title, figure, and a word on it."""
    tiles = []
    if facts.network is not None:
        rows, columns = facts.network.size
        tiles.append(("Parameters", large(facts.network.parameters), "weights in the network"))
        if facts.network.macs is not None:
            tiles.append(("MACs", large(facts.network.macs), f"multiply-adds for {columns}{TIMES}{rows}{THIN}px"))
    if facts.speed is not None:
        several = max(facts.speed.timings)
        tiles.append(("One picture", f"{_milliseconds(facts.speed.timings[1].median_ms)}", "in the network, here"))
        tiles.append(("Pictures a second", _rate(facts.speed.pictures_per_s(several)), f"{several} at once, here"))
    if facts.checkpoint is not None:
        tiles.append(("Checkpoint", f"{facts.checkpoint.bytes / 1e6:.3g}{THIN}MB", "best.safetensors"))
    trained_on = facts.recipe.get("training_pictures")
    if isinstance(trained_on, int):
        tiles.append(("Learnt from", f"{trained_on:,}", "pictures"))
    return tiles


def _milliseconds(value: float) -> str:
    return f"{value:.1f}{THIN}ms" if value < 100 else f"{value:,.0f}{THIN}ms"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _curves(facts: Facts) -> list[Chart]:
    name = facts.headline or "top1"
    return learning_charts(facts.records, name, metric_word(name).title)


def _progress(facts: Facts) -> str:
    """How far training came, in a sentence."""
    if not facts.records:
        return "The log is empty: training has not come to its first line."
    evals = [record for record in facts.records if record["kind"] == "eval"]
    speeds = [r["pictures_per_s"] for r in facts.records if _is_number(r.get("pictures_per_s"))]
    told = f"{facts.records[-1]['step']:,} updates"
    if evals:
        epochs, planned = evals[-1].get("epoch"), facts.recipe.get("epochs")
        told += f", {epochs} of {planned} epochs" if isinstance(epochs, int) and isinstance(planned, int) else ""
    else:
        told += ", no evaluation yet"
    return told + (f", {np.median(speeds):,.0f} pictures a second." if speeds else ".")


def _mistakes(measured: Measured | None, task: Task | None) -> dict[str, Any] | None:
    """The worst answers, those that are wrong and those that are only unsure."""
    if measured is None or not measured.mistakes:
        return None
    wrong = [_card(shown) for shown in measured.mistakes if shown.mistake.wrong]
    right = [_card(shown) for shown in measured.mistakes if not shown.mistake.wrong]
    classifies = isinstance(measured.mistakes[0].mistake.answer, Classes)
    most = _MOST_CARDS["pictures" if classifies else "scenes"]
    fill = max(0, _LEAST_CARDS - len(wrong))
    return {
        "wrong": wrong[:most],
        "more_wrong": wrong[most:],
        "right": right[:fill],
        "more_right": right[fill:],
        "count": measured.found.details["wrong"],
        "samples": measured.found.samples,
        "classifies": classifies,
        "layer": next((view.layer for shown in measured.mistakes for view in shown.views if view.layer), ""),
        "least_score": share(task.min_score, places=0) if isinstance(task, Detect) else "",
    }


def _card(shown: Any) -> dict[str, Any]:
    mistake = shown.mistake
    card: dict[str, Any] = {"shown": shown, "mistake": mistake, "bars": [], "truth": None}
    if isinstance(mistake.answer, Classes):
        ranked = mistake.answer.top(3)
        true_label = mistake.answer.labels[mistake.truth]
        card["truth"] = true_label
        if mistake.truth not in [one.index for one in ranked]:
            ranked = [*ranked[:2], mistake.answer.top(len(mistake.answer.labels))[_rank(mistake.answer, mistake.truth)]]
        card["bars"] = [(one.label, one.probability, one.index == mistake.truth) for one in ranked]
    return card


def _rank(answer: Classes, index: int) -> int:
    return next(place for place, one in enumerate(answer.top(len(answer.labels))) if one.index == index)


def _quality_chart(measured: Measured | None, headline: str | None) -> list[Chart]:
    """Reliability of a classifier; precision over recall of a detector."""
    if measured is None:
        return []
    details, found = measured.found.details, []
    if details.get("reliability") is not None:
        found.append(reliability_chart(details["reliability"]))
    curves = details.get("precision_recall") or {}
    kinds = {"mask": "Precision over recall, outlines", "box": "Precision over recall, boxes"}
    found += [precision_recall_chart(curves, kind, title) for kind, title in kinds.items() if kind in curves]
    return [chart for chart in found if chart is not None]


def _trained(network: Network | None) -> list[tuple[str, str]]:
    """What the network is, as pairs of a title and a text."""
    if network is None:
        return []
    loaded, rule = network.loaded, network.loaded.preprocess
    rows, columns = network.size
    options = {name: value for name, value in loaded.options.items() if name != "head"}
    if isinstance(rule, Preprocess):
        resize = f"shorter side to {rule.resize_px} px, the middle {rule.size_px}{TIMES}{rule.size_px} px cut out"
    else:
        resize = f"shorter side to {rule.short_px} px, the longer to at most {rule.long_px} px, nothing cut off"
    pairs = [
        ("Task", loaded.task),
        ("Network", f"{loaded.name}{' with ' + loaded.options['head'] if 'head' in loaded.options else ''}"),
        ("Options", setting(options) if options else ""),
        ("Parameters", f"{network.parameters:,}"),
        ("Multiply-accumulates", "" if network.macs is None else f"{network.macs:,} for {columns}{TIMES}{rows} px"),
        ("Preprocessing", f"{resize} ({rule.interpolation}); mean {setting(rule.mean)}, deviation {setting(rule.std)}"),
        ("Classes", f"{len(loaded.labels):,}"),
    ]
    return [(title, text) for title, text in pairs if text]


def _settings(recipe: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    pairs = {name: (name.replace("_", " "), setting(value)) for name, value in recipe.items()}
    first = [name for name in FIRST_SETTINGS if name in pairs]
    return {"first": [pairs[name] for name in first], "rest": [pairs[n] for n in pairs if n not in first]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
