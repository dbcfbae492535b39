"""Calls are timed in turn, after a warm-up, and summed up by their median."""

import time

import pytest

from van.bench.timing import interleaved


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    order: list[str] = []
    timings = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert timings.keys() == {"a", "b"}


def test_the_median_is_told_and_one_slow_round_does_not_move_it(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 0.001, 1.0, 1.002, 2.0, 2.003, 3.0, 3.5, 4.0, 4.002])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timing = interleaved({"only": lambda: None}, rounds=5, warm_up=0)["only"]
    assert timing.median_ms == pytest.approx(2.0)


def test_one_round_has_no_spread():
    assert interleaved({"only": lambda: None}, rounds=1, warm_up=0)["only"].iqr_ms == 0.0
