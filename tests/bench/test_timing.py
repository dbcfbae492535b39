"""Interleaved timing after a warm-up, summarized by median and interquartile range."""

import time

import pytest

from van.bench.timing import time_interleaved


def test_calls_are_interleaved_and_warm_up_is_not_counted():
    order: list[str] = []
    timings = time_interleaved({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert timings.keys() == {"a", "b"}


def test_median_is_robust_to_one_slow_round(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 0.001, 1.0, 1.002, 2.0, 2.003, 3.0, 3.5, 4.0, 4.002])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timing = time_interleaved({"only": lambda: None}, rounds=5, warm_up=0)["only"]
    assert timing.median_ms == pytest.approx(2.0)


def test_one_round_has_an_iqr_of_zero():
    assert time_interleaved({"only": lambda: None}, rounds=1, warm_up=0)["only"].iqr_ms == 0.0


def test_untimed_calls_precede_each_timed_call(monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []

    def read_clock() -> float:
        order.append("clock")
        return float(len(order))

    monkeypatch.setattr(time, "perf_counter", read_clock)
    time_interleaved({name: lambda name=name: order.append(name) for name in "ab"}, rounds=1, warm_up=0, untimed=2)
    assert order == ["a", "a", "clock", "a", "clock", "b", "b", "clock", "b", "clock"]


def test_device_is_synchronized_around_each_timed_call(monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []

    def read_clock() -> float:
        order.append("clock")
        return 0.0

    monkeypatch.setattr(time, "perf_counter", read_clock)
    time_interleaved({"a": lambda: order.append("a")}, rounds=1, warm_up=0, synchronize=lambda: order.append("wait"))
    assert order == ["wait", "clock", "a", "wait", "clock"]


def test_on_round_is_called_before_each_timed_round():
    order: list[object] = []
    time_interleaved({"a": lambda: order.append("a")}, rounds=2, warm_up=1, on_round=order.append)
    assert order == ["a", 1, "a", 2, "a"]
