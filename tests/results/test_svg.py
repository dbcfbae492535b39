"""Charts as SVG shapes: where points lie, where lines break, and when there is nothing to draw."""

import math

import pytest

from van.results.svg import HEIGHT, WIDTH, Series, draw, learning_charts, precision_recall_chart, reliability_chart

NAN = math.nan


def line(y, **options):
    chart = draw("t", [Series(x=range(len(y)), y=y, dots=True)], says="", x_label="step", **options)
    assert chart is not None
    return chart


def test_points_lie_in_proportion_and_within_the_frame():
    chart = line([0.0, 1.0, 0.5])
    (left, low), (middle, high), (right, half) = chart.curves[0].dots
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert half == pytest.approx((low + high) / 2, abs=0.1)
    assert chart.left <= left < right <= chart.right
    assert chart.top <= high < low <= chart.bottom
    assert 0 < chart.top < chart.bottom < HEIGHT
    assert chart.right < WIDTH


def test_on_a_logarithmic_scale_factors_are_distances():
    _, first, second, third = (y for _, y in line([1.0, 10.0, 100.0, 1000.0], log=True).curves[0].dots)
    assert first - second == pytest.approx(second - third, abs=0.2)
    _, first, second, third = (y for _, y in line([0.0, 10.0, 100.0, 1000.0], log=True).curves[0].dots)
    assert first - second < 0.2 * (second - third)  # the control: with a zero the scale is an ordinary one


def test_a_value_that_is_no_number_breaks_the_line():
    assert line([1.0, 2.0, NAN, 3.0, 4.0]).curves[0].path.count("M") == 2
    assert line([1.0, 2.0, 2.5, 3.0, 4.0]).curves[0].path.count("M") == 1


def test_where_no_value_is_a_number_there_is_no_chart():
    assert draw("t", [Series(x=[1, 2], y=[NAN, math.inf])], says="", x_label="") is None
    assert draw("t", [], says="", x_label="") is None
    assert len(line([7.0]).curves[0].dots) == 1  # a single one is seen


def test_a_log_of_any_length_makes_charts_of_what_it_has():
    train = [{"kind": "train", "step": s, "loss": 1 / s, "lr": 1e-3} for s in range(1, 5001)]
    loss, rate = learning_charts(train, "top1", "Top-1")
    assert (loss.title, rate.title) == ("Loss", "Learning rate")
    assert len(loss.curves[0].path) < 5000
    evals = [{"kind": "eval", "step": s, "top1": value} for s, value in ((10, 0.5), (20, NAN), (30, 0.9), (40, 0.8))]
    (metric,) = learning_charts(evals, "top1", "Top-1")
    assert "best 90.00\u202f% at step 30" in metric.says
    assert metric.ring == metric.curves[0].dots[1]
    assert learning_charts([], "top1", "Top-1") == []


def test_reliability_has_a_bar_for_each_bin_that_holds_answers():
    chart = reliability_chart({"count": [0, 4, 0, 16], "right": [0, 1, 0, 16], "confidence": [0, 1.6, 0, 14.4]})
    assert chart is not None
    (_, low, _, small, pale), (_, _, _, whole, dark) = chart.bars
    assert small == pytest.approx(whole / 4, abs=0.1)
    assert low == pytest.approx(chart.bottom - small, abs=0.1)
    assert pale < dark
    assert "80.0\u202f% sure and 85.0\u202f% right" in chart.says
    assert reliability_chart({"count": [2], "right": [1], "confidence": [NAN]}) is None
    assert reliability_chart({"count": [0], "right": [0], "confidence": [0]}) is None


def test_precision_is_drawn_over_all_of_recall_at_three_overlaps():
    curves = {"recall": [0, 0.5, 1], "box": {"all": {"0.50": [1, 1, 0.5], "0.75": [1, 0, 0], "0.50:0.95": [0, 0, 0]}}}
    chart = precision_recall_chart(curves, "box", "boxes")
    assert chart is not None
    assert [curve.name for curve in chart.curves] == ["IoU 0.50", "IoU 0.75", "IoU 0.50:0.95"]
    assert chart.curves[0].path.startswith(f"M{chart.left} {chart.top}L")
