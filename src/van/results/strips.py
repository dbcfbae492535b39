"""Strips of maps with a sign beside the picture that they are about: the gates of large kernel attention.

Every map has a scale of its own, written under it, from minus to plus its largest magnitude; its cells are drawn as
squares, not smoothed. Shapes: a strip holds maps (k, h, w); sizes and places on the sheet are in pixels.
Colours: matplotlib's RdBu, blue below 0, white at 0, red above, which ColorBrewer lists as safe for colour-blind
readers.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from van.errors import ShapeError, UsageError
from van.pictures import to_rgb
from van.results.drawing import font, one_line, shortened

LARGEST_SHEET_PX = 4000
_LONG_SIDES_PX = (192, 160, 128, 112, 96, 80, 64, 48, 32, 24, 16)
_LEAST_SIDE_PX = 6
_LETTERS_PX, _HEADING_PX = 12, 14
_LINE_PX = 16
_GAP_PX, _BETWEEN_PX, _MARGIN_PX = 10, 24, 14
_BAR = (180, 14)
_TEXT, _QUIET, _EDGE = (0, 0, 0), (85, 85, 85), (150, 150, 150)
_EXPLAINED = (
    "s is the number under each map, the largest magnitude in it.",
    "Below 0 the gate turns a feature's sign, at 0 it shuts it out, above 0 it lets it through.",
)
_SEEN = "what is seen"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Strip:
    """Some maps of one size, of one block or stage.

    Args:
        name: of the block or stage.
        maps: (k, h, w), numbers of either sign.
        captions: one for each map.
        cell_px: side of a cell in pixels of the picture; where the last cells reach over its edge, as a network's do
            that pads, they are cut there. None spreads the cells over the picture.

    Raises:
        ShapeError: the maps are none, or not finite, or there is not a caption for each.
    """

    name: str
    maps: np.ndarray
    captions: tuple[str, ...]
    cell_px: float | None = None

    def __post_init__(self) -> None:
        if self.maps.ndim != 3 or 0 in self.maps.shape:
            raise ShapeError(f"maps of {self.name} are {self.maps.shape}; wanted (k, h, w), each at least 1")
        if len(self.captions) != len(self.maps):
            raise ShapeError(f"{self.name} has {len(self.maps)} maps and {len(self.captions)} captions; wanted as many")
        if not np.isfinite(self.maps).all():
            raise ShapeError(f"the maps of {self.name} are not finite everywhere; look at the weights")

    @property
    def scales(self) -> tuple[float, ...]:
        """Of each map, the largest magnitude in it."""
        return tuple(float(np.abs(values).max()) for values in self.maps)


class _Layout(NamedTuple):
    """How large a picture is drawn, how many maps stand in a line, and which strips stand above one another."""

    tile: tuple[int, int]
    pitch_px: int
    maps_in_line: int
    columns: tuple[tuple[Strip, ...], ...]

    def height(self, strip: Strip) -> int:
        lines = -(-len(strip.maps) // self.maps_in_line)
        return _LINE_PX + 4 + lines * self.line_px + _GAP_PX // 2

    @property
    def line_px(self) -> int:
        return self.tile[1] + 2 * _LINE_PX + _GAP_PX

    @property
    def column_px(self) -> int:
        return (1 + self.maps_in_line) * self.pitch_px + _BETWEEN_PX

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of all strips."""
        tallest = max(sum(self.height(strip) for strip in column) for column in self.columns)
        return len(self.columns) * self.column_px, tallest


def by_stage(strips: Sequence[Strip]) -> list[Strip]:
    """The strips with the blocks of a stage joined where each has one map, such as the mean, of one size."""
    joined: list[Strip] = []
    for stage, group in itertools.groupby(strips, key=_alike):
        members = list(group)
        if not stage:
            joined += members
            continue
        captions = tuple(strip.name.rpartition(".")[2] for strip in members)
        maps = np.concatenate([strip.maps for strip in members])
        joined.append(Strip(name=stage[0], maps=maps, captions=captions, cell_px=members[0].cell_px))
    return joined


def draw_strips(picture: Image.Image, strips: Sequence[Strip], *, title: str = "") -> Image.Image:
    """A sheet with a strip in each row: the picture, then the maps, each with its caption and its scale.

    Long strips go on in a further line, many strips in a further column; with more of either everything is smaller,
    so that the sheet has at most 4000 pixels a side.

    Args:
        picture: what the network saw, as large as it saw it.
        strips: at least one.
        title: a line above everything.

    Raises:
        UsageError: there is nothing to draw, or more than a sheet holds.
        ShapeError: the picture has no pixels, or cells do not reach over all of it.
    """
    if not strips:
        raise UsageError("strips is empty; wanted at least one block")
    if 0 in picture.size:
        raise ShapeError(f"a picture of {picture.width}x{picture.height} has no pixels")
    layout = _layout(picture.size, strips)
    legend = _legend()
    width = max(layout.size[0], legend.width + _GAP_PX + _BETWEEN_PX) + 2 * _MARGIN_PX - _GAP_PX - _BETWEEN_PX
    above = _MARGIN_PX + (2 * _LINE_PX if title else 0)
    sheet = Image.new("RGB", (width, above + layout.size[1] + legend.height + _MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        letters = font(_HEADING_PX + 3)
        text = shortened(title, width - 2 * _MARGIN_PX, letters)
        draw.text((_MARGIN_PX, _MARGIN_PX), text, fill=_TEXT, font=letters, anchor="lt")
    seen = _resized(to_rgb(picture), layout.tile)
    for number, column in enumerate(layout.columns):
        left, top = _MARGIN_PX + number * layout.column_px, above
        for strip in column:
            _draw_strip(sheet, (left, top), strip, (seen, picture.size), layout)
            top += layout.height(strip)
    sheet.paste(legend, (_MARGIN_PX, above + layout.size[1]))
    return sheet


@functools.lru_cache(maxsize=1)
def signed_colours() -> np.ndarray:
    """(255, 3) uint8: the colour of each level from -1 to 1, the middle one, 0, being the palest."""
    import matplotlib  # a third of a second that only pictures need

    return np.rint(255 * matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 255))[:, :3]).astype(np.uint8)


def coloured(values: np.ndarray, scale: float) -> np.ndarray:
    """The colours (..., 3) of values between minus and plus ``scale``; all of 0 if that is 0."""
    level = np.clip(values / scale, -1, 1) if scale > 0 else np.zeros_like(values)
    return signed_colours()[np.rint(127 * level).astype(np.int16) + 127]


def _alike(strip: Strip) -> tuple[Any, ...] | None:
    """What the blocks of one stage have in common; None where a strip stands alone."""
    stage, _, block = strip.name.rpartition(".")
    if not stage.startswith("stage") or not block.startswith("block") or len(strip.maps) != 1:
        return None
    return stage, strip.maps.shape, strip.captions, strip.cell_px


def _layout(size: tuple[int, int], strips: Sequence[Strip]) -> _Layout:
    """The one with the largest tiles that fits, and of those the least awkward one."""
    captions = [text for strip in strips for text in (*strip.captions, *map(_scale_text, strip.scales), _SEEN)]
    least_px = max(math.ceil(font(_LETTERS_PX).getlength(one_line(text))) for text in captions) + 1
    longest = max(len(strip.maps) for strip in strips)
    lines = sorted({-(-longest // parts) for parts in range(1, longest + 1)})
    counts = sorted({-(-len(strips) // rows) for rows in range(1, len(strips) + 1)})
    room = LARGEST_SHEET_PX - 4 * _MARGIN_PX - 2 * _LINE_PX - _legend().height
    for long_px in _LONG_SIDES_PX:
        tile = _tile_size(size, long_px)
        pitch_px = max(tile[0], min(least_px, LARGEST_SHEET_PX // 8)) + _GAP_PX
        fitting = [
            layout
            for maps_in_line, columns in itertools.product(lines, counts)
            if (layout := _arranged(strips, tile, pitch_px, maps_in_line, columns)) and max(layout.size) <= room
        ]
        if fitting:
            return min(fitting, key=lambda layout: _awkward(layout, longest))
    maps = sum(len(strip.maps) for strip in strips)
    raise UsageError(f"{maps} maps in {len(strips)} strips are more than a sheet of 4000 pixels holds; name fewer")


def _awkward(layout: _Layout, longest: int) -> float:
    """How far a sheet is from four by three, and more for strips that are broken or stand side by side."""
    width, height = layout.size
    return abs(math.log(width / height * 3 / 4)) + 0.5 * (layout.maps_in_line < longest) + 0.2 * len(layout.columns)


def _arranged(
    strips: Sequence[Strip], tile: tuple[int, int], pitch_px: int, maps_in_line: int, columns: int
) -> _Layout | None:
    """Strips in their order in so many columns; None where the sheet would be too wide."""
    plain = _Layout(tile, pitch_px, maps_in_line, ())
    if columns * plain.column_px > LARGEST_SHEET_PX:
        return None
    heights = [plain.height(strip) for strip in strips]
    share, done, parts = sum(heights) / columns, 0.0, [[] for _ in range(columns)]
    for strip, height in zip(strips, heights, strict=True):
        parts[min(columns, math.ceil((done + height / 2) / share)) - 1].append(strip)
        done += height
    return plain._replace(columns=tuple(tuple(part) for part in parts if part))


def _tile_size(size: tuple[int, int], long_px: int) -> tuple[int, int]:
    """Width and height of a picture drawn with such a longer side, enlarged a whole number of times if it is small."""
    longest = max(size)
    factor = long_px // longest if longest <= long_px else long_px / longest
    return max(_LEAST_SIDE_PX, round(size[0] * factor)), max(_LEAST_SIDE_PX, round(size[1] * factor))


def _resized(picture: Image.Image, tile: tuple[int, int]) -> Image.Image:
    grows = tile[0] >= picture.width and tile[1] >= picture.height
    return picture.resize(tile, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)


def _draw_strip(
    sheet: Image.Image,
    place: tuple[int, int],
    strip: Strip,
    seen: tuple[Image.Image, tuple[int, int]],
    layout: _Layout,
) -> None:
    """One strip with its upper left corner at ``place``; ``seen`` is the picture as it is drawn, and its own size."""
    left, top = place
    draw = ImageDraw.Draw(sheet)
    rows, columns = strip.maps.shape[1:]
    heading, letters = f"{strip.name}  ({columns}x{rows})", font(_HEADING_PX)
    text = shortened(heading, layout.column_px - _BETWEEN_PX, letters)
    draw.text((left, top + _LINE_PX / 2), text, fill=_TEXT, font=letters, anchor="lm")
    top += _LINE_PX + 4
    _draw_tile(sheet, (left, top), seen[0], (_SEEN, ""), layout)
    for number, (values, caption, scale) in enumerate(zip(strip.maps, strip.captions, strip.scales, strict=True)):
        line, column = divmod(number, layout.maps_in_line)
        where = (left + (1 + column) * layout.pitch_px, top + line * layout.line_px)
        tile = Image.fromarray(coloured(_on_tile(values, strip, seen[1], layout.tile), scale))
        _draw_tile(sheet, where, tile, (caption, _scale_text(scale)), layout)


def _draw_tile(
    sheet: Image.Image, place: tuple[int, int], tile: Image.Image, texts: tuple[str, str], layout: _Layout
) -> None:
    """A picture in an edge, with two lines below; narrow ones stand in the middle of their place."""
    left, top = place
    room_px = layout.pitch_px - _GAP_PX
    left += (room_px - tile.width) // 2
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=_EDGE)
    sheet.paste(tile, (left, top))
    letters = font(_LETTERS_PX)
    for line, (text, colour) in enumerate(zip(texts, (_TEXT, _QUIET), strict=True)):
        middle = (left + tile.width / 2, top + tile.height + 4 + (line + 0.5) * _LINE_PX)
        draw.text(middle, shortened(text, room_px, letters), fill=colour, font=letters, anchor="mm")


def _on_tile(values: np.ndarray, strip: Strip, size: tuple[int, int], tile: tuple[int, int]) -> np.ndarray:
    """A map (h, w) as large as its tile: each cell a rectangle, or the mean of several where they are smaller."""
    rows, columns = values.shape
    shown = (float(columns), float(rows))
    if strip.cell_px is not None:
        shown = (size[0] / strip.cell_px, size[1] / strip.cell_px)
        if shown[0] > columns or shown[1] > rows:
            raise ShapeError(
                f"{strip.name} has {columns}x{rows} cells of {strip.cell_px:g} pixels, which do not reach over a "
                f"picture of {size[0]}x{size[1]}; draw beside the picture that the network saw"
            )
    across, down = (_weights(shown[axis], (columns, rows)[axis], tile[axis]) for axis in (0, 1))
    return (down @ values.astype(np.float64) @ across.T).astype(np.float32)


def _weights(shown: float, cells: int, pixels: int) -> np.ndarray:
    """(pixels, cells): what each cell counts for a pixel, of which ``pixels`` lie over the first ``shown`` cells.

    A pixel that is smaller than a cell has the cell at its middle; a larger one the mean over what it covers.
    """
    edges = np.linspace(0.0, shown, pixels + 1)
    if shown <= pixels:
        middles = np.minimum(((edges[:-1] + edges[1:]) / 2).astype(int), cells - 1)
        return np.eye(cells)[middles]
    starts = np.arange(cells)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.maximum(overlap, 0) / (edges[1:] - edges[:-1])[:, None]


def _scale_text(scale: float) -> str:
    return f"s = {scale:.3g}"


def _legend() -> Image.Image:
    """A bar of all colours with its ends and its middle, and what they mean."""
    letters = font(_LETTERS_PX)
    width = max(round(letters.getlength(text)) for text in _EXPLAINED) + 2
    sheet = Image.new("RGB", (max(width, _BAR[0]), _BAR[1] + 3 * _LINE_PX + 6), "white")
    draw = ImageDraw.Draw(sheet)
    levels = np.linspace(-1.0, 1.0, _BAR[0], dtype=np.float32)[None].repeat(_BAR[1], axis=0)
    sheet.paste(Image.fromarray(coloured(levels, 1.0)), (0, 0))
    draw.rectangle((0, 0, _BAR[0] - 1, _BAR[1] - 1), outline=_EDGE)
    for text, x, anchor in (("-s", 0, "l"), ("0", _BAR[0] / 2, "m"), ("+s", _BAR[0], "r")):
        draw.text((x, _BAR[1] + _LINE_PX / 2), text, fill=_TEXT, font=letters, anchor=f"{anchor}m")
    for line, text in enumerate(_EXPLAINED):
        draw.text((0, _BAR[1] + (line + 1.7) * _LINE_PX), text, fill=_QUIET, font=letters, anchor="lm")
    return sheet
