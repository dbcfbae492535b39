"""Charts of any training run are drawn in their colors, not cut off, and reproducible."""

import math

import numpy as np
import pytest

from van.visualization import charts
from van.visualization.charts import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    _smooth,
    draw_parameter_counts,
    draw_training_curves,
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


@pytest.mark.parametrize("name", RUNS)
def test_training_curves_of_any_run_are_drawn(tmp_path, name):
    records, colors = RUNS[name]
    draw_training_curves(records, tmp_path / "curves", monitor="top1")
    image = read(tmp_path / "curves")
    assert 1380 < image.shape[1] < 1480
    assert 380 < image.shape[0] < 480
    for color in colors:
        assert amount(image, color) > 5, color


def test_a_run_without_evaluations_has_no_metric_curve(tmp_path):
    """The control for the colors above."""
    draw_training_curves(train(30), tmp_path / "a", monitor="top1")
    assert amount(read(tmp_path / "a"), GREEN) == amount(read(tmp_path / "a"), ORANGE) == 0


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
