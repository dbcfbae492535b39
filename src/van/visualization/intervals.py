"""Confidence intervals for metrics of few samples.

Sources: the score interval, Wilson 1927, doi:10.1080/01621459.1927.10502953; the percentile bootstrap, Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from van.errors import UsageError

SMALL_SAMPLE = 30
"""At most so many samples: a metric is shown with its interval, because chance moves it by several percent."""


def wilson_interval(successes: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, such as a top-1 accuracy.

    Unlike the normal approximation it stays within 0..1 and is not empty at 0 or ``total`` successes.

    Args:
        successes: number of successes, 0 to ``total``.
        total: number of trials, at least 1.
        confidence: the probability that the interval contains the true proportion, between 0 and 1.

    Raises:
        UsageError: an argument is out of range.
    """
    _check_confidence(confidence)
    if total < 1:
        raise UsageError(f"total: expected at least 1, got {total}")
    if not 0 <= successes <= total:
        raise UsageError(f"successes: expected 0 to {total}, got {successes}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    proportion = successes / total
    shrinkage = 1 + z**2 / total
    center = (proportion + z**2 / (2 * total)) / shrinkage
    half = z / shrinkage * math.sqrt(proportion * (1 - proportion) / total + z**2 / (4 * total**2))
    # The bounds at 0 and at total successes are exact; rounding would leave 1e-17 there.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == total else min(1.0, center + half)
    return low, high


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``values``, such as the IoU of each image.

    The same for the same seed.

    Raises:
        UsageError: there are no values, a value is not finite, or an argument is out of range.
    """
    _check_confidence(confidence)
    data = np.asarray(values, float)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise UsageError(f"values: expected at least 1 finite number, got {list(values)[:8]}")
    if resamples < 1:
        raise UsageError(f"resamples: expected at least 1, got {resamples}")
    random = np.random.default_rng(seed)
    means = data[random.integers(0, len(data), (resamples, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence: expected a number between 0 and 1, got {confidence}")
