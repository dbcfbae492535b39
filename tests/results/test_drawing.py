"""Colours that stay apart, letters that can be read, frames that are seen, whatever the picture and the label."""

import colorsys
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.results.drawing import (
    blend,
    class_colour,
    contrast,
    draw_chip,
    draw_frame,
    enlarged,
    font,
    frame_of,
    label_chip,
    magnified,
    one_line,
    paint_mask,
    shortened,
    style_for,
    text_colour,
    with_legend,
)

SIGHTS = {  # linear RGB as seen at full severity: Machado, Oliveira and Fernandes 2009, table 1
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}  # fmt: skip
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def nearest(colours: list[tuple[int, int, int]], sight: str) -> float:
    """The CIELAB distance of the two colours most alike, as somebody sees them."""
    share = np.array(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SIGHTS[sight]).T).clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
    return min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(lab, 2))


def test_a_class_has_the_same_colour_for_ever():
    """Pictures of this year and the next are laid side by side."""
    pinned = {0: (230, 159, 0), 1: (51, 34, 136), 7: (238, 102, 119), 8: (161, 111, 0), 9: (117, 106, 175)}
    assert {index: class_colour(index) for index in pinned} == pinned


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_first_eight_classes_are_told_apart(sight):
    assert nearest([class_colour(index) for index in range(8)], sight) > 22


def test_eight_hues_of_a_rainbow_would_not_be():
    """The control: to normal sight they are far apart."""
    rainbow = [tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue / 8, 0.5, 0.9)) for hue in range(8)]
    assert nearest(rainbow, "normal") > 22
    assert nearest(rainbow, "deuteranopia") < 12


def test_every_class_of_a_palette_has_a_colour_of_its_own():
    assert len({class_colour(index) for index in range(255)}) == 255
    assert all(0 <= value <= 255 for index in range(25_000) for value in class_colour(index))


def test_contrast_is_that_of_the_web_guidelines():
    assert contrast((0, 0, 0), (255, 255, 255)) == contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)  # their example: #777 fails
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.005)  # and #767676 passes
    assert contrast((9, 9, 9), (9, 9, 9)) == 1


def test_text_can_be_read_on_any_colour():
    grounds = [*itertools.product(range(0, 256, 15), repeat=3), *map(class_colour, range(1000))]
    assert min(contrast(ground, text_colour(ground)) for ground in grounds) >= 4.5


def test_a_blend_is_0_45_of_the_colour_and_the_rest_of_the_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3), dtype=np.uint8)
    for colour in ((0, 0, 0), (255, 255, 255), (230, 159, 0)):
        expected = pixels * (1 - 115 / 256) + np.array(colour) * 115 / 256
        assert np.abs(blend(pixels, colour) - expected).max() <= 0.51


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), st.integers(1, 300), st.integers(1, 300))
def test_the_frame_of_any_box_lies_within_the_picture_and_is_seen(box, width, height):
    """On grey, so that colour and casing are counted where they were drawn."""
    box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
    left, top, right, bottom = frame_of(box, (width, height), 3)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left >= min(12, width)
    assert bottom - top >= min(12, height)
    sheet = Image.new("RGB", (width, height), (128, 128, 128))
    draw_frame(ImageDraw.Draw(sheet), (left, top, right, bottom), (230, 159, 0), 3)
    pixels = np.asarray(sheet)
    coloured = (pixels == (230, 159, 0)).all(-1)
    assert coloured.sum() >= min(12, width, height)
    changed = np.argwhere((pixels != 128).any(-1))
    assert (changed.min(0) == (top, left)).all()
    assert (changed.max(0) == (bottom - 1, right - 1)).all()


def test_a_frame_begins_where_its_box_does():
    """Inner edge and colour by hand: box 10..30, casing of 1, line of 3."""
    sheet = Image.new("RGB", (40, 40), "grey")
    draw_frame(ImageDraw.Draw(sheet), frame_of((10, 10, 30, 30), (40, 40), 3), (230, 159, 0), 3)
    row = [sheet.getpixel((column, 20)) for column in range(8, 16)]
    orange, grey, black = (230, 159, 0), (128, 128, 128), (0, 0, 0)
    assert row == [grey, black, orange, orange, orange, black, grey, grey]
    assert [sheet.getpixel((column, 20)) for column in range(31, 25, -1)] == [grey, black, *[orange] * 3, black]


def test_a_mask_is_tinted_and_its_outline_is_its_colour():
    pixels = np.full((11, 13, 3), 200, np.uint8)
    mask = np.zeros((11, 13), bool)
    mask[2:9, 3:10] = True
    paint_mask(pixels, mask, (0, 100, 0), 2)
    assert (pixels[~mask] == 200).all()
    inner = np.zeros_like(mask)
    inner[4:7, 5:8] = True
    assert (pixels[mask & ~inner] == (0, 100, 0)).all()
    assert (pixels[inner] == blend(np.full(3, 200, np.uint8), (0, 100, 0))).all()


def test_a_mask_without_a_pixel_changes_nothing():
    pixels = np.full((5, 7, 3), 9, np.uint8)
    paint_mask(pixels, np.zeros((5, 7), bool), (0, 0, 0), 2)
    assert (pixels == 9).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 3), (128, 128), (479, 10), (480, 1), (1, 5000)])
def test_small_pictures_are_enlarged_pixel_by_pixel(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels, scale = enlarged(Image.fromarray(values), (height, width))
    assert max(pixels.shape) >= 480
    assert scale == 1 or max(width, height) * (scale - 1) < 480
    assert np.array_equal(pixels, magnified(values, scale))
    assert np.array_equal(pixels[scale // 2 :: scale, scale // 2 :: scale], values)


def test_a_picture_of_another_size_than_the_answer_is_refused():
    with pytest.raises(ShapeError, match="picture is 30x20, the answer is about one of 20x30; draw on"):
        enlarged(Image.new("RGB", (30, 20)), (30, 20))


def test_letters_and_lines_grow_with_the_picture_but_less():
    small, middle, large = style_for(100, 100), style_for(512, 512), style_for(4000, 3000)
    assert (small.font_px, middle.font_px) == (12, 14)
    assert 4 * middle.font_px < large.font_px < 7 * middle.font_px
    assert 2 <= small.line_px <= middle.line_px < large.line_px
    assert style_for(3, 3_000_000) == style_for(3_000_000, 3) == style_for(1, 1)


@pytest.mark.parametrize(
    "label", ["cat", "", "x" * 10_000, "a\nb", "\udce9\x00", "собака " * 20, "犬🐶", "e\u0301" * 50]
)
@pytest.mark.parametrize("room_px", [90, 200])
def test_a_chip_keeps_to_its_room_and_shows_its_score(label, room_px):
    chip = label_chip(label, 0.973, (230, 159, 0), 14, room_px)
    assert chip.text.endswith(" 97%")
    assert chip.size[0] <= room_px + 1
    sheet = Image.new("RGB", (300, 60), (1, 2, 3))
    draw_chip(ImageDraw.Draw(sheet), chip, (20, 20), 14)
    ink = np.argwhere((np.asarray(sheet) != (1, 2, 3)).any(-1))
    assert (ink.min(0) == 20).all()
    assert (ink.max(0) == (20 + chip.size[1] - 1, 20 + chip.size[0] - 1)).all()  # no letter beyond its ground


def test_a_label_without_score_is_the_label():
    assert label_chip("sky", None, (0, 0, 0), 14, 200).text == "sky"


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1, 1000), (1000, 1), (240, 300)])
@pytest.mark.parametrize("entries", [1, 7, 42])
def test_a_legend_shows_every_entry_beside_or_below_the_picture(size, entries):
    picture = Image.new("RGB", size, (1, 2, 3))
    colours = [class_colour(index) for index in range(entries)]
    sheet = np.asarray(with_legend(picture, [(colour, "label " * (n + 1)) for n, colour in enumerate(colours)], 12))
    beside = size[1] > 1.25 * size[0]
    assert (sheet.shape[0] == size[1]) == beside
    assert sheet.shape[1] >= size[0]
    assert (sheet == (1, 2, 3)).all(-1).sum() == size[0] * size[1]
    for colour in colours:
        assert (sheet == colour).all(-1).sum() == 10 * 10  # a square of 12 without its edge
    assert sheet[:, -1].min() == 255 or sheet.shape[1] == size[0]  # no text runs out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=60), st.floats(0, 300))
def test_any_text_becomes_one_line_that_can_be_drawn(text, room_px):
    line = one_line(text)
    assert line.isprintable()
    letters = font(13)
    cut = shortened(text, room_px, letters)
    assert cut == line or cut.endswith("...")
    assert letters.getlength(cut) <= max(room_px, letters.getlength("..."))
