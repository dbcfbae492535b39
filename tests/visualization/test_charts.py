"""Charts of any training run are drawn in their colors, not cut off, and reproducible."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
from matplotlib.figure import Figure

from van.visualization import charts
from van.visualization.charts import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    _smooth,
    draw_parameter_counts,
    draw_training_curves,
    plot_learning_rate,
    plot_losses,
    plot_metric,
    set_log_ticks,
    svg_chart,
)
from visualization.renderings import amount, read


def train(count: int, loss: float | None = None) -> list[dict]:
    values = [2.3 * math.exp(-step / 40) + 0.02 * (step % 7) if loss is None else loss for step in range(count)]
    return [{"kind": "train", "step": 10 * n, "loss": value, "lr": 1e-3 / (n + 1)} for n, value in enumerate(values)]


def validation(count: int, **others: object) -> list[dict]:
    best = {"kind": "eval", "loss": 1.5}
    return [best | {"step": 100 * n, "top1": 1 - 0.9 * math.exp(-n / 3)} | others for n in range(count)]


RUNS = {
    "complete": (train(150) + validation(15), {BLUE, ORANGE, GREEN, GRAY}),
    "empty": ([], {GRAY}),
    "one record": (train(1), {BLUE, GRAY}),
    "one of each": (train(1) + validation(1), {BLUE, ORANGE, GREEN, GRAY}),
    "not evaluated": (train(30), {BLUE, GRAY}),
    "only evaluated": (validation(4), {ORANGE, GREEN, GRAY}),
    "nan at the end": (train(20) + train(1, loss=math.nan), {BLUE, GRAY}),
    "only nan": (train(5, loss=math.nan), {GRAY}),
    "infinite": (train(20) + train(1, loss=math.inf), {BLUE, GRAY}),
    "nan metric": (train(9) + validation(3, top1=math.nan), {BLUE, ORANGE, GRAY}),
    "no such metric": ([*train(9), {"kind": "eval", "step": 3, "top5": 1.0}], {BLUE, GRAY}),
    "validation loss missing at first": ([{"kind": "eval", "step": 0, "top1": 0.1}, *validation(3)], {GREEN}),
    "events between": ([*train(9), {"kind": "event", "step": 3, "unreadable": "a.png"}, *validation(3)], {BLUE, GREEN}),
    "best at the start": (train(9) + [{"kind": "eval", "step": s, "top1": 1 - s / 99} for s in range(9)], {GREEN}),
}  # fmt: skip


def test_training_curves_of_any_run_are_drawn(tmp_path):
    for name, (records, colors) in RUNS.items():
        draw_training_curves(records, tmp_path / "curves", monitor="top1")
        image = read(tmp_path / "curves")
        assert 1380 < image.shape[1] < 1480, name
        assert 380 < image.shape[0] < 480, name
        missing = {color for color in (BLUE, ORANGE, GREEN, GRAY) if amount(image, color) <= 5}
        assert not missing & colors, name
        if name == "not evaluated":  # the control for the colors
            assert missing == {GREEN, ORANGE}


def test_smoothing_is_the_moving_average_of_finite_losses():
    values = np.arange(100.0)
    values[50] = np.nan
    smooth = _smooth(values)  # over five
    assert smooth[10] == 10
    assert smooth[0] == 1  # of the first three
    assert smooth[99] == 98
    assert smooth[51] == (49 + 51 + 52 + 53) / 4
    assert _smooth(np.array([3.0])).tolist() == [3.0]
    assert np.isnan(_smooth(np.full(30, np.nan))).all()
    assert len(_smooth(np.array([]))) == 0


def test_parameter_counts_are_drawn_in_their_colors(tmp_path):
    sizes = list(range(3, 42, 2))
    costs = {
        "standard": [k * k * 4096 for k in sizes],
        "split": [k * k * 64 for k in sizes],
        "LKA": [6000] * len(sizes),
    }
    draw_parameter_counts(sizes, costs, tmp_path / "a", highlight=21)
    image = read(tmp_path / "a")
    for color in (GRAY, ORANGE, BLUE):
        assert amount(image, color) > 300


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for path in (tmp_path / "one.png", tmp_path / "two.png"):
        path.mkdir()
        draw_training_curves(RUNS["complete"][0], path / "curves", monitor="top1")
        draw_parameter_counts([3, 5], {"a": [1, 2], "b": [2, 3], "c": [3, 4]}, path / "costs", highlight=3)
    for name in ("curves", "costs"):
        assert (tmp_path / "one.png" / name).read_bytes() == (tmp_path / "two.png" / name).read_bytes()


def test_every_axis_has_a_name_and_metrics_have_a_unit(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "save_figure", lambda figure, path: figures.append(figure))
    draw_training_curves(RUNS["complete"][0], tmp_path / "a", monitor="top1")
    draw_parameter_counts([3, 5], {"a": [1, 2], "b": [2, 3], "c": [3, 4]}, tmp_path / "b", highlight=3)
    labels = [(axis.get_xlabel(), axis.get_ylabel()) for figure in figures for axis in figure.axes]
    assert labels == [
        ("training step", "loss"),
        ("training step", "top1 (%)"),
        ("training step", "learning rate"),
        ("kernel size (pixels)", "parameters"),
    ]
    assert figures[0].axes[1].get_title() == "validation top1: best 99.15 % at step 1,400"


def plotted(plot, *arguments):
    axis = Figure().subplots()
    plot(axis, *arguments)
    return axis


def test_losses_are_on_a_logarithmic_scale_if_all_are_positive_and_gaps_stay():
    assert plotted(plot_losses, train(30)).get_yscale() == "log"
    assert plotted(plot_losses, train(30) + train(1, loss=0.0)).get_yscale() == "linear"  # the control
    axis = plotted(
        plot_metric, [{"kind": "eval", "step": n, "top1": [0.5, math.nan, 0.9, 0.8][n]} for n in range(4)], "top1"
    )
    circle, curve = axis.lines
    assert np.isnan(curve.get_ydata()).tolist() == [False, True, False, False]
    assert (circle.get_xdata()[0], circle.get_ydata()[0], curve.get_label()) == (2, 90, "best 90.00 % at step 2")


def test_logarithmic_ticks_are_decimals_and_at_least_two():
    for low, high in ((0.9, 11), (20.5, 30)):
        axis = plotted(lambda axis, low=low, high=high: axis.set(yscale="log", ylim=(low, high)))
        set_log_ticks(axis.yaxis)
        ticks = zip(axis.get_yticks(), axis.yaxis.get_major_formatter().format_ticks(axis.get_yticks()), strict=True)
        shown = [text for tick, text in ticks if low <= tick <= high]
        assert all(re.fullmatch(r"[\d.]+", text) for text in shown), shown
        assert shown == ["1", "2", "5", "10"] if low < 1 else len(shown) >= 2


def test_a_chart_of_a_page_has_the_colors_and_the_font_of_the_page():
    """No id stands twice in a page of several charts, and nothing else of the page is styled."""
    records = RUNS["complete"][0]
    drawn = [
        svg_chart(lambda axis: plot_losses(axis, records), 'the "loss" & <more>'),
        svg_chart(lambda axis: plot_metric(axis, records, "top1"), "top1"),
        svg_chart(lambda axis: plot_learning_rate(axis, records), "rate"),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg.replace("xlink:href", "href"))  # well-formed
        assert re.findall(r"#[0-9a-f]{6}|url\(|<style|font|DejaVu", svg) == []
        assert "var(--line)" in svg
    assert [set(re.findall(r"var\(--(?!line|ink)\w+", svg)) for svg in drawn] == [
        {"var(--first", "var(--second"}, {"var(--third"}, {"var(--quiet"},
    ]  # fmt: skip
    ids = re.findall(r' id="([^"]+)"', "".join(drawn))
    assert len(set(ids)) == len(ids)
    assert 'aria-label="the &quot;loss&quot; &amp; &lt;more&gt;"' in drawn[0]
    for text in ("training", "validation", "loss", "training step"):
        assert f">{text}</text>" in drawn[0]
    assert drawn[0] == svg_chart(lambda axis: plot_losses(axis, records), 'the "loss" & <more>')
    assert svg_chart(lambda axis: plot_losses(axis, []), "nothing") == ""


def test_a_long_log_makes_a_small_chart():
    svg = svg_chart(lambda axis: plot_losses(axis, train(5000)), "loss")
    assert len(svg) < 40_000
