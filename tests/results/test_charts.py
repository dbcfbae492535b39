"""Every chart of a run is drawn whatever the run holds: read back, in colour, nothing cut off, twice the same."""

import math

import numpy as np
import pytest

from results.looks import amount, read
from van.results.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    _smoothed,
    draw_costs,
    draw_curves,
)


def train(count: int, loss: float | None = None) -> list[dict]:
    values = [2.3 * math.exp(-step / 40) + 0.02 * (step % 7) if loss is None else loss for step in range(count)]
    return [{"kind": "train", "step": 10 * n, "loss": value, "lr": 1e-3 / (n + 1)} for n, value in enumerate(values)]


def held_out(count: int, **others: object) -> list[dict]:
    best = {"kind": "eval", "loss": 1.5}
    return [best | {"step": 100 * n, "top1": 1 - 0.9 * math.exp(-n / 3)} | others for n in range(count)]


RUNS = {
    "whole": (train(150) + held_out(15), {BLUE, ORANGE, GREEN, GREY}),
    "empty": ([], {GREY}),
    "one record": (train(1), {BLUE, GREY}),
    "one of each": (train(1) + held_out(1), {BLUE, ORANGE, GREEN, GREY}),
    "not evaluated": (train(30), {BLUE, GREY}),
    "only evaluated": (held_out(4), {ORANGE, GREEN, GREY}),
    "nan at the end": (train(20) + train(1, loss=math.nan), {BLUE, GREY}),
    "only nan": (train(5, loss=math.nan), {GREY}),
    "infinite": (train(20) + train(1, loss=math.inf), {BLUE, GREY}),
    "nan metric": (train(9) + held_out(3, top1=math.nan), {BLUE, ORANGE, GREY}),
    "no such metric": ([*train(9), {"kind": "eval", "step": 3, "top5": 1.0}], {BLUE, GREY}),
    "held-out loss missing at first": ([{"kind": "eval", "step": 0, "top1": 0.1}, *held_out(3)], {GREEN}),
    "events between": ([*train(9), {"kind": "event", "step": 3, "unreadable": "a.png"}, *held_out(3)], {BLUE, GREEN}),
    "best at the start": (train(9) + [{"kind": "eval", "step": s, "top1": 1 - s / 99} for s in range(9)], {GREEN}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_curves_of_any_run_are_drawn(tmp_path, name):
    records, colours = RUNS[name]
    draw_curves(records, tmp_path / "curves", headline="top1")
    picture = read(tmp_path / "curves")
    assert 1380 < picture.shape[1] < 1480
    assert 380 < picture.shape[0] < 480
    for colour in colours:
        assert amount(picture, colour) > 5, colour


def test_a_run_without_evaluations_shows_no_metric(tmp_path):
    """The control for the colours above."""
    draw_curves(train(30), tmp_path / "a", headline="top1")
    assert amount(read(tmp_path / "a"), GREEN) == amount(read(tmp_path / "a"), ORANGE) == 0


def test_smoothing_is_the_mean_of_the_finite_losses_around():
    values = np.arange(100.0)
    values[50] = np.nan
    smooth = _smoothed(values)  # over five
    assert smooth[10] == 10
    assert smooth[0] == 1  # of the first three
    assert smooth[99] == 98
    assert smooth[51] == (49 + 51 + 52 + 53) / 4
    assert _smoothed(np.array([3.0])).tolist() == [3.0]
    assert np.isnan(_smoothed(np.full(30, np.nan))).all()
    assert len(_smoothed(np.array([]))) == 0


def test_the_costs_of_a_kernel_are_drawn(tmp_path):
    sizes = list(range(3, 42, 2))
    costs = {
        "standard": [k * k * 4096 for k in sizes],
        "split": [k * k * 64 for k in sizes],
        "LKA": [6000] * len(sizes),
    }
    draw_costs(sizes, costs, tmp_path / "a", marked=21)
    picture = read(tmp_path / "a")
    for colour in (GREY, ORANGE, BLUE):
        assert amount(picture, colour) > 300


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for path in (tmp_path / "one.png", tmp_path / "two.png"):
        path.mkdir()
        draw_curves(RUNS["whole"][0], path / "curves", headline="top1")
        draw_costs([3, 5], {"a": [1, 2], "b": [2, 3], "c": [3, 4]}, path / "costs", marked=3)
    for name in ("curves", "costs"):
        assert (tmp_path / "one.png" / name).read_bytes() == (tmp_path / "two.png" / name).read_bytes()
