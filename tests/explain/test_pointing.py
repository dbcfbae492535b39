"""The pointing games on synthetic maps: hits, ties, pixels outside the input, invalid arguments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from van.errors import ShapeError
from van.explain.pointing import energy_pointing_game, pointing_game, rasterize_region

NAN = float("nan")


def scattered(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a map with NaN pixels and ties, and a region that is partly valid."""
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


def test_the_region_has_the_pixels_touched_by_boxes_and_those_of_masks():
    assert np.argwhere(rasterize_region((4, 6), boxes=np.array([[1.2, 0.0, 3.0, 1.5]]))).tolist() == [
        [0, 1], [0, 2], [1, 1], [1, 2],
    ]  # fmt: skip
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 3, 5] = masks[1, 0, 0] = True
    both = rasterize_region((4, 6), boxes=np.array([[-3.0, 2.0, 1.0, 99.0]]), masks=masks)
    assert np.argwhere(both).tolist() == [[0, 0], [2, 0], [3, 0], [3, 5]]
    assert not rasterize_region((4, 6), boxes=np.array([[-9.0, -9.0, -3.0, -1.0]])).any()


@pytest.mark.parametrize(
    ("tolerance_px", "hits"), [(0, {(4, 6)}), (1, {(4, 6), (4, 7), (3, 6)}), (1.5, {(4, 6), (4, 7), (3, 6), (3, 7)})]
)
def test_a_peak_hits_within_the_tolerance_of_the_region(tolerance_px, hits):
    region = np.zeros((9, 13), bool)
    region[4:, :7] = True
    for place in [(4, 6), (4, 7), (3, 6), (3, 7), (4, 8), (2, 6)]:
        assert pointing_game(peak(*place), region, tolerance_px=tolerance_px) == (place in hits)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 11), st.integers(0, 2**32 - 1), st.floats(0, 9))
def test_tolerance_is_the_distance_to_the_nearest_pixel_of_the_region(rows, columns, seed, tolerance_px):
    """For each pixel, against the distances to all pixels of the region."""
    _, region = scattered(rows, columns, seed)
    places = np.argwhere(region)
    for row, column in np.ndindex(rows, columns):
        nearest = np.sqrt(((places - [row, column]) ** 2).sum(axis=1).min())
        hit = pointing_game(peak(row, column, (rows, columns)), region, tolerance_px=tolerance_px)
        assert hit == (nearest <= tolerance_px)


def test_ties_count_by_the_fraction_that_hits():
    region = np.zeros((5, 8), bool)
    region[:, :2] = True
    tied = np.zeros((5, 8))
    tied[0, [0, 3, 6, 7]] = 2.0
    assert pointing_game(tied, region, tolerance_px=0) == 0.25
    constant = np.full((5, 8), 3.0)
    assert pointing_game(constant, region, tolerance_px=0) == energy_pointing_game(constant, region) == 0.25
    constant[:, 4:] = NAN
    assert pointing_game(constant, region, tolerance_px=0) == energy_pointing_game(constant, region) == 0.5


def test_a_map_without_positive_values_scores_as_chance_does():
    region = np.zeros((5, 8), bool)
    region[:, :2] = True
    for empty in (np.zeros((5, 8)), -np.arange(40.0).reshape(5, 8)):
        assert energy_pointing_game(empty, region) == 0.25
        half = empty.astype(float)
        half[:, 4:] = NAN
        assert energy_pointing_game(half, region) == 0.5


def test_energy_counts_positive_valid_values():
    values = np.array([[1.0, 3.0, -5.0], [NAN, 0.0, 4.0]])
    region = np.array([[False, True, True], [True, False, False]])
    assert energy_pointing_game(values, region) == pytest.approx(3 / 8)
    assert energy_pointing_game(values * 3e307, region) == pytest.approx(3 / 8)  # its sum overflows


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30), st.floats(0, 5))
def test_scores_are_in_0_to_1_and_invariant_to_positive_scaling(rows, columns, seed, scale, tolerance_px):
    values, region = scattered(rows, columns, seed)
    scaled = values.astype(np.float64) * scale
    hit, fraction = pointing_game(values, region, tolerance_px=tolerance_px), energy_pointing_game(values, region)
    assert 0 <= hit <= 1
    assert 0 <= fraction <= 1
    assert pointing_game(scaled, region, tolerance_px=tolerance_px) == hit
    assert energy_pointing_game(scaled, region) == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("values", "region", "expected"),
    [
        (np.zeros((4, 5)), np.ones((5, 4), bool), r"\(4, 5\).*\(5, 4\)"),
        (np.zeros((4, 5)), np.ones((4, 5)), r"float64 \(4, 5\)"),
        (np.full((4, 5), NAN), np.ones((4, 5), bool), "values.*NaN"),
        (np.full((4, 5), np.inf), np.ones((4, 5), bool), "values.*infinity"),
        (np.zeros((4, 5)), np.zeros((4, 5), bool), "region.*0"),
        (np.array([[NAN, 1.0]]), np.array([[True, False]]), "region.*0"),
    ],
)
def test_invalid_maps_and_regions_are_rejected(values, region, expected):
    for score in (pointing_game, energy_pointing_game):
        with pytest.raises(ShapeError, match=expected):
            score(values, region)


@pytest.mark.parametrize("tolerance_px", [-1.0, NAN, float("inf")])
def test_invalid_tolerances_are_rejected(tolerance_px):
    with pytest.raises(ShapeError, match=r"tolerance_px"):
        pointing_game(np.zeros((2, 2)), np.ones((2, 2), bool), tolerance_px=tolerance_px)


@pytest.mark.parametrize(
    ("boxes", "masks", "expected"),
    [
        ([[1, 1, 1, 3]], None, "boxes.*left < right"),
        ([[1, NAN, 2, 3]], None, "boxes.*left < right"),
        ([[0, 0, float("inf"), 3]], None, "boxes.*left < right"),
        ([1, 2, 3, 4], None, r"boxes.*\(K, 4\).*\(4,\)"),
        (None, np.zeros((4, 6), bool), r"masks.*\(K, 4, 6\).*\(4, 6\)"),
        (None, np.zeros((1, 4, 5), bool), r"masks.*\(1, 4, 5\)"),
        (None, np.zeros((1, 4, 6)), "masks.*float64"),
    ],
)
def test_invalid_boxes_and_masks_are_rejected(boxes, masks, expected):
    with pytest.raises(ShapeError, match=expected):
        rasterize_region((4, 6), boxes=None if boxes is None else np.array(boxes, float), masks=masks)
