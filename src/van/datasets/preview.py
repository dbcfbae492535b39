"""A grid of images of a dataset with their annotations drawn in, for a visual check before training.

Shapes: sizes (rows, columns); boxes x1, y1, x2, y2 in pixels; masks (H, W).
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from van.datasets.annotations import AnnotatedDataset, ImageRecord
from van.datasets.coco import read_panoptic_ids
from van.datasets.semantic_masks import load_semantic_mask
from van.datasets.views import CLASSES, DatasetView
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
    """Draw up to ``max_images`` images into one grid, equally many of each view; unreadable images are skipped.

    Args:
        views: the views of a dataset, see ``van.datasets.views.detect_formats``.
        path: a PNG file.
    """
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
    for index in sorted(range(len(records)), key=lambda index: (index % step, index)):
        record = records[index]
        try:
            tile = _draw_annotations(view.target_type, view.dataset, record, read_image(record.path))
        except (ImageError, DataError):
            continue
        caption = f"{view.split}, {view.target_type}: {record.name}"
        if view.target_type == CLASSES:
            caption = f"{view.split}, {view.dataset.class_names[record.annotations[0].label]}: {record.name}"
        yield _add_caption(tile, caption)


def _draw_annotations(
    target_type: str, dataset: AnnotatedDataset, record: ImageRecord, image: Image.Image
) -> Image.Image:
    size = (image.height, image.width)
    scale = min(1.0, _MAX_SIDE_PX / max(size))
    tile_size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    image = image.resize(tile_size[::-1], Image.Resampling.BOX)
    if target_type == CLASSES:
        factor = max(1, _MAX_SIDE_PX // max(tile_size))
        return image.resize((tile_size[1] * factor, tile_size[0] * factor), Image.Resampling.NEAREST)
    if target_type in ("semantic", "panoptic"):
        return _to_segmentation(target_type, dataset, record, size, tile_size).draw(image)
    return _to_detections(target_type, dataset, record, size, tile_size).draw(image, show_scores=False)


def _to_segmentation(
    target_type: str, dataset: AnnotatedDataset, record: ImageRecord, size: tuple[int, int], tile_size: tuple[int, int]
) -> Segmentation:
    assert record.mask_path is not None
    names = dataset.class_names
    if target_type == "semantic":
        labels = _resize_nearest(load_semantic_mask(record.mask_path, dataset.mask_values), size, tile_size)
        segments = [Segment(label, names[label], label) for label in np.unique(labels).tolist() if label >= 0]
        return Segmentation(class_names=names, segment_ids=labels.astype(np.int32), segments=tuple(segments))
    ids = _resize_nearest(read_panoptic_ids(record.mask_path), size, tile_size)
    segments = [Segment(segment.id, names[segment.label], segment.label) for segment in record.segments]
    ids = np.where(np.isin(ids, [segment.id for segment in segments]), ids, UNLABELED)
    return Segmentation(class_names=names, segment_ids=ids, segments=tuple(segments), panoptic=True)


def _to_detections(
    target_type: str, dataset: AnnotatedDataset, record: ImageRecord, size: tuple[int, int], tile_size: tuple[int, int]
) -> Detections:
    y_scale, x_scale = tile_size[0] / size[0], tile_size[1] / size[1]
    detections = []
    for annotation in record.annotations:
        x1, y1, x2, y2 = annotation.box
        box = (x1 * x_scale, y1 * y_scale, x2 * x_scale, y2 * y_scale)
        mask = None
        if target_type == "masks" and annotation.segmentation is not None:
            mask = _resize_nearest(annotation.mask(size), size, tile_size)
        detections.append(Detection(dataset.class_names[annotation.label], annotation.label, 1.0, box, mask))
    return Detections(class_names=dataset.class_names, detections=tuple(detections), image_size=tile_size)


def _resize_nearest(values: np.ndarray, size: tuple[int, int], tile_size: tuple[int, int]) -> np.ndarray:
    """Resize a mask of an image of ``size`` by taking the value at the center of each new pixel."""
    if values.shape != size:
        raise DataError(f"mask: expected shape {size}, as the image, got {values.shape}")
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(tile_size, size, strict=True))
    return values[np.ix_(rows, columns)]


def _add_caption(tile: Image.Image, caption: str) -> Image.Image:
    font = load_font(_CAPTION_PX)
    bar_px = round(1.6 * _CAPTION_PX)
    captioned = Image.new("RGB", (max(tile.width, _MAX_SIDE_PX), tile.height + bar_px), "white")
    captioned.paste(tile, (0, bar_px))
    text = truncate_text(caption, captioned.width, font)
    ImageDraw.Draw(captioned).text((0, bar_px / 2), text, fill="black", font=font, anchor="lm")
    return captioned
