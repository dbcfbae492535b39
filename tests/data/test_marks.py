"""Marks: masks as pycocotools draws them, and what is told to be wrong with boxes and outlines."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from van.data.marks import Mark, Problems, Wrong, check_box, check_outline, crossing
from van.data.scene_files import run_lengths
from van.errors import DataError

SIZE = (30, 40)
SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]
BOW = [5.0, 5.0, 20.0, 15.0, 20.0, 5.0, 5.0, 15.0]


def packed(mask: np.ndarray) -> dict:
    """A mask as COCO's packed text, by COCO's own tools."""
    written = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": written["size"], "counts": written["counts"].decode()}


def crosses(polygon: list) -> bool:
    """The definition: two edges, each with its ends strictly on both sides of the other, in fractions."""
    points = [(Fraction(x), Fraction(y)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    edges = list(zip(points, points[1:] + points[:1], strict=True))

    def side(a, b, c):
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for (a, b), (c, d) in combinations(edges, 2)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_run_lengths_of_both_kinds_give_back_their_mask(rows, columns, seed):
    mask = np.random.default_rng(seed).random((rows, columns)) > 0.5
    mask[0, 0] |= not mask.any()
    for outline in (run_lengths(mask), packed(mask)):
        check_outline(outline, mask.shape)
        drawn = Mark(label=0, box=(0, 0, columns, rows), outline=outline).mask(mask.shape)
        assert drawn.dtype == bool
        assert np.array_equal(drawn, mask)


def test_run_lengths_of_a_large_picture_are_unpacked_right():
    """Differences to the last but one, below zero too, in several letters each."""
    mask = np.zeros((700, 900), bool)
    mask[100:650, 3:800:7] = True
    mask[5:9, 200:220] = True
    check_outline(packed(mask), mask.shape)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools under numpy 2
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 30)), min_size=3, max_size=7), min_size=1, max_size=3)
)
def test_polygons_are_drawn_as_pycocotools_draws_them(parts):
    outline = [[float(value) for point in part for value in point] for part in parts]
    expected = reference.decode(reference.merge(reference.frPyObjects(outline, *SIZE))).astype(bool)
    assert np.array_equal(Mark(label=0, box=(0, 0, 40, 30), outline=outline).mask(SIZE), expected)


def test_without_an_outline_the_mask_is_the_box_cut_at_the_edge():
    mask = Mark(label=0, box=(-0.8, 4.0, 6.0, 9.0)).mask(SIZE)
    assert mask.sum() == 6 * 5
    assert mask[4:9, :6].all()


def test_a_mask_of_another_size_or_a_damaged_one_is_refused():
    mark = Mark(label=0, box=(0, 0, 3, 2), outline={"size": [2, 3], "counts": [0, 6]}, number=17)
    with pytest.raises(DataError, match=r"annotation 17: its mask is \(2, 3\), the picture \(30, 40\)"):
        mark.mask(SIZE)
    with pytest.raises(DataError, match="annotation 17: its outline cannot be drawn"):
        Mark(label=0, box=(0, 0, 3, 2), outline=[["a", "b"]], number=17).mask(SIZE)  # type: ignore[list-item]


coordinates = st.one_of(
    st.integers(0, 6).map(float), st.integers(0, 600).map(lambda value: value / 100), st.floats(0, 6, width=32)
)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9).map(
    lambda points: [value for point in points for value in point]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(polygons, min_size=1, max_size=5))
def test_crossing_polygons_are_those_of_the_definition(several):
    """Whole numbers give touching and collinear edges; many at once show that none is compared with another's."""
    assert crossing(several) == [place for place, polygon in enumerate(several) if crosses(polygon)]


@pytest.mark.parametrize(
    "polygon",
    [
        SQUARE,
        [0, 0, 10, 0, 10, 10, 5, 0, 0, 10],  # a corner on an edge
        [0, 0, 4, 0, 4, 4, 8, 4, 8, 8, 4, 8, 4, 4, 0, 4],  # a corner passed twice
        [0, 0, 5, 0, 5, 0, 5, 5, 0, 5, 0, 0],  # a point said twice, the first one again at the end
        [0, 0, 9, 0, 3, 0, 3, 3],  # back along its own edge
    ],
)
def test_a_polygon_that_only_touches_itself_is_fine(polygon):
    assert crossing([polygon]) == []
    assert crossing([BOW, polygon, BOW]) == [0, 2]


def test_a_crossing_too_small_for_floats_is_found():
    """A corner less than 1e-15 beyond an edge, where the difference of the products rounds to nothing."""
    x, y, u, v = 5.2, 4.9, 0.5, 0.47115384615384615
    assert x * v - y * u == 0
    assert Fraction(x) * Fraction(v) < Fraction(y) * Fraction(u)
    shallow = [0.0, 0.0, x, y, x, y + 5, u, v, 0.0, y + 5]
    assert crosses(shallow)
    assert crossing([shallow]) == [0]
    assert crossing([[*shallow[:7], v + 1e-9, *shallow[8:]]]) == []


def test_polygons_so_far_out_that_they_cannot_be_kept_apart_are_not_compared_with_each_other():
    far = 2.0**60
    one = [far + 256, 0.0, far + 512, 10.0, far, 20.0]
    other = [far, 10.0, far + 512, 0.0, far + 512, -9.0]
    assert crossing([one, other]) == []


def test_long_outlines_are_searched_across_batches(monkeypatch):
    from van.data import marks

    monkeypatch.setattr(marks, "_BATCH", 64)
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = np.stack([20 + 9 * np.cos(angles), 15 + 9 * np.sin(angles)], 1)
    crossed = ring.copy()
    crossed[[50, 52]] = crossed[[52, 50]]
    several = [ring.ravel().tolist(), crossed.ravel().tolist(), SQUARE, BOW, ring.ravel().tolist(), BOW]
    assert crossing(several) == [1, 3, 5]


@pytest.mark.parametrize("box", [(0, 0, 40, 30), (4, 5, 5, 6), (-1, -1, 41, 31), (39.5, 29.5, 40.5, 30.5)])
def test_boxes_up_to_a_pixel_over_the_edge_are_fine(box):
    check_box(box, SIZE)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((4, 5, 4, 9), r"box from \(4, 5\) to \(4, 9\) has no width"),
        ((4, 9, 6, 5), "has no height"),
        ((4, 5, float("nan"), 9), "is no box; wanted finite numbers"),
        ((4, 5, 41.5, 9), r"to \(41.5, 9\) lies outside its picture, which is 40 wide and 30 high"),
        ((4, -2, 10, 9), "lies outside"),
        ((-1, 5, 0, 9), "lies outside"),
        ((40, 5, 41, 9), "lies outside"),
    ],
)
def test_a_box_without_area_or_outside_its_picture_is_told(box, message):
    with pytest.raises(Wrong, match=message):
        check_box(box, SIZE)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([], "its outline is empty"),
        ([[]], "polygon 0 of its outline is empty"),
        ("5 5 9 9", "its outline is of type str"),
        ([SQUARE, [1, 1, 2, 2]], "polygon 1 of its outline has 2 points; wanted at least 3"),
        ([SQUARE[:-1]], "polygon 0 of its outline has 7 numbers; wanted an x and a y"),
        ([[*SQUARE[:-1], "15"]], "polygon 0 of its outline is no list of numbers"),
        ([[*SQUARE[:-1], True]], "polygon 0 of its outline is no list of numbers"),
        ([[*SQUARE[:-1], float("nan")]], "or holds what is no number"),
        ([[float("nan"), *SQUARE[1:]]], "or holds what is no number"),
        ([[*SQUARE[:-1], 10**400]], "outside its picture, which is 40 wide and 30 high"),
        ([[*SQUARE[:-2], 42.0, 5.0]], "outside its picture"),
        ({"size": [30, 40]}, "counts of its outline is missing"),
        ({"size": [40, 30], "counts": [0, 1200]}, r"size of its outline is \[40, 30\]; wanted \[30, 40\]"),
        ({"size": [30, 40], "counts": [0, 1199]}, "they cover 1199 pixels; wanted 1200"),
        ({"size": [30, 40], "counts": [10, -5, 1195]}, "one is below 0"),
        ({"size": [30, 40], "counts": [1200]}, "covers no pixel"),
        ({"size": [30, 40], "counts": [0, 1200.0]}, "neither whole numbers nor text"),
        ({"size": [30, 40], "counts": None}, "neither whole numbers nor text"),
        ({"size": [30, 40], "counts": "0"}, "do not add up"),
        ({"size": [30, 40], "counts": "~~"}, "are damaged"),
        ({"size": [30, 40], "counts": "o" * 40}, "are damaged"),
        ({"size": [30, 40], "counts": "o"}, "are damaged"),
        ({"size": [30, 40], "counts": "é"}, "are damaged"),
    ],
)
def test_an_outline_that_cannot_be_drawn_is_told(outline, message):
    with pytest.raises(Wrong, match=message):
        check_outline(outline, SIZE)


def test_problems_are_raised_at_once_or_collected():
    with pytest.raises(DataError, match=r"a\.json, annotation 3: is odd; van data check lists"):
        Problems().add("a.json", "is odd", place="annotation 3")
    problems = Problems(collect=True)
    problems.add("a.json", "is odd", place="annotation 3")
    problems.add("b.json", "is even")
    assert [str(problem) for problem in problems.found] == ["a.json, annotation 3: is odd", "b.json: is even"]


def test_a_few_damaged_marks_are_tolerated_and_many_or_anything_else_are_not():
    few, many, other = (Problems(collect=True) for _ in range(3))
    for number in range(5):
        few.add("a.json", "has no width", place=f"annotation {number}")
        many.add("a.txt", "has no width", place=f"line {number}")
    assert [problem.place for problem in few.tolerate(marks=95)] == [f"annotation {number}" for number in range(5)]
    with pytest.raises(DataError, match=r"^a\.txt, line 0: has no width, and 4 more; van data check lists"):
        many.tolerate(marks=94)
    other.add("a.json", "its file b.png is missing", place="picture 3")
    with pytest.raises(DataError, match=r"picture 3: its file b\.png is missing; van data check"):
        other.tolerate(marks=1000)
