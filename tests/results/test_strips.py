"""A sheet shows every map in its colours, at its place beside the picture, with its name and its scale."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageChops

from van.errors import ShapeError, UsageError
from van.results.drawing import contrast
from van.results.strips import LARGEST_SHEET_PX, Strip, by_stage, coloured, draw_strips, signed_colours

GREEN = (0, 200, 0)
"""The colour of no level, no letter and no edge."""
RED, BLUE, PALE = (tuple(int(v) for v in signed_colours()[place]) for place in (-1, 0, 127))
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
"""Linear RGB as seen: Machado, Oliveira and Fernandes 2009, table 1."""


def green(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREEN)


def strip(*maps: object, name: str = "stage1.block0", cell_px: float | None = None, captions: tuple = ()) -> Strip:
    values = np.array(maps, np.float32)
    captions = captions or tuple(f"channel {number}" for number in range(len(maps)))
    return Strip(name=name, maps=values, captions=captions, cell_px=cell_px)


def where(sheet: Image.Image, colour: tuple[int, ...]) -> np.ndarray:
    return (np.array(sheet) == colour).all(axis=2)


def tiles_of(sheet: Image.Image) -> list[np.ndarray]:
    """The picture of a sheet with one strip, and what has its size to the right of it, ten pixels apart."""
    rows, columns = np.nonzero(where(sheet, GREEN))
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    pitch = right - left + 10
    pixels = np.array(sheet)
    return [pixels[top:bottom, x : x + right - left] for x in range(left, pixels.shape[1] - (right - left), pitch)]


def changed(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int]:
    """The rectangle within which two sheets differ."""
    assert one.size == other.size
    box = ImageChops.difference(one, other).getbbox()
    assert box is not None
    return box


def test_no_value_is_pale_and_both_signs_grow_darker():
    levels = coloured(np.linspace(-2, 2, 51), 2.0)
    assert tuple(levels[25]) == PALE
    darkness = np.array([contrast(tuple(int(v) for v in colour), (255, 255, 255)) for colour in levels])
    assert (np.diff(darkness[:26]) < 0).all()
    assert (np.diff(darkness[25:]) > 0).all()
    np.testing.assert_array_equal(coloured(np.zeros((2, 2)), 0.0), np.full((2, 2, 3), PALE))


def test_both_signs_are_told_apart_without_green_receptors():
    """The control: red and green, of which that reader sees hardly a difference."""

    def hues_apart(one: object, other: object) -> float:
        seen = [np.array(DEUTERANOPIA) @ (np.array(colour) / 255) ** 2.2 for colour in (one, other)]
        blueness = [(rgb[2] - rgb[0]) / np.abs(rgb).sum() for rgb in seen]
        return abs(blueness[0] - blueness[1])

    for level in (30, 60, 90, 120):
        assert hues_apart(signed_colours()[127 - level], signed_colours()[127 + level]) > 0.15
    assert hues_apart((200, 60, 0), (110, 140, 0)) < 0.1


def test_every_cell_has_its_colour_at_its_place():
    values = [[1.0, -1.0, 0.0, 0.25], [-0.5, 0.5, 0.75, -0.25]]
    picture, found, *_ = tiles_of(draw_strips(green(32, 16), [strip(values, cell_px=8)]))
    assert picture.shape == (96, 192, 3)
    wanted = coloured(np.array(values), 1.0).repeat(48, axis=0).repeat(48, axis=1)
    np.testing.assert_array_equal(found, wanted)
    assert tuple(found[0, 0]) == RED
    assert tuple(found[0, 48]) == BLUE


def test_the_scale_is_the_largest_magnitude_of_either_sign():
    block = strip([[-4, 1]], [[2, -1]], [[0, 0]])
    assert block.scales == (4, 2, 0)
    _, found, *_ = tiles_of(draw_strips(green(32, 16), [block]))
    np.testing.assert_array_equal(found[5, [5, -5]], coloured(np.array([-1, 0.25]), 1.0))


def test_cells_that_reach_over_the_edge_are_cut_there():
    """Of 37x53 pixels a network with stride 32 makes 2x2 cells, of which 5 and 21 pixels are left."""
    values = [[1.0, -1.0], [-1.0, 1.0]]
    picture, cut, *_ = tiles_of(draw_strips(green(53, 37), [strip(values, cell_px=32)]))
    assert picture.shape == (37 * 3, 53 * 3, 3)
    assert (cut[: 32 * 3, : 32 * 3] == RED).all()
    assert (cut[32 * 3 :, : 32 * 3] == BLUE).all()
    assert (cut[32 * 3 :, 32 * 3 :] == RED).all()
    _, spread, *_ = tiles_of(draw_strips(green(53, 37), [strip(values)]))
    assert (spread[:55, :79] == RED).all()
    assert (spread[:55, 80:] == BLUE).all()


def test_cells_smaller_than_a_pixel_are_averaged():
    wide = np.ones((400, 400), np.float32)
    wide[:, 200:] = -1
    _, halves, *_ = tiles_of(draw_strips(green(1600, 1600), [strip(wide, cell_px=4)]))
    assert (halves[:, :95] == RED).all()
    assert (halves[:, 97:] == BLUE).all()
    wide[:] = [1, -1] * 200
    _, fine, *_ = tiles_of(draw_strips(green(1600, 1600), [strip(wide, cell_px=4)]))
    assert np.abs(fine.astype(int) - PALE).max() < 60


def test_a_map_twice_as_strong_has_the_same_colours_and_another_number():
    values = np.array([[0.5, -1.0], [0.25, 0.0]])
    sheets = [draw_strips(green(64, 64), [strip(values * factor)]) for factor in (1, 2)]
    np.testing.assert_array_equal(tiles_of(sheets[0])[1], tiles_of(sheets[1])[1])
    left, top, right, bottom = changed(*sheets)
    assert bottom - top < 16
    assert right - left < 60
    _, turned, *_ = tiles_of(draw_strips(green(64, 64), [strip(-values)]))
    assert not np.array_equal(turned, tiles_of(sheets[0])[1]), "the control: a sign is seen"


@pytest.mark.parametrize("picture", [(64, 64), (1, 700), (900, 2)])
def test_names_channels_and_scales_stand_apart_under_their_maps(picture: tuple[int, int]):
    plain = draw_strips(green(*picture), [strip([[1]], [[1]], captions=("channel 1234", "channel 5678"))])
    one = draw_strips(green(*picture), [strip([[1]], [[1]], captions=("          ", "channel 5678"))])
    other = draw_strips(green(*picture), [strip([[1]], [[1]], captions=("channel 1234", "          "))])
    scaled = draw_strips(green(*picture), [strip([[2]], [[1]], captions=("channel 1234", "channel 5678"))])
    named = draw_strips(
        green(*picture), [strip([[1]], [[1]], captions=("channel 1234", "channel 5678"), name="stage4.block7")]
    )
    first, second, scale, name = (changed(plain, sheet) for sheet in (one, other, scaled, named))
    assert first[2] + 5 < second[0] or first[3] + 5 < second[1], "side by side or in two lines, with a gap"
    assert first[2] - first[0] > 70, "whole, not cut off"
    assert first[3] <= scale[1], "the scale below the channel"
    tile = np.nonzero(where(plain, RED))
    assert name[3] <= tile[0].min()
    assert tile[0].min() < first[1]


@pytest.mark.parametrize(("strips", "maps"), [(1, 1), (2, 3), (13, 5), (100, 1)])
def test_every_strip_and_every_map_is_on_a_sheet_that_is_not_too_large(strips: int, maps: int):
    block = strip(*[[[1.0]]] * maps)
    sheet = draw_strips(green(32, 32), [block] * strips, title="a title")
    assert max(sheet.size) <= LARGEST_SHEET_PX
    seen = where(sheet, GREEN).sum()
    side = round((seen / strips) ** 0.5)
    assert seen == strips * side**2
    assert side >= 64
    alone = draw_strips(green(side, side), [strip([[1.0]])])
    of_the_bar = where(alone, RED).sum() - where(alone, GREEN).sum()
    assert where(sheet, RED).sum() - of_the_bar == strips * maps * side**2


@pytest.mark.parametrize(
    ("picture", "cells"), [((50, 3), (3, 50)), ((3, 50), (1, 1)), ((1, 1), (1, 1)), ((9, 4000), (80, 1))]
)
@pytest.mark.parametrize("strips", [1, 40])
def test_extreme_sizes_can_be_drawn(picture: tuple[int, int], cells: tuple[int, int], strips: int):
    sheet = draw_strips(green(*picture), [strip(np.ones(cells), np.ones(cells))] * strips)
    assert max(sheet.size) <= LARGEST_SHEET_PX
    assert where(sheet, RED).sum() > 2 * strips * 6 * 6
    assert where(sheet, GREEN).sum() >= strips * 6 * 6


def test_a_long_strip_goes_on_in_a_further_line():
    sheet = draw_strips(green(64, 64), [strip(*[[[1.0]]] * 93)])
    assert max(sheet.size) <= LARGEST_SHEET_PX
    side = round(where(sheet, GREEN).sum() ** 0.5)
    assert side == 192
    starts = np.diff(where(sheet, RED).any(axis=1).astype(int), prepend=0) == 1
    assert starts.sum() > 3


def test_the_title_is_a_line_above_everything():
    plain, titled = (draw_strips(green(64, 64), [strip([[1.0]])], title=title) for title in ("", "LKA gates\nof a cat"))
    assert titled.height - plain.height == 32
    np.testing.assert_array_equal(np.array(titled)[46:], np.array(plain)[14:])
    letters = np.nonzero(np.array(titled)[:46].min(axis=(1, 2)) < 100)[0]
    assert (letters.min(), letters.max()) == (letters[0], letters[0] + len(letters) - 1), "one line"
    assert 10 < len(letters) < 24


def test_the_same_maps_are_the_same_sheet_and_a_picture_of_any_mode_can_be_shown():
    block = strip(np.random.default_rng(0).normal(size=(5, 7)))
    sheets = [draw_strips(green(53, 37), [block]) for _ in range(2)]
    assert sheets[0].tobytes() == sheets[1].tobytes()
    assert sheets[0].mode == "RGB"
    for mode in ("L", "RGBA", "P", "I;16"):
        assert draw_strips(Image.new(mode, (53, 37)), [block]).size == sheets[0].size


def test_blocks_of_a_stage_with_one_map_each_become_one_strip():
    names = [f"stage{stage}.block{block}" for stage, block in itertools.product((1, 2), (0, 1))]
    apart = [strip([[n]], name=name, cell_px=4, captions=("mean",)) for n, name in enumerate(names)]
    joined = by_stage(apart)
    assert [(one.name, one.captions, one.cell_px) for one in joined] == [
        ("stage1", ("block0", "block1"), 4),
        ("stage2", ("block0", "block1"), 4),
    ]
    np.testing.assert_array_equal(joined[1].maps, [[[2]], [[3]]])
    several = [strip([[1]], [[2]], name=name) for name in names]
    others = [strip([[1]], name="mixer"), strip([[1]], name="0.block1.0.attn")]
    for alone in (several, others, [apart[0], strip([[1, 2]], name=names[1], captions=("mean",))]):
        assert [one.name for one in by_stage(alone)] in ([one.name for one in alone], ["stage1", "stage1"])


@pytest.mark.parametrize(
    ("maps", "captions", "message"),
    [
        (np.zeros((2, 2)), ("a",), r"maps of x are \(2, 2\); wanted \(k, h, w\)"),
        (np.zeros((0, 2, 2)), (), r"maps of x are \(0, 2, 2\)"),
        (np.zeros((1, 2, 2)), ("a", "b"), "x has 1 maps and 2 captions"),
        (np.full((1, 2, 2), np.nan), ("a",), "maps of x are not finite"),
        (np.full((1, 2, 2), np.inf), ("a",), "maps of x are not finite"),
    ],
)
def test_what_is_no_strip_is_refused(maps: np.ndarray, captions: tuple, message: str):
    with pytest.raises(ShapeError, match=message):
        Strip(name="x", maps=maps, captions=captions)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UsageError, match="strips is empty"):
        draw_strips(green(8, 8), [])
    with pytest.raises(ShapeError, match="0x8 has no pixels"):
        draw_strips(Image.new("RGB", (0, 8)), [strip([[1]])])
    with pytest.raises(ShapeError, match=r"stage1\.block0 has 2x1 cells of 4 pixels, which do not reach over .* 9x4"):
        draw_strips(green(9, 4), [strip([[1, 2]], cell_px=4)])
    with pytest.raises(UsageError, match="4000 maps in 1 strips are more than a sheet"):
        draw_strips(green(8, 8), [strip(*[[[1]]] * 4000)])
