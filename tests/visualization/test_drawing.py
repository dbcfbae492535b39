"""Distinct colors, legible text and visible boxes for any image and label."""

import colorsys
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.visualization.drawing import (
    add_legend,
    blend,
    box_to_rectangle,
    class_color,
    contrast_ratio,
    draw_box,
    draw_label_box,
    draw_mask,
    drawing_style,
    load_font,
    make_label_box,
    repeat_pixels,
    strip_unprintable,
    text_color,
    truncate_text,
    upscale_small_image,
)

VISION_MATRICES = {  # linear RGB as seen at full severity: Machado, Oliveira and Fernandes 2009, table 1
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}  # fmt: skip
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def min_distance(colors: list[tuple[int, int, int]], vision: str) -> float:
    """Return the CIELAB distance of the two most similar colors for a type of color vision."""
    values = np.array(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = (linear @ np.array(VISION_MATRICES[vision]).T).clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
    return min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(lab, 2))


def test_class_colors_never_change():
    """Drawings of different versions can be compared."""
    pinned = {0: (230, 159, 0), 1: (51, 34, 136), 7: (238, 102, 119), 8: (161, 111, 0), 9: (117, 106, 175)}
    assert {index: class_color(index) for index in pinned} == pinned


def test_the_first_eight_class_colors_are_distinct(subtests):
    for vision in VISION_MATRICES:
        with subtests.test(vision=str(vision)):
            assert min_distance([class_color(index) for index in range(8)], vision) > 22


def test_eight_rainbow_hues_are_not_distinct_for_deuteranopia():
    """Negative control: for normal vision they are distinct."""
    rainbow = [tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue / 8, 0.5, 0.9)) for hue in range(8)]
    assert min_distance(rainbow, "normal") > 22
    assert min_distance(rainbow, "deuteranopia") < 12


def test_every_class_of_a_palette_has_its_own_color():
    assert len({class_color(index) for index in range(255)}) == 255
    assert all(0 <= value <= 255 for index in range(25_000) for value in class_color(index))


def test_the_contrast_ratio_is_that_of_wcag():
    assert contrast_ratio((0, 0, 0), (255, 255, 255)) == contrast_ratio((255, 255, 255), (0, 0, 0)) == pytest.approx(21)
    assert contrast_ratio((119, 119, 119), (255, 255, 255)) == pytest.approx(
        4.48, abs=0.005
    )  # their example: #777 fails
    assert contrast_ratio((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.005)  # and #767676 passes
    assert contrast_ratio((9, 9, 9), (9, 9, 9)) == 1


def test_text_is_legible_on_any_color():
    backgrounds = [*itertools.product(range(0, 256, 15), repeat=3), *map(class_color, range(1000))]
    assert min(contrast_ratio(color, text_color(color)) for color in backgrounds) >= 4.5


def test_a_blend_is_45_percent_of_the_color():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3), dtype=np.uint8)
    for color in ((0, 0, 0), (255, 255, 255), (230, 159, 0)):
        expected = pixels * (1 - 115 / 256) + np.array(color) * 115 / 256
        assert np.abs(blend(pixels, color) - expected).max() <= 0.51


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), st.integers(1, 300), st.integers(1, 300))
def test_any_box_is_drawn_within_the_image_and_visible(box, width, height):
    """On gray, so that color and casing are counted where they were drawn."""
    box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
    left, top, right, bottom = box_to_rectangle(box, (width, height), 3)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left >= min(12, width)
    assert bottom - top >= min(12, height)
    sheet = Image.new("RGB", (width, height), (128, 128, 128))
    draw_box(ImageDraw.Draw(sheet), (left, top, right, bottom), (230, 159, 0), 3)
    pixels = np.asarray(sheet)
    colored = (pixels == (230, 159, 0)).all(-1)
    assert colored.sum() >= min(12, width, height)
    changed = np.argwhere((pixels != 128).any(-1))
    assert (changed.min(0) == (top, left)).all()
    assert (changed.max(0) == (bottom - 1, right - 1)).all()


def test_a_box_is_drawn_at_its_coordinates():
    """Inner edge and color by hand: box 10..30, casing of 1, line of 3."""
    sheet = Image.new("RGB", (40, 40), "gray")
    draw_box(ImageDraw.Draw(sheet), box_to_rectangle((10, 10, 30, 30), (40, 40), 3), (230, 159, 0), 3)
    row = [sheet.getpixel((column, 20)) for column in range(8, 16)]
    orange, gray, black = (230, 159, 0), (128, 128, 128), (0, 0, 0)
    assert row == [gray, black, orange, orange, orange, black, gray, gray]
    assert [sheet.getpixel((column, 20)) for column in range(31, 25, -1)] == [gray, black, *[orange] * 3, black]


def test_a_mask_is_blended_and_its_border_is_solid():
    pixels = np.full((11, 13, 3), 200, np.uint8)
    mask = np.zeros((11, 13), bool)
    mask[2:9, 3:10] = True
    draw_mask(pixels, mask, (0, 100, 0), 2)
    assert (pixels[~mask] == 200).all()
    inner = np.zeros_like(mask)
    inner[4:7, 5:8] = True
    assert (pixels[mask & ~inner] == (0, 100, 0)).all()
    assert (pixels[inner] == blend(np.full(3, 200, np.uint8), (0, 100, 0))).all()


def test_a_mask_without_a_pixel_changes_nothing():
    pixels = np.full((5, 7, 3), 9, np.uint8)
    draw_mask(pixels, np.zeros((5, 7), bool), (0, 0, 0), 2)
    assert (pixels == 9).all()


def test_small_images_are_enlarged_pixel_by_pixel(subtests):
    for width, height in [(1, 1), (7, 3), (128, 128), (479, 10), (480, 1), (1, 5000)]:
        with subtests.test(width=str(width), height=str(height)):
            values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            pixels, scale = upscale_small_image(Image.fromarray(values), (height, width))
            assert max(pixels.shape) >= 480
            assert scale == 1 or max(width, height) * (scale - 1) < 480
            assert np.array_equal(pixels, repeat_pixels(values, scale))
            assert np.array_equal(pixels[scale // 2 :: scale, scale // 2 :: scale], values)


def test_an_image_of_another_size_than_the_prediction_is_rejected():
    with pytest.raises(ShapeError, match=r"20x30.*30x20"):
        upscale_small_image(Image.new("RGB", (30, 20)), (30, 20))


def test_fonts_and_lines_grow_less_than_the_image():
    small, middle, large = drawing_style(100, 100), drawing_style(512, 512), drawing_style(4000, 3000)
    assert (small.font_px, middle.font_px) == (12, 14)
    assert 4 * middle.font_px < large.font_px < 7 * middle.font_px
    assert 2 <= small.line_px <= middle.line_px < large.line_px
    assert drawing_style(3, 3_000_000) == drawing_style(3_000_000, 3) == drawing_style(1, 1)


def test_a_label_fits_its_maximum_width_and_has_its_score(subtests):
    for label in ["cat", "", "x" * 10_000, "a\nb", "\udce9\x00", "собака " * 20, "犬🐶", "e\u0301" * 50]:
        for max_width_px in [90, 200]:
            with subtests.test(label=str(label), max_width_px=str(max_width_px)):
                label_box = make_label_box(label, 0.973, (230, 159, 0), 14, max_width_px)
                assert label_box.text.endswith(" 97%")
                assert label_box.size[0] <= max_width_px + 1
                sheet = Image.new("RGB", (300, 60), (1, 2, 3))
                draw_label_box(ImageDraw.Draw(sheet), label_box, (20, 20), 14)
                ink = np.argwhere((np.asarray(sheet) != (1, 2, 3)).any(-1))
                assert (ink.min(0) == 20).all()
                assert (
                    ink.max(0) == (20 + label_box.size[1] - 1, 20 + label_box.size[0] - 1)
                ).all()  # no letter outside its rectangle


def test_a_label_without_score_is_the_class_name():
    assert make_label_box("sky", None, (0, 0, 0), 14, 200).text == "sky"


def test_a_legend_has_every_entry_beside_or_below_the_image(subtests):
    for size in [(300, 200), (200, 300), (1, 1000), (1000, 1), (240, 300)]:
        for entries in [1, 7, 42]:
            with subtests.test(size=str(size), entries=str(entries)):
                image = Image.new("RGB", size, (1, 2, 3))
                colors = [class_color(index) for index in range(entries)]
                sheet = np.asarray(
                    add_legend(image, [(color, "label " * (n + 1)) for n, color in enumerate(colors)], 12)
                )
                beside = size[1] > 1.25 * size[0]
                assert (sheet.shape[0] == size[1]) == beside
                assert sheet.shape[1] >= size[0]
                assert (sheet == (1, 2, 3)).all(-1).sum() == size[0] * size[1]
                for color in colors:
                    assert (sheet == color).all(-1).sum() == 10 * 10  # a square of 12 without its edge
                assert sheet[:, -1].min() == 255 or sheet.shape[1] == size[0]  # no text runs out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=60), st.floats(0, 300))
def test_any_text_becomes_one_printable_line(text, max_width_px):
    line = strip_unprintable(text)
    assert line.isprintable()
    font = load_font(13)
    cut = truncate_text(text, max_width_px, font)
    assert cut == line or cut.endswith("...")
    assert font.getlength(cut) <= max(max_width_px, font.getlength("..."))
