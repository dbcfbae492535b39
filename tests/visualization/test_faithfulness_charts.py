"""Faithfulness curves of any methods are drawn in their colors, not cut off, and reproducible."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from van.errors import ShapeError
from van.visualization.charts import GRAY
from van.visualization.faithfulness_charts import _COLORS, draw_faithfulness
from visualization.renderings import amount, read

FALLING = np.exp(-np.linspace(0, 4, 33))
CURVES = {
    "grad-cam": {"deletion": FALLING, "insertion": FALLING[::-1] ** 0.3},
    "layer-cam": {"deletion": FALLING**0.6, "insertion": FALLING[::-1] ** 0.5},
    "random": {"deletion": FALLING**0.3, "insertion": FALLING[::-1]},
}


def test_each_method_has_its_color_and_the_control_is_gray(tmp_path):
    draw_faithfulness(CURVES, tmp_path / "chart.png", control="random")
    image = read(tmp_path / "chart.png")
    assert min(amount(image, color) for color in (*_COLORS[:2], GRAY)) > 100
    assert amount(image, _COLORS[2]) == 0
    draw_faithfulness(CURVES, tmp_path / "again.png", control="random")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "chart.png").read_bytes()


def test_legends_have_the_areas_best_first(tmp_path, monkeypatch):
    """A line from 1 to 0 has the area 1/2; deletion and insertion differ in what is best."""
    legends = []
    original = Axes.legend
    monkeypatch.setattr(Axes, "legend", lambda *a, **k: (legends.append(original(*a, **k)), legends[-1])[1])
    line, low = [1.0, 0.75, 0.5, 0.25, 0.0], [0.25] * 5
    curves = {"one": {"deletion": line, "insertion": line}, "$two$": {"deletion": low, "insertion": low}}
    draw_faithfulness(curves, tmp_path / "chart.png", errors={"one": {"deletion": 0.0125, "insertion": None}})
    texts = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert texts == [["$two$: 0.250", "one: 0.500 ± 0.013"], ["one: 0.500", "$two$: 0.250"]]


def test_many_methods_have_distinct_styles_and_legends_below_the_curves(tmp_path, monkeypatch):
    axes: list[Axes] = []
    original = Axes.legend
    monkeypatch.setattr(Axes, "legend", lambda *a, **k: (axes.append(a[0]), original(*a, **k))[1])
    draw_faithfulness({f"method {n}": CURVES["grad-cam"] for n in range(16)}, tmp_path / "chart.png")
    for axis in axes:
        styles = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axis.lines}
        assert len(styles) == len(axis.lines) == 16
        legend = axis.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y1 < axis.get_window_extent().y0


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"random": {}},
        {"one": {"deletion": [1.0, 0.0]}},
        {f"a method with a rather long name that goes on and on, number {n}": CURVES["grad-cam"] for n in range(9)},
    ],
    ids=["empty", "no curves", "deletion alone", "many long names"],
)
def test_any_curves_are_drawn(tmp_path, curves):
    draw_faithfulness(curves, tmp_path / "chart.png", control="random")
    assert read(tmp_path / "chart.png").std() > 1


@pytest.mark.parametrize("curve", [[], [0.5], [0.5, float("nan")], [0.2, 1.5], [[0.1, 0.2]]])
def test_invalid_curves_are_rejected(tmp_path, curve):
    with pytest.raises(ShapeError, match=r"one: deletion.*2 scores"):
        draw_faithfulness({"one": {"deletion": curve}}, tmp_path / "chart.png")
    assert not (tmp_path / "chart.png").exists()
