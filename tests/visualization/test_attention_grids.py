"""A grid has every map in its colors, at its place beside the image, with its name and its scale."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageChops

from van.errors import ShapeError, UsageError
from van.visualization.attention_grids import (
    MAX_SHEET_PX,
    AttentionMaps,
    apply_diverging_colormap,
    diverging_colormap,
    draw_attention_grid,
    group_by_stage,
)
from van.visualization.drawing import contrast_ratio

GREEN = (0, 200, 0)
"""A color that no level, text or edge has."""
RED, BLUE, PALE = (tuple(int(v) for v in diverging_colormap()[place]) for place in (-1, 0, 127))
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
"""Linear RGB for that color vision: Machado, Oliveira and Fernandes 2009, table 1."""


def green(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREEN)


def attention_maps(
    *maps: object, name: str = "stage1.block0", stride: float | None = None, captions: tuple = ()
) -> AttentionMaps:
    values = np.array(maps, np.float32)
    captions = captions or tuple(f"channel {index}" for index in range(len(maps)))
    return AttentionMaps(name=name, maps=values, captions=captions, stride=stride)


def color_mask(sheet: Image.Image, color: tuple[int, ...]) -> np.ndarray:
    return (np.array(sheet) == color).all(axis=2)


def tiles_of(sheet: Image.Image) -> list[np.ndarray]:
    """Return the image of a sheet with one group, and the tiles to the right of it, ten pixels apart."""
    rows, columns = np.nonzero(color_mask(sheet, GREEN))
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    pitch = right - left + 10
    pixels = np.array(sheet)
    return [pixels[top:bottom, x : x + right - left] for x in range(left, pixels.shape[1] - (right - left), pitch)]


def changed_box(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int]:
    """Return the rectangle in which two sheets differ."""
    assert one.size == other.size
    box = ImageChops.difference(one, other).getbbox()
    assert box is not None
    return box


def test_zero_is_palest_and_both_signs_grow_darker():
    levels = apply_diverging_colormap(np.linspace(-2, 2, 51), 2.0)
    assert tuple(levels[25]) == PALE
    darkness = np.array([contrast_ratio(tuple(int(v) for v in color), (255, 255, 255)) for color in levels])
    assert (np.diff(darkness[:26]) < 0).all()
    assert (np.diff(darkness[25:]) > 0).all()
    np.testing.assert_array_equal(apply_diverging_colormap(np.zeros((2, 2)), 0.0), np.full((2, 2, 3), PALE))


def test_both_signs_are_distinct_for_deuteranopia():
    """Negative control: red and green, which hardly differ for that color vision."""

    def hues_apart(one: object, other: object) -> float:
        perceived = [np.array(DEUTERANOPIA) @ (np.array(color) / 255) ** 2.2 for color in (one, other)]
        blueness = [(rgb[2] - rgb[0]) / np.abs(rgb).sum() for rgb in perceived]
        return abs(blueness[0] - blueness[1])

    for level in (30, 60, 90, 120):
        assert hues_apart(diverging_colormap()[127 - level], diverging_colormap()[127 + level]) > 0.15
    assert hues_apart((200, 60, 0), (110, 140, 0)) < 0.1


def test_every_cell_has_its_color_and_position():
    values = [[1.0, -1.0, 0.0, 0.25], [-0.5, 0.5, 0.75, -0.25]]
    image, found, *_ = tiles_of(draw_attention_grid(green(32, 16), [attention_maps(values, stride=8)]))
    assert image.shape == (96, 192, 3)
    expected = apply_diverging_colormap(np.array(values), 1.0).repeat(48, axis=0).repeat(48, axis=1)
    np.testing.assert_array_equal(found, expected)
    assert tuple(found[0, 0]) == RED
    assert tuple(found[0, 48]) == BLUE


def test_the_scale_is_the_largest_magnitude_of_either_sign():
    block = attention_maps([[-4, 1]], [[2, -1]], [[0, 0]])
    assert block.scales == (4, 2, 0)
    _, found, *_ = tiles_of(draw_attention_grid(green(32, 16), [block]))
    np.testing.assert_array_equal(found[5, [5, -5]], apply_diverging_colormap(np.array([-1, 0.25]), 1.0))


def test_cells_that_reach_over_the_edge_are_cut():
    """Of 37x53 pixels a network with stride 32 makes 2x2 cells, of which 5 and 21 pixels are drawn."""
    values = [[1.0, -1.0], [-1.0, 1.0]]
    image, cut, *_ = tiles_of(draw_attention_grid(green(53, 37), [attention_maps(values, stride=32)]))
    assert image.shape == (37 * 3, 53 * 3, 3)
    assert (cut[: 32 * 3, : 32 * 3] == RED).all()
    assert (cut[32 * 3 :, : 32 * 3] == BLUE).all()
    assert (cut[32 * 3 :, 32 * 3 :] == RED).all()
    _, spread, *_ = tiles_of(draw_attention_grid(green(53, 37), [attention_maps(values)]))
    assert (spread[:55, :79] == RED).all()
    assert (spread[:55, 80:] == BLUE).all()


def test_cells_smaller_than_a_pixel_are_averaged():
    wide = np.ones((400, 400), np.float32)
    wide[:, 200:] = -1
    _, halves, *_ = tiles_of(draw_attention_grid(green(1600, 1600), [attention_maps(wide, stride=4)]))
    assert (halves[:, :95] == RED).all()
    assert (halves[:, 97:] == BLUE).all()
    wide[:] = [1, -1] * 200
    _, fine, *_ = tiles_of(draw_attention_grid(green(1600, 1600), [attention_maps(wide, stride=4)]))
    assert np.abs(fine.astype(int) - PALE).max() < 60


def test_a_scaled_map_has_the_same_colors_and_another_scale():
    values = np.array([[0.5, -1.0], [0.25, 0.0]])
    sheets = [draw_attention_grid(green(64, 64), [attention_maps(values * factor)]) for factor in (1, 2)]
    np.testing.assert_array_equal(tiles_of(sheets[0])[1], tiles_of(sheets[1])[1])
    left, top, right, bottom = changed_box(*sheets)
    assert bottom - top < 16
    assert right - left < 60
    _, turned, *_ = tiles_of(draw_attention_grid(green(64, 64), [attention_maps(-values)]))
    assert not np.array_equal(turned, tiles_of(sheets[0])[1]), "negative control: a sign is visible"


@pytest.mark.parametrize("image", [(64, 64), (1, 700), (900, 2)])
def test_names_channels_and_scales_do_not_overlap(image: tuple[int, int]):
    plain = draw_attention_grid(
        green(*image), [attention_maps([[1]], [[1]], captions=("channel 1234", "channel 5678"))]
    )
    one = draw_attention_grid(green(*image), [attention_maps([[1]], [[1]], captions=("          ", "channel 5678"))])
    other = draw_attention_grid(green(*image), [attention_maps([[1]], [[1]], captions=("channel 1234", "          "))])
    scaled = draw_attention_grid(
        green(*image), [attention_maps([[2]], [[1]], captions=("channel 1234", "channel 5678"))]
    )
    named = draw_attention_grid(
        green(*image), [attention_maps([[1]], [[1]], captions=("channel 1234", "channel 5678"), name="stage4.block7")]
    )
    first, second, scale, name = (changed_box(plain, sheet) for sheet in (one, other, scaled, named))
    assert first[2] + 5 < second[0] or first[3] + 5 < second[1], "side by side or in two lines, with a gap"
    assert first[2] - first[0] > 70, "not truncated"
    assert first[3] <= scale[1], "the scale below the channel"
    tile = np.nonzero(color_mask(plain, RED))
    assert name[3] <= tile[0].min()
    assert tile[0].min() < first[1]


@pytest.mark.parametrize(("groups", "maps"), [(1, 1), (2, 3), (13, 5), (100, 1)])
def test_every_map_of_every_group_is_on_a_sheet_of_limited_size(groups: int, maps: int):
    block = attention_maps(*[[[1.0]]] * maps)
    sheet = draw_attention_grid(green(32, 32), [block] * groups, title="a title")
    assert max(sheet.size) <= MAX_SHEET_PX
    area = color_mask(sheet, GREEN).sum()
    side = round((area / groups) ** 0.5)
    assert area == groups * side**2
    assert side >= 64
    alone = draw_attention_grid(green(side, side), [attention_maps([[1.0]])])
    of_the_bar = color_mask(alone, RED).sum() - color_mask(alone, GREEN).sum()
    assert color_mask(sheet, RED).sum() - of_the_bar == groups * maps * side**2


@pytest.mark.parametrize(
    ("image", "cells"), [((50, 3), (3, 50)), ((3, 50), (1, 1)), ((1, 1), (1, 1)), ((9, 4000), (80, 1))]
)
@pytest.mark.parametrize("groups", [1, 40])
def test_extreme_sizes_are_drawn(image: tuple[int, int], cells: tuple[int, int], groups: int):
    sheet = draw_attention_grid(green(*image), [attention_maps(np.ones(cells), np.ones(cells))] * groups)
    assert max(sheet.size) <= MAX_SHEET_PX
    assert color_mask(sheet, RED).sum() > 2 * groups * 6 * 6
    assert color_mask(sheet, GREEN).sum() >= groups * 6 * 6


def test_a_long_group_is_wrapped_into_lines():
    sheet = draw_attention_grid(green(64, 64), [attention_maps(*[[[1.0]]] * 93)])
    assert max(sheet.size) <= MAX_SHEET_PX
    side = round(color_mask(sheet, GREEN).sum() ** 0.5)
    assert side == 192
    starts = np.diff(color_mask(sheet, RED).any(axis=1).astype(int), prepend=0) == 1
    assert starts.sum() > 3


def test_the_title_is_one_line_above_the_grid():
    plain, titled = (
        draw_attention_grid(green(64, 64), [attention_maps([[1.0]])], title=title)
        for title in ("", "LKA attention\nof a cat")
    )
    assert titled.height - plain.height == 32
    np.testing.assert_array_equal(np.array(titled)[46:], np.array(plain)[14:])
    letters = np.nonzero(np.array(titled)[:46].min(axis=(1, 2)) < 100)[0]
    assert (letters.min(), letters.max()) == (letters[0], letters[0] + len(letters) - 1), "one line"
    assert 10 < len(letters) < 24


def test_drawing_is_deterministic_and_accepts_any_image_mode():
    block = attention_maps(np.random.default_rng(0).normal(size=(5, 7)))
    sheets = [draw_attention_grid(green(53, 37), [block]) for _ in range(2)]
    assert sheets[0].tobytes() == sheets[1].tobytes()
    assert sheets[0].mode == "RGB"
    for mode in ("L", "RGBA", "P", "I;16"):
        assert draw_attention_grid(Image.new(mode, (53, 37)), [block]).size == sheets[0].size


def test_blocks_of_a_stage_with_one_map_each_are_merged():
    names = [f"stage{stage}.block{block}" for stage, block in itertools.product((1, 2), (0, 1))]
    separate = [attention_maps([[n]], name=name, stride=4, captions=("mean",)) for n, name in enumerate(names)]
    merged = group_by_stage(separate)
    assert [(one.name, one.captions, one.stride) for one in merged] == [
        ("stage1", ("block0", "block1"), 4),
        ("stage2", ("block0", "block1"), 4),
    ]
    np.testing.assert_array_equal(merged[1].maps, [[[2]], [[3]]])
    several = [attention_maps([[1]], [[2]], name=name) for name in names]
    others = [attention_maps([[1]], name="mixer"), attention_maps([[1]], name="0.block1.0.attn")]
    for alone in (several, others, [separate[0], attention_maps([[1, 2]], name=names[1], captions=("mean",))]):
        assert [one.name for one in group_by_stage(alone)] in ([one.name for one in alone], ["stage1", "stage1"])


@pytest.mark.parametrize(
    ("maps", "captions", "message"),
    [
        (np.zeros((2, 2)), ("a",), r"x: maps.*\(2, 2\)"),
        (np.zeros((0, 2, 2)), (), r"x: maps.*\(0, 2, 2\)"),
        (np.zeros((1, 2, 2)), ("a", "b"), "x: captions.*1.*2"),
        (np.full((1, 2, 2), np.nan), ("a",), "x: maps.*finite"),
        (np.full((1, 2, 2), np.inf), ("a",), "x: maps.*finite"),
    ],
)
def test_invalid_maps_are_rejected(maps: np.ndarray, captions: tuple, message: str):
    with pytest.raises(ShapeError, match=message):
        AttentionMaps(name="x", maps=maps, captions=captions)


def test_invalid_arguments_are_rejected():
    with pytest.raises(UsageError, match=r"groups.*none"):
        draw_attention_grid(green(8, 8), [])
    with pytest.raises(ShapeError, match=r"image.*0x8"):
        draw_attention_grid(Image.new("RGB", (0, 8)), [attention_maps([[1]])])
    with pytest.raises(ShapeError, match=r"stage1\.block0: 2x1 cells of stride 4 .* 9x4"):
        draw_attention_grid(green(9, 4), [attention_maps([[1, 2]], stride=4)])
    with pytest.raises(UsageError, match=r"4000 maps of 1 .*4000 pixels"):
        draw_attention_grid(green(8, 8), [attention_maps(*[[[1]]] * 4000)])
