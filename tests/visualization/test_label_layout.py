"""Labels are placed within the image, clear of each other, and on their regions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from van.visualization.drawing import distance_to_edge, place_in_region, place_label_box

NONE = np.empty((0, 4), int)


def intersection(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def rectangle(corner: tuple[int, int] | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    assert corner is not None
    return (*corner, corner[0] + size[0], corner[1] + size[1])


def test_a_single_box_has_its_label_above():
    box = (50, 60, 150, 160)
    assert place_label_box((40, 20), box, (300, 300), NONE, np.array([box])) == (50, 40)


def test_a_box_at_the_upper_edge_has_its_label_below():
    box = (50, 0, 150, 30)
    place = rectangle(place_label_box((40, 20), box, (300, 300), NONE, np.array([box])), (40, 20))
    assert intersection(place, box) == 0
    assert place[1] == 30


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(*[st.integers(0, 200)] * 4), min_size=1, max_size=12),
    st.integers(1, 80),
    st.integers(1, 30),
    st.integers(60, 200),
)
def test_labels_are_within_the_image_and_at_most_half_on_others(corners, width, height, side):
    boxes = [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in corners]
    occupied = NONE
    for box in boxes:
        place = place_label_box((width, height), box, (side, side), occupied, np.array(boxes))
        if place is None:
            assert len(occupied) or width > side
            continue
        label = rectangle(place, (width, height))
        assert min(label) >= 0
        assert max(label) <= side
        assert sum(intersection(label, tuple(other)) for other in occupied.tolist()) < 0.5 * width * height
        occupied = np.concatenate([occupied, [label]])


def test_labels_of_the_same_box_do_not_overlap():
    """Six of them fit around it; negative control: without the others each has the same place."""
    box, size = (100, 100, 180, 180), (50, 20)
    occupied = NONE
    for _ in range(6):
        place = rectangle(place_label_box(size, box, (300, 300), occupied, np.array([box])), size)
        assert all(intersection(place, tuple(other)) == 0 for other in occupied.tolist())
        occupied = np.concatenate([occupied, [place]])
    assert len({place_label_box(size, box, (300, 300), NONE, np.array([box])) for _ in range(6)}) == 1


def test_a_label_does_not_cover_a_small_box_next_to_its_own():
    box, small = (50, 60, 150, 160), (55, 45, 60, 50)
    place = rectangle(place_label_box((40, 20), box, (300, 300), NONE, np.array([box, small])), (40, 20))
    assert intersection(place, small) == 0


def test_an_image_smaller_than_a_label_has_none():
    for bounds in ((39, 300), (300, 19), (1, 1)):
        assert place_label_box((40, 20), (0, 0, 1, 1), bounds, NONE, np.array([[0, 0, 1, 1]])) is None


def letter_c(rows: int = 70, columns: int = 90) -> np.ndarray:
    region = np.zeros((rows, columns), bool)
    region[5:-5, 10:-10] = True
    region[22:-22, 30:] = False
    return region


def test_the_label_of_a_concave_region_is_within_the_region():
    region = letter_c()
    middle = tuple(int(np.mean(places)) for places in np.nonzero(region))
    assert not region[middle], "negative control"
    row, column = place_in_region(region, np.ones_like(region), 7, 25) or (-1, -1)
    assert region[row + 3, column + 12]
    assert region[row : row + 7, column : column + 25].mean() > 0.9


def test_a_second_label_does_not_cover_the_first():
    region = free = np.ones((40, 60), bool)
    first = place_in_region(region, free, 7, 25)
    assert first == (16, 17)  # centered to a pixel
    free = free.copy()
    free[first[0] : first[0] + 7, first[1] : first[1] + 25] = False
    second = place_in_region(region, free, 7, 25)
    assert second is not None
    assert free[second[0] : second[0] + 7, second[1] : second[1] + 25].all()


def test_a_region_smaller_than_its_label_has_none():
    for rows, columns in ((3, 9), (40, 2), (1, 1)):
        region = np.zeros((50, 50), bool)
        region[10 : 10 + rows, 10 : 10 + columns] = True
        assert place_in_region(region, np.ones_like(region), 7, 25) is None
        assert place_in_region(region[:5], np.ones((5, 50), bool), 7, 25) is None
    assert place_in_region(np.zeros((50, 50), bool), np.ones((50, 50), bool), 7, 25) is None


def test_distance_is_the_minimum_over_all_pixels_outside():
    """By definition: the minimum over all pixels outside, including those around the map."""
    for shape, step in itertools.product([(1, 1), (1, 7), (11, 1), (13, 17)], [1.0, 0.25]):
        region = np.random.default_rng(3).random(shape) < 0.85
        outside = np.argwhere(~np.pad(region, 1)) - 1
        distance = distance_to_edge(region, horizontal_step=step)
        for row, column in np.ndindex(shape):
            steps = np.abs(outside[:, 0] - row) + step * np.abs(outside[:, 1] - column)
            assert distance[row, column] == pytest.approx(steps.min()), (shape, step)
