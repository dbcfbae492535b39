"""The prediction of a detector for one image: boxes with class, score and optional mask.

Shapes: boxes x1, y1, x2, y2 in pixels of the image, so that x2 - x1 is the width; masks (H, W) bool.
Result files follow COCO: cocodataset.org, "Results format".
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from van.errors import ShapeError
from van.predictions.classification import MAX_SCORE
from van.visualization import drawing
from van.visualization.drawing import class_color

_MAX_LABELS = 300
"""The usual limit of detections per image; the cost of placing labels grows with its square."""


class Detection(NamedTuple):
    """One detected object; ``index`` is its class's index in ``class_names``, ``mask`` is None for box-only models."""

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """The objects detected in an image, sorted by descending score; ties keep the order given.

    Iterates over ``Detection`` objects; ``boxes``, ``scores``, ``labels`` and ``masks`` are the same values as arrays.
    Compare two predictions by ``to_dict``, because masks are arrays.

    Args:
        class_names: names of the classes.
        detections: the objects.
        image_size: height and width of the image in pixels.
        name: path or other name of the image.
        category_ids: the category id of each class in result files; the class's index if empty.

    Raises:
        ShapeError: a class index, score, box or mask is invalid; the message has the index in ``detections``.
    """

    class_names: tuple[str, ...]
    detections: tuple[Detection, ...]
    image_size: tuple[int, int]
    name: str = "image"
    category_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ShapeError(f"image_size: expected height and width, each at least 1, got {self.image_size}")
        if self.category_ids and len(self.category_ids) != len(self.class_names):
            raise ShapeError(
                f"category_ids: expected one for each of {len(self.class_names)} classes, got {len(self.category_ids)}"
            )
        valid = [self._validate(place, detection) for place, detection in enumerate(self.detections)]
        object.__setattr__(self, "detections", tuple(sorted(valid, key=lambda detection: -detection.score)))

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.detections)

    def __len__(self) -> int:
        return len(self.detections)

    def __getitem__(self, place: int) -> Detection:
        return self.detections[place]

    @property
    def boxes(self) -> np.ndarray:
        """Boxes (K, 4) float32 as x1, y1, x2, y2 in pixels."""
        return np.array([detection.box for detection in self.detections], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> np.ndarray:
        """Scores (K,) float32 in descending order."""
        return np.array([detection.score for detection in self.detections], np.float32)

    @property
    def labels(self) -> np.ndarray:
        """Class indices (K,) int64."""
        return np.array([detection.index for detection in self.detections], np.int64)

    @property
    def masks(self) -> np.ndarray | None:
        """Masks (K, H, W) bool; None if a detection has none, or if there are no detections."""
        masks = [detection.mask for detection in self.detections if detection.mask is not None]
        return np.stack(masks) if masks and len(masks) == len(self.detections) else None

    def above(self, min_score: float) -> "Detections":
        """Return the detections whose score is at least ``min_score``.

        Raises:
            ShapeError: ``min_score`` is not between 0 and 1.
        """
        if not 0 <= min_score <= 1:
            raise ShapeError(f"min_score: expected 0 to 1, got {min_score}")
        kept = tuple(detection for detection in self.detections if detection.score >= min_score)
        return dataclasses.replace(self, detections=kept)

    def top(self, k: int) -> "Detections":
        """Return the ``k`` detections with the highest scores, or all if there are fewer.

        Raises:
            ShapeError: ``k`` is less than 1.
        """
        if k < 1:
            raise ShapeError(f"k: expected at least 1, got {k}")
        return dataclasses.replace(self, detections=self.detections[:k])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values; masks are COCO's compressed run-length encodings."""
        records = []
        for detection in self.detections:
            record: dict[str, Any] = {key: getattr(detection, key) for key in ("label", "index", "score")}
            record["box"] = list(detection.box)
            if detection.mask is not None:
                record |= {"area": int(detection.mask.sum()), "mask": _encode_mask(detection.mask)}
            records.append(record)
        height, width = self.image_size
        return {"image": self.name, "width": width, "height": height, "detections": records}

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the entries of a COCO results file; ``image_id`` is the image's id in the dataset."""
        entries = []
        for detection in self.detections:
            x1, y1, x2, y2 = detection.box
            entry: dict[str, Any] = {
                "image_id": int(image_id),
                "category_id": int(self.category_ids[detection.index]) if self.category_ids else detection.index,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": detection.score,
            }
            if detection.mask is not None:
                entry["segmentation"] = _encode_mask(detection.mask)
            entries.append(entry)
        return entries

    def draw(self, image: Image.Image, *, show_scores: bool = True) -> Image.Image:
        """Return a copy of ``image`` with masks, boxes and labels, the best on top; small images are enlarged.

        The best 300 detections have labels, except where a label would lie mostly on others or does not fit.
        Pass ``show_scores=False`` for ground truth, which has no scores.

        Raises:
            ShapeError: the image's size is not that of the prediction.
        """
        pixels, scale = drawing.upscale_small_image(image, self.image_size)
        font_px, line_px = drawing.drawing_style(pixels.shape[1], pixels.shape[0])
        # Painted in ascending order of score, so that the best detection is never hidden by a worse one.
        worst_first = self.detections[::-1]
        for detection in worst_first:
            if detection.mask is not None:
                mask = drawing.repeat_pixels(detection.mask, scale)
                drawing.draw_mask(pixels, mask, class_color(detection.index), max(1, line_px // 2))
        sheet = Image.fromarray(pixels)
        draw = ImageDraw.Draw(sheet)
        rectangles = [
            drawing.box_to_rectangle([coordinate * scale for coordinate in detection.box], sheet.size, line_px)
            for detection in self.detections
        ]
        for detection, rectangle in zip(worst_first, reversed(rectangles), strict=True):
            drawing.draw_box(draw, rectangle, class_color(detection.index), line_px)
        covered = np.array(rectangles[:_MAX_LABELS]).reshape(-1, 4)
        labels: list[tuple[drawing.LabelBox, tuple[int, int]]] = []
        occupied = np.empty((0, 4), np.int64)
        for detection, rectangle in zip(self.detections, rectangles[:_MAX_LABELS], strict=False):  # the best first
            max_width_px = min(sheet.width, max(rectangle[2] - rectangle[0], 14 * font_px))
            score, color = detection.score if show_scores else None, class_color(detection.index)
            label = drawing.make_label_box(detection.label, score, color, font_px, max_width_px)
            corner = drawing.place_label_box(label.size, rectangle, sheet.size, occupied, covered)
            if corner is not None:
                labels.append((label, corner))
                right, bottom = corner[0] + label.size[0], corner[1] + label.size[1]
                occupied = np.concatenate([occupied, [[*corner, right, bottom]]])
        for label, corner in reversed(labels):
            drawing.draw_label_box(draw, label, corner, font_px)
        return sheet

    def _validate(self, place: int, detection: Detection) -> Detection:
        """Return the detection with plain Python numbers, or raise ShapeError."""
        where, size = f"detection {place}", tuple(self.image_size)
        if not 0 <= detection.index < len(self.class_names):
            raise ShapeError(f"{where}: index: expected 0 to {len(self.class_names) - 1}, got {detection.index}")
        score = float(detection.score)
        if not 0 <= score <= MAX_SCORE:
            raise ShapeError(f"{where}: score: expected 0 to 1, got {score}; check the model's weights")
        box = tuple(float(coordinate) for coordinate in detection.box)
        if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
            raise ShapeError(f"{where}: box: expected finite x1, y1, x2, y2, x1 <= x2 and y1 <= y2, got {box}")
        mask = detection.mask
        if mask is not None and (mask.shape != size or mask.dtype != np.bool_):
            expected = f"expected bool {size}, the image's height and width"
            raise ShapeError(f"{where}: mask: {expected}, got {mask.dtype} {mask.shape}")
        return Detection(detection.label, int(detection.index), min(score, 1.0), box, mask)


def _encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's compressed run-length encoding, its bytes as text for JSON."""
    from faster_coco_eval.core.mask import encode  # imported here: box-only predictions do not need it

    encoded = encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
