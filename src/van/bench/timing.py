"""Timing several ways to do one thing so that the machine's noise falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Timing(NamedTuple):
    """Median and interquartile range of the times of one call, in milliseconds."""

    median_ms: float
    iqr_ms: float


def interleaved(
    calls: Mapping[Name, Callable[[], object]],
    *,
    rounds: int = 15,
    warm_up: int = 3,
    untimed: int = 0,
    synchronise: Callable[[], object] = lambda: None,
    on_round: Callable[[int], object] = lambda _: None,
) -> dict[Name, Timing]:
    """Time every call once a round, in turn.

    Args:
        calls: what to time, by name.
        rounds: how often; the first ``warm_up`` rounds beside them are not counted.
        untimed: calls before each timed one in a turn, which bring back what the others pushed out of the
            caches. A short call wants one, as it runs again and again where it is used.
        synchronise: waits until the device is done; without it only the launching of a GPU's work is timed.
        on_round: told the number of each round, from 1, before it starts.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for round_number in range(1 - warm_up, rounds + 1):
        if round_number > 0:
            on_round(round_number)
        for name, call in calls.items():
            for _ in range(untimed):
                call()
            synchronise()
            began = time.perf_counter()
            call()
            synchronise()
            if round_number > 0:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], 0.0)
    quarters = statistics.quantiles(values, n=4)
    return Timing(statistics.median(values), quarters[2] - quarters[0])
