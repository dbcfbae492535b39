"""Sizes of receptive fields on maps with known results."""

import json
import math

import numpy as np
import pytest

from van.errors import ShapeError
from van.visualization.receptive_fields import ReceptiveField, Span


def field(effective: np.ndarray, **options) -> ReceptiveField:
    rows, columns = effective.shape
    defaults = {
        "network": "net", "layer": "stage1", "image_size": effective.shape, "map_size": effective.shape,
        "cell": (rows // 2, columns // 2), "rows": Span(2, 6), "columns": Span(3, 7), "method": "traced",
        "effective": effective,
    }  # fmt: skip
    return ReceptiveField(**(defaults | options))


def points(size: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    effective = np.zeros(size)
    for place in places:
        effective[place] = 1 / len(places)
    return effective


def test_the_effective_size_is_that_of_the_smallest_square():
    effective = points((9, 11), (4, 5), (4, 5))
    effective[4, 5], effective[2, 5], effective[4, 9] = 0.5, 0.4, 0.1
    one = field(effective)
    assert one.center == (4, 5)
    assert [one.effective_size(fraction) for fraction in (0.1, 0.5, 0.51, 0.9, 0.91, 1)] == [1, 1, 5, 5, 9, 9]


def test_the_effective_size_of_a_uniform_field_is_the_root_of_the_fraction():
    """The center of a traced field of even size is between pixels, as is the square's."""
    even = field(np.full((100, 100), 1e-4), rows=Span(0, 99), columns=Span(0, 99))
    assert [even.effective_size(fraction) for fraction in (0.01, 0.25, 0.81, 1)] == [10, 50, 90, 100]


def test_a_probed_or_unbounded_field_is_centered_on_the_cell():
    options = {"map_size": (4, 4), "cell": (2, 2), "rows": Span(0, 9)}
    effective = np.full((16, 16), 1 / 256)
    assert field(effective, method="probed", **options).center == (9.5, 9.5)
    assert field(effective, **options).center == (4.5, 5)
    assert field(effective, **options | {"rows": Span(-math.inf, math.inf)}).center == (9.5, 5)


def test_the_area_is_the_fraction_of_pixels_above_the_threshold():
    effective = points((10, 10), (1, 1), (2, 3), (9, 9))
    effective[0, 0] = 0.01
    assert field(effective).effective_area() == 0.03
    assert field(effective).effective_area(0.001) == 0.04


@pytest.mark.parametrize(
    ("rows", "larger", "covers", "unbounded"),
    [
        (Span(0, 8), False, True, False),
        (Span(1, 9), False, False, False),
        (Span(1, 10), True, False, False),
        (Span(-5, 30), True, True, False),
        (Span(-math.inf, math.inf), True, True, True),
    ],
)
def test_a_field_is_compared_with_the_image(rows, larger, covers, unbounded):
    one = field(points((9, 9), (4, 4)), rows=rows, columns=Span(0, 8))
    assert (one.larger_than_image, one.covers_image, one.unbounded) == (larger, covers, unbounded)
    theoretical = json.loads(json.dumps(one.to_dict(), allow_nan=False))["theoretical"]
    assert theoretical["height"] == (None if unbounded else rows.length)
    assert theoretical["width"] == 9
    assert theoretical["box"] == (None if unbounded else [0, rows.first, 9, rows.last + 1])


@pytest.mark.parametrize(
    ("effective", "message"),
    [
        (np.zeros((9, 9)), "effective.*sum of 0"),
        (np.full((9, 9), np.nan), "effective.*sum of nan"),
        (points((9, 9), (1, 1)) - 0.001, "effective.*nonnegative"),
        (points((9, 8), (1, 1)), r"\(9, 9\).*\(9, 8\)"),
    ],
)
def test_invalid_effective_fields_are_rejected(effective, message):
    with pytest.raises(ShapeError, match=message):
        field(effective, image_size=(9, 9))
