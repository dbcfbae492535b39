"""Timing several ways to do one thing so that the machine's noise falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Timing(NamedTuple):
    """Median and interquartile range of the times of one call, in milliseconds."""

    median_ms: float
    iqr_ms: float


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int = 15, warm_up: int = 3) -> dict[str, Timing]:
    """Time every call once a round, in turn.

    Args:
        calls: what to time, by name.
        rounds: how often; the first ``warm_up`` rounds beside them are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(-warm_up, rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if round_number >= 0:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], 0.0)
    quarters = statistics.quantiles(values, n=4)
    return Timing(statistics.median(values), quarters[2] - quarters[0])
