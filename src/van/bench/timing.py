"""Interleaved timing of several functions, so that noise of the machine affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Timing(NamedTuple):
    """The median and the interquartile range of the times of one call, in milliseconds."""

    median_ms: float
    iqr_ms: float


def time_interleaved(
    calls: Mapping[Name, Callable[[], object]],
    *,
    rounds: int = 15,
    warm_up: int = 3,
    untimed: int = 0,
    synchronize: Callable[[], object] = lambda: None,
    on_round: Callable[[int], object] = lambda _: None,
) -> dict[Name, Timing]:
    """Time every call once per round, in turn.

    Args:
        calls: the functions to time, by name.
        rounds: number of timed rounds, after ``warm_up`` rounds that are not counted.
        untimed: untimed calls before each timed one. They reload the data that the other functions evicted from
            the caches; use 1 for short calls.
        synchronize: waits until the device is idle; without it only the launch of GPU work is timed.
        on_round: called with the number of each round, from 1, before it starts.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for round_number in range(1 - warm_up, rounds + 1):
        if round_number > 0:
            on_round(round_number)
        for name, call in calls.items():
            for _ in range(untimed):
                call()
            synchronize()
            began = time.perf_counter()
            call()
            synchronize()
            if round_number > 0:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], 0.0)
    quarters = statistics.quantiles(values, n=4)
    return Timing(statistics.median(values), quarters[2] - quarters[0])
