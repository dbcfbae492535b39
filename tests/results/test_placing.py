"""Labels lie within the picture, off each other, and on what they name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from van.results.placing import depth_within, place_chip, room_within

NONE = np.empty((0, 4), int)


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def rectangle(place: tuple[int, int] | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    assert place is not None
    return (*place, place[0] + size[0], place[1] + size[1])


def test_a_lonely_box_has_its_label_on_top():
    box = (50, 60, 150, 160)
    assert place_chip((40, 20), box, (300, 300), NONE, np.array([box])) == (50, 40)


def test_a_box_at_the_upper_edge_has_its_label_where_it_hides_least():
    box = (50, 0, 150, 30)
    place = rectangle(place_chip((40, 20), box, (300, 300), NONE, np.array([box])), (40, 20))
    assert shared(place, box) == 0
    assert place[1] == 30


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(*[st.integers(0, 200)] * 4), min_size=1, max_size=12),
    st.integers(1, 80),
    st.integers(1, 30),
    st.integers(60, 200),
)
def test_chips_lie_within_the_picture_and_less_than_half_on_others(corners, width, height, side):
    boxes = [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in corners]
    taken = NONE
    for box in boxes:
        place = place_chip((width, height), box, (side, side), taken, np.array(boxes))
        if place is None:
            assert len(taken) or width > side
            continue
        chip = rectangle(place, (width, height))
        assert min(chip) >= 0
        assert max(chip) <= side
        assert sum(shared(chip, tuple(other)) for other in taken.tolist()) < 0.5 * width * height
        taken = np.concatenate([taken, [chip]])


def test_labels_of_one_and_the_same_box_move_apart():
    """Six of them fit around it; the control: without knowing the others each takes the same place."""
    box, size = (100, 100, 180, 180), (50, 20)
    taken = NONE
    for _ in range(6):
        place = rectangle(place_chip(size, box, (300, 300), taken, np.array([box])), size)
        assert all(shared(place, tuple(other)) == 0 for other in taken.tolist())
        taken = np.concatenate([taken, [place]])
    assert len({place_chip(size, box, (300, 300), NONE, np.array([box])) for _ in range(6)}) == 1


def test_a_label_stays_off_a_small_box_next_to_its_own():
    box, small = (50, 60, 150, 160), (55, 45, 60, 50)
    place = rectangle(place_chip((40, 20), box, (300, 300), NONE, np.array([box, small])), (40, 20))
    assert shared(place, small) == 0


@pytest.mark.parametrize("bounds", [(39, 300), (300, 19), (1, 1)])
def test_a_picture_smaller_than_a_label_has_none(bounds):
    assert place_chip((40, 20), (0, 0, 1, 1), bounds, NONE, np.array([[0, 0, 1, 1]])) is None


def letter_c(rows: int = 70, columns: int = 90) -> np.ndarray:
    region = np.zeros((rows, columns), bool)
    region[5:-5, 10:-10] = True
    region[22:-22, 30:] = False
    return region


def test_the_middle_of_a_label_lies_within_a_region_whose_own_middle_does_not():
    region = letter_c()
    middle = tuple(int(np.mean(places)) for places in np.nonzero(region))
    assert not region[middle], "the control"
    row, column = room_within(region, np.ones_like(region), 7, 25) or (-1, -1)
    assert region[row + 3, column + 12]
    assert region[row : row + 7, column : column + 25].mean() > 0.9


def test_a_second_label_keeps_off_the_first():
    region = free = np.ones((40, 60), bool)
    first = room_within(region, free, 7, 25)
    assert first == (16, 17)  # as far left and up as right and down, to a pixel
    free = free.copy()
    free[first[0] : first[0] + 7, first[1] : first[1] + 25] = False
    second = room_within(region, free, 7, 25)
    assert second is not None
    assert free[second[0] : second[0] + 7, second[1] : second[1] + 25].all()


@pytest.mark.parametrize("shape", [(3, 9), (40, 2), (1, 1)])
def test_a_region_smaller_than_its_label_has_none(shape):
    region = np.zeros((50, 50), bool)
    region[10 : 10 + shape[0], 10 : 10 + shape[1]] = True
    assert room_within(region, np.ones_like(region), 7, 25) is None
    assert room_within(region[:5], np.ones((5, 50), bool), 7, 25) is None
    assert room_within(np.zeros((50, 50), bool), np.ones((50, 50), bool), 7, 25) is None


@pytest.mark.parametrize("across", [1.0, 0.25])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (11, 1), (13, 17)])
def test_depth_is_the_fewest_steps_to_the_outside(shape, across):
    """By definition: over all pixels outside, those around the map among them."""
    region = np.random.default_rng(3).random(shape) < 0.85
    outside = np.argwhere(~np.pad(region, 1)) - 1
    for row, column in np.ndindex(shape):
        steps = np.abs(outside[:, 0] - row) + across * np.abs(outside[:, 1] - column)
        assert depth_within(region, across=across)[row, column] == pytest.approx(steps.min())
