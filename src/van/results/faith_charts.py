"""The chart of how faithful maps are: deletion and insertion curves of each method, with the areas under them.

It is drawn from plain values, writes one PNG, the same bytes for the same input, and tells methods apart by colour
and by dashes; colours are Okabe and Ito's (2008), safe for colour-blind readers. What is measured:
``van.explain.deletion``.
Shapes: a curve is (steps + 1,), from no pixel to all of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from van.errors import ShapeError
from van.results.charts import GREY, dress, save_figure, say_nothing, short_label

SIDES = {"deletion": "pixels taken out, %", "insertion": "pixels put in, %"}
"""The curves, and what their horizontal axis is."""
_BETTER = {"deletion": "lower is better", "insertion": "higher is better"}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (3, 3)), (0, (1, 3)))


def draw_faithfulness(
    curves: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]],
    path: Path,
    *,
    errors: Mapping[str, Mapping[str, float | None]] | None = None,
    control: str = "",
) -> None:
    """Deletion beside insertion, a curve for each method, the best area first in each legend.

    Args:
        curves: by method, then for each of ``SIDES``: mean probabilities of the class.
        errors: standard errors of the areas, by method and side, written behind them.
        control: the method that is drawn thin and grey.

    Raises:
        ShapeError: a curve has less than two values, or one that is no probability.
    """
    height = 4.2 + 0.21 * len(curves)  # inches; the legends have a line for each method
    figure = Figure(figsize=(10, height), layout="constrained")
    for axis, (side, below) in zip(figure.subplots(1, 2, sharey=True), SIDES.items(), strict=True):
        found = {method: _checked(method, side, each[side]) for method, each in curves.items() if side in each}
        dress(axis, f"{side}: {_BETTER[side]}", below)
        axis.set(xlim=(0, 100), ylim=(0, 1))
        if not found:
            say_nothing(axis, "nothing yet")
            continue
        _draw_side(axis, side, found, tuple(curves), errors or {}, control)
    figure.axes[0].set_ylabel("probability of the class")
    save_figure(figure, path)


def _draw_side(
    axis: Axes,
    side: str,
    found: Mapping[str, np.ndarray],
    methods: Sequence[str],
    errors: Mapping[str, Mapping[str, float | None]],
    control: str,
) -> None:
    areas = {method: float(np.trapezoid(curve, dx=1 / (len(curve) - 1))) for method, curve in found.items()}
    coloured = [method for method in methods if method != control]
    for method in sorted(found, key=lambda each: areas[each] if side == "deletion" else -areas[each]):
        error = errors.get(method, {}).get(side)
        area = f"{areas[method]:.3f}" + ("" if error is None else f" ± {error:.3f}")
        colour, dashes, width = (GREY, "-", 1.0) if method == control else (*_style(coloured.index(method)), 2.0)
        shares = np.linspace(0, 100, len(found[method]))
        axis.plot(
            shares,
            found[method],
            color=colour,
            linestyle=dashes,
            linewidth=width,
            label=f"{short_label(method)}: {area}",
        )
    title = "area under the curve" + (" ± standard error" if errors else "")
    legend = axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), title=title, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _style(place: int) -> tuple[str, Any]:
    """A colour and dashes that no other of the first 49 places has together."""
    return _COLOURS[place % len(_COLOURS)], _DASHES[(place + place // len(_COLOURS)) % len(_DASHES)]


def _checked(method: str, side: str, curve: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(curve, float)
    if values.ndim != 1 or len(values) < 2 or not ((values >= 0) & (values <= 1)).all():
        raise ShapeError(f"{side} of {method} is {values.tolist()}; wanted at least 2 probabilities, from 0 to 1")
    return values
