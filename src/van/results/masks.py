"""An answer for every pixel of a picture: its class (semantic), or its thing or stuff (panoptic).

Shapes: ids (rows, columns) int32, the number of each pixel's region, -1 where nothing is said. Files are those of the
field: class indices with a palette, or ids as colours (cocodataset.org, "Panoptic segmentation").
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.results.drawing import (
    BLACK,
    WHITE,
    Chip,
    Colour,
    blend,
    class_colour,
    draw_chip,
    enlarged,
    label_chip,
    magnified,
    style_for,
    with_legend,
)
from van.results.placing import room_within

NOTHING = -1
"""The id of pixels that nothing is said about."""
_MOST_IN_PALETTE, _MOST_IN_16_BITS = 255, 65_535
_MOST_IN_LEGEND = 40
_COARSE_PX = 256
"""Longer side of the map on which places for labels are sought."""


class Region(NamedTuple):
    """All pixels of one ``id``: a class, or (panoptic) one thing or one kind of stuff.

    ``index`` is its class's place in the label list; ``score`` is None where none is given.
    """

    id: int
    label: str
    index: int
    score: float | None = None
    is_thing: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Masks:
    """A region for every pixel. Two answers are compared by ``ids`` and ``regions``.

    Args:
        labels: names of the classes.
        ids: (rows, columns) integers. Semantic: the class index. Panoptic: 1 to 256³ - 1, as 0 is nothing in files.
        regions: what the ids mean; one without pixels may be there.
        name: the picture's path or other name.
        panoptic: regions are things and stuff, not classes.

    Raises:
        ShapeError: an id has no region, or two; or an id, a class or a score cannot be.
    """

    labels: tuple[str, ...]
    ids: np.ndarray
    regions: tuple[Region, ...]
    name: str = "picture"
    panoptic: bool = False

    def __post_init__(self) -> None:
        ids = self.ids
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ShapeError(f"ids are {ids.dtype} {ids.shape}; wanted a whole number for each row and column")
        known = [self._checked(region).id for region in self.regions]
        if len(set(known)) != len(known):
            raise ShapeError(f"region ids are {sorted(known)}; wanted each once")
        strange = set(np.unique(ids).tolist()) - {NOTHING, *known}
        if strange:
            raise ShapeError(f"ids {sorted(strange)[:8]} have no region; wanted those of regions, or {NOTHING}")
        object.__setattr__(self, "ids", ids.astype(np.int32, copy=False))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the picture's name and size, and its regions with their pixels and share of the picture."""
        rows, columns = self.ids.shape
        counts = self._pixels()
        regions = [
            {
                "id": int(region.id),
                "label": region.label,
                "index": int(region.index),
                "score": None if region.score is None else min(float(region.score), 1.0),
                "pixels": counts.get(region.id, 0),
                "share": counts.get(region.id, 0) / self.ids.size,
            }
            for region in self.regions
        ]
        return {"picture": self.name, "width": columns, "height": rows, "regions": regions}

    def to_picture(self) -> Image.Image:
        """The map as a picture to be saved as PNG.

        Semantic: class indices, 8 bits with the classes' colours as palette and 255 for nothing; above 255 classes 16
        bits of grey and 65,535 for nothing. Panoptic: id = red + 256 green + 65,536 blue, 0 for nothing.

        Raises:
            ShapeError: more than 65,535 classes.
        """
        if self.panoptic:
            ids = np.where(self.ids == NOTHING, 0, self.ids)
            return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8))
        if len(self.labels) > _MOST_IN_16_BITS:
            raise ShapeError(f"{len(self.labels)} labels; a picture of 16 bits has numbers for {_MOST_IN_16_BITS}")
        if len(self.labels) > _MOST_IN_PALETTE:
            return Image.fromarray(self.ids.astype(np.uint16))  # -1 is 65,535 there
        picture = Image.fromarray(self.ids.astype(np.uint8))  # and 255 here
        colours = [class_colour(index) for index in range(len(self.labels))]
        black = [BLACK] * (256 - len(colours))
        picture.putpalette([value for colour in colours + black for value in colour])
        return picture

    def draw(self, picture: Image.Image) -> Image.Image:
        """A copy of ``picture`` under its regions' colours, with labels where they fit and a legend.

        Small pictures are enlarged. The legend stands beside tall pictures and below others.

        Raises:
            ShapeError: the picture's size is not that of the answer.
        """
        pixels, scale = enlarged(picture, self.ids.shape)
        ids = magnified(self.ids, scale)
        height, width = ids.shape
        style = style_for(width, height)
        colours = _colour_of_each(ids, self.regions)
        said = ids != NOTHING
        pixels[said] = blend(pixels[said], colours[said])
        edges = _edges(ids, max(1, style.line_px // 2)) & said
        pixels[edges] = colours[edges]
        sheet = Image.fromarray(pixels)
        draw = ImageDraw.Draw(sheet)
        for chip, place in self._placed_chips(ids, style.font_px):
            draw_chip(draw, chip, place, style.font_px)
        return with_legend(sheet, self._legend(), style.font_px)

    def _checked(self, region: Region) -> Region:
        least, most = (1, 256**3 - 1) if self.panoptic else (0, len(self.labels) - 1)
        if not least <= region.id <= most:
            raise ShapeError(f"the id of region {region.label!r} is {region.id}; wanted {least} to {most}")
        if not 0 <= region.index < len(self.labels):
            wanted = f"wanted 0 to {len(self.labels) - 1}, its label's"
            raise ShapeError(f"the index of region {region.id} is {region.index}; {wanted}")
        if not self.panoptic and region.id != region.index:
            raise ShapeError(f"the id of region {region.label!r} is {region.id}; wanted its class's, {region.index}")
        if region.score is not None and not 0 <= region.score <= 1.001:  # rounding is forgiven, NaN is not
            raise ShapeError(f"the score of region {region.id} is {region.score}; wanted 0 to 1, or None")
        return region

    def _pixels(self) -> dict[int, int]:
        """How many pixels each id has."""
        values, counts = np.unique(self.ids, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def _legend(self) -> list[tuple[Colour, str]]:
        """A colour and a text for each class that is there, the largest first, and for nothing.

        Classes are given with their share of the picture (semantic) or their number of regions (panoptic).
        """
        counts = self._pixels()
        parts: dict[int, list[int]] = {}
        for region in self.regions:
            if counts.get(region.id):
                parts.setdefault(region.index, []).append(counts[region.id])
        order = sorted(parts, key=lambda index: -sum(parts[index]))
        entries = []
        for index in order[:_MOST_IN_LEGEND]:
            share = _percent(sum(parts[index]) / self.ids.size)
            several = f" ×{len(parts[index])}" if len(parts[index]) > 1 else ""
            entries.append((class_colour(index), self.labels[index] + (several if self.panoptic else f" {share}")))
        if len(order) > _MOST_IN_LEGEND:
            entries.append((WHITE, f"and {len(order) - _MOST_IN_LEGEND} more"))
        if counts.get(NOTHING):
            entries.append((WHITE, f"nothing said {_percent(counts[NOTHING] / self.ids.size)}"))
        return entries

    def _placed_chips(self, ids: np.ndarray, font_px: int) -> list[tuple[Chip, tuple[int, int]]]:
        """Labels of the regions that have room for one, the largest first, and their upper left corners."""
        height, width = ids.shape
        step = -(-max(ids.shape) // _COARSE_PX)
        coarse = ids[step // 2 :: step, step // 2 :: step]
        free = np.ones(coarse.shape, bool)
        counts = self._pixels()
        placed = []
        for region in sorted(self.regions, key=lambda region: -counts.get(region.id, 0)):
            chip = label_chip(region.label, region.score, class_colour(region.index), font_px, 14 * font_px)
            if counts.get(region.id, 0) == 0 or chip.size[0] > width or chip.size[1] > height:
                continue
            rows, columns = (-(-side // step) for side in (chip.size[1], chip.size[0]))
            place = room_within(coarse == region.id, free, rows, columns)
            if place is not None:
                row, column = place
                free[row : row + rows, column : column + columns] = False
                left, top = min(column * step, width - chip.size[0]), min(row * step, height - chip.size[1])
                placed.append((chip, (left, top)))
        return placed


def _colour_of_each(ids: np.ndarray, regions: tuple[Region, ...]) -> np.ndarray:
    """(rows, columns, 3) uint8: the class's colour of each pixel; white where nothing is said."""
    table = sorted([(NOTHING, WHITE), *((region.id, class_colour(region.index)) for region in regions)])
    numbers = np.array([number for number, _ in table])
    return np.array([colour for _, colour in table], np.uint8)[np.searchsorted(numbers, ids)]


def _edges(ids: np.ndarray, width_px: int) -> np.ndarray:
    """(rows, columns) bool: pixels that another region begins within ``width_px`` of."""
    edges = np.zeros(ids.shape, bool)
    for step in range(1, width_px + 1):
        for here, there in ((np.s_[step:], np.s_[:-step]), (np.s_[:, step:], np.s_[:, :-step])):
            differs = ids[here] != ids[there]
            edges[here] |= differs
            edges[there] |= differs
    return edges


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"
