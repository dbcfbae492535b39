"""Charts of receptive fields: what networks can read and do read of a picture, side by side at each stage.

Colours: heat in matplotlib's viridis, which every reader sees grow brighter evenly; lines in Okabe and Ito's.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from van.errors import ShapeError
from van.results.charts import BLUE, GREEN, GREY, ORANGE, save_figure
from van.results.drawing import one_line
from van.results.fields import ReceptiveField, Span

_COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#9a7d0a", "#56b4e9", "black")
_MARKERS = "osDvPX*"
_WEAKEST = 1e-4
"""Of the largest value: what is below has the darkest colour."""
_HELD = 0.9
_PANEL_IN = 2.1
_CASED = (withStroke(linewidth=2.6, foreground="black"),)
_HELD_STYLE: dict[str, Any] = {"color": "white", "linewidth": 1.3, "path_effects": _CASED}
_READ_STYLE: dict[str, Any] = {"color": "#ffb000", "linewidth": 1.3, "linestyle": (0, (4, 2)), "path_effects": _CASED}


def draw_fields(fields: Sequence[ReceptiveField], path: Path, *, title: str) -> None:
    """A panel for each network (rows) and layer (columns): the effective field as heat, the theoretical one outlined.

    Every panel shows the whole picture at one scale, so that sides compare across panels. The solid square holds
    90 % of the effective field; the dashed one is all that the cell can read, where its edges lie within the picture.

    Raises:
        ShapeError: there are no fields, two for one panel, or they are of pictures of different sizes.
    """
    networks, layers = _table(fields)
    rows, columns = fields[0].size
    height = (_PANEL_IN * rows / columns + 0.5) * len(networks) + 0.9
    figure = Figure(figsize=(_PANEL_IN * len(layers) + 1.5, height), layout="constrained")
    figure.suptitle(one_line(title), fontsize=11, parse_math=False)
    panels = figure.subplots(len(networks), len(layers), squeeze=False)
    for place, axis in np.ndenumerate(panels):
        axis.set(xticks=[], yticks=[])
        if place[0] == 0:
            axis.set_title(_heading(layers[place[1]], fields), fontsize=11, parse_math=False)
        if place[1] == 0:
            axis.set_ylabel(_short(networks[place[0]]), fontsize=11, parse_math=False)
        axis.spines[:].set_visible(False)
    for field in fields:
        _draw_panel(panels[networks.index(field.network), layers.index(field.layer)], field)
    scale = ScalarMappable(norm=LogNorm(_WEAKEST, 1), cmap="viridis")
    label = "gradient, share of the largest"
    figure.colorbar(scale, ax=panels, label=label, shrink=min(1, 1.6 / len(networks)), pad=0.02, extend="min")
    handles = [
        Line2D([], [], label="square that holds 90 % of the gradient", **_HELD_STYLE),
        Line2D([], [], label="all that the cell can read (not drawn where that is the whole picture)", **_READ_STYLE),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)


def draw_sides(fields: Sequence[ReceptiveField], path: Path, *, title: str) -> None:
    """Over the layers, a line for each network: the side that holds 90 % of what is read, and, thin, what can be read.

    Where a network can read the whole picture and no rule says how much more, an arrow stands at the picture's side.

    Raises:
        ShapeError: see ``draw_fields``.
    """
    networks, layers = _table(fields)
    side_px = max(fields[0].size)
    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for place, network in enumerate(networks):
        mine = [field for field in fields if field.network == network]
        colour, marker = _line_style(place)
        at = [layers.index(field.layer) for field in mine]
        held = [field.side(_HELD) for field in mine]
        axis.plot(at, held, color=colour, marker=marker, ms=6, mec="white", mew=0.6, label=_short(network))
        read = [_readable_side(field) for field in mine]
        axis.plot(at, read, color=colour, marker=marker, ms=4, fillstyle="none", linewidth=1, linestyle=":")
        open_ended = [where for where, field in zip(at, mine, strict=True) if _goes_on(field)]
        axis.plot(open_ended, [side_px] * len(open_ended), marker="^", ms=9, linestyle="", color=colour, alpha=0.8)
    axis.axhline(side_px, color=GREY, linewidth=0.8)
    axis.annotate(
        f"the picture, {side_px} px", (0, side_px), (2, 3), textcoords="offset points", fontsize=8, color=GREY,
        xycoords=axis.get_yaxis_transform(),
    )  # fmt: skip
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xticks(range(len(layers)), [_short(layer) for layer in layers], parse_math=False)
    axis.set_ylabel("side, pixels of the picture")
    axis.set_title(one_line(title), fontsize=11, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    _explain_lines(axis)
    save_figure(figure, path)


def _line_style(place: int) -> tuple[str, str]:
    """Colour and marker of a network; when the colours come again, they come with other markers."""
    turn = place // len(_COLOURS)
    return _COLOURS[place % len(_COLOURS)], _MARKERS[(place + turn) % len(_MARKERS)]


def _explain_lines(axis: Axes) -> None:
    handles, _ = axis.get_legend_handles_labels()
    handles += [
        Line2D([], [], color=GREY, label="holds 90 % of the gradient"),
        Line2D([], [], color=GREY, linewidth=1, linestyle=":", marker="o", ms=4, fillstyle="none", label="can be read"),
        Line2D([], [], color=GREY, linestyle="", marker="^", ms=9, label="the whole picture, or more"),
    ]
    legend = axis.legend(handles=handles, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_panel(axis: Axes, field: ReceptiveField) -> None:
    rows, columns = field.size
    shares = field.heat / field.heat.max()
    axis.imshow(np.maximum(shares, _WEAKEST), norm=LogNorm(_WEAKEST, 1), cmap="viridis", interpolation="nearest")
    row, column = field.centre
    half = field.side(_HELD) / 2
    held = Span(row - half + 0.5, row + half - 0.5), Span(column - half + 0.5, column + half - 0.5)
    _outline(axis, *held, **_HELD_STYLE)
    if not field.fills_picture:
        _outline(axis, field.rows, field.columns, **_READ_STYLE)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axis.set_xlabel(f"90 % in {field.side(_HELD):.0f} px\n{field.readable}", fontsize=9)


def _outline(axis: Axes, rows: Span, columns: Span, **style: Any) -> None:
    corner = (columns.first - 0.5, rows.first - 0.5)
    axis.add_patch(Rectangle(corner, columns.length, rows.length, fill=False, **style))


def _heading(layer: str, fields: Sequence[ReceptiveField]) -> str:
    """A layer's name, and its stride where all networks have the same."""
    strides = {round(field.size[0] / field.cells[0]) for field in fields if field.layer == layer}
    return f"{_short(layer)}, stride {strides.pop()}" if len(strides) == 1 else _short(layer)


def _readable_side(field: ReceptiveField) -> float:
    """The longer side of what the cell can read; NaN where it is not known."""
    return math.nan if _goes_on(field) else max(field.rows.length, field.columns.length)


def _goes_on(field: ReceptiveField) -> bool:
    return field.unbounded or (field.how == "probed" and field.fills_picture)


def _table(fields: Sequence[ReceptiveField]) -> tuple[list[str], list[str]]:
    """Networks and layers, each in the order in which they come."""
    if not fields:
        raise ShapeError("fields is empty; wanted at least one")
    sizes = {field.size for field in fields}
    if len(sizes) > 1:
        raise ShapeError(f"fields are of pictures of {', '.join(map(str, sorted(sizes)))} pixels; wanted one size")
    panels = [(field.network, field.layer) for field in fields]
    if len(set(panels)) < len(panels):
        twice = next(panel for panel in panels if panels.count(panel) > 1)
        raise ShapeError(f"fields hold {twice[1]} of {twice[0]} twice; wanted it once")
    return list(dict.fromkeys(network for network, _ in panels)), list(dict.fromkeys(layer for _, layer in panels))


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= 28 else name[:25] + "..."
