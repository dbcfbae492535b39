"""Charts of a table of networks: top-1 against speed, and speed against what grows."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from van.bench.machine import Machine
from van.bench.networks import NETWORKS
from van.bench.rows import Row
from van.results.charts import BLUE, GREEN, GREY, ORANGE, save_figure

PURPLE, OCHRE, SKY = "#cc79a7", "#9a7d0a", "#56b4e9"
_FAMILIES = {
    "VAN": BLUE, "ConvNeXt": ORANGE, "Swin": GREEN, "PVTv2": PURPLE, "InceptionNeXt": OCHRE, "ResNet": GREY,
}  # fmt: skip
_LINE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, OCHRE, SKY, GREY)
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
_MAIN_WAYS = ("van", "eager")
_GROWING = {
    "batch": ("batch_size", "pictures at once"),
    "resolution": ("size_px", "side of the pictures, pixels"),
    "kernel": ("kernel_size", "kernel size of the attention, pixels"),
}
_LABEL_PLACES = (
    (9, -3, "left"), (-9, -3, "right"), (0, 9, "center"), (0, -16, "center"), (8, 8, "left"), (8, -15, "left"),
    (-8, 8, "right"), (-8, -15, "right"), (0, 22, "center"), (0, -29, "center"), (22, 20, "left"), (22, -27, "left"),
)  # fmt: skip
"""Where a label may stand beside its point, best first: points to the right, points up, alignment."""


def draw_speed(machine: Machine, rows: Sequence[Row], path: Path) -> None:
    """Published top-1 over pictures a second: a point for each row that has both.

    A thick line joins a family, a thin one the ways of one network; the fastest of them bears its name.
    """
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axis = figure.subplots()
    points = [(row, row.images_per_s, row.top1) for row in rows if row.images_per_s and row.top1]
    for _, same in itertools.groupby(points, key=lambda point: point[0].case.network):
        _draw_line(axis, list(same), linewidth=0.8, alpha=0.5)
    for family in _FAMILIES:
        mine = [point for point in points if NETWORKS[point[0].case.network].family == family]
        _draw_line(axis, [point for point in mine if point[0].case.way in _MAIN_WAYS], linewidth=1.8)
    for row, speed, top1 in points:
        colour = _FAMILIES[NETWORKS[row.case.network].family]
        axis.plot(speed, top1, _MARKERS[row.case.way], color=colour, ms=8, mec="white", mew=0.6)
    _dress(axis, _circumstances(machine, rows), "pictures a second", "top-1 on ImageNet-1K as published, %")
    if points:
        axis.set_xscale("log")
        _count_plainly(axis.xaxis)
        axis.margins(x=0.14, y=0.1)
        _explain_markers(axis, [row.case.way for row, _, _ in points])
        fastest = {row.case.network: (speed, top1) for row, speed, top1 in sorted(points, key=lambda point: point[1])}
        _name_points(figure, axis, fastest)
    else:
        _say_nothing(axis)
    save_figure(figure, path)


def draw_growth(machine: Machine, rows: Sequence[Row], path: Path, *, over: str) -> None:
    """Pictures a second over ``batch``, ``resolution`` or ``kernel``, a line for each network and way."""
    field, title = _GROWING[over]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    colours = dict(zip(dict.fromkeys(row.case.network for row in rows), itertools.cycle(_LINE_COLOURS), strict=False))
    for name, way in dict.fromkeys((row.case.network, row.case.way) for row in rows):
        mine = [row for row in rows if (row.case.network, row.case.way) == (name, way)]
        y = [row.images_per_s or math.nan for row in mine]
        x = [getattr(row.case, field) for row in mine]
        axis.plot(x, y, marker=_MARKERS[way], ms=5, linestyle=_DASHES[way], color=colours[name], label=f"{name}, {way}")
    _dress(axis, _circumstances(machine, rows, over), title, "pictures a second")
    if any(row.images_per_s for row in rows):
        if over != "kernel":
            axis.set_xscale("log")
            axis.set_yscale("log")
            _count_plainly(axis.yaxis)
        steps = sorted({getattr(row.case, field) for row in rows})
        axis.set_xticks(steps, [str(step) for step in steps])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(bottom=0 if over == "kernel" else None)
        axis.legend(frameon=False)
    else:
        _say_nothing(axis)
    save_figure(figure, path)


def _draw_line(axis: Axes, points: Sequence[tuple[Row, float, float]], *, linewidth: float, alpha: float = 1) -> None:
    if points:
        colour = _FAMILIES[NETWORKS[points[0][0].case.network].family]
        x, y = [speed for _, speed, _ in points], [top1 for _, _, top1 in points]
        axis.plot(x, y, color=colour, linewidth=linewidth, alpha=alpha, zorder=1)


def _name_points(figure: Figure, axis: Axes, named: dict[str, tuple[float, float]]) -> None:
    """Write each name beside its point, where it covers no point and no other name, and few lines."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # so that the places on the sheet are final
    figure.set_layout_engine("none")
    renderer, inside = canvas.get_renderer(), axis.get_window_extent()
    points, lines = _boxes_of_lines(axis)
    legend = axis.get_legend()
    taken = [*points, *([legend.get_window_extent(renderer)] if legend else [])]
    for name, point in named.items():
        found = []
        for place, (right, up, alignment) in enumerate(_LABEL_PLACES):
            label = axis.annotate(
                name, point, (right, up), textcoords="offset points", ha=alignment, fontsize=9,
                color=_FAMILIES[NETWORKS[name].family], path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip
            box = label.get_window_extent(renderer)
            outside = not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1))
            found.append((outside, box.count_overlaps(taken), box.count_overlaps(lines) + place, box, label))
        best = min(found, key=lambda choice: choice[:3])
        for *_, label in found:
            if label is not best[-1]:
                label.remove()
        taken.append(best[3])


def _boxes_of_lines(axis: Axes) -> tuple[list[Bbox], list[Bbox]]:
    """What points cover on the sheet, and what lines do in steps of some pixels."""
    points, lines = [], []
    for line in axis.get_lines():
        places = axis.transData.transform(line.get_xydata())
        if line.get_marker() not in (None, "None", ""):
            points += [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in places]
        for (x0, y0), (x1, y1) in itertools.pairwise(places):
            steps = max(1, int(math.dist((x0, y0), (x1, y1)) / 6))
            for step in range(steps + 1):
                x, y = x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps
                lines.append(Bbox.from_extents(x - 1, y - 1, x + 1, y + 1))
    return points, lines


def _explain_markers(axis: Axes, ways: Sequence[str]) -> None:
    shown = [way for way in _MARKERS if way in ways]
    titles = {"van": "van, this package", "eager": "eager", "reference": "reference, VAN as released"}
    if {"van", "eager"} <= set(shown):  # they share a marker
        shown.remove("eager")
        titles["van"] = "van, this package; eager for the others"
    handles = [
        Line2D([], [], marker=_MARKERS[way], color="black", linestyle="", ms=7, label=titles.get(way, way))
        for way in shown
    ]
    axis.legend(handles=handles, frameon=False, loc="lower left", fontsize=9)


def _circumstances(machine: Machine, rows: Sequence[Row], growing: str = "") -> str:
    """What all rows have in common, in words."""
    case = rows[0].case if rows else None
    parts = [f"batch {case.batch_size}"] if case and growing != "batch" else []
    parts += [f"{case.size_px} x {case.size_px}"] if case and growing != "resolution" else []
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    return ", ".join([*parts, "float32", machine.name, threads])


def _count_plainly(axis: Axis) -> None:
    """Ticks at 1, 2, 5, 10, ..., written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _say_nothing(axis: Axes) -> None:
    axis.text(0.5, 0.5, "nothing measured", transform=axis.transAxes, ha="center", color=GREY)
    axis.set(xticks=[], yticks=[])


def _dress(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
