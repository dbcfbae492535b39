"""Charts of the network benchmark: accuracy over throughput, and throughput over a swept parameter."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Bbox

from van.bench.machine import Machine
from van.bench.networks import NETWORKS
from van.bench.rows import Row
from van.visualization.charts import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    draw_placeholder,
    save_figure,
    set_log_ticks,
    style_axes,
)

PURPLE, OCHRE, SKY = "#cc79a7", "#9a7d0a", "#56b4e9"
_FAMILY_COLORS = {
    "VAN": BLUE, "ConvNeXt": ORANGE, "Swin": GREEN, "PVTv2": PURPLE, "InceptionNeXt": OCHRE, "ResNet": GRAY,
}  # fmt: skip
_LINE_COLORS = (BLUE, ORANGE, GREEN, PURPLE, OCHRE, SKY, GRAY)
_MARKERS = {
    "van": "o",
    "eager": "o",
    "reference": "X",
    "compile": "^",
    "van_compile": "v",
    "onnxruntime": "s",
    "openvino": "D",
}
_DASHES = {
    "van": "-",
    "eager": "-",
    "reference": "--",
    "compile": ":",
    "van_compile": (0, (1, 1)),
    "onnxruntime": "-.",
    "openvino": (0, (5, 1, 1, 1)),
}
_PRIMARY_BACKENDS = ("van", "eager")
_SWEEP_AXES = {
    "batch": ("batch_size", "batch size (images)"),
    "resolution": ("image_size", "image size (pixels)"),
    "kernel": ("kernel_size", "kernel size of large kernel attention (pixels)"),
}
_THROUGHPUT_LABEL = "throughput (images/s)"
_LABEL_OFFSETS = (
    (9, -3, "left"), (-9, -3, "right"), (0, 9, "center"), (0, -16, "center"), (8, 8, "left"), (8, -15, "left"),
    (-8, 8, "right"), (-8, -15, "right"), (0, 22, "center"), (0, -29, "center"), (22, 20, "left"), (22, -27, "left"),
)  # fmt: skip
"""Candidate offsets of a label from its point, preferred first: right and up in points, horizontal alignment."""


def plot_accuracy_over_throughput(machine: Machine, rows: Sequence[Row], path: Path) -> None:
    """Plot published top-1 accuracy over throughput, with a point for each row that has both.

    A thick line connects the networks of a family, a thin one the backends of a network. The fastest backend of each
    network is labeled.
    """
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axis = figure.subplots()
    points = [(row, row.images_per_s, row.top1) for row in rows if row.images_per_s and row.top1]
    for _, network_points in itertools.groupby(points, key=lambda point: point[0].case.network):
        _plot_line(axis, list(network_points), linewidth=0.8, alpha=0.5)
    for family in _FAMILY_COLORS:
        selected = [point for point in points if NETWORKS[point[0].case.network].family == family]
        _plot_line(axis, [point for point in selected if point[0].case.backend in _PRIMARY_BACKENDS], linewidth=1.8)
    for row, throughput, top1 in points:
        color = _FAMILY_COLORS[NETWORKS[row.case.network].family]
        axis.plot(throughput, top1, _MARKERS[row.case.backend], color=color, ms=8, mec="white", mew=0.6)
    style_axes(axis, _describe_conditions(machine, rows), _THROUGHPUT_LABEL, "published ImageNet-1K top-1 accuracy (%)")
    if points:
        axis.set_xscale("log")
        set_log_ticks(axis.xaxis)
        axis.margins(x=0.14, y=0.1)
        _add_marker_legend(axis, [row.case.backend for row, _, _ in points])
        fastest_points = {
            row.case.network: (throughput, top1) for row, throughput, top1 in sorted(points, key=lambda point: point[1])
        }
        _label_points(figure, axis, fastest_points)
    else:
        draw_placeholder(axis, "no data")
    save_figure(figure, path)


def plot_sweep(machine: Machine, rows: Sequence[Row], path: Path, *, sweep: str) -> None:
    """Plot throughput over ``batch``, ``resolution`` or ``kernel``, with a line for each network and backend."""
    field, x_label = _SWEEP_AXES[sweep]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    colors = dict(zip(dict.fromkeys(row.case.network for row in rows), itertools.cycle(_LINE_COLORS), strict=False))
    for name, backend in dict.fromkeys((row.case.network, row.case.backend) for row in rows):
        selected = [row for row in rows if (row.case.network, row.case.backend) == (name, backend)]
        y = [row.images_per_s or math.nan for row in selected]
        x = [getattr(row.case, field) for row in selected]
        axis.plot(
            x,
            y,
            marker=_MARKERS[backend],
            ms=5,
            linestyle=_DASHES[backend],
            color=colors[name],
            label=f"{name}, {backend}",
        )
    style_axes(axis, _describe_conditions(machine, rows, sweep), x_label, _THROUGHPUT_LABEL)
    if any(row.images_per_s for row in rows):
        if sweep != "kernel":
            axis.set_xscale("log")
            axis.set_yscale("log")
            set_log_ticks(axis.yaxis)
        steps = sorted({getattr(row.case, field) for row in rows})
        axis.set_xticks(steps, [str(step) for step in steps])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(bottom=0 if sweep == "kernel" else None)
        axis.legend(frameon=False)
    else:
        draw_placeholder(axis, "no data")
    save_figure(figure, path)


def _plot_line(axis: Axes, points: Sequence[tuple[Row, float, float]], *, linewidth: float, alpha: float = 1) -> None:
    if points:
        color = _FAMILY_COLORS[NETWORKS[points[0][0].case.network].family]
        x, y = [throughput for _, throughput, _ in points], [top1 for _, _, top1 in points]
        axis.plot(x, y, color=color, linewidth=linewidth, alpha=alpha, zorder=1)


def _label_points(figure: Figure, axis: Axes, labeled: dict[str, tuple[float, float]]) -> None:
    """Label each point where the label overlaps no point, no other label and as few lines as possible."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # computes the layout, so that positions are final
    figure.set_layout_engine("none")
    renderer, inside = canvas.get_renderer(), axis.get_window_extent()
    points, lines = _marker_and_line_boxes(axis)
    legend = axis.get_legend()
    occupied = [*points, *([legend.get_window_extent(renderer)] if legend else [])]
    for name, point in labeled.items():
        candidates = []
        for rank, (dx, dy, alignment) in enumerate(_LABEL_OFFSETS):
            label = axis.annotate(
                name, point, (dx, dy), textcoords="offset points", ha=alignment, fontsize=9,
                color=_FAMILY_COLORS[NETWORKS[name].family],
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip
            box = label.get_window_extent(renderer)
            outside = not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1))
            candidates.append((outside, box.count_overlaps(occupied), box.count_overlaps(lines) + rank, box, label))
        best = min(candidates, key=lambda candidate: candidate[:3])
        for *_, label in candidates:
            if label is not best[-1]:
                label.remove()
        occupied.append(best[3])


def _marker_and_line_boxes(axis: Axes) -> tuple[list[Bbox], list[Bbox]]:
    """Return the bounding boxes of markers, and of lines in steps of a few pixels."""
    points, lines = [], []
    for line in axis.get_lines():
        positions = axis.transData.transform(line.get_xydata())
        if line.get_marker() not in (None, "None", ""):
            points += [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in positions]
        for (x0, y0), (x1, y1) in itertools.pairwise(positions):
            steps = max(1, int(math.dist((x0, y0), (x1, y1)) / 6))
            for step in range(steps + 1):
                x, y = x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps
                lines.append(Bbox.from_extents(x - 1, y - 1, x + 1, y + 1))
    return points, lines


def _add_marker_legend(axis: Axes, backends: Sequence[str]) -> None:
    shown_backends = [backend for backend in _MARKERS if backend in backends]
    titles = {"van": "van, this package", "eager": "eager", "reference": "reference, VAN as released"}
    if {"van", "eager"} <= set(shown_backends):  # they share a marker
        shown_backends.remove("eager")
        titles["van"] = "van, this package; eager for peers"
    handles = [
        Line2D([], [], marker=_MARKERS[backend], color="black", linestyle="", ms=7, label=titles.get(backend, backend))
        for backend in shown_backends
    ]
    axis.legend(handles=handles, frameon=False, loc="lower left", fontsize=9)


def _describe_conditions(machine: Machine, rows: Sequence[Row], sweep: str = "") -> str:
    """Return the conditions that all rows share, as a chart title."""
    case = rows[0].case if rows else None
    conditions = [f"batch {case.batch_size}"] if case and sweep != "batch" else []
    conditions += [f"{case.image_size} x {case.image_size} px"] if case and sweep != "resolution" else []
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    return ", ".join([*conditions, "float32", machine.name, threads])
