"""Line charts as SVG shapes, so that the page's fonts, colors and dark mode apply to them.

Shapes: a chart is WIDTH x HEIGHT units, as wide as a phone; data are finite or NaN, which leaves a gap.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

THIN_SPACE = "\u202f"
"""The narrow no-break space before a unit."""
WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 22, 36
_MAX_POINTS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """Data of a curve; ``style`` is a class of the page's style sheet, ``dots`` adds a dot at each value."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    style: str = "first"
    dots: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """SVG shapes of a curve: a path and the positions of its dots."""

    name: str
    style: str
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """SVG shapes of a chart; ``bars`` are x, y, width, height and opacity, ticks a position and a text."""

    title: str
    description: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    bars: tuple[tuple[float, float, float, float, float], ...] = ()
    highlight: tuple[float, float] | None = None

    left, right = _LEFT, WIDTH - _RIGHT
    top, bottom = _TOP, HEIGHT - _BOTTOM
    width, height = WIDTH, HEIGHT


def layout_chart(
    title: str,
    series: Sequence[Series],
    *,
    description: str,
    x_label: str,
    y_label: str,
    percent: bool = False,
    log: bool = False,
    limits: tuple[float, float, float, float] | None = None,
    bars: Sequence[tuple[float, float, float, float]] = (),
    highlight: tuple[float, float] | None = None,
) -> Chart | None:
    """Compute the shapes of a chart; return None if there are no finite values.

    Args:
        description: the chart in a sentence, for screen readers.
        percent: y values are fractions, shown in percent.
        log: use a logarithmic y axis if all values are positive.
        limits: x minimum and maximum, y minimum and maximum, x being a fraction as well; those of the data if None.
        bars: left and right end, height and opacity of each.
        highlight: a point to be circled.
    """
    pairs = [(x, y) for one in series for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
    if not pairs and not bars:
        return None
    log = log and all(y > 0 for _, y in pairs)
    points = np.array(pairs or [(0.0, 0.0)], float)
    x_low, x_high, y_low, y_high = limits or (*_data_range(points[:, 0]), *_data_range(points[:, 1], log=log))
    scale = _Scale(x_low, x_high, y_low, y_high, log)
    y_values = _log_ticks(y_low, y_high) if log else _ticks(y_low, y_high)
    return Chart(
        title=title,
        description=description,
        x_label=x_label,
        y_label=y_label,
        curves=tuple(_curve(one, scale) for one in series if any(map(math.isfinite, one.y))),
        x_ticks=tuple(
            (scale.x(v), _format_tick(v) if limits else f"{v:,.6g}") for v in _ticks(x_low, x_high, whole=not limits)
        ),
        y_ticks=tuple((scale.y(v), _format_tick(v) if percent else f"{v:.4g}") for v in y_values),
        bars=tuple(_bar(bar, scale) for bar in bars),
        highlight=None if highlight is None else (scale.x(highlight[0]), scale.y(highlight[1])),
    )


def training_curve_charts(records: Sequence[Mapping[str, Any]], monitor: str, title: str) -> list[Chart]:
    """Return charts of loss, monitor metric and learning rate of a log, as far as it has them."""
    train = [record for record in records if record.get("kind") == "train"]
    evals = [record for record in records if record.get("kind") == "eval"]
    losses, val_losses = _downsample(*_column(train, "loss")), _column(evals, "loss")
    steps, values = _column(evals, monitor)
    known = [place for place, value in enumerate(values) if math.isfinite(value)]
    best = max(known, key=lambda place: values[place], default=None)
    peak = None if best is None else (steps[best], values[best])
    note = "" if peak is None else f"best {format_percent(peak[1], places=2)} at step {peak[0]:,.0f}"
    charts = [
        layout_chart(
            "Loss",
            [Series(x=losses[0], y=losses[1], name="training"),
             Series(x=val_losses[0], y=val_losses[1], name="validation", style="second", dots=True)],
            description=_describe_trend("The training loss", losses[1], "{:.3g}"),
            x_label="training step",
            y_label="loss",
            log=True,
        ),
        layout_chart(
            f"{title}, validation",
            [Series(x=steps, y=values, name=note, style="third", dots=True)],
            description=_describe_trend(f"{title} on the validation images", values, "{:.1%}") + f" {note}.",
            x_label="training step",
            y_label=title,
            percent=True,
            highlight=peak,
        ),
        layout_chart(
            "Learning rate",
            [Series(x=(rate := _downsample(*_column(train, "lr")))[0], y=rate[1], style="quiet")],
            description=f"The learning rate, at most {max(filter(math.isfinite, rate[1]), default=0):.3g}.",
            x_label="training step",
            y_label="learning rate",
        ),
    ]  # fmt: skip
    return [chart for chart in charts if chart is not None]


def reliability_chart(reliability: Mapping[str, Sequence[float]]) -> Chart | None:
    """Return a reliability diagram: accuracy in each bin of confidence, and the line of perfect calibration."""
    count, right, confidence = (np.asarray(reliability[name], float) for name in ("count", "correct", "confidence"))
    edges, filled = np.linspace(0, 1, len(count) + 1), np.flatnonzero(count)
    if not len(filled) or not np.isfinite(confidence).all():
        return None
    max_count = count.max()
    return layout_chart(
        "Reliability diagram",
        [Series(x=(0, 1), y=(0, 1), name="perfect calibration", style="quiet")],
        description="Bars: accuracy of the predictions in each bin of confidence; pale bars have few predictions. Mean "
        f"confidence is {format_percent(confidence.sum() / count.sum())}, accuracy is "
        f"{format_percent(right.sum() / count.sum())}.",
        x_label="confidence",
        y_label="accuracy",
        percent=True,
        limits=(0.0, 1.0, 0.0, 1.0),
        bars=[
            (edges[i], edges[i + 1], right[i] / count[i], 0.2 + 0.7 * math.sqrt(count[i] / max_count)) for i in filled
        ],
    )


def precision_recall_chart(curves: Mapping[str, Any], kind: str, title: str) -> Chart | None:
    """Return a chart of precision over recall, mean over classes, at three IoU thresholds."""
    recall, means = curves["recall"], curves[kind]["all"]
    styles = {"0.50": "first", "0.75": "second", "0.50:0.95": "third"}
    return layout_chart(
        title,
        [Series(x=recall, y=means[iou], name=f"IoU {iou}", style=style) for iou, style in styles.items()],
        description=f"The area under the curve at IoU 0.50 is {format_percent(float(np.mean(means['0.50'])))}, at 0.75 "
        f"{format_percent(float(np.mean(means['0.75'])))}.",
        x_label="recall",
        y_label="precision",
        percent=True,
        limits=(0.0, 1.0, 0.0, 1.0),
    )


class _Scale:
    """Maps data to positions in the drawing."""

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


def _format_tick(value: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * value:.4g}{THIN_SPACE}%"


def _curve(series: Series, scale: _Scale) -> Curve:
    """Return a path with gaps where values are not finite."""
    commands: list[str] = []
    dots = []
    pen_down = False
    for x, y in zip(series.x, series.y, strict=True):
        if not math.isfinite(y):
            pen_down = False
            continue
        point = scale.x(x), scale.y(y)
        commands.append(f"{'L' if pen_down else 'M'}{point[0]:g} {point[1]:g}")
        pen_down = True
        dots.append(point)
    shown = dots if series.dots or len(dots) == 1 else []
    return Curve(name=series.name, style=series.style, path="".join(commands), dots=tuple(shown))


def _bar(bar: tuple[float, float, float, float], scale: _Scale) -> tuple[float, float, float, float, float]:
    left, right, top, bottom = scale.x(bar[0]), scale.x(bar[1]), scale.y(bar[2]), scale.y(0.0)
    return left, top, round(right - left - 1, 1), round(bottom - top, 1), round(bar[3], 2)


def _column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the records that have a number for ``name``."""
    numeric = [record for record in records if isinstance(record.get(name), int | float)]
    return [float(record["step"]) for record in numeric], [float(record[name]) for record in numeric]


def _downsample(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Average neighbors to at most 200 points, so that a long log makes no large page; NaN stays NaN."""
    if len(values) <= _MAX_POINTS:
        return steps, values
    groups = np.array_split(np.arange(len(values)), _MAX_POINTS)
    return tuple([float(np.mean([column[i] for i in group])) for group in groups] for column in (steps, values))  # type: ignore[return-value]


def _data_range(values: np.ndarray, *, log: bool = False) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if log:
        return (low * 0.9, high * 1.1)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    ticks = MaxNLocator(nbins=4, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [0.0 if value == 0 else float(value) for value in ticks if low <= value <= high]


def _log_ticks(low: float, high: float) -> list[float]:
    ticks = LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(low, high)
    inside = [float(value) for value in ticks if low <= value <= high]
    return inside if len(inside) > 1 else _ticks(low, high)


def _describe_trend(name: str, values: Sequence[float], number_format: str) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return f"{name}: no finite values."
    return f"{name} goes from {number_format.format(finite[0])} to {number_format.format(finite[-1])}."


def format_percent(value: float | None, *, places: int = 1) -> str:
    """Return a fraction in percent, or a dash if it is None or NaN; only 1 and more is rounded to 100 %."""
    if value is None or value != value:
        return "–"
    text = f"{100 * value:.{places}f}"
    if value < 1 and float(text) == 100:
        text = f"{100 - 10**-places:.{places}f}"
    return f"{text}{THIN_SPACE}%"
