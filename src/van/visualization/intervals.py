"""The confidence interval of a proportion: the score interval, Wilson 1927, doi:10.1080/01621459.1927.10502953."""

import math
from statistics import NormalDist

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
    if not 0 < confidence < 1:
        raise UsageError(f"confidence: expected a number between 0 and 1, got {confidence}")
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
