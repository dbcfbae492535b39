"""Charts of a run: learning curves, the cost of a kernel; and what all charts have in common.

Every function writes one PNG, the same bytes for the same input; colours are safe for colour-blind readers.
Charts of how good a network is are in ``van.results.quality``.
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

from van.results.drawing import one_line

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"
_LABEL_CHARACTERS = 32


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path, *, headline: str) -> None:
    """Loss, headline metric and learning rate of a run log over its steps; records of any kind may be missing.

    Args:
        records: lines of ``log.jsonl``; those of ``kind`` "train" carry ``loss`` and ``lr``, "eval" the metrics.
        headline: the metric to draw, a fraction, such as ``top1``.
    """
    train = [record for record in records if record.get("kind") == "train"]
    evals = [record for record in records if record.get("kind") == "eval"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss_axis, metric_axis, rate_axis = figure.subplots(1, 3)
    steps, losses = _column(train, "loss")
    _line(loss_axis, steps, losses, color=BLUE, alpha=0.3, linewidth=1)
    _line(loss_axis, steps, _smoothed(losses), color=BLUE, label="training")
    _line(loss_axis, *_column(evals, "loss"), color=ORANGE, label="held out", marker="o", ms=3)
    if loss_axis.lines:
        loss_axis.legend(frameon=False)
    steps, metrics = _column(evals, headline)
    _line(metric_axis, steps, 100 * metrics, color=GREEN, marker="o", ms=3)
    title = f"{headline}, held out, %"
    if np.isfinite(metrics).any():
        best = int(np.nanargmax(metrics))
        metric_axis.plot(steps[best], 100 * metrics[best], "o", color=GREEN, ms=9, fillstyle="none")
        title = f"{headline}, held out, %: best {100 * metrics[best]:.2f}"
    _line(rate_axis, *_column(train, "lr"), color=GREY)
    for axis, text in ((loss_axis, "loss"), (metric_axis, title), (rate_axis, "learning rate")):
        dress(axis, text, "step")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if not axis.lines:
            say_nothing(axis, "nothing yet")
    save_figure(figure, path)


def draw_costs(kernel_sizes: Sequence[int], costs: Mapping[str, Sequence[int]], path: Path, *, marked: int) -> None:
    """Parameters of each way to compute a K x K convolution, over K, on a logarithmic axis."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for (name, values), colour in zip(costs.items(), (GREY, ORANGE, BLUE), strict=True):
        axis.semilogy(kernel_sizes, values, color=colour, label=name)
    axis.axvline(marked, color="black", linewidth=0.8, linestyle=":", label=f"kernel size {marked}")
    axis.legend(frameon=False)
    dress(axis, "weights of one layer", "kernel size, pixels")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG without a display, nothing cut off at its edges."""
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"savefig.dpi": 120}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box: the script has no font here
        figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.1)


def dress(axis: Axes, title: str, x_label: str) -> None:
    """Title, label, a light grid, and no frame above and to the right; dollar signs are dollar signs."""
    axis.set_title(title, parse_math=False)
    axis.set_xlabel(x_label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def say_nothing(axis: Axes, text: str) -> None:
    """An empty chart says that it is empty."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color=GREY)
    axis.set(xticks=[], yticks=[])


def short_label(label: str) -> str:
    """A class's name on one line, cut after 32 characters."""
    label = one_line(label)
    return label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 3] + "..."


def _column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have ``name``."""
    pairs = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _line(axis: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Draw a curve, if there is one; a single record shows as a dot."""
    if len(steps) == 1:
        style.setdefault("marker", "o")
    if len(steps):
        axis.plot(steps, values, **style)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over a twenty-fifth of the run around each record, of those that are finite."""
    if not len(values):
        return values
    window = np.ones(max(1, len(values) // 25) | 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window)[len(window) // 2 :][: len(values)]
    count = np.convolve(finite.astype(float), window)[len(window) // 2 :][: len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)
