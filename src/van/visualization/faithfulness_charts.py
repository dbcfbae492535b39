"""The chart of the faithfulness of attribution methods: deletion and insertion curves with the areas under them.

It writes one PNG, the same bytes for the same input, and distinguishes methods by color and dashes; colors are Okabe
and Ito's (2008), safe for color-blind readers. The metrics are defined in ``van.explain.deletion``.
Shapes: a curve is (steps + 1,), from no pixel to all of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from van.errors import ShapeError
from van.visualization.charts import GRAY, draw_placeholder, save_figure, style_axes, truncate_label

X_LABELS = {"deletion": "pixels deleted (%)", "insertion": "pixels inserted (%)"}
"""The curves and the labels of their x axes."""
_DIRECTIONS = {"deletion": "lower is better", "insertion": "higher is better"}
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (3, 3)), (0, (1, 3)))


def draw_faithfulness(
    curves: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]],
    path: Path,
    *,
    errors: Mapping[str, Mapping[str, float | None]] | None = None,
    control: str = "",
) -> None:
    """Draw deletion beside insertion, a curve for each method; legends list the best area first.

    Args:
        curves: by method, then by ``deletion`` and ``insertion``: mean scores of the class.
        errors: standard errors of the areas, by method and curve, added to the legend.
        control: the method to draw thin and gray.

    Raises:
        ShapeError: a curve has less than two values, or one outside 0..1.
    """
    height = 4.2 + 0.21 * len(curves)  # inches; the legends have a line for each method
    figure = Figure(figsize=(10, height), layout="constrained")
    for axis, (kind, x_label) in zip(figure.subplots(1, 2, sharey=True), X_LABELS.items(), strict=True):
        drawn = {method: _validate(method, kind, each[kind]) for method, each in curves.items() if kind in each}
        style_axes(axis, f"{kind}: {_DIRECTIONS[kind]}", x_label, "class score")
        axis.set(xlim=(0, 100), ylim=(0, 1))
        if not drawn:
            draw_placeholder(axis, "no data")
            continue
        _draw_curves(axis, kind, drawn, tuple(curves), errors or {}, control)
    save_figure(figure, path)


def _draw_curves(
    axis: Axes,
    kind: str,
    drawn: Mapping[str, np.ndarray],
    methods: Sequence[str],
    errors: Mapping[str, Mapping[str, float | None]],
    control: str,
) -> None:
    areas = {method: float(np.trapezoid(curve, dx=1 / (len(curve) - 1))) for method, curve in drawn.items()}
    apply_diverging_colormap = [method for method in methods if method != control]
    for method in sorted(drawn, key=lambda each: areas[each] if kind == "deletion" else -areas[each]):
        error = errors.get(method, {}).get(kind)
        area = f"{areas[method]:.3f}" + ("" if error is None else f" ± {error:.3f}")
        color, dashes, width = (
            (GRAY, "-", 1.0) if method == control else (*_style(apply_diverging_colormap.index(method)), 2.0)
        )
        fractions = np.linspace(0, 100, len(drawn[method]))
        axis.plot(
            fractions,
            drawn[method],
            color=color,
            linestyle=dashes,
            linewidth=width,
            label=f"{truncate_label(method)}: {area}",
        )
    title = "area under the curve" + (" ± standard error" if errors else "")
    legend = axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), title=title, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _style(place: int) -> tuple[str, Any]:
    """Return a combination of color and dashes that is unique among the first 49."""
    return _COLORS[place % len(_COLORS)], _DASHES[(place + place // len(_COLORS)) % len(_DASHES)]


def _validate(method: str, kind: str, curve: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(curve, float)
    if values.ndim != 1 or len(values) < 2 or not ((values >= 0) & (values <= 1)).all():
        raise ShapeError(f"{method}: {kind}: expected at least 2 scores in 0..1, got {values.tolist()}")
    return values
