"""The numbers of a receptive field, on maps whose answer is known."""

import json
import math

import numpy as np
import pytest

from van.errors import ShapeError
from van.results.fields import ReceptiveField, Span


def field(heat: np.ndarray, **options) -> ReceptiveField:
    rows, columns = heat.shape
    known = {
        "network": "net", "layer": "stage1", "size": heat.shape, "cells": heat.shape, "cell": (rows // 2, columns // 2),
        "rows": Span(2, 6), "columns": Span(3, 7), "how": "traced", "heat": heat,
    }  # fmt: skip
    return ReceptiveField(**(known | options))


def dot(size: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    heat = np.zeros(size)
    for place in places:
        heat[place] = 1 / len(places)
    return heat


def test_a_square_holds_what_lies_within_it():
    heat = dot((9, 11), (4, 5), (4, 5))
    heat[4, 5], heat[2, 5], heat[4, 9] = 0.5, 0.4, 0.1
    one = field(heat)
    assert one.centre == (4, 5)
    assert [one.side(share) for share in (0.1, 0.5, 0.51, 0.9, 0.91, 1)] == [1, 1, 5, 5, 9, 9]


def test_a_uniform_field_is_held_by_squares_of_its_share():
    """The middle of a traced field of an even side lies between pixels, and so does the square's."""
    even = field(np.full((100, 100), 1e-4), rows=Span(0, 99), columns=Span(0, 99))
    assert [even.side(share) for share in (0.01, 0.25, 0.81, 1)] == [10, 50, 90, 100]


def test_a_probed_or_unbounded_field_is_centred_on_the_cells_own_pixels():
    options = {"cells": (4, 4), "cell": (2, 2), "rows": Span(0, 9)}
    heat = np.full((16, 16), 1 / 256)
    assert field(heat, how="probed", **options).centre == (9.5, 9.5)
    assert field(heat, **options).centre == (4.5, 5)
    assert field(heat, **options | {"rows": Span(-math.inf, math.inf)}).centre == (9.5, 5)


def test_the_area_counts_pixels_above_the_threshold():
    heat = dot((10, 10), (1, 1), (2, 3), (9, 9))
    heat[0, 0] = 0.01
    assert field(heat).area() == 0.03
    assert field(heat).area(0.001) == 0.04


@pytest.mark.parametrize(
    ("rows", "larger", "fills", "unbounded"),
    [
        (Span(0, 8), False, True, False),
        (Span(1, 9), False, False, False),
        (Span(1, 10), True, False, False),
        (Span(-5, 30), True, True, False),
        (Span(-math.inf, math.inf), True, True, True),
    ],
)
def test_a_field_knows_whether_the_picture_holds_it(rows, larger, fills, unbounded):
    one = field(dot((9, 9), (4, 4)), rows=rows, columns=Span(0, 8))
    assert (one.larger_than_picture, one.fills_picture, one.unbounded) == (larger, fills, unbounded)
    theoretical = json.loads(json.dumps(one.to_dict(), allow_nan=False))["theoretical"]
    assert theoretical["rows"] == (None if unbounded else rows.length)
    assert theoretical["columns"] == 9
    assert theoretical["box"] == (None if unbounded else [0, rows.first, 9, rows.last + 1])


@pytest.mark.parametrize(
    ("heat", "message"),
    [
        (np.zeros((9, 9)), "adds up to 0"),
        (np.full((9, 9), np.nan), "adds up to nan"),
        (dot((9, 9), (1, 1)) - 0.001, "wanted numbers from 0"),
        (dot((9, 8), (1, 1)), r"heat is \(9, 8\); wanted \(9, 9\)"),
    ],
)
def test_heat_that_is_no_share_of_the_picture_is_refused(heat, message):
    with pytest.raises(ShapeError, match=message):
        field(heat, size=(9, 9))
