"""A map of how much each part of a picture counts for an answer, and how it is drawn over the picture.

Shapes: cells (h, w), the map as its layer has it; on the picture (rows, columns); rectangles are left, top, right,
bottom in pixels of the picture, from its upper left corner. Colours: matplotlib's inferno, which grows brighter
evenly for every reader.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.pictures import Window
from van.results.drawing import (
    class_colour,
    draw_frame,
    enlarged,
    font,
    frame_of,
    shortened,
    style_for,
)

_LEAST_PANEL_PX = 300
_STRONGEST, _WEAKEST = 0.6, 0.25
"""Share of the colour where the map is highest and where it is 0; the rest is the picture."""
_SATURATION = 0.4
"""What is left of the picture's own colours."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_UNSEEN = 0.45
"""What is left of the contrast where the network did not look."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeatMap:
    """How much each part of a picture counts for one answer.

    Args:
        cells: (h, w) float32, raw: as the method gives it, at the resolution of the layer, neither scaled nor clipped
            beyond what the method says.
        covers: the rectangle that the cells fill; over the picture's edges where the network pads.
        seen: the rectangle that the network saw.
        size: rows and columns of the picture.
        method, layer: what made the map, and of which layer.
        label: what it is about: a class.
        score: the network's score of that answer; None where it has none.
        box: the thing that it is about, where it is about one.
        index: the class's place in the label list, which chooses the colour of the box.
        name: the picture's path or other name.

    Raises:
        ShapeError: the cells are no map of finite numbers, or a rectangle is empty.
    """

    cells: np.ndarray
    covers: Window
    seen: Window
    size: tuple[int, int]
    method: str
    layer: str
    label: str
    score: float | None = None
    box: Window | None = None
    index: int = 0
    name: str = "picture"

    def __post_init__(self) -> None:
        if self.cells.ndim != 2 or 0 in self.cells.shape:
            raise ShapeError(f"cells are {self.cells.shape}; wanted rows and columns, each at least 1")
        if not np.isfinite(self.cells).all():
            raise ShapeError(f"the map of {self.name} is not finite everywhere; look at the weights")
        for what in ("covers", "seen"):
            left, top, right, bottom = getattr(self, what)
            if not (left < right and top < bottom):
                raise ShapeError(f"{what} is {getattr(self, what)}; wanted left, top, right, bottom around some area")

    @property
    def highest(self) -> float:
        """The largest of the cells, which the brightest colour stands for."""
        return float(self.cells.max())

    @property
    def is_flat(self) -> bool:
        """Whether every cell is the same: the map tells no part from another."""
        return bool(self.cells.max() == self.cells.min())

    def on_picture(self, *, scale: int = 1) -> np.ndarray:
        """The map for each pixel: (rows, columns) float32 times ``scale``, NaN where the network did not look.

        Between the middles of cells it is bilinear, beyond the outermost ones it stays as it is.
        """
        left, top, right, bottom = self.seen
        down, within_rows = _places(self.size[0] * scale, scale, self.covers[1::2], self.cells.shape[0], (top, bottom))
        across, within = _places(self.size[1] * scale, scale, self.covers[::2], self.cells.shape[1], (left, right))
        values = _between(_between(self.cells.astype(np.float32), down, axis=0), across, axis=1)
        values[~within_rows] = np.nan
        values[:, ~within] = np.nan
        return values

    def peak(self) -> tuple[int, int]:
        """Row and column of the pixel where the map is highest; the first of several."""
        row, column = np.unravel_index(int(np.nanargmax(self.on_picture())), self.size)
        return int(row), int(column)

    def on_smaller(self, longest_px: int) -> "HeatMap":
        """The same map for a copy of the picture whose longer side has at most ``longest_px`` pixels."""
        factor = min(1.0, longest_px / max(self.size))
        rows, columns = (max(1, round(side * factor)) for side in self.size)
        down, across = rows / self.size[0], columns / self.size[1]

        def carried(window: Window) -> Window:
            left, top, right, bottom = window
            return left * across, top * down, right * across, bottom * down

        return dataclasses.replace(
            self,
            covers=carried(self.covers),
            seen=carried(self.seen),
            size=(rows, columns),
            box=None if self.box is None else carried(self.box),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the cells row by row among them."""
        plain: dict[str, Any] = {key: getattr(self, key) for key in ("label", "score", "method", "layer")}
        plain |= {"covers": list(self.covers), "seen": list(self.seen), "cells": self.cells.tolist()}
        return plain if self.box is None else {**plain, "box": list(self.box)}

    def draw(self, picture: Image.Image, *, legend: bool = True) -> Image.Image:
        """A copy of ``picture`` under the map, above a legend with a colour bar; small pictures are enlarged.

        The legend may be left out where something else says what the map is about. What the network did not see is
        paler, beyond a line. The scale starts at 0, so that a flat map looks flat.

        Raises:
            ShapeError: the picture's size is not that of the map.
        """
        pixels, scale = enlarged(picture, self.size)
        strength = self.on_picture(scale=scale) / (self.highest if self.highest > 0 else 1.0)
        sheet = Image.fromarray(_overlaid(pixels, strength))
        _, line_px = style_for(*sheet.size)
        draw = ImageDraw.Draw(sheet)
        if self._is_cropped:
            draw_frame(draw, _inside(self.seen, self.size, scale), (255, 255, 255), max(1, line_px // 2))
        if self.box is not None:
            frame = frame_of([side * scale for side in self.box], sheet.size, line_px)
            draw_frame(draw, frame, class_colour(self.index), line_px)
        return _with_bar(sheet, self._lines(), self.highest) if legend else sheet

    @property
    def _is_cropped(self) -> bool:
        left, top, right, bottom = self.seen
        return left > 0.5 or top > 0.5 or right < self.size[1] - 0.5 or bottom < self.size[0] - 0.5

    def _lines(self) -> list[str]:
        score = "" if self.score is None else f" {self.score:.1%}"
        return [self.label + score, f"{self.method} of {self.layer}" + (" (flat)" if self.is_flat else "")]


@functools.lru_cache(maxsize=1)
def heat_colours() -> np.ndarray:
    """(256, 3) uint8: the colour of each strength, from none to the highest."""
    import matplotlib  # a third of a second that only pictures need

    return np.rint(255 * matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)


def _places(
    pixels: int, scale: int, covers: tuple[float, ...], cells: int, seen: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel along one side: its place among the middles of the cells, and whether it was seen."""
    middles = (np.arange(pixels) + 0.5) / scale
    places = (middles - covers[0]) / (covers[1] - covers[0]) * cells - 0.5
    within = (middles > seen[0]) & (middles < seen[1])
    if not within.any():  # a strip narrower than a pixel
        within[np.abs(middles - sum(seen) / 2).argmin()] = True
    return places.clip(0, cells - 1), within


def _between(values: np.ndarray, places: np.ndarray, *, axis: int) -> np.ndarray:
    """``values`` at ``places`` along an axis, linear between neighbours."""
    before = np.floor(places).astype(int)
    after = np.minimum(before + 1, values.shape[axis] - 1)
    share = (places - before).astype(np.float32)
    share = share[:, None] if axis == 0 else share
    return values.take(before, axis) * (1 - share) + values.take(after, axis) * share


def _overlaid(pixels: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) under their colours, and paler where the strength (H, W) is NaN."""
    seen = np.isfinite(strength)
    level = np.nan_to_num(strength).clip(0, 1)
    colours = heat_colours()[np.rint(255 * level).astype(np.uint8)].astype(np.float32)
    share = (_WEAKEST + (_STRONGEST - _WEAKEST) * level).astype(np.float32)[..., None]
    grey = (pixels @ _LUMA)[..., None]  # the picture's own colours, undimmed, would be taken for the map's
    over = (grey + _SATURATION * (pixels - grey)) * (1 - share) + colours * share
    pale = 255 - (255 - pixels.astype(np.float32)) * _UNSEEN
    return np.rint(np.where(seen[..., None], over, pale)).astype(np.uint8)


def _inside(window: Window, size: tuple[int, int], scale: int) -> tuple[int, int, int, int]:
    """The part of a window that lies in the picture, in pixels of the drawing."""
    left, top, right, bottom = window
    x1, y1 = max(0, round(left * scale)), max(0, round(top * scale))
    x2, y2 = min(size[1] * scale, round(right * scale)), min(size[0] * scale, round(bottom * scale))
    return x1, y1, max(x2, x1 + 2), max(y2, y1 + 2)


def _with_bar(picture: Image.Image, lines: list[str], highest: float) -> Image.Image:
    """The picture above what the map is about and what its colours mean."""
    font_px, _ = style_for(*picture.size)
    letters, row_px, gap = font(font_px), round(1.5 * font_px), font_px // 2
    width = max(picture.width, _LEAST_PANEL_PX)
    sheet = Image.new("RGB", (width, picture.height + gap + (len(lines) + 1) * row_px), "white")
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    top = picture.height + gap // 2
    for number, line in enumerate(lines):
        text = shortened(line, width - 2 * gap, letters)
        draw.text((gap, top + (number + 0.5) * row_px), text, fill="black", font=letters, anchor="lm")
    middle = top + (len(lines) + 0.5) * row_px
    low, high = "0", f"{highest:.3g}"
    left = gap + round(letters.getlength(low)) + gap
    right = width - gap - round(letters.getlength(high)) - gap
    bar = Image.fromarray(heat_colours()[None].repeat(max(1, font_px), axis=0)).resize((right - left, font_px))
    sheet.paste(bar, (left, round(middle - font_px / 2)))
    draw.text((gap, middle), low, fill="black", font=letters, anchor="lm")
    draw.text((width - gap, middle), high, fill="black", font=letters, anchor="rm")
    return sheet
