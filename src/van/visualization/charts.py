"""Charts of a training run and of the size of a kernel; style and output of all charts.

Every function writes one PNG, the same bytes for the same input; colors are safe for color-blind readers.
Charts of evaluation metrics are in ``van.visualization.metric_charts``.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from van.visualization.drawing import strip_unprintable

BLUE, ORANGE, GREEN, GRAY = "#0072b2", "#d55e00", "#009e73", "#777777"
_MAX_LABEL_CHARACTERS = 32


def draw_training_curves(records: Sequence[Mapping[str, Any]], path: Path, *, monitor: str) -> None:
    """Draw loss, monitor metric and learning rate of a run log over its steps; records of any kind may be missing.

    Args:
        records: lines of ``log.jsonl``; those of ``kind`` "train" have ``loss`` and ``lr``, "eval" the metrics.
        monitor: the metric to draw, a fraction, such as ``top1``.
    """
    train = [record for record in records if record.get("kind") == "train"]
    evals = [record for record in records if record.get("kind") == "eval"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss_axis, metric_axis, rate_axis = figure.subplots(1, 3)
    steps, losses = _column(train, "loss")
    _line(loss_axis, steps, losses, color=BLUE, alpha=0.3, linewidth=1)
    _line(loss_axis, steps, _smooth(losses), color=BLUE, label="training")
    _line(loss_axis, *_column(evals, "loss"), color=ORANGE, label="validation", marker="o", ms=3)
    if loss_axis.lines:
        loss_axis.legend(frameon=False)
    steps, metrics = _column(evals, monitor)
    _line(metric_axis, steps, 100 * metrics, color=GREEN, marker="o", ms=3)
    title = f"validation {monitor}"
    if np.isfinite(metrics).any():
        best = int(np.nanargmax(metrics))
        metric_axis.plot(steps[best], 100 * metrics[best], "o", color=GREEN, ms=9, fillstyle="none")
        title = f"validation {monitor}: best {100 * metrics[best]:.2f} %"
    _line(rate_axis, *_column(train, "lr"), color=GRAY)
    for axis, text, label in (
        (loss_axis, "loss", "loss"),
        (metric_axis, title, f"{monitor} (%)"),
        (rate_axis, "learning rate", "learning rate"),
    ):
        style_axes(axis, text, "training step", label)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if not axis.lines:
            draw_placeholder(axis, "no data")
    save_figure(figure, path)


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


def style_axes(axis: Axes, title: str, x_label: str, y_label: str = "") -> None:
    """Set title, axis labels, a light grid, and no spines above and to the right; dollar signs are literal."""
    axis.set_title(title, parse_math=False)
    axis.set_xlabel(x_label, parse_math=False)
    axis.set_ylabel(y_label or axis.get_ylabel(), parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def draw_placeholder(axis: Axes, text: str) -> None:
    """Write ``text`` into an empty chart instead of ticks."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color=GRAY)
    axis.set(xticks=[], yticks=[])


def truncate_label(label: str) -> str:
    """Return a class name on one line, truncated to 32 characters."""
    label = strip_unprintable(label)
    return label if len(label) <= _MAX_LABEL_CHARACTERS else label[: _MAX_LABEL_CHARACTERS - 3] + "..."


def _column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of the records that have ``name``."""
    pairs = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _line(axis: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Draw a curve if it has values; a single value is drawn as a dot."""
    if len(steps) == 1:
        style.setdefault("marker", "o")
    if len(steps):
        axis.plot(steps, values, **style)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the moving average over 4 % of the run around each record, ignoring values that are not finite."""
    if not len(values):
        return values
    window = np.ones(max(1, len(values) // 25) | 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window)[len(window) // 2 :][: len(values)]
    count = np.convolve(finite.astype(float), window)[len(window) // 2 :][: len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)
