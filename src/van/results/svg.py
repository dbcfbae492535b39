"""Line charts as shapes in an SVG, so that the page's own letters, colours and dark mode hold for them, too.

Shapes: a chart is WIDTH x HEIGHT units, as wide as a phone; data are finite or NaN, which leaves a gap.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

THIN = "\u202f"
"""The space before a unit, which breaks no line."""
WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 36
_MOST_POINTS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A curve before it is drawn; ``style`` is a class of the page's style sheet, ``dots`` marks each value."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    style: str = "first"
    dots: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve as SVG has it: a path, and the places of its dots."""

    name: str
    style: str
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """What the template draws; ``bars`` are x, y, width, height and opacity, ``ticks`` a place and a text."""

    title: str
    says: str
    x_label: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    bars: tuple[tuple[float, float, float, float, float], ...] = ()
    ring: tuple[float, float] | None = None

    left, right = _LEFT, WIDTH - _RIGHT
    top, bottom = _TOP, HEIGHT - _BOTTOM
    width, height = WIDTH, HEIGHT


def draw(
    title: str,
    series: Sequence[Series],
    *,
    says: str,
    x_label: str,
    percent: bool = False,
    log: bool = False,
    limits: tuple[float, float, float, float] | None = None,
    bars: Sequence[tuple[float, float, float, float]] = (),
    ring: tuple[float, float] | None = None,
) -> Chart | None:
    """Lay a chart out; None where there is nothing finite to see.

    Args:
        says: the chart in a sentence, for who cannot see it.
        percent: values are shares.
        log: the vertical scale is logarithmic where all values allow it.
        limits: least and largest x, least and largest y, x then being a share, too; those of the values if None.
        bars: left and right end, height and opacity of each.
        ring: a point that is pointed out.
    """
    pairs = [(x, y) for one in series for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
    if not pairs and not bars:
        return None
    log = log and all(y > 0 for _, y in pairs)
    points = np.array(pairs or [(0.0, 0.0)], float)
    x_low, x_high, y_low, y_high = limits or (*_span(points[:, 0]), *_span(points[:, 1], log=log))
    scale = _Scale(x_low, x_high, y_low, y_high, log)
    y_values = _log_ticks(y_low, y_high) if log else _ticks(y_low, y_high)
    return Chart(
        title=title,
        says=says,
        x_label=x_label,
        curves=tuple(_curve(one, scale) for one in series if any(map(math.isfinite, one.y))),
        x_ticks=tuple(
            (scale.x(v), _percent(v) if limits else f"{v:,.6g}") for v in _ticks(x_low, x_high, whole=not limits)
        ),
        y_ticks=tuple((scale.y(v), _percent(v) if percent else f"{v:.4g}") for v in y_values),
        bars=tuple(_bar(bar, scale) for bar in bars),
        ring=None if ring is None else (scale.x(ring[0]), scale.y(ring[1])),
    )


def learning_charts(records: Sequence[Mapping[str, Any]], headline: str, title: str) -> list[Chart]:
    """Loss, headline metric and learning rate of a log, as far as it has them."""
    train = [record for record in records if record.get("kind") == "train"]
    evals = [record for record in records if record.get("kind") == "eval"]
    losses, held = _thinned(*_column(train, "loss")), _column(evals, "loss")
    steps, values = _column(evals, headline)
    known = [place for place, value in enumerate(values) if math.isfinite(value)]
    best = max(known, key=lambda place: values[place], default=None)
    ring = None if best is None else (steps[best], values[best])
    told = "" if ring is None else f"best {share(ring[1], places=2)} at step {ring[0]:,.0f}"
    found = [
        draw(
            "Loss",
            [Series(x=losses[0], y=losses[1], name="training"), Series(x=held[0], y=held[1], name="held out",
             style="second", dots=True)],
            says=_from_to("The training loss", losses[1], "{:.3g}"),
            x_label="step",
            log=True,
        ),
        draw(
            f"{title}, held out",
            [Series(x=steps, y=values, name=told, style="third", dots=True)],
            says=_from_to(f"{title} on the held-out pictures", values, "{:.1%}") + f" {told}.",
            x_label="step",
            percent=True,
            ring=ring,
        ),
        draw(
            "Learning rate",
            [Series(x=(rate := _thinned(*_column(train, "lr")))[0], y=rate[1], style="quiet")],
            says=f"The learning rate, at most {max(filter(math.isfinite, rate[1]), default=0):.3g}.",
            x_label="step",
        ),
    ]  # fmt: skip
    return [chart for chart in found if chart is not None]


def reliability_chart(reliability: Mapping[str, Sequence[float]]) -> Chart | None:
    """How often a classifier is right where it is how sure: a bar for each bin, and the line of honesty."""
    count, right, sure = (np.asarray(reliability[name], float) for name in ("count", "right", "confidence"))
    edges, there = np.linspace(0, 1, len(count) + 1), np.flatnonzero(count)
    if not len(there) or not np.isfinite(sure).all():
        return None
    most = count.max()
    return draw(
        "Is it right as often as it is sure?",
        [Series(x=(0, 1), y=(0, 1), name="as often right as sure", style="quiet")],
        says=f"Bars: how often answers of a certainty are right; pale bars hold few answers. On average the network is "
        f"{share(sure.sum() / count.sum())} sure and {share(right.sum() / count.sum())} right.",
        x_label="how sure the network is",
        percent=True,
        limits=(0.0, 1.0, 0.0, 1.0),
        bars=[(edges[i], edges[i + 1], right[i] / count[i], 0.2 + 0.7 * math.sqrt(count[i] / most)) for i in there],
    )


def precision_recall_chart(curves: Mapping[str, Any], kind: str, title: str) -> Chart | None:
    """Precision over recall, mean over classes, at three demands on the overlap."""
    recall, means = curves["recall"], curves[kind]["all"]
    styles = {"0.50": "first", "0.75": "second", "0.50:0.95": "third"}
    return draw(
        title,
        [Series(x=recall, y=means[iou], name=f"IoU {iou}", style=style) for iou, style in styles.items()],
        says=f"The area under the curve at IoU 0.50 is {share(float(np.mean(means['0.50'])))}, at 0.75 "
        f"{share(float(np.mean(means['0.75'])))}.",
        x_label="recall: share of the marks that are found",
        percent=True,
        limits=(0.0, 1.0, 0.0, 1.0),
    )


class _Scale:
    """From data to places in the drawing."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float, log: bool) -> None:
        self._log = log
        self._x = (x_low, (WIDTH - _LEFT - _RIGHT) / (x_high - x_low))
        low, high = (math.log(y_low), math.log(y_high)) if log else (y_low, y_high)
        self._y = (low, (HEIGHT - _TOP - _BOTTOM) / (high - low))

    def x(self, value: float) -> float:
        return round(_LEFT + (value - self._x[0]) * self._x[1], 1)

    def y(self, value: float) -> float:
        value = math.log(value) if self._log else value
        return round(HEIGHT - _BOTTOM - (value - self._y[0]) * self._y[1], 1)


def _percent(value: float) -> str:
    return f"{100 * value:.4g}{THIN}%"


def _curve(series: Series, scale: _Scale) -> Curve:
    """A path that is broken where values are not finite."""
    parts: list[str] = []
    dots = []
    pen_down = False
    for x, y in zip(series.x, series.y, strict=True):
        if not math.isfinite(y):
            pen_down = False
            continue
        place = scale.x(x), scale.y(y)
        parts.append(f"{'L' if pen_down else 'M'}{place[0]:g} {place[1]:g}")
        pen_down = True
        dots.append(place)
    shown = dots if series.dots or len(dots) == 1 else []
    return Curve(name=series.name, style=series.style, path="".join(parts), dots=tuple(shown))


def _bar(bar: tuple[float, float, float, float], scale: _Scale) -> tuple[float, float, float, float, float]:
    left, right, top, bottom = scale.x(bar[0]), scale.x(bar[1]), scale.y(bar[2]), scale.y(0.0)
    return left, top, round(right - left - 1, 1), round(bottom - top, 1), round(bar[3], 2)


def _column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that have ``name``; what is null is NaN."""
    having = [record for record in records if isinstance(record.get(name), int | float)]
    return [float(record["step"]) for record in having], [float(record[name]) for record in having]


def _thinned(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Means of neighbours, so that a long log makes no large page; a value that is not finite stays to be seen."""
    if len(values) <= _MOST_POINTS:
        return steps, values
    groups = np.array_split(np.arange(len(values)), _MOST_POINTS)
    return tuple([float(np.mean([column[i] for i in group])) for group in groups] for column in (steps, values))  # type: ignore[return-value]


def _span(values: np.ndarray, *, log: bool = False) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if log:
        return (low * 0.9, high * 1.1)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    found = MaxNLocator(nbins=4, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [0.0 if value == 0 else float(value) for value in found if low <= value <= high]


def _log_ticks(low: float, high: float) -> list[float]:
    found = LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(low, high)
    inside = [float(value) for value in found if low <= value <= high]
    return inside if len(inside) > 1 else _ticks(low, high)


def _from_to(what: str, values: Sequence[float], shape: str) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return f"{what}: no number."
    return f"{what} goes from {shape.format(finite[0])} to {shape.format(finite[-1])}."


def share(value: float | None, *, places: int = 1) -> str:
    """A share in percent; a dash where there is none. Only what is whole is 100 %."""
    if value is None or value != value:
        return "–"
    text = f"{100 * value:.{places}f}"
    if value < 1 and float(text) == 100:
        text = f"{100 - 10**-places:.{places}f}"
    return f"{text}{THIN}%"
