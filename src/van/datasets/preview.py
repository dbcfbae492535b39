"""A grid of images of a dataset with their annotations drawn in, for a visual check before training.

Shapes: sizes (rows, columns); boxes x1, y1, x2, y2 in pixels; masks (H, W).
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from van.datasets.annotations import CLASSES, DatasetView, ImageRecord
from van.datasets.coco_panoptic import read_panoptic_ids
from van.datasets.semantic_masks import load_semantic_mask
from van.errors import DataError, ImageError
from van.images import read_image
from van.predictions.detections import Detection, Detections
from van.predictions.segmentation import UNLABELED, Segment, Segmentation
from van.visualization.drawing import load_font, truncate_text
from van.visualization.image_grid import draw_image_grid

_MAX_SIDE_PX = 480
_COLUMNS = 4
_CAPTION_PX = 14


def draw_preview(views: Sequence[DatasetView], path: Path, *, max_images: int = 24) -> None:
    """Draw up to ``max_images`` images into one PNG, equally many of each view; unreadable images are skipped."""
    with_masks = {view.split for view in views if view.target_type == "masks"}
    # drawings of masks include the boxes
    views = [view for view in views if view.target_type != "boxes" or view.split not in with_masks]
    tiles: list[Image.Image] = []
    for index, view in enumerate(views):
        num_images = (max_images - len(tiles)) // (len(views) - index)
        tiles += itertools.islice(_draw_tiles(view, num_images=max(1, num_images)), num_images)
    draw_image_grid(tiles, path, columns=_COLUMNS)


def _draw_tiles(view: DatasetView, *, num_images: int) -> Iterator[Image.Image]:
    """Yield images with their annotations: first ``num_images`` spread over the whole view, then the others."""
    records = view.dataset.images
    step = max(1, len(records) // num_images)
    font = load_font(_CAPTION_PX)
    bar_px = round(1.6 * _CAPTION_PX)
    for index in sorted(range(len(records)), key=lambda index: (index % step, index)):
        record = records[index]
        try:
            tile = draw_annotations(view, record, read_image(record.path))
        except (ImageError, DataError):
            continue
        is_class = view.target_type == CLASSES
        drawn = view.dataset.class_names[record.annotations[0].label] if is_class else view.target_type
        captioned = Image.new("RGB", (max(tile.width, _MAX_SIDE_PX), tile.height + bar_px), "white")
        captioned.paste(tile, (0, bar_px))
        text = truncate_text(f"{view.split}, {drawn}: {record.name}", captioned.width, font)
        ImageDraw.Draw(captioned).text((0, bar_px / 2), text, fill="black", font=font, anchor="lm")
        yield captioned


def draw_annotations(view: DatasetView, record: ImageRecord, image: Image.Image) -> Image.Image:
    """Return the image with its annotations, at most ``_MAX_SIDE_PX`` wide and high.

    Raises:
        DataError: a mask cannot be read, or has another size than the image.
    """
    size, names = (image.height, image.width), view.dataset.class_names
    scale = min(1.0, _MAX_SIDE_PX / max(size))
    tile_size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    image = image.resize(tile_size[::-1], Image.Resampling.BOX)

    def resize(values: np.ndarray) -> np.ndarray:
        """Take the value of a mask at the center of each pixel of the tile."""
        if values.shape != size:
            raise DataError(f"mask: expected shape {size}, as the image, got {values.shape}")
        rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(tile_size, size, strict=True))
        return values[np.ix_(rows, columns)]

    if view.target_type == CLASSES:
        factor = max(1, _MAX_SIDE_PX // max(tile_size))
        return image.resize((tile_size[1] * factor, tile_size[0] * factor), Image.Resampling.NEAREST)
    if view.target_type == "semantic":
        assert record.mask_path is not None
        ids = resize(load_semantic_mask(record.mask_path, view.dataset.mask_values)).astype(np.int32)
        segments = [Segment(label, names[label], label) for label in np.unique(ids).tolist() if label >= 0]
        return Segmentation(class_names=names, segment_ids=ids, segments=tuple(segments)).draw(image)
    if view.target_type == "panoptic":
        assert record.mask_path is not None
        ids = resize(read_panoptic_ids(record.mask_path))
        segments = [Segment(segment.id, names[segment.label], segment.label) for segment in record.segments]
        ids = np.where(np.isin(ids, [segment.id for segment in segments]), ids, UNLABELED)
        return Segmentation(class_names=names, segment_ids=ids, segments=tuple(segments), panoptic=True).draw(image)
    y_scale, x_scale = tile_size[0] / size[0], tile_size[1] / size[1]
    detections = []
    for each in record.annotations:
        x1, y1, x2, y2 = each.box
        has_mask = view.target_type == "masks" and each.segmentation is not None
        mask = resize(each.mask(size)) if has_mask else None
        box = (x1 * x_scale, y1 * y_scale, x2 * x_scale, y2 * y_scale)
        detections.append(Detection(names[each.label], each.label, 1.0, box, mask))
    prediction = Detections(class_names=names, detections=tuple(detections), image_size=tile_size)
    return prediction.draw(image, show_scores=False)
