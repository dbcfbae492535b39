"""SVG charts: positions of points, gaps in lines, and charts without data."""

import math
import re

import pytest

from van.visualization.svg_charts import (
    HEIGHT,
    WIDTH,
    Series,
    layout_chart,
    precision_recall_chart,
    reliability_chart,
    training_curve_charts,
)

NAN = math.nan


def line(y, **options):
    series = [Series(x=range(len(y)), y=y, dots=True)]
    chart = layout_chart("t", series, description="", x_label="step", y_label="loss", **options)
    assert chart is not None
    return chart


def test_points_are_in_proportion_and_within_the_axes():
    chart = line([0.0, 1.0, 0.5])
    (left, low), (middle, high), (right, half) = chart.curves[0].dots
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert half == pytest.approx((low + high) / 2, abs=0.1)
    assert chart.left <= left < right <= chart.right
    assert chart.top <= high < low <= chart.bottom
    assert 0 < chart.top < chart.bottom < HEIGHT
    assert chart.right < WIDTH


def test_equal_factors_are_equal_distances_on_a_logarithmic_scale():
    _, first, second, third = (y for _, y in line([1.0, 10.0, 100.0, 1000.0], log=True).curves[0].dots)
    assert first - second == pytest.approx(second - third, abs=0.2)
    _, first, second, third = (y for _, y in line([0.0, 10.0, 100.0, 1000.0], log=True).curves[0].dots)
    assert first - second < 0.2 * (second - third)  # the control: with a zero the scale is an ordinary one


def test_nan_makes_a_gap_in_the_line():
    assert line([1.0, 2.0, NAN, 3.0, 4.0]).curves[0].path.count("M") == 2
    assert line([1.0, 2.0, 2.5, 3.0, 4.0]).curves[0].path.count("M") == 1


def test_there_is_no_chart_without_finite_values():
    assert layout_chart("t", [Series(x=[1, 2], y=[NAN, math.inf])], description="", x_label="", y_label="") is None
    assert layout_chart("t", [], description="", x_label="", y_label="") is None
    assert len(line([7.0]).curves[0].dots) == 1  # a single value is a dot


def test_a_log_of_any_length_makes_charts_of_the_metrics_it_has():
    train = [{"kind": "train", "step": s, "loss": 1 / s, "lr": 1e-3} for s in range(1, 5001)]
    loss, rate = training_curve_charts(train, "top1", "Top-1")
    assert (loss.title, rate.title) == ("Loss", "Learning rate")
    assert len(loss.curves[0].path) < 5000
    evals = [{"kind": "eval", "step": s, "top1": value} for s, value in ((10, 0.5), (20, NAN), (30, 0.9), (40, 0.8))]
    (metric,) = training_curve_charts(evals, "top1", "Top-1")
    assert "best 90.00\u202f% at step 30" in metric.description
    assert metric.highlight == metric.curves[0].dots[1]
    assert training_curve_charts([], "top1", "Top-1") == []


def test_the_reliability_diagram_has_a_bar_for_each_filled_bin():
    chart = reliability_chart({"count": [0, 4, 0, 16], "correct": [0, 1, 0, 16], "confidence": [0, 1.6, 0, 14.4]})
    assert chart is not None
    (_, top, _, small, pale), (_, _, _, full, dark) = chart.bars
    assert small == pytest.approx(full / 4, abs=0.1)
    assert top == pytest.approx(chart.bottom - small, abs=0.1)
    assert pale < dark
    assert re.search(r"confidence is 80\.0\u202f%, accuracy is 85\.0\u202f%", chart.description)
    assert (chart.x_label, chart.y_label) == ("confidence", "accuracy")
    assert reliability_chart({"count": [2], "correct": [1], "confidence": [NAN]}) is None
    assert reliability_chart({"count": [0], "correct": [0], "confidence": [0]}) is None


def test_precision_is_drawn_over_recall_at_three_iou_thresholds():
    curves = {"recall": [0, 0.5, 1], "box": {"all": {"0.50": [1, 1, 0.5], "0.75": [1, 0, 0], "0.50:0.95": [0, 0, 0]}}}
    chart = precision_recall_chart(curves, "box", "boxes")
    assert chart is not None
    assert [curve.name for curve in chart.curves] == ["IoU 0.50", "IoU 0.75", "IoU 0.50:0.95"]
    assert chart.curves[0].path.startswith(f"M{chart.left} {chart.top}L")
