"""Annotations: masks equal pycocotools'; invalid boxes and segmentations are rejected with the value got."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from van.datasets.annotations import (
    Annotation,
    InvalidAnnotation,
    Issues,
    check_box,
    check_segmentation,
    find_self_intersections,
)
from van.datasets.scenes import encode_rle
from van.errors import DataError

SIZE = (30, 40)
SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]
BOW = [5.0, 5.0, 20.0, 15.0, 20.0, 5.0, 5.0, 15.0]


def compress(mask: np.ndarray) -> dict:
    """Return a mask as COCO's compressed run lengths, by pycocotools."""
    rle = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


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
def test_both_kinds_of_run_lengths_decode_to_their_mask(rows, columns, seed):
    mask = np.random.default_rng(seed).random((rows, columns)) > 0.5
    mask[0, 0] |= not mask.any()
    for segmentation in (encode_rle(mask), compress(mask)):
        check_segmentation(segmentation, mask.shape)
        drawn = Annotation(label=0, box=(0, 0, columns, rows), segmentation=segmentation).mask(mask.shape)
        assert drawn.dtype == bool
        assert np.array_equal(drawn, mask)


def test_compressed_run_lengths_of_a_large_image_are_decoded():
    """Differences to the last but one, also negative, of several characters each."""
    mask = np.zeros((700, 900), bool)
    mask[100:650, 3:800:7] = True
    mask[5:9, 200:220] = True
    check_segmentation(compress(mask), mask.shape)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools under numpy 2
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 30)), min_size=3, max_size=7), min_size=1, max_size=3)
)
def test_polygon_masks_equal_those_of_pycocotools(points):
    segmentation = [[float(value) for point in polygon for value in point] for polygon in points]
    expected = reference.decode(reference.merge(reference.frPyObjects(segmentation, *SIZE))).astype(bool)
    assert np.array_equal(Annotation(label=0, box=(0, 0, 40, 30), segmentation=segmentation).mask(SIZE), expected)


def test_mask_without_segmentation_is_the_box_clipped_to_the_image():
    mask = Annotation(label=0, box=(-0.8, 4.0, 6.0, 9.0)).mask(SIZE)
    assert mask.sum() == 6 * 5
    assert mask[4:9, :6].all()


def test_mask_of_another_size_and_invalid_polygons_raise():
    annotation = Annotation(label=0, box=(0, 0, 3, 2), segmentation={"size": [2, 3], "counts": [0, 6]}, id=17)
    with pytest.raises(DataError, match=r"annotation 17: .*\(30, 40\).*\(2, 3\)"):
        annotation.mask(SIZE)
    with pytest.raises(DataError, match="annotation 17: segmentation"):
        Annotation(label=0, box=(0, 0, 3, 2), segmentation=[["a", "b"]], id=17).mask(SIZE)  # type: ignore[list-item]


coordinates = st.one_of(
    st.integers(0, 6).map(float), st.integers(0, 600).map(lambda value: value / 100), st.floats(0, 6, width=32)
)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9).map(
    lambda points: [value for point in points for value in point]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(polygons, min_size=1, max_size=5))
def test_self_intersections_equal_those_of_the_definition(several):
    """Whole numbers give touching and collinear edges; several polygons must not be compared with each other."""
    assert find_self_intersections(several) == [index for index, polygon in enumerate(several) if crosses(polygon)]


def test_polygon_that_only_touches_itself_is_valid(subtests):
    for polygon in [
        SQUARE,
        [0, 0, 10, 0, 10, 10, 5, 0, 0, 10],  # a corner on an edge
        [0, 0, 4, 0, 4, 4, 8, 4, 8, 8, 4, 8, 4, 4, 0, 4],  # a corner visited twice
        [0, 0, 5, 0, 5, 0, 5, 5, 0, 5, 0, 0],  # a repeated point, and the first one repeated at the end
        [0, 0, 9, 0, 3, 0, 3, 3],  # back along its own edge
    ]:
        with subtests.test(polygon=str(polygon)):
            assert find_self_intersections([polygon]) == []
            assert find_self_intersections([BOW, polygon, BOW]) == [0, 2]


def test_self_intersection_below_float_precision_is_found():
    """A corner less than 1e-15 beyond an edge, where the difference of the products rounds to nothing."""
    x, y, u, v = 5.2, 4.9, 0.5, 0.47115384615384615
    assert x * v - y * u == 0
    assert Fraction(x) * Fraction(v) < Fraction(y) * Fraction(u)
    shallow = [0.0, 0.0, x, y, x, y + 5, u, v, 0.0, y + 5]
    assert crosses(shallow)
    assert find_self_intersections([shallow]) == [0]
    assert find_self_intersections([[*shallow[:7], v + 1e-9, *shallow[8:]]]) == []


def test_distant_polygons_whose_shift_rounds_away_are_not_compared_with_each_other():
    far = 2.0**60
    one = [far + 256, 0.0, far + 512, 10.0, far, 20.0]
    other = [far, 10.0, far + 512, 0.0, far + 512, -9.0]
    assert find_self_intersections([one, other]) == []


def test_long_polygons_are_searched():
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = np.stack([20 + 9 * np.cos(angles), 15 + 9 * np.sin(angles)], 1)
    crossed = ring.copy()
    crossed[[50, 52]] = crossed[[52, 50]]
    several = [ring.ravel().tolist(), crossed.ravel().tolist(), SQUARE, BOW, ring.ravel().tolist(), BOW]
    assert find_self_intersections(several) == [1, 3, 5]


def test_boxes_up_to_one_pixel_over_the_edge_are_valid(subtests):
    for box in [(0, 0, 40, 30), (4, 5, 5, 6), (-1, -1, 41, 31), (39.5, 29.5, 40.5, 30.5)]:
        with subtests.test(box=str(box)):
            check_box(box, SIZE)


def test_box_without_area_or_outside_the_image_is_rejected(subtests):
    for box, message in [
        ((4, 5, 4, 9), r"width.*\(4, 5\) to \(4, 9\)"),
        ((4, 9, 6, 5), r"height.*\(4, 9\) to \(6, 5\)"),
        ((4, 5, float("nan"), 9), r"finite.*\(4, 5\) to \(nan, 9\)"),
        ((4, 5, 41.5, 9), r"40x30.*\(4, 5\) to \(41\.5, 9\)"),
        ((4, -2, 10, 9), r"40x30.*\(4, -2\)"),
        ((-1, 5, 0, 9), r"40x30.*\(-1, 5\)"),
        ((40, 5, 41, 9), r"40x30.*\(40, 5\)"),
    ]:
        with subtests.test(box=str(box), message=str(message)), pytest.raises(InvalidAnnotation, match=message):
            check_box(box, SIZE)


def test_invalid_segmentation_is_rejected(subtests):
    for segmentation, message in [
        ([], "segmentation: .*empty"),
        ([[]], "polygon 0: .*3 points.*0"),
        ("5 5 9 9", "segmentation: .*str"),
        ([SQUARE, [1, 1, 2, 2]], "polygon 1: .*3 points.*2"),
        ([SQUARE[:-1]], "polygon 0: .*7 numbers"),
        ([[*SQUARE[:-1], "15"]], "polygon 0: .*list of numbers"),
        ([[*SQUARE[:-1], True]], "polygon 0: .*list of numbers"),
        ([[*SQUARE[:-1], float("nan")]], "polygon 0: .*finite"),
        ([[float("nan"), *SQUARE[1:]]], r"polygon 0: .*finite.*\[nan"),
        ([[*SQUARE[:-1], 10**400]], "polygon 0: .*40x30"),
        ([[*SQUARE[:-2], 42.0, 5.0]], r"polygon 0: .*40x30.*42\.0"),
        ({"size": [30, 40]}, "size and counts.*no counts"),
        ({"size": [40, 30], "counts": [0, 1200]}, r"\[30, 40\].*\[40, 30\]"),
        ({"size": [30, 40], "counts": [0, 1199]}, r"counts: .*1200.*1199"),
        ({"size": [30, 40], "counts": [10, -5, 1195]}, "counts: .*0.*-5"),
        ({"size": [30, 40], "counts": [1200]}, "1 pixel.*empty"),
        ({"size": [30, 40], "counts": [0, 1200.0]}, r"counts: .*whole numbers.*1200\.0"),
        ({"size": [30, 40], "counts": None}, "counts: .*whole numbers.*None"),
        ({"size": [30, 40], "counts": "0"}, "counts: .*1200.*0"),
        ({"size": [30, 40], "counts": "~~"}, "counts: .*~~"),
        ({"size": [30, 40], "counts": "o" * 40}, "counts: .*oooo"),
        ({"size": [30, 40], "counts": "o"}, "counts: .*'o'"),
        ({"size": [30, 40], "counts": "é"}, "counts: .*é"),
    ]:
        with subtests.test(segmentation=str(segmentation)), pytest.raises(InvalidAnnotation, match=message):
            check_segmentation(segmentation, SIZE)


def test_issues_are_raised_immediately_or_collected():
    with pytest.raises(DataError, match=r"a\.json: annotation 3: is odd.*van data check"):
        Issues().add("a.json", "is odd", location="annotation 3")
    issues = Issues(collect=True)
    issues.add("a.json", "is odd", location="annotation 3")
    issues.add("b.json", "is even")
    assert [str(issue) for issue in issues.collected] == ["a.json: annotation 3: is odd", "b.json: is even"]


def test_raise_unless_minor_accepts_five_percent_of_invalid_annotations_and_nothing_else():
    few, many, other = (Issues(collect=True) for _ in range(3))
    for index in range(5):
        few.add("a.json", "width is 0", location=f"annotation {index}")
        many.add("a.txt", "width is 0", location=f"line {index}")
    assert [issue.location for issue in few.raise_unless_minor(num_annotations=95)] == [
        f"annotation {index}" for index in range(5)
    ]
    with pytest.raises(DataError, match=r"^a\.txt: line 0: width is 0.*4 more.*van data check"):
        many.raise_unless_minor(num_annotations=94)
    other.add("a.json", "file b.png is missing", location="image 3")
    with pytest.raises(DataError, match=r"image 3: file b\.png is missing.*van data check"):
        other.raise_unless_minor(num_annotations=1000)
