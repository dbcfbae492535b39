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


def test_untimed_calls_come_before_each_timed_one_and_outside_its_time(monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []

    def look_at_the_clock() -> float:
        order.append("clock")
        return float(len(order))

    monkeypatch.setattr(time, "perf_counter", look_at_the_clock)
    interleaved({name: lambda name=name: order.append(name) for name in "ab"}, rounds=1, warm_up=0, untimed=2)
    assert order == ["a", "a", "clock", "a", "clock", "b", "b", "clock", "b", "clock"]


def test_the_device_is_waited_for_before_and_after_each_timed_call(monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []

    def look_at_the_clock() -> float:
        order.append("clock")
        return 0.0

    monkeypatch.setattr(time, "perf_counter", look_at_the_clock)
    interleaved({"a": lambda: order.append("a")}, rounds=1, warm_up=0, synchronise=lambda: order.append("wait"))
    assert order == ["wait", "clock", "a", "wait", "clock"]


def test_each_counted_round_is_announced_before_it_starts():
    order: list[object] = []
    interleaved({"a": lambda: order.append("a")}, rounds=2, warm_up=1, on_round=order.append)
    assert order == ["a", 1, "a", 2, "a"]
