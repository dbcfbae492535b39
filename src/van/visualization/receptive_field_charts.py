"""Charts of theoretical and effective receptive fields of networks, side by side at each stage.

Colors: gradients in matplotlib's viridis, whose lightness grows evenly for every reader; lines in Okabe and Ito's.
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

from van.errors import ShapeError
from van.visualization.charts import BLUE, GRAY, GREEN, ORANGE, save_figure, set_log_ticks, style_axes
from van.visualization.drawing import strip_unprintable
from van.visualization.receptive_fields import ReceptiveField, Span

_COLORS = (BLUE, ORANGE, GREEN, "#cc79a7", "#9a7d0a", "#56b4e9", "black")
_MARKERS = "osDvPX*"
_MIN_FRACTION = 1e-4
"""Fraction of the maximum; smaller gradients have the darkest color."""
_FRACTION = 0.9
"""Fraction of the effective field in the square that is drawn."""
_PANEL_IN = 2.1
_CASING = (withStroke(linewidth=2.6, foreground="black"),)
_EFFECTIVE_STYLE: dict[str, Any] = {"color": "white", "linewidth": 1.3, "path_effects": _CASING}
_THEORETICAL_STYLE: dict[str, Any] = {
    "color": "#ffb000",
    "linewidth": 1.3,
    "linestyle": (0, (4, 2)),
    "path_effects": _CASING,
}


def draw_receptive_fields(fields: Sequence[ReceptiveField], path: Path, *, title: str) -> None:
    """Draw a panel for each network (rows) and layer (columns): the effective field and both fields' edges.

    Every panel shows the whole image at one scale, so that sizes compare across panels. The solid square contains
    90 % of the effective field; the dashed one is the theoretical field, drawn where it does not cover the image.

    Raises:
        ShapeError: there are no fields, two for one panel, or they are of images of different sizes.
    """
    networks, layers = _axes_of(fields)
    rows, columns = fields[0].image_size
    height = (_PANEL_IN * rows / columns + 0.5) * len(networks) + 0.9
    figure = Figure(figsize=(_PANEL_IN * len(layers) + 1.5, height), layout="constrained")
    figure.suptitle(strip_unprintable(title), fontsize=11, parse_math=False)
    panels = figure.subplots(len(networks), len(layers), squeeze=False)
    for place, axis in np.ndenumerate(panels):
        axis.set(xticks=[], yticks=[])
        if place[0] == 0:
            axis.set_title(_heading(layers[place[1]], fields), fontsize=11, parse_math=False)
        if place[1] == 0:
            axis.set_ylabel(_shorten(networks[place[0]]), fontsize=11, parse_math=False)
        axis.spines[:].set_visible(False)
    for field in fields:
        _draw_panel(panels[networks.index(field.network), layers.index(field.layer)], field)
    scale = ScalarMappable(norm=LogNorm(_MIN_FRACTION, 1), cmap="viridis")
    label = "gradient (fraction of the maximum)"
    figure.colorbar(scale, ax=panels, label=label, shrink=min(1, 1.6 / len(networks)), pad=0.02, extend="min")
    handles = [
        Line2D([], [], label="effective: square with 90 % of the gradient", **_EFFECTIVE_STYLE),
        Line2D([], [], label="theoretical field (not drawn where it covers the image)", **_THEORETICAL_STYLE),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)


def draw_receptive_field_sizes(fields: Sequence[ReceptiveField], path: Path, *, title: str) -> None:
    """Draw the size of the effective (solid) and theoretical (dotted) field over the layers, a line for each network.

    Where the theoretical field covers the image and its size is unknown or unbounded, a triangle is drawn at the
    image's size.

    Raises:
        ShapeError: see ``draw_fields``.
    """
    networks, layers = _axes_of(fields)
    image_px = max(fields[0].image_size)
    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for place, network in enumerate(networks):
        own = [field for field in fields if field.network == network]
        color, marker = _line_style(place)
        at = [layers.index(field.layer) for field in own]
        effective = [field.effective_size(_FRACTION) for field in own]
        axis.plot(at, effective, color=color, marker=marker, ms=6, mec="white", mew=0.6, label=_shorten(network))
        theoretical = [_theoretical_size(field) for field in own]
        axis.plot(at, theoretical, color=color, marker=marker, ms=4, fillstyle="none", linewidth=1, linestyle=":")
        covering = [x for x, field in zip(at, own, strict=True) if _is_unknown(field)]
        axis.plot(covering, [image_px] * len(covering), marker="^", ms=9, linestyle="", color=color, alpha=0.8)
    axis.axhline(image_px, color=GRAY, linewidth=0.8)
    axis.annotate(
        f"image, {image_px} px", (0, image_px), (2, 3), textcoords="offset points", fontsize=8, color=GRAY,
        xycoords=axis.get_yaxis_transform(),
    )  # fmt: skip
    axis.set_yscale("log")
    set_log_ticks(axis.yaxis)
    axis.set_xticks(range(len(layers)), [_shorten(layer) for layer in layers], parse_math=False)
    style_axes(axis, strip_unprintable(title), "layer", "side of the receptive field (pixels)")
    _add_line_legend(axis)
    save_figure(figure, path)


def _line_style(place: int) -> tuple[str, str]:
    """Return color and marker of a network; repeated colors have other markers."""
    turn = place // len(_COLORS)
    return _COLORS[place % len(_COLORS)], _MARKERS[(place + turn) % len(_MARKERS)]


def _add_line_legend(axis: Axes) -> None:
    """Add a legend of the networks and the styles of lines."""
    handles, _ = axis.get_legend_handles_labels()
    handles += [
        Line2D([], [], color=GRAY, label="effective (90 % of the gradient)"),
        Line2D([], [], color=GRAY, linewidth=1, linestyle=":", marker="o", ms=4, fillstyle="none", label="theoretical"),
        Line2D([], [], color=GRAY, linestyle="", marker="^", ms=9, label="theoretical: whole image or more"),
    ]
    legend = axis.legend(handles=handles, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_panel(axis: Axes, field: ReceptiveField) -> None:
    rows, columns = field.image_size
    fractions = field.effective / field.effective.max()
    axis.imshow(
        np.maximum(fractions, _MIN_FRACTION), norm=LogNorm(_MIN_FRACTION, 1), cmap="viridis", interpolation="nearest"
    )
    row, column = field.center
    half = field.effective_size(_FRACTION) / 2
    square = Span(row - half + 0.5, row + half - 0.5), Span(column - half + 0.5, column + half - 0.5)
    _draw_edges(axis, *square, **_EFFECTIVE_STYLE)
    if not field.covers_image:
        _draw_edges(axis, field.rows, field.columns, **_THEORETICAL_STYLE)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axis.set_xlabel(f"effective: {field.effective_size(_FRACTION):.0f} px\n{field.theoretical_text}", fontsize=9)


def _draw_edges(axis: Axes, rows: Span, columns: Span, **style: Any) -> None:
    corner = (columns.first - 0.5, rows.first - 0.5)
    axis.add_patch(Rectangle(corner, columns.length, rows.length, fill=False, **style))


def _heading(layer: str, fields: Sequence[ReceptiveField]) -> str:
    """Return the layer's name, with its stride if all networks have the same."""
    strides = {round(field.image_size[0] / field.map_size[0]) for field in fields if field.layer == layer}
    return f"{_shorten(layer)}, stride {strides.pop()}" if len(strides) == 1 else _shorten(layer)


def _theoretical_size(field: ReceptiveField) -> float:
    """Return the longer side of the theoretical field; NaN if it is unknown or unbounded."""
    return math.nan if _is_unknown(field) else max(field.rows.length, field.columns.length)


def _is_unknown(field: ReceptiveField) -> bool:
    """Return whether the theoretical field is unbounded, or ends only because the probed image does."""
    return field.unbounded or (field.method == "probed" and field.covers_image)


def _axes_of(fields: Sequence[ReceptiveField]) -> tuple[list[str], list[str]]:
    """Return the names of networks and layers, each in order of appearance."""
    if not fields:
        raise ShapeError("fields: expected at least 1, got none")
    sizes = {field.image_size for field in fields}
    if len(sizes) > 1:
        raise ShapeError(f"fields: expected one image size, got {', '.join(map(str, sorted(sizes)))}")
    panels = [(field.network, field.layer) for field in fields]
    if len(set(panels)) < len(panels):
        duplicate = next(panel for panel in panels if panels.count(panel) > 1)
        raise ShapeError(f"fields: expected each network and layer once, got {duplicate[0]} {duplicate[1]} twice")
    return list(dict.fromkeys(network for network, _ in panels)), list(dict.fromkeys(layer for _, layer in panels))


def _shorten(name: str) -> str:
    name = strip_unprintable(name)
    return name if len(name) <= 28 else name[:25] + "..."
