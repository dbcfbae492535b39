"""Annotated images: colors, fonts, masks, boxes and labels, and places for labels that hide nothing else.

Shapes: pixels (H, W, 3) uint8 and masks (H, W) bool, rows from the top; rectangles are left, top, right, bottom in
pixels, right and bottom exclusive. Sources: the base colors are eight of Okabe and Ito's (2008) and Paul Tol's
(SRON/EPS/TN/09-002), any two of which are more than 22 apart in CIELAB for readers with normal, deuteranopic and
protanopic vision; contrast is that of WCAG 2.1, which requires 4.5 for text.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from van.errors import ShapeError
from van.images import to_rgb

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_BASE: tuple[Color, ...] = (
    (230, 159, 0), (51, 34, 136), (86, 180, 233), (17, 119, 51),
    (136, 34, 85), (221, 204, 119), (170, 68, 153), (238, 102, 119),
)  # fmt: skip
_MIN_LONG_SIDE_PX = 480
_MIN_LEGEND_PX = 240
_TINT = 115
"""Weight of the class's color in a blended pixel, of 256."""
_MAX_HIDDEN, _MIN_INSIDE = 0.5, 0.6
"""Fractions of a label that may lie on other labels, and that must lie on its region."""


class Style(NamedTuple):
    """Font size and line width that suit an image."""

    font_px: int
    line_px: int


class LabelBox(NamedTuple):
    """A text label on a filled rectangle; ``size`` is width and height in pixels."""

    text: str
    color: Color
    size: tuple[int, int]


def class_color(index: int) -> Color:
    """Return the color of class ``index``, the same in every image.

    After every eight classes the base colors repeat, mixed with black or white in another proportion: bright ones
    first with black, dark ones first with white.
    """
    base = _BASE[index % len(_BASE)]
    level, step, turn = -1.0, 1.0, index // len(_BASE) + 1
    while turn:  # van der Corput's sequence, scaled to -1..1: 0, then values far from all before
        level += step * (turn & 1)
        turn, step = turn >> 1, step / 2
    level *= 1 if text_color(base) == BLACK else -1
    toward, weight = (255, 0.65 * level) if level > 0 else (0, -0.6 * level)
    red, green, blue = (round(value + (toward - value) * weight) for value in base)
    return red, green, blue


def text_color(background: Color) -> Color:
    """Return black or white, whichever has more contrast to ``background``; the contrast is never below 4.58."""
    return BLACK if contrast_ratio(background, BLACK) >= contrast_ratio(background, WHITE) else WHITE


def contrast_ratio(one: Color, other: Color) -> float:
    """Return the WCAG 2.1 contrast ratio of two colors: 1 (the same) to 21 (black and white)."""
    luminances = []
    for color in (one, other):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in color)]
        luminances.append(sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def strip_unprintable(text: str) -> str:
    """Return ``text`` on one line, without control characters and surrogates, which no font can draw."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def truncate_text(label: str, max_width_px: float, font: ImageFont.FreeTypeFont) -> str:
    """Return as much of ``label`` as fits into ``max_width_px``, found by bisection."""
    label = strip_unprintable(label)
    # A character is at least one pixel wide: measuring a very long label in full would be slow.
    if len(label) < max_width_px and font.getlength(label) <= max_width_px:
        return label
    fits, too_long = 0, min(len(label), int(max_width_px)) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        is_short = font.getlength(label[:middle] + "...") <= max_width_px
        fits, too_long = (middle, too_long) if is_short else (fits, middle)
    return label[:fits] + "..."


@functools.lru_cache(maxsize=8)
def load_font(font_px: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which matplotlib ships; it has Latin, Greek, Cyrillic, Arabic and Hebrew letters."""
    import matplotlib  # imported here: it takes 0.3 s, which only drawing needs

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", font_px)


def upscale_small_image(image: Image.Image, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Return the image's pixels (H, W, 3), enlarged by a whole factor if the image is small, and that factor.

    Args:
        image: the image that was predicted.
        size: height and width of the image according to the prediction.

    Raises:
        ShapeError: the sizes differ.
    """
    if (image.height, image.width) != size:
        raise ShapeError(
            f"image: expected {size[1]}x{size[0]} pixels as in the prediction, got {image.width}x{image.height}; "
            "draw on the image that was predicted"
        )
    scale = -(-_MIN_LONG_SIDE_PX // max(size))
    pixels = np.array(to_rgb(image))
    return repeat_pixels(pixels, scale), scale


def repeat_pixels(values: np.ndarray, scale: int) -> np.ndarray:
    """Repeat each value (H, W, ...) ``scale`` times along both axes."""
    return values if scale == 1 else values.repeat(scale, axis=0).repeat(scale, axis=1)


def drawing_style(width: int, height: int) -> Style:
    """Return sizes for an image: a font of 14 pixels at 512x512, growing less than in proportion.

    Very long images count as eight times as long as wide, or their text would be wider than the image.
    """
    shorter, longer = sorted((width, height))
    font_px = max(12, round(0.07 * (shorter * min(longer, 8 * shorter)) ** 0.425))
    return Style(font_px, max(2, font_px // 4))


def blend(pixels: np.ndarray, colors: np.ndarray | Color) -> np.ndarray:
    """Mix pixels (..., 3) with ``colors``, one for all or one for each."""
    over = np.asarray(colors, np.uint16)
    return ((pixels.astype(np.uint16) * np.uint16(256 - _TINT) + over * np.uint16(_TINT) + 128) >> 8).astype(np.uint8)


def draw_mask(pixels: np.ndarray, mask: np.ndarray, color: Color, line_px: int) -> None:
    """Blend ``color`` into ``pixels`` within ``mask``, in place, with a solid border of ``line_px`` inside its edge."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside, view = mask[window], pixels[window]
    view[inside] = blend(view[inside], color)
    padded, inner = np.pad(inside, line_px), inside.copy()
    height, width = inside.shape
    for step in range(2 * line_px + 1):  # inner pixels are as far as a line from the edge, along rows and columns
        inner &= padded[step : step + height, line_px : line_px + width]
        inner &= padded[line_px : line_px + height, step : step + width]
    view[inside & ~inner] = color


def box_to_rectangle(box: Sequence[float], bounds: tuple[int, int], line_px: int) -> Rectangle:
    """Return the rectangle that ``box`` is drawn in, its black or white casing included.

    It is within ``bounds`` (width, height) and is at least four lines wide and high, so that tiny boxes are visible.
    """
    casing_px, sides = max(1, line_px // 4), []
    for start, end, limit in ((box[0], box[2], bounds[0]), (box[1], box[3], bounds[1])):
        first, last = round(start - casing_px), round(end + casing_px)
        missing = max(0, 4 * line_px - (last - first))
        first, last = first - missing // 2, last + missing - missing // 2
        first = min(max(first, 0), max(0, limit - 4 * line_px))
        sides.append((first, min(limit, max(last, first + 4 * line_px))))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def draw_box(draw: ImageDraw.ImageDraw, rectangle: Rectangle, color: Color, line_px: int) -> None:
    """Draw a line along the edge of ``rectangle``, cased in black or white, so that it is visible on any image."""
    casing_px = max(1, line_px // 4)
    left, top, right, bottom = rectangle
    draw.rectangle((left, top, right - 1, bottom - 1), None, text_color(color), line_px + 2 * casing_px)
    across, down = (casing_px if side > 2 * casing_px else 0 for side in (right - left, bottom - top))
    inner = (left + across, top + down, right - 1 - across, bottom - 1 - down)
    draw.rectangle(inner, None, color, line_px)


def make_label_box(label: str, score: float | None, color: Color, font_px: int, max_width_px: float) -> LabelBox:
    """Return the label with its score as a percentage, truncated to ``max_width_px``."""
    font = load_font(font_px)
    end = "" if score is None else f" {score:.0%}"
    padding = 2 * max(3, font_px // 3)
    text = truncate_text(label, max_width_px - padding - font.getlength(end), font) + end
    return LabelBox(text, color, (round(font.getlength(text)) + padding, round(1.45 * font_px)))


def draw_label_box(draw: ImageDraw.ImageDraw, label: LabelBox, corner: tuple[int, int], font_px: int) -> None:
    """Draw ``label`` with its upper left corner at ``corner``; a border separates it from a mask of the same color."""
    (left, top), (width, height) = corner, label.size
    ink = text_color(label.color)
    draw.rectangle((left, top, left + width - 1, top + height - 1), label.color, ink, max(1, font_px // 16))
    start = (left + max(3, font_px // 3), top + height / 2)
    draw.text(start, label.text, fill=ink, font=load_font(font_px), anchor="lm")


def add_legend(image: Image.Image, entries: Sequence[tuple[Color, str]], font_px: int) -> Image.Image:
    """Return the image with a legend of colors and texts: beside it if it is tall, else below."""
    font, row_px, gap = load_font(font_px), round(1.6 * font_px), font_px // 2
    widths = [round(font.getlength(strip_unprintable(text))) for _, text in entries]
    longest = max(widths, default=0) + font_px + 3 * gap
    beside = image.height > 1.25 * image.width
    available_px = max(image.width, _MIN_LEGEND_PX)
    column_px = min(longest, available_px)
    if beside:
        rows = max(1, (image.height - gap) // row_px)
        columns = -(-len(entries) // rows)
        sheet = Image.new("RGB", (image.width + gap + columns * column_px, image.height), "white")
        left, top = image.width + gap, gap
    else:
        columns = available_px // column_px
        rows = -(-len(entries) // columns)
        sheet = Image.new("RGB", (available_px, image.height + 2 * gap + rows * row_px), "white")
        left, top = gap, image.height + gap
    sheet.paste(image, (0 if beside else (sheet.width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for place, (color, text) in enumerate(entries):
        column, row = divmod(place, rows) if beside else divmod(place, columns)[::-1]
        x, y = left + column * column_px, top + row * row_px
        swatch = (x, y + (row_px - font_px) // 2, x + font_px - 1, y + (row_px + font_px) // 2 - 1)
        draw.rectangle(swatch, color, "black")
        text = truncate_text(text, column_px - font_px - 2 * gap, font)
        draw.text((x + font_px + gap, y + row_px / 2), text, fill="black", font=font, anchor="lm")
    return sheet


def place_label_box(
    label: tuple[int, int], box: Rectangle, bounds: tuple[int, int], occupied: np.ndarray, boxes: np.ndarray
) -> tuple[int, int] | None:
    """Return the upper left corner of a label: beside or just within its box, clear of others if possible.

    None if the image is too small or most of the label would cover others.

    Args:
        label, bounds: width and height of the label and of the image.
        box: the box that the label belongs to.
        occupied: (N, 4) rectangles of labels already placed.
        boxes: (M, 4) rectangles that should not be covered.
    """
    width, height = label
    if width > bounds[0] or height > bounds[1]:
        return None
    x1, y1, x2, y2 = box
    rows = (y1 - height, y1, y2, y2 - height)
    columns = (x1, x2 - width, (x1 + x2 - width) // 2)
    corners = [(column, row) for column in columns for row in rows]
    corners += [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height), (x2, y2), (x2, y1 - height)]
    corners = [(min(max(x, 0), bounds[0] - width), min(max(y, 0), bounds[1] - height)) for x, y in corners]
    rectangles = np.array([(x, y, x + width, y + height) for x, y in corners])
    shared = []  # intersection areas of the candidates with the labels, and with the boxes
    for others in (occupied, boxes):
        starts = np.maximum(rectangles[:, None, :2], others[None, :, :2])
        ends = np.minimum(rectangles[:, None, 2:], others[None, :, 2:])
        shared.append((ends - starts).clip(0).prod(2))
    on_labels = shared[0].sum(1) / (width * height)
    on_boxes = (shared[1] / (boxes[:, 2:] - boxes[:, :2]).prod(1).clip(1)).sum(1)
    # Covering a label is worse than covering a box; the last term prefers earlier candidates among equal ones.
    best = int(np.argmin(8 * on_labels + on_boxes + 0.02 * np.arange(len(corners))))
    return corners[best] if on_labels[best] < _MAX_HIDDEN else None


def place_in_region(region: np.ndarray, free: np.ndarray, rows: int, columns: int) -> tuple[int, int] | None:
    """Return the upper left row and column of a label in a region: far from its edge, near its center.

    None if the region is too small for it.

    Args:
        region, free: (H, W) bool: the region that the label belongs to, and the pixels without another label.
        rows, columns: size of the label.
    """
    if rows > region.shape[0] or columns > region.shape[1]:
        return None
    inside, blocked = (_window_sums(values, rows, columns) for values in (region, ~free))
    top, left = rows // 2, columns // 2
    distance = distance_to_edge(region, horizontal_step=rows / columns)
    distance = distance[top : top + inside.shape[0], left : left + inside.shape[1]]
    distance = np.where((blocked == 0) & (inside >= _MIN_INSIDE * rows * columns), distance, 0)
    if not distance.any():
        return None
    down, right = np.nonzero(distance >= 0.9 * distance.max())
    middle = [np.mean(places) for places in np.nonzero(region)]
    best = np.argmin((down + top - middle[0]) ** 2 + (right + left - middle[1]) ** 2)
    return int(down[best]), int(right[best])


def distance_to_edge(region: np.ndarray, *, horizontal_step: float = 1.0) -> np.ndarray:
    """Return the city-block distance of each pixel to the nearest pixel outside the region; 0 outside.

    Pixels beyond the border are outside. A vertical step counts 1, a horizontal one ``horizontal_step``.
    """
    distance = np.pad(np.where(region, np.inf, 0.0), 1)
    for lines, step in ((distance, 1.0), (distance.T, horizontal_step)):  # nearest within a column, then over columns
        for line in range(1, len(lines)):
            np.minimum(lines[line], lines[line - 1] + step, out=lines[line])
        for line in range(len(lines) - 2, -1, -1):
            np.minimum(lines[line], lines[line + 1] + step, out=lines[line])
    return distance[1:-1, 1:-1]


def _window_sums(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the sum of ``values`` over each rectangle of that size, by its upper left corner (integral image)."""
    total = np.pad(values.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
