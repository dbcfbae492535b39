"""Digit scenes: handwritten digits at random sizes, positions and overlaps on a textured background, made by seed.

The embedded dataset of detection and segmentation. Training scenes show training digits, validation scenes show
validation digits (``van.datasets.digits``). A later digit occludes earlier ones; the visible pixels of a digit are its
mask, and a digit that is mostly occluded is not annotated.

Shapes: images (S, S, 3) and masks (S, S), rows from the top; boxes x1, y1, x2, y2 in pixels, the last
column and row included (so x2 - x1 is the width).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from van.datasets.digits import load_digits
from van.datasets.image_dataset import Item
from van.errors import UsageError

_MIN_VISIBLE_FRACTION = 0.35
"""A digit of which a smaller fraction of pixels is visible is not annotated."""
_MASK_THRESHOLD = 0.45
"""A pixel with more ink than this belongs to the digit."""
MAX_DIGITS = 6
"""The default number of digits in a scene, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One digit of a scene: its class index and its visible pixels."""

    label: int
    mask: np.ndarray
    """(S, S) bool."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the mask."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """An image and its objects, the nearest last; their masks do not overlap."""

    image: Image.Image
    objects: tuple[SceneObject, ...]

    def semantic_mask(self) -> np.ndarray:
        """Return (S, S) uint8: 0 for the background, else the class index plus one."""
        values = np.zeros(self.image.size[::-1], np.uint8)
        for each in self.objects:
            values[each.mask] = each.label + 1
        return values


def generate_digit_scenes(
    split: str, *, count: int, image_size: int = 128, seed: int = 0, max_digits: int = MAX_DIGITS
) -> Iterator[Scene]:
    """Yield ``count`` scenes of ``split``, train or val; scene i is the same whatever ``count`` is.

    Each has 1 to ``max_digits`` digits, some of which others may occlude; with 1 each shows exactly one.

    Raises:
        MissingExtra: scikit-learn is not installed.
        UsageError: the split is unknown, or a number is too small.
    """
    if split not in ("train", "val"):
        raise UsageError(f"split: expected train or val, got {split!r}")
    for name, value, minimum in (("count", count, 1), ("image_size", image_size, 32), ("max_digits", max_digits, 1)):
        if value < minimum:
            raise UsageError(f"{name}: expected at least {minimum}, got {value}")
    splits = load_digits()
    digits = splits.train if split == "train" else splits.validation
    for index in range(count):
        random = np.random.default_rng([seed, split == "val", index])
        scene = _make_scene(digits, image_size, max_digits, random)
        while max_digits == 1 and not scene.objects:  # a digit 4 pixels wide may have no pixel above the threshold
            scene = _make_scene(digits, image_size, max_digits, random)
        yield scene


def _make_scene(digits: Sequence[Item], image_size: int, max_digits: int, random: np.random.Generator) -> Scene:
    pixels = _make_background(image_size, random)
    objects: list[tuple[SceneObject, int]] = []
    for _ in range(random.integers(1, max_digits + 1)):
        digit = digits[int(random.integers(len(digits)))]
        ink = _place_digit(digit, image_size, random)
        mask = ink > _MASK_THRESHOLD
        if not mask.any():
            continue
        color = _contrasting_color(pixels[mask].mean(0), random)
        pixels = pixels + ink[..., None] * (color - pixels)
        objects = [(dataclasses.replace(each, mask=each.mask & ~mask), full_area) for each, full_area in objects]
        objects.append((SceneObject(label=digit.target, mask=mask), int(mask.sum())))
    visible = tuple(each for each, full_area in objects if each.mask.sum() >= _MIN_VISIBLE_FRACTION * full_area)
    return Scene(image=Image.fromarray(np.rint(pixels * 255).astype(np.uint8)), objects=visible)


def _make_background(image_size: int, random: np.random.Generator) -> np.ndarray:
    """Return (S, S, 3) in 0..1: smooth noise between two colors, and fine grain."""
    colors = random.uniform(0.1, 0.9, (2, 3))
    cells = int(random.integers(3, 12))
    noise = Image.fromarray(random.uniform(0, 1, (cells, cells)).astype(np.float32))
    blend = np.asarray(noise.resize((image_size, image_size), Image.Resampling.BICUBIC))[..., None].clip(0, 1)
    grain = random.normal(0, 0.03, (image_size, image_size, 1))
    return (colors[0] + blend * (colors[1] - colors[0]) + grain).clip(0, 1)


def _place_digit(digit: Item, image_size: int, random: np.random.Generator) -> np.ndarray:
    """Return (S, S) in 0..1: the ink of a digit, enlarged, slightly rotated, at a random position."""
    side = round(image_size * float(np.exp(random.uniform(np.log(0.14), np.log(0.5)))))
    assert isinstance(digit.source, Image.Image)
    gray = digit.source.convert("L").resize((side, side), Image.Resampling.BICUBIC)
    gray = gray.rotate(float(random.uniform(-15, 15)), Image.Resampling.BILINEAR)
    left, top = (int(random.integers(0, image_size - side + 1)) for _ in range(2))
    ink = np.zeros((image_size, image_size))
    ink[top : top + side, left : left + side] = np.asarray(gray) / 255.0
    return ink


def _contrasting_color(background: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a random color whose brightness differs enough from the background's to be visible."""
    while True:
        color = random.uniform(0, 1, 3)
        if abs(color.mean() - background.mean()) > 0.25:
            return color
