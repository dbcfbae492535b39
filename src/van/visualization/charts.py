"""Charts of a training run and of the size of a kernel; style and output of all charts.

A ``plot_...`` function draws into one axis: several make a figure that is written as PNG, one becomes an SVG element of
a page. Files have the same bytes for the same input; colors are safe for color-blind readers.
Charts of evaluation metrics are in ``van.visualization.metric_charts``.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from van.visualization.drawing import strip_unprintable

Records = Sequence[Mapping[str, Any]]
"""Lines of ``log.jsonl``; those of ``kind`` "train" have ``loss`` and ``lr``, "eval" the metrics."""
BLUE, ORANGE, GREEN, GRAY = "#0072b2", "#d55e00", "#009e73", "#777777"
_GRID = "#b0b0b0"
_PAGE_COLORS = {
    BLUE: "--first", ORANGE: "--second", GREEN: "--third", GRAY: "--quiet", _GRID: "--line", "#000000": "--ink",
    "#ffffff": "--card",
}  # fmt: skip
"""Variables of the page's style sheet for the colors of a chart, which has them in light and dark mode."""
_PAGE_SIZE_IN = (5.0, 3.3)
"""A chart of a page: 360 units wide, about as wide as a phone."""
_MAX_LABEL_CHARACTERS = 32
_MAX_POINTS = 200


def draw_training_curves(records: Records, path: Path, *, monitor: str) -> None:
    """Draw loss, monitor metric (a fraction such as ``top1``) and learning rate; records of any kind may be missing."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss_axis, metric_axis, rate_axis = figure.subplots(1, 3)
    plot_losses(loss_axis, records)
    note = plot_metric(metric_axis, records, monitor)
    plot_learning_rate(rate_axis, records)
    if loss_axis.lines:
        loss_axis.legend(frameon=False)
    titles = ("loss", f"validation {monitor}: {note}" if note else f"validation {monitor}", "learning rate")
    for axis, title in zip(figure.axes, titles, strict=True):
        axis.set_title(title, parse_math=False)
        if not axis.lines:
            draw_placeholder(axis, "no data")
    save_figure(figure, path)


def plot_losses(axis: Axes, records: Records) -> None:
    """Plot the training loss, raw and smoothed, and the validation loss; logarithmic if all are positive."""
    steps, losses = _column(records, "train", "loss")
    validation = _column(records, "eval", "loss")
    steps, raw, smooth = (_downsample(values) for values in (steps, losses, _smooth(losses)))
    _plot_line(axis, steps, raw, color=BLUE, alpha=0.3, linewidth=1)
    _plot_line(axis, steps, smooth, color=BLUE, label="training")
    _plot_line(axis, *validation, color=ORANGE, label="validation", marker="o", ms=3)
    _style_steps(axis, "loss")
    known = np.concatenate([losses, validation[1]])
    known = known[np.isfinite(known)]
    if len(known) and known.min() > 0:
        axis.set_yscale("log")
        set_log_ticks(axis.yaxis)


def plot_metric(axis: Axes, records: Records, name: str, title: str = "") -> str:
    """Plot a metric of the evaluations in percent and circle its best value; return that value in words, if any."""
    steps, values = _column(records, "eval", name)
    note = ""
    if np.isfinite(values).any():
        best = int(np.nanargmax(values))
        note = f"best {100 * values[best]:.2f} % at step {steps[best]:,.0f}"
        axis.plot(steps[best], 100 * values[best], "o", color=GREEN, ms=9, fillstyle="none")
    _plot_line(axis, steps, 100 * values, color=GREEN, marker="o", ms=3, label=note or None)
    _style_steps(axis, f"{title or name} (%)")
    return note


def plot_learning_rate(axis: Axes, records: Records) -> None:
    """Plot the learning rate of the updates."""
    steps, rates = (_downsample(values) for values in _column(records, "train", "lr"))
    _plot_line(axis, steps, rates, color=GRAY)
    _style_steps(axis, "learning rate")
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def draw_parameter_counts(
    kernel_sizes: Sequence[int], costs: Mapping[str, Sequence[int]], path: Path, *, highlight: int
) -> None:
    """Draw the parameters of each implementation of a K x K convolution over K, on a logarithmic axis.

    Args:
        kernel_sizes: K in pixels.
        costs: by name of the implementation, its number of parameters for each K.
        highlight: the kernel size to draw a line at.
    """
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for (name, values), color in zip(costs.items(), (GRAY, ORANGE, BLUE), strict=True):
        axis.semilogy(kernel_sizes, values, color=color, label=name)
    axis.axvline(highlight, color="black", linewidth=0.8, linestyle=":", label=f"kernel size {highlight}")
    axis.legend(frameon=False)
    style_axes(axis, "parameters of one layer", "kernel size (pixels)", "parameters")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG without a display, with all artists inside its edges."""
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"savefig.dpi": 120}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the font lacks the script: drawn as a box
        figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.1)


def svg_chart(plot: Callable[[Axes], object], description: str) -> str:
    """Return what ``plot`` draws as an ``<svg>`` element for a page, or an empty string if it draws nothing.

    The page's font applies to its text and the variables of the page's style sheet to its colors.

    Args:
        description: the chart in words, for screen readers.
    """
    style = {"font.size": 12, "lines.linewidth": 2, "axes.axisbelow": True}
    with matplotlib.rc_context({**style, "svg.fonttype": "none", "svg.hashsalt": description}):
        figure = Figure(figsize=_PAGE_SIZE_IN, layout="constrained")
        axis = figure.subplots()
        plot(axis)
        if not axis.lines and not axis.patches:
            return ""
        axis.set_title("")  # a heading of the page
        axis.spines[:].set_visible(False)
        axis.tick_params(which="both", length=0)
        for side in (axis.xaxis, axis.yaxis):
            if side.get_scale() == "linear" and isinstance(locator := side.get_major_locator(), MaxNLocator):
                locator.set_params(nbins=5)
        axis.grid(axis="x", visible=False)
        axis.grid(axis="y", color=_GRID, alpha=1, linewidth=1)
        handles, _ = axis.get_legend_handles_labels()
        if handles:
            columns = 3 if len(handles) < 4 else 2
            style = {"frameon": False, "handlelength": 1.2, "columnspacing": 1.2, "borderpad": 0.1}
            figure.legend(loc="outside upper left", ncols=columns, **style)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    # Without the file's header, its style for every element of the page, and the clipping to the axes.
    body = text[text.index('<g id="figure_1">') : text.rindex("</g>") + len("</g>")]
    body = re.sub(r' clip-path="[^"]*"', "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # ids are unique in a page; those of markers are hashes with a salt
    body = re.sub(r"font[a-z-]*: [^;\"]*;? ?", "", body)
    body = re.sub(
        r"#[0-9a-f]{6}\b",
        lambda match: f"var({_PAGE_COLORS[match[0]]})" if match[0] in _PAGE_COLORS else match[0],
        body,
    )
    width, height = (72 * side for side in _PAGE_SIZE_IN)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}">{body}</svg>'


def style_axes(axis: Axes, title: str, x_label: str, y_label: str = "") -> None:
    """Set title, axis labels, a light grid, and no spines above and to the right; dollar signs are literal."""
    axis.set_title(title, parse_math=False)
    axis.set_xlabel(x_label, parse_math=False)
    axis.set_ylabel(y_label or axis.get_ylabel(), parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def set_log_ticks(axis: Axis) -> None:
    """Set ticks at 1, 2, 5, 10, ... as plain decimals; in a range without two of them, even ones."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def draw_placeholder(axis: Axes, text: str) -> None:
    """Write ``text`` into an empty chart instead of ticks."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color=GRAY)
    axis.set(xticks=[], yticks=[])


def truncate_label(label: str) -> str:
    """Return a class name on one line, truncated to 32 characters."""
    label = strip_unprintable(label)
    return label if len(label) <= _MAX_LABEL_CHARACTERS else label[: _MAX_LABEL_CHARACTERS - 3] + "..."


def _style_steps(axis: Axes, label: str) -> None:
    style_axes(axis, "", "training step", label)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _column(records: Records, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of the records of a kind that have a number for ``name``."""
    numeric = [r for r in records if r.get("kind") == kind and isinstance(r.get(name), int | float)]
    table = np.array([(record["step"], record[name]) for record in numeric], dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _plot_line(axis: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Plot a curve if it has finite values; a single value is drawn as a dot, others leave a gap."""
    if len(steps) == 1:
        style.setdefault("marker", "o")
    if np.isfinite(values).any():
        axis.plot(steps, np.where(np.isfinite(values), values, np.nan), **style)


def _downsample(values: np.ndarray) -> np.ndarray:
    """Average neighbors to at most 200 points, so that a long log makes no large page; NaN stays NaN."""
    if len(values) <= _MAX_POINTS:
        return values
    return np.array([group.mean() for group in np.array_split(values, _MAX_POINTS)])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the moving average over 4 % of the run around each record, ignoring values that are not finite."""
    if not len(values):
        return values
    window = np.ones(max(1, len(values) // 25) | 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window)[len(window) // 2 :][: len(values)]
    count = np.convolve(finite.astype(float), window)[len(window) // 2 :][: len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)
