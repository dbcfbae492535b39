"""The pointing game and the share of mass on maps made by hand: hits, ties, what was not seen, what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from van.errors import ShapeError
from van.explain.pointing import energy_share, pointing_game, region_of

NAN = float("nan")


def scattered(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A map with unseen pixels and equal ones, and a region of which some is seen."""
    random = np.random.default_rng(seed)
    values = random.integers(-3, 4, (rows, columns)).astype(np.float32)
    values[random.random((rows, columns)) < 0.3] = NAN
    region = random.random((rows, columns)) < 0.3
    values[0, 0], region[0, 0] = 1.0, True
    return values, region


def peak(row: int, column: int, size: tuple[int, int] = (9, 13)) -> np.ndarray:
    values = np.zeros(size, np.float32)
    values[row, column] = 1.0
    return values


def test_a_box_holds_the_pixels_that_it_touches_and_masks_are_added():
    assert np.argwhere(region_of((4, 6), boxes=np.array([[1.2, 0.0, 3.0, 1.5]]))).tolist() == [
        [0, 1], [0, 2], [1, 1], [1, 2],
    ]  # fmt: skip
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 3, 5] = masks[1, 0, 0] = True
    both = region_of((4, 6), boxes=np.array([[-3.0, 2.0, 1.0, 99.0]]), masks=masks)
    assert np.argwhere(both).tolist() == [[0, 0], [2, 0], [3, 0], [3, 5]]
    assert not region_of((4, 6), boxes=np.array([[-9.0, -9.0, -3.0, -1.0]])).any()


@pytest.mark.parametrize(
    ("tolerance_px", "hits"), [(0, {(4, 6)}), (1, {(4, 6), (4, 7), (3, 6)}), (1.5, {(4, 6), (4, 7), (3, 6), (3, 7)})]
)
def test_a_peak_hits_in_the_region_and_as_near_to_it_as_allowed(tolerance_px, hits):
    region = np.zeros((9, 13), bool)
    region[4:, :7] = True
    for place in [(4, 6), (4, 7), (3, 6), (3, 7), (4, 8), (2, 6)]:
        assert pointing_game(peak(*place), region, tolerance_px=tolerance_px) == (place in hits)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 11), st.integers(0, 2**32 - 1), st.floats(0, 9))
def test_tolerance_is_the_distance_to_the_nearest_pixel_of_the_region(rows, columns, seed, tolerance_px):
    """Of each pixel by itself, against distances to all of them; a region that fills a corner tells rounding."""
    _, region = scattered(rows, columns, seed)
    places = np.argwhere(region)
    for row, column in np.ndindex(rows, columns):
        nearest = np.sqrt(((places - [row, column]) ** 2).sum(axis=1).min())
        hit = pointing_game(peak(row, column, (rows, columns)), region, tolerance_px=tolerance_px)
        assert hit == (nearest <= tolerance_px)


def test_of_equally_high_pixels_the_share_that_hits_counts():
    region = np.zeros((5, 8), bool)
    region[:, :2] = True
    tied = np.zeros((5, 8))
    tied[0, [0, 3, 6, 7]] = 2.0
    assert pointing_game(tied, region, tolerance_px=0) == 0.25
    flat = np.full((5, 8), 3.0)
    assert pointing_game(flat, region, tolerance_px=0) == energy_share(flat, region) == 0.25
    flat[:, 4:] = NAN
    assert pointing_game(flat, region, tolerance_px=0) == energy_share(flat, region) == 0.5


def test_a_map_without_positive_mass_gets_what_chance_gets():
    region = np.zeros((5, 8), bool)
    region[:, :2] = True
    for nothing in (np.zeros((5, 8)), -np.arange(40.0).reshape(5, 8)):
        assert energy_share(nothing, region) == 0.25
        half = nothing.astype(float)
        half[:, 4:] = NAN
        assert energy_share(half, region) == 0.5


def test_the_share_of_mass_counts_what_is_positive_and_seen():
    values = np.array([[1.0, 3.0, -5.0], [NAN, 0.0, 4.0]])
    region = np.array([[False, True, True], [True, False, False]])
    assert energy_share(values, region) == pytest.approx(3 / 8)
    assert energy_share(values * 3e307, region) == pytest.approx(3 / 8)  # its sum is beyond the range


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30), st.floats(0, 5))
def test_scores_are_shares_and_keep_under_positive_scaling(rows, columns, seed, scale, tolerance_px):
    values, region = scattered(rows, columns, seed)
    scaled = values.astype(np.float64) * scale
    hit, share = pointing_game(values, region, tolerance_px=tolerance_px), energy_share(values, region)
    assert 0 <= hit <= 1
    assert 0 <= share <= 1
    assert pointing_game(scaled, region, tolerance_px=tolerance_px) == hit
    assert energy_share(scaled, region) == pytest.approx(share)


@pytest.mark.parametrize(
    ("values", "region", "wanted"),
    [
        (np.zeros((4, 5)), np.ones((5, 4), bool), r"the map is \(4, 5\), the region \(5, 4\)"),
        (np.zeros((4, 5)), np.ones((4, 5)), "of float64; wanted both"),
        (np.full((4, 5), NAN), np.ones((4, 5), bool), "NaN everywhere"),
        (np.full((4, 5), np.inf), np.ones((4, 5), bool), "infinite somewhere"),
        (np.zeros((4, 5)), np.zeros((4, 5), bool), "no pixel of the region is seen"),
        (np.array([[NAN, 1.0]]), np.array([[True, False]]), "no pixel of the region is seen"),
    ],
)
def test_what_cannot_be_scored_is_refused(values, region, wanted):
    for score in (pointing_game, energy_share):
        with pytest.raises(ShapeError, match=wanted):
            score(values, region)


@pytest.mark.parametrize("tolerance_px", [-1.0, NAN, float("inf")])
def test_a_tolerance_is_a_number_from_zero(tolerance_px):
    with pytest.raises(ShapeError, match=r"tolerance_px is .*; wanted a number, at least 0"):
        pointing_game(np.zeros((2, 2)), np.ones((2, 2), bool), tolerance_px=tolerance_px)


@pytest.mark.parametrize(
    ("boxes", "masks", "wanted"),
    [
        ([[1, 1, 1, 3]], None, "wanted left < right and top < bottom"),
        ([[1, NAN, 2, 3]], None, "wanted left < right and top < bottom"),
        ([[0, 0, float("inf"), 3]], None, "wanted left < right and top < bottom"),
        ([1, 2, 3, 4], None, r"boxes are \(4,\); wanted \(K, 4\)"),
        (None, np.zeros((4, 6), bool), r"masks are \(4, 6\) of bool; wanted \(K, 4, 6\)"),
        (None, np.zeros((1, 4, 5), bool), r"masks are \(1, 4, 5\)"),
        (None, np.zeros((1, 4, 6)), "of float64"),
    ],
)
def test_boxes_and_masks_of_other_shapes_are_refused(boxes, masks, wanted):
    with pytest.raises(ShapeError, match=wanted):
        region_of((4, 6), boxes=None if boxes is None else np.array(boxes, float), masks=masks)
