"""Confidence intervals equal published and reference values."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from van.errors import UsageError
from van.visualization.intervals import wilson_interval


def test_the_wilson_interval_equals_published_values():
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score without continuity correction)."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    without_failures = {(29, 29): (29 / (29 + 1.959964**2), 1.0)}  # the closed form
    for counts, expected in (published | without_failures).items():
        assert wilson_interval(*counts) == pytest.approx(expected, abs=5e-5), counts


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_the_bounds_solve_the_equation_of_the_score_test(counts, confidence):
    """By definition |p - p0| = z sqrt(p0 (1 - p0) / n) at each bound p0; z by bisection of the error function."""
    successes, total = counts
    low, high = 0.0, 10.0
    for _ in range(100):
        z = (low + high) / 2
        low, high = (z, high) if math.erf(z / math.sqrt(2)) < confidence else (low, z)
    bounds = wilson_interval(successes, total, confidence)
    assert 0 <= bounds[0] <= successes / total <= bounds[1] <= 1
    for bound in bounds:
        assert abs(successes / total - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), abs=1e-7)


def test_the_wilson_interval_equals_statsmodels_or_scipy():
    stats = pytest.importorskip("scipy.stats")
    for successes, total in ((0, 5), (3, 10), (17, 30), (30, 30)):
        reference = stats.binomtest(successes, total).proportion_ci(0.9, method="wilson")
        assert wilson_interval(successes, total, 0.9) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_arguments_out_of_range_are_rejected():
    for arguments, message in (
        ((1, 0), "total.*0"), ((-1, 3), "successes.*0 to 3.*-1"), ((4, 3), "successes.*0 to 3.*4"),
        ((math.nan, 3), "successes.*nan"), ((1, 3, 0.0), "confidence.*0.0"), ((1, 3, 1.0), "confidence.*1.0"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            wilson_interval(*arguments)
