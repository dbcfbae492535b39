"""The prediction of a segmentation model for one image: a class (semantic) or an object or stuff (panoptic) per pixel.

Shapes: segment_ids (H, W) int32, the id of each pixel's segment, -1 where a pixel has none. Files are written as class
indices with a palette, or as ids encoded in RGB (cocodataset.org, "Panoptic segmentation").
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.predictions.classification import MAX_SCORE
from van.visualization import drawing
from van.visualization.drawing import BLACK, WHITE, Color, class_color

UNLABELED = -1
"""The id of pixels without a segment."""
_MAX_PALETTE_CLASSES, _MAX_16_BIT_CLASSES = 255, 65_535
_MAX_LEGEND_ENTRIES = 40
_COARSE_PX = 256
"""Longer side of the reduced map on which positions for labels are searched, to bound the cost."""


class Segment(NamedTuple):
    """All pixels of one ``id``: a class (semantic), or one object or one kind of stuff (panoptic).

    ``index`` is its class's index in ``class_names``; ``score`` is None where the model gives none.
    """

    id: int
    label: str
    index: int
    score: float | None = None
    is_thing: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """A segment for every pixel.

    Compare two predictions by ``segment_ids`` and ``segments``.

    Args:
        class_names: names of the classes.
        segment_ids: (H, W) integers. Semantic: the class index. Panoptic: 1 to 256³ - 1, as files use 0 for no segment.
        segments: the meaning of the ids; a segment may have no pixels.
        name: path or other name of the image.
        panoptic: segments are objects and stuff, not classes.

    Raises:
        ShapeError: an id has no segment or more than one; or an id, a class index or a score is invalid.
    """

    class_names: tuple[str, ...]
    segment_ids: np.ndarray
    segments: tuple[Segment, ...]
    name: str = "image"
    panoptic: bool = False

    def __post_init__(self) -> None:
        ids = self.segment_ids
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ShapeError(f"segment_ids: expected integers of shape (height, width), got {ids.dtype} {ids.shape}")
        for segment in self.segments:
            self._validate(segment)
        known = [segment.id for segment in self.segments]
        if len(set(known)) != len(known):
            raise ShapeError(f"segments: expected distinct ids, got {sorted(known)}")
        unknown = set(np.unique(ids).tolist()) - {UNLABELED, *known}
        if unknown:
            raise ShapeError(
                f"segment_ids: expected ids of segments or {UNLABELED} (no segment), got {sorted(unknown)[:8]}"
            )
        object.__setattr__(self, "segment_ids", ids.astype(np.int32, copy=False))

    @property
    def masks(self) -> np.ndarray:
        """Mask of each segment (K, H, W) bool."""
        ids = np.array([segment.id for segment in self.segments], np.int32)
        return self.segment_ids[None] == ids[:, None, None]

    @property
    def labels(self) -> np.ndarray:
        """Class index of each segment (K,) int64."""
        return np.array([segment.index for segment in self.segments], np.int64)

    @property
    def scores(self) -> np.ndarray:
        """Score of each segment (K,) float32, NaN where the model gives none."""
        return np.array([np.nan if segment.score is None else segment.score for segment in self.segments], np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values: segments with their area in pixels and fraction of the image."""
        height, width = self.segment_ids.shape
        areas, segments = self._areas(), []
        for segment in self.segments:
            score = None if segment.score is None else min(float(segment.score), 1.0)
            record = {"id": int(segment.id), "label": segment.label, "index": int(segment.index), "score": score}
            area = areas.get(segment.id, 0)
            segments.append({**record, "area": area, "fraction": area / self.segment_ids.size})
        return {"image": self.name, "width": width, "height": height, "segments": segments}

    def to_image(self) -> Image.Image:
        """Encode the map as an image to be saved as PNG.

        Semantic: class indices, 8 bits with the classes' colors as palette and 255 for no segment; above 255 classes
        16 bits of gray and 65,535 for no segment. Panoptic: id = red + 256 green + 65,536 blue, 0 for no segment.

        Raises:
            ShapeError: more than 65,535 classes.
        """
        if self.panoptic:
            ids = np.where(self.segment_ids == UNLABELED, 0, self.segment_ids)
            return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8))
        if len(self.class_names) > _MAX_16_BIT_CLASSES:
            raise ShapeError(
                f"class_names: expected at most {_MAX_16_BIT_CLASSES} classes in a 16-bit image, "
                f"got {len(self.class_names)}"
            )
        if len(self.class_names) > _MAX_PALETTE_CLASSES:
            return Image.fromarray(self.segment_ids.astype(np.uint16))  # -1 wraps to 65,535
        image = Image.fromarray(self.segment_ids.astype(np.uint8))  # -1 wraps to 255
        colors = [class_color(index) for index in range(len(self.class_names))]
        black = [BLACK] * (256 - len(colors))
        image.putpalette([value for color in colors + black for value in color])
        return image

    def draw(self, image: Image.Image) -> Image.Image:
        """Return a copy of ``image`` under its segments' colors, with labels where they fit and a legend.

        Small images are enlarged. The legend is beside tall images and below others.

        Raises:
            ShapeError: the image's size is not that of the prediction.
        """
        pixels, scale = drawing.upscale_small_image(image, self.segment_ids.shape)
        ids = drawing.repeat_pixels(self.segment_ids, scale)
        font_px, line_px = drawing.drawing_style(ids.shape[1], ids.shape[0])
        table = sorted([(UNLABELED, WHITE), *((segment.id, class_color(segment.index)) for segment in self.segments)])
        places = np.searchsorted([segment_id for segment_id, _ in table], ids)
        colors = np.array([color for _, color in table], np.uint8)[places]  # (H, W, 3), of each pixel's class
        labeled = ids != UNLABELED
        pixels[labeled] = drawing.blend(pixels[labeled], colors[labeled])
        edges = np.zeros(ids.shape, bool)  # pixels near another segment
        for step in range(1, max(1, line_px // 2) + 1):
            for after, before in ((np.s_[step:], np.s_[:-step]), (np.s_[:, step:], np.s_[:, :-step])):
                differs = ids[after] != ids[before]
                edges[after] |= differs
                edges[before] |= differs
        edges &= labeled
        pixels[edges] = colors[edges]
        sheet = Image.fromarray(pixels)
        self._draw_labels(sheet, ids, font_px)
        return drawing.add_legend(sheet, self._legend_entries(), font_px)

    def _validate(self, segment: Segment) -> None:
        minimum, maximum = (1, 256**3 - 1) if self.panoptic else (0, len(self.class_names) - 1)
        label, where = f"segment {segment.label!r}: id: expected", f"segment {segment.id}"
        if not minimum <= segment.id <= maximum:
            raise ShapeError(f"{label} {minimum} to {maximum}, got {segment.id}")
        if not 0 <= segment.index < len(self.class_names):
            raise ShapeError(f"{where}: index: expected 0 to {len(self.class_names) - 1}, got {segment.index}")
        if not self.panoptic and segment.id != segment.index:
            raise ShapeError(f"{label} its class index {segment.index}, got {segment.id}")
        if segment.score is not None and not 0 <= segment.score <= MAX_SCORE:
            raise ShapeError(f"{where}: score: expected 0 to 1, or None, got {segment.score}")

    def _areas(self) -> dict[int, int]:
        """Return the number of pixels of each id."""
        values, counts = np.unique(self.segment_ids, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def _legend_entries(self) -> list[tuple[Color, str]]:
        """Return color and text of each class with pixels, the largest first, and of unlabeled pixels.

        The text has the class's fraction of the image (semantic) or its number of segments (panoptic).
        """
        areas = self._areas()
        by_class: dict[int, list[int]] = {}
        for segment in self.segments:
            if areas.get(segment.id):
                by_class.setdefault(segment.index, []).append(areas[segment.id])
        order = sorted(by_class, key=lambda index: -sum(by_class[index]))
        entries = []
        for index in order[:_MAX_LEGEND_ENTRIES]:
            count = f" ×{len(by_class[index])}" if len(by_class[index]) > 1 else ""
            extra = count if self.panoptic else f" {_percent(sum(by_class[index]) / self.segment_ids.size)}"
            entries.append((class_color(index), self.class_names[index] + extra))
        if len(order) > _MAX_LEGEND_ENTRIES:
            entries.append((WHITE, f"and {len(order) - _MAX_LEGEND_ENTRIES} more"))
        if areas.get(UNLABELED):
            entries.append((WHITE, f"unlabeled {_percent(areas[UNLABELED] / self.segment_ids.size)}"))
        return entries

    def _draw_labels(self, sheet: Image.Image, ids: np.ndarray, font_px: int) -> None:
        """Draw a label into each segment that has room for one; the largest segment is first."""
        step = -(-max(ids.shape) // _COARSE_PX)
        coarse = ids[step // 2 :: step, step // 2 :: step]
        free = np.ones(coarse.shape, bool)
        areas = self._areas()
        draw = ImageDraw.Draw(sheet)
        for segment in sorted(self.segments, key=lambda segment: -areas.get(segment.id, 0)):
            color = class_color(segment.index)
            label = drawing.make_label_box(segment.label, segment.score, color, font_px, 14 * font_px)
            if areas.get(segment.id, 0) == 0 or label.size[0] > sheet.width or label.size[1] > sheet.height:
                continue
            rows, columns = (-(-side // step) for side in (label.size[1], label.size[0]))
            cell = drawing.place_in_region(coarse == segment.id, free, rows, columns)
            if cell is not None:
                row, column = cell
                free[row : row + rows, column : column + columns] = False
                corner = (
                    min(column * step, sheet.width - label.size[0]),
                    min(row * step, sheet.height - label.size[1]),
                )
                drawing.draw_label_box(draw, label, corner, font_px)


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= 0.01 else "<1%"
