"""Grids of signed maps beside their image: the attention maps of large kernel attention.

Every map has its own scale, written below it, from minus to plus its largest magnitude; cells are drawn as rectangles
without smoothing. Shapes: maps (k, h, w) of one block; sizes and positions on the sheet are in pixels.
Colors: matplotlib's RdBu, blue below 0, white at 0, red above, which ColorBrewer lists as safe for color-blind
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
from van.images import to_rgb
from van.visualization.drawing import load_font, strip_unprintable, truncate_text

MAX_SHEET_PX = 4000
_TILE_SIZES_PX = (192, 160, 128, 112, 96, 80, 64, 48, 32, 24, 16)
_MIN_SIDE_PX = 6
_CAPTION_PX, _HEADING_PX = 12, 14
_LINE_PX = 16
_GAP_PX, _COLUMN_GAP_PX, _MARGIN_PX = 10, 24, 14
_COLOR_BAR_SIZE = (180, 14)
_TEXT_COLOR, _CAPTION_COLOR, _EDGE_COLOR = (0, 0, 0), (85, 85, 85), (150, 150, 150)
_EXPLANATION = (
    "s: the largest magnitude of the map, written below it.",
    "The attention multiplies the feature: below 0 it inverts the sign, at 0 it removes it, above 0 it keeps it.",
)
_INPUT_CAPTION = "input"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AttentionMaps:
    """Attention maps of one block or stage, all of one size.

    Args:
        name: name of the block or stage.
        maps: (k, h, w), signed.
        captions: one for each map.
        stride: side of a cell in pixels of the image. Cells that reach over the image's edge, as in networks that pad,
            are cut there. None stretches the cells over the image.

    Raises:
        ShapeError: the maps are empty or not finite, or the numbers of maps and captions differ.
    """

    name: str
    maps: np.ndarray
    captions: tuple[str, ...]
    stride: float | None = None

    def __post_init__(self) -> None:
        if self.maps.ndim != 3 or 0 in self.maps.shape:
            raise ShapeError(f"{self.name}: maps: expected (k, h, w), each at least 1, got {self.maps.shape}")
        if len(self.captions) != len(self.maps):
            raise ShapeError(f"{self.name}: captions: expected {len(self.maps)}, one per map, got {len(self.captions)}")
        if not np.isfinite(self.maps).all():
            raise ShapeError(f"{self.name}: maps: expected finite numbers, got NaN or infinity; check the weights")

    @property
    def scales(self) -> tuple[float, ...]:
        """The largest magnitude of each map."""
        return tuple(float(np.abs(values).max()) for values in self.maps)


class _Layout(NamedTuple):
    """The tile size, the number of maps in a line, and the groups of maps in each column of the sheet."""

    tile: tuple[int, int]
    pitch_px: int
    maps_per_line: int
    columns: tuple[tuple[AttentionMaps, ...], ...]

    def height(self, group: AttentionMaps) -> int:
        """Return the height of a group: its heading and its lines of maps."""
        lines = -(-len(group.maps) // self.maps_per_line)
        return _LINE_PX + 4 + lines * self.line_px + _GAP_PX // 2

    @property
    def line_px(self) -> int:
        return self.tile[1] + 2 * _LINE_PX + _GAP_PX

    @property
    def column_px(self) -> int:
        return (1 + self.maps_per_line) * self.pitch_px + _COLUMN_GAP_PX

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of all columns."""
        tallest = max(sum(self.height(group) for group in column) for column in self.columns)
        return len(self.columns) * self.column_px, tallest


def group_by_stage(groups: Sequence[AttentionMaps]) -> list[AttentionMaps]:
    """Merge the blocks of a stage into one group where each has a single map, such as the mean, of the same size."""
    merged: list[AttentionMaps] = []
    for stage, members_of_stage in itertools.groupby(groups, key=_stage_key):
        members = list(members_of_stage)
        if not stage:
            merged += members
            continue
        captions = tuple(member.name.rpartition(".")[2] for member in members)
        maps = np.concatenate([member.maps for member in members])
        merged.append(AttentionMaps(name=stage[0], maps=maps, captions=captions, stride=members[0].stride))
    return merged


def draw_attention_grid(image: Image.Image, groups: Sequence[AttentionMaps], *, title: str = "") -> Image.Image:
    """Draw a group of maps in each row: the image, then the maps, each with its caption and its scale.

    Long groups are wrapped into lines, many groups into columns; tiles shrink until the sheet has at most 4000 pixels
    a side.

    Args:
        image: the network's input image, at its input size.
        groups: at least one.
        title: a line above the grid.

    Raises:
        UsageError: there are no groups, or too many maps for a sheet.
        ShapeError: the image has no pixels, or cells do not cover all of it.
    """
    if not groups:
        raise UsageError("groups: expected the maps of at least 1 block, got none")
    if 0 in image.size:
        raise ShapeError(f"image: expected at least 1x1 pixel, got {image.width}x{image.height}")
    layout = _choose_layout(image.size, groups)
    legend = _legend()
    width = max(layout.size[0], legend.width + _GAP_PX + _COLUMN_GAP_PX) + 2 * _MARGIN_PX - _GAP_PX - _COLUMN_GAP_PX
    above = _MARGIN_PX + (2 * _LINE_PX if title else 0)
    sheet = Image.new("RGB", (width, above + layout.size[1] + legend.height + _MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        font = load_font(_HEADING_PX + 3)
        text = truncate_text(title, width - 2 * _MARGIN_PX, font)
        draw.text((_MARGIN_PX, _MARGIN_PX), text, fill=_TEXT_COLOR, font=font, anchor="lt")
    thumbnail = _resize(to_rgb(image), layout.tile)
    for place, column in enumerate(layout.columns):
        left, top = _MARGIN_PX + place * layout.column_px, above
        for group in column:
            _draw_group(sheet, (left, top), group, (thumbnail, image.size), layout)
            top += layout.height(group)
    sheet.paste(legend, (_MARGIN_PX, above + layout.size[1]))
    return sheet


@functools.lru_cache(maxsize=1)
def diverging_colormap() -> np.ndarray:
    """Return the color of each level from -1 to 1, (255, 3) uint8; the middle one, 0, is the palest."""
    import matplotlib  # imported here: it takes 0.3 s, which only drawing needs

    return np.rint(255 * matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 255))[:, :3]).astype(np.uint8)


def apply_diverging_colormap(values: np.ndarray, scale: float) -> np.ndarray:
    """Return the colors (..., 3) of values between minus and plus ``scale``; the color of 0 if ``scale`` is 0."""
    level = np.clip(values / scale, -1, 1) if scale > 0 else np.zeros_like(values)
    return diverging_colormap()[np.rint(127 * level).astype(np.int16) + 127]


def _stage_key(group: AttentionMaps) -> tuple[Any, ...] | None:
    """Return a key that blocks to be merged have in common; None for a group that is not merged."""
    stage, _, block = group.name.rpartition(".")
    if not stage.startswith("stage") or not block.startswith("block") or len(group.maps) != 1:
        return None
    return stage, group.maps.shape, group.captions, group.stride


def _choose_layout(size: tuple[int, int], groups: Sequence[AttentionMaps]) -> _Layout:
    """Return the layout with the largest tiles that fits the sheet; among equal ones the one with the least penalty."""
    captions = [text for group in groups for text in (*group.captions, *map(_scale_text, group.scales), _INPUT_CAPTION)]
    caption_px = max(math.ceil(load_font(_CAPTION_PX).getlength(strip_unprintable(text))) for text in captions) + 1
    longest = max(len(group.maps) for group in groups)
    lines = sorted({-(-longest // count) for count in range(1, longest + 1)})
    counts = sorted({-(-len(groups) // rows) for rows in range(1, len(groups) + 1)})
    available_px = MAX_SHEET_PX - 4 * _MARGIN_PX - 2 * _LINE_PX - _legend().height
    for max_size in _TILE_SIZES_PX:
        tile = _tile_size(size, max_size)
        pitch_px = max(tile[0], min(caption_px, MAX_SHEET_PX // 8)) + _GAP_PX
        fitting = [
            layout
            for maps_per_line, columns in itertools.product(lines, counts)
            if (layout := _arrange(groups, tile, pitch_px, maps_per_line, columns)) and max(layout.size) <= available_px
        ]
        if fitting:
            return min(fitting, key=lambda layout: _layout_penalty(layout, longest))
    maps = sum(len(group.maps) for group in groups)
    raise UsageError(
        f"groups: {maps} maps of {len(groups)} blocks do not fit a sheet of {MAX_SHEET_PX} pixels; select fewer blocks"
    )


def _layout_penalty(layout: _Layout, longest: int) -> float:
    """Return the deviation from an aspect ratio of 4:3, plus a penalty for wrapped groups and for columns."""
    width, height = layout.size
    return abs(math.log(width / height * 3 / 4)) + 0.5 * (layout.maps_per_line < longest) + 0.2 * len(layout.columns)


def _arrange(
    groups: Sequence[AttentionMaps], tile: tuple[int, int], pitch_px: int, maps_per_line: int, columns: int
) -> _Layout | None:
    """Distribute groups over columns in their order; None if the sheet would be too wide."""
    plain = _Layout(tile, pitch_px, maps_per_line, ())
    if columns * plain.column_px > MAX_SHEET_PX:
        return None
    heights = [plain.height(group) for group in groups]
    column_height, done, members = sum(heights) / columns, 0.0, [[] for _ in range(columns)]
    for group, height in zip(groups, heights, strict=True):
        members[min(columns, math.ceil((done + height / 2) / column_height)) - 1].append(group)
        done += height
    return plain._replace(columns=tuple(tuple(column) for column in members if column))


def _tile_size(size: tuple[int, int], max_size: int) -> tuple[int, int]:
    """Return width and height for a longer side of ``max_size``; small images are enlarged by a whole factor."""
    longest = max(size)
    factor = max_size // longest if longest <= max_size else max_size / longest
    return max(_MIN_SIDE_PX, round(size[0] * factor)), max(_MIN_SIDE_PX, round(size[1] * factor))


def _resize(image: Image.Image, tile: tuple[int, int]) -> Image.Image:
    enlarges = tile[0] >= image.width and tile[1] >= image.height
    return image.resize(tile, Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS)


def _draw_group(
    sheet: Image.Image,
    corner: tuple[int, int],
    group: AttentionMaps,
    thumbnail: tuple[Image.Image, tuple[int, int]],
    layout: _Layout,
) -> None:
    """Draw a group at its upper left ``corner``; ``thumbnail`` is the image as drawn, and its input size."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    rows, columns = group.maps.shape[1:]
    heading, font = f"{group.name}  ({columns}x{rows})", load_font(_HEADING_PX)
    text = truncate_text(heading, layout.column_px - _COLUMN_GAP_PX, font)
    draw.text((left, top + _LINE_PX / 2), text, fill=_TEXT_COLOR, font=font, anchor="lm")
    top += _LINE_PX + 4
    _draw_tile(sheet, (left, top), thumbnail[0], (_INPUT_CAPTION, ""), layout)
    for place, (values, caption, scale) in enumerate(zip(group.maps, group.captions, group.scales, strict=True)):
        line, column = divmod(place, layout.maps_per_line)
        corner = (left + (1 + column) * layout.pitch_px, top + line * layout.line_px)
        tile = Image.fromarray(apply_diverging_colormap(_resample(values, group, thumbnail[1], layout.tile), scale))
        _draw_tile(sheet, corner, tile, (caption, _scale_text(scale)), layout)


def _draw_tile(
    sheet: Image.Image, corner: tuple[int, int], tile: Image.Image, texts: tuple[str, str], layout: _Layout
) -> None:
    """Draw an image with an edge and two lines of text below, horizontally centered."""
    left, top = corner
    available_px = layout.pitch_px - _GAP_PX
    left += (available_px - tile.width) // 2
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), None, _EDGE_COLOR)
    sheet.paste(tile, (left, top))
    font = load_font(_CAPTION_PX)
    for line, (text, color) in enumerate(zip(texts, (_TEXT_COLOR, _CAPTION_COLOR), strict=True)):
        middle = (left + tile.width / 2, top + tile.height + 4 + (line + 0.5) * _LINE_PX)
        draw.text(middle, truncate_text(text, available_px, font), fill=color, font=font, anchor="mm")


def _resample(values: np.ndarray, group: AttentionMaps, size: tuple[int, int], tile: tuple[int, int]) -> np.ndarray:
    """Resample a map (h, w) to its tile: a rectangle per cell, or the mean of several cells that are smaller."""
    rows, columns = values.shape
    shown = (float(columns), float(rows))
    if group.stride is not None:
        shown = (size[0] / group.stride, size[1] / group.stride)
        if shown[0] > columns or shown[1] > rows:
            raise ShapeError(
                f"{group.name}: {columns}x{rows} cells of stride {group.stride:g} do not cover an image of "
                f"{size[0]}x{size[1]} pixels; draw beside the network's input image"
            )
    horizontal, vertical = (_resampling_weights(shown[axis], (columns, rows)[axis], tile[axis]) for axis in (0, 1))
    return (vertical @ values.astype(np.float64) @ horizontal.T).astype(np.float32)


def _resampling_weights(shown: float, cells: int, pixels: int) -> np.ndarray:
    """Return the weight of each cell for each pixel, (pixels, cells); the pixels cover the first ``shown`` cells.

    A pixel smaller than a cell takes the cell at its center, a larger one the mean over the cells that it covers.
    """
    edges = np.linspace(0.0, shown, pixels + 1)
    if shown <= pixels:
        centers = np.minimum(((edges[:-1] + edges[1:]) / 2).astype(int), cells - 1)
        return np.eye(cells)[centers]
    starts = np.arange(cells)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.maximum(overlap, 0) / (edges[1:] - edges[:-1])[:, None]


def _scale_text(scale: float) -> str:
    return f"s = {scale:.3g}"


def _legend() -> Image.Image:
    """Draw the color bar with its ends and its center, and an explanation."""
    font = load_font(_CAPTION_PX)
    width = max(round(font.getlength(text)) for text in _EXPLANATION) + 2
    sheet = Image.new("RGB", (max(width, _COLOR_BAR_SIZE[0]), _COLOR_BAR_SIZE[1] + 3 * _LINE_PX + 6), "white")
    draw = ImageDraw.Draw(sheet)
    levels = np.linspace(-1.0, 1.0, _COLOR_BAR_SIZE[0], dtype=np.float32)[None].repeat(_COLOR_BAR_SIZE[1], axis=0)
    sheet.paste(Image.fromarray(apply_diverging_colormap(levels, 1.0)), (0, 0))
    draw.rectangle((0, 0, _COLOR_BAR_SIZE[0] - 1, _COLOR_BAR_SIZE[1] - 1), None, _EDGE_COLOR)
    for text, x, anchor in (("-s", 0, "l"), ("0", _COLOR_BAR_SIZE[0] / 2, "m"), ("+s", _COLOR_BAR_SIZE[0], "r")):
        draw.text((x, _COLOR_BAR_SIZE[1] + _LINE_PX / 2), text, fill=_TEXT_COLOR, font=font, anchor=f"{anchor}m")
    for line, text in enumerate(_EXPLANATION):
        draw.text((0, _COLOR_BAR_SIZE[1] + (line + 1.7) * _LINE_PX), text, fill=_CAPTION_COLOR, font=font, anchor="lm")
    return sheet
