"""Colours, letters and labels for everything that is drawn over a picture.

Shapes: pixels (H, W, 3) uint8 and masks (H, W) bool, rows from the top; rectangles are left, top, right, bottom in
pixels, the last column and row left out. Sources: the base colours are eight of Okabe and Ito's (2008) and Paul Tol's
(SRON/EPS/TN/09-002), any two of which are more than 22 apart in CIELAB for readers with normal, deuteranopic and
protanopic sight; contrast is that of WCAG 2.1, where 4.5 is asked of text.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from van.errors import ShapeError
from van.pictures import to_rgb

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_BASE: tuple[Colour, ...] = (
    (230, 159, 0), (51, 34, 136), (86, 180, 233), (17, 119, 51),
    (136, 34, 85), (221, 204, 119), (170, 68, 153), (238, 102, 119),
)  # fmt: skip
_LEAST_LONG_SIDE_PX = 480
_LEAST_LEGEND_PX = 240
_TINT = 115
"""Of 256 parts of a tinted pixel, those that are the class's colour."""


class Style(NamedTuple):
    """Sizes that suit a picture."""

    font_px: int
    line_px: int


class Chip(NamedTuple):
    """A label on its colour; ``size`` is width and height."""

    text: str
    colour: Colour
    size: tuple[int, int]


def class_colour(index: int) -> Colour:
    """The colour of class ``index``, the same in every picture.

    Every eight classes the base colours come again, mixed with black or white in another proportion, the bright ones
    first with black and the dark ones first with white.
    """
    base = _BASE[index % len(_BASE)]
    level = _spread(index // len(_BASE)) * (1 if text_colour(base) == BLACK else -1)
    toward, share = (255, 0.65 * level) if level > 0 else (0, -0.6 * level)
    red, green, blue = (round(value + (toward - value) * share) for value in base)
    return red, green, blue


def text_colour(ground: Colour) -> Colour:
    """Black or white, whichever is read better on ``ground``; the contrast is never below 4.58."""
    return BLACK if contrast(ground, BLACK) >= contrast(ground, WHITE) else WHITE


def contrast(one: Colour, other: Colour) -> float:
    """How well one colour is read on the other: 1 (not at all) to 21 (black on white)."""
    dark, bright = sorted((_luminance(one), _luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def one_line(text: str) -> str:
    """``text`` without what no font can draw: line breaks, control characters, halves of characters."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def shortened(label: str, room_px: float, letters: ImageFont.FreeTypeFont) -> str:
    """As much of ``label`` as fits, found by halving."""
    label = one_line(label)
    if len(label) < room_px and letters.getlength(label) <= room_px:
        return label
    fits, too_long = 0, min(len(label), int(room_px)) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        whole = letters.getlength(label[:middle] + "...") <= room_px
        fits, too_long = (middle, too_long) if whole else (fits, middle)
    return label[:fits] + "..."


@functools.lru_cache(maxsize=8)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows Greek, Cyrillic, Arabic and Hebrew beside Latin letters."""
    import matplotlib  # a third of a second that only pictures need

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def enlarged(picture: Image.Image, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """The picture's pixels, each a square of so many pixels that a small picture can be drawn on; and that number.

    Args:
        picture: what the answer is about.
        size: its rows and columns as the answer has them.

    Raises:
        ShapeError: the sizes differ.
    """
    if (picture.height, picture.width) != size:
        raise ShapeError(
            f"picture is {picture.width}x{picture.height}, the answer is about one of {size[1]}x{size[0]}; "
            "draw on the picture that was predicted"
        )
    scale = -(-_LEAST_LONG_SIDE_PX // max(size))
    pixels = np.array(to_rgb(picture))
    return magnified(pixels, scale), scale


def magnified(values: np.ndarray, scale: int) -> np.ndarray:
    """Each value (H, W, ...) ``scale`` times in both directions."""
    return values if scale == 1 else values.repeat(scale, axis=0).repeat(scale, axis=1)


def style_for(width: int, height: int) -> Style:
    """Letters of 14 pixels on a picture of 512x512, and less than in proportion larger on larger ones.

    A strip counts as if it were eight times as long as wide, or its letters would be wider than it is.
    """
    shorter, longer = sorted((width, height))
    font_px = max(12, round(0.07 * (shorter * min(longer, 8 * shorter)) ** 0.425))
    return Style(font_px, max(2, font_px // 4))


def blend(pixels: np.ndarray, colours: np.ndarray | Colour) -> np.ndarray:
    """Pixels (..., 3) under a glass of ``colours``, one or one for each."""
    over = np.asarray(colours, np.uint16)
    return ((pixels.astype(np.uint16) * np.uint16(256 - _TINT) + over * np.uint16(_TINT) + 128) >> 8).astype(np.uint8)


def paint_mask(pixels: np.ndarray, mask: np.ndarray, colour: Colour, line_px: int) -> None:
    """Tint ``pixels`` where ``mask`` holds, and draw its outline within it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside, part = mask[window], pixels[window]
    part[inside] = blend(part[inside], colour)
    part[inside & ~_eroded(inside, line_px)] = colour


def frame_of(box: Sequence[float], bounds: tuple[int, int], line_px: int) -> Rectangle:
    """The rectangle that the frame of ``box`` fills, with its casing around it.

    It lies within ``bounds``, width and height, and is never smaller than can be seen, where the box is but a pixel.
    """
    casing_px = _casing(line_px)
    (left, right), (top, bottom) = (
        _widened(box[axis] - casing_px, box[axis + 2] + casing_px, 4 * line_px, bounds[axis]) for axis in (0, 1)
    )
    return left, top, right, bottom


def draw_frame(draw: ImageDraw.ImageDraw, frame: Rectangle, colour: Colour, line_px: int) -> None:
    """A line along the edge of ``frame``, cased in black or white on both sides, so that it shows on any ground."""
    casing_px = _casing(line_px)
    left, top, right, bottom = frame
    draw.rectangle((left, top, right - 1, bottom - 1), outline=text_colour(colour), width=line_px + 2 * casing_px)
    across, down = (casing_px if side > 2 * casing_px else 0 for side in (right - left, bottom - top))
    inner = (left + across, top + down, right - 1 - across, bottom - 1 - down)
    draw.rectangle(inner, outline=colour, width=line_px)


def label_chip(label: str, score: float | None, colour: Colour, font_px: int, room_px: float) -> Chip:
    """The label, cut to ``room_px``, and its score as a percentage."""
    letters = font(font_px)
    end = "" if score is None else f" {score:.0%}"
    padding = 2 * _padding(font_px)
    text = shortened(label, room_px - padding - letters.getlength(end), letters) + end
    return Chip(text, colour, (round(letters.getlength(text)) + padding, _chip_height(font_px)))


def draw_chip(draw: ImageDraw.ImageDraw, chip: Chip, place: tuple[int, int], font_px: int) -> None:
    """Draw ``chip`` with its upper left corner at ``place``; its edge sets it off from ground of the same colour."""
    left, top = place
    width, height = chip.size
    ink = text_colour(chip.colour)
    edge_px = _casing(font_px // 4)
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=chip.colour, outline=ink, width=edge_px)
    draw.text((left + _padding(font_px), top + height / 2), chip.text, fill=ink, font=font(font_px), anchor="lm")


def with_legend(picture: Image.Image, entries: Sequence[tuple[Colour, str]], font_px: int) -> Image.Image:
    """The picture with a list of colours and what they mean: beside it if it is tall, else below."""
    letters, row_px, gap = font(font_px), round(1.6 * font_px), font_px // 2
    longest = max((round(letters.getlength(one_line(text))) for _, text in entries), default=0) + font_px + 3 * gap
    beside = picture.height > 1.25 * picture.width
    room_px = max(picture.width, _LEAST_LEGEND_PX)
    column_px = min(longest, room_px)
    if beside:
        rows = max(1, (picture.height - gap) // row_px)
        columns = -(-len(entries) // rows)
        sheet = Image.new("RGB", (picture.width + gap + columns * column_px, picture.height), "white")
        left, top = picture.width + gap, gap
    else:
        columns = room_px // column_px
        rows = -(-len(entries) // columns)
        sheet = Image.new("RGB", (room_px, picture.height + 2 * gap + rows * row_px), "white")
        left, top = gap, picture.height + gap
    sheet.paste(picture, (0 if beside else (sheet.width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for number, (colour, text) in enumerate(entries):
        column, row = divmod(number, rows) if beside else divmod(number, columns)[::-1]
        x, y = left + column * column_px, top + row * row_px
        swatch = (x, y + (row_px - font_px) // 2, x + font_px - 1, y + (row_px + font_px) // 2 - 1)
        draw.rectangle(swatch, fill=colour, outline="black")
        text = shortened(text, column_px - font_px - 2 * gap, letters)
        draw.text((x + font_px + gap, y + row_px / 2), text, fill="black", font=letters, anchor="lm")
    return sheet


def _spread(number: int) -> float:
    """0, then numbers between -1 and 1 that keep away from those before: van der Corput's sequence."""
    value, step = 0.0, 0.5
    number += 1
    while number:
        value += step * (number & 1)
        number, step = number >> 1, step / 2
    return 2 * value - 1


def _luminance(colour: Colour) -> float:
    linear = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in colour))
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _eroded(mask: np.ndarray, by: int) -> np.ndarray:
    """What is left of a mask when ``by`` pixels are taken off, left and right, above and below."""
    rows, columns = mask.shape
    padded, kept = np.pad(mask, by), mask.copy()
    for step in range(2 * by + 1):
        kept &= padded[step : step + rows, by : by + columns]
        kept &= padded[by : by + rows, step : step + columns]
    return kept


def _widened(start: float, end: float, least: int, limit: int) -> tuple[int, int]:
    """Where a side begins and ends, at least ``least`` pixels long, and within ``limit``."""
    first, last = round(start), round(end)
    missing = max(0, least - (last - first))
    first, last = first - missing // 2, last + missing - missing // 2
    first = min(max(first, 0), max(0, limit - least))
    return first, min(limit, max(last, first + least))


def _casing(line_px: int) -> int:
    return max(1, line_px // 4)


def _padding(font_px: int) -> int:
    return max(3, font_px // 3)


def _chip_height(font_px: int) -> int:
    return round(1.45 * font_px)
