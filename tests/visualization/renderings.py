"""Comparison of drawn images with pinned ones, tolerant of different font renderers.

A pinned image has a longer side of at most 240 pixels, each the mean of the pixels it covers, in 256 colors, with the
original size as metadata. An image is reduced likewise and must agree in three respects. Its size, within 2 %. Its
pixels: both images are smoothed over nine pixels, and each pixel must then be, in each channel, within ``TOLERANCE``
levels of a pixel of the other that is at most two pixels away. The amount of each hue: within ``HUE_TOLERANCE``.

Reason: matplotlib 3.10.0 and 3.11.2 place letters and antialias edges so differently that single pixels of the reduced
charts differ by 112 levels. By this measure the versions are at most 31 levels apart, while a class name in another's
place is 42 off and every missing curve more than 50. A thin curve in another color may be only 12 levels off; the
amount of its hue, however, differs by 20 %, and between the versions by 4 % at most.

To pin new images, inspect the drawings of the tests, then run the tests with ``VAN_PIN_IMAGES=1``.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PINNED = Path(__file__).with_name("pinned")
LONG_SIDE_PX = 240
TOLERANCE = 36
HUE_TOLERANCE = 0.15
_HUES = 12
_ALMOST_GRAY = 16 / 255
_MIN_HUE_FRACTION = 0.001
"""Fraction of the image; smaller amounts of a hue are not compared."""


def assert_looks_like(image: Image.Image | Path, name: str, folder: Path) -> None:
    """Compare with ``pinned/NAME.png``, or write it if ``VAN_PIN_IMAGES`` is set; see ``compare``."""
    if isinstance(image, Path):
        with Image.open(image) as file:
            image = file.convert("RGB")
    pinned = PINNED / f"{name}.png"
    if os.environ.get("VAN_PIN_IMAGES"):
        pin(image, pinned)
    compare(image, pinned, folder)


def compare(image: Image.Image, pinned: Path, folder: Path) -> None:
    """Raise AssertionError if ``image`` differs, and write both images and their differences to ``folder``."""
    assert pinned.is_file(), f"{pinned} is missing; inspect the image, then write it with VAN_PIN_IMAGES=1"
    with Image.open(pinned) as file:
        size, small = file.info["size"], file.convert("RGB")
    actual = reduce(image, small.size)
    levels = differences(np.asarray(small), np.asarray(actual))
    errors = []
    expected_size = [int(side) for side in size.split("x")]
    if any(abs(side - old) > max(4, old / 50) for side, old in zip(image.size, expected_size, strict=True)):
        errors.append(f"size: expected {size}, got {image.width}x{image.height}")
    if (levels > TOLERANCE).any():
        errors.append(f"{(levels > TOLERANCE).sum()} pixels differ, by {levels.max():.0f} levels at most")
    before, now = (hues(np.asarray(one)) for one in (small, actual))
    off = abs(now - before) / (np.maximum(now, before) + _MIN_HUE_FRACTION)
    if (off > HUE_TOLERANCE).any():
        errors.append(f"the amount of hue {off.argmax() * 360 // _HUES} degrees differs")
    if not errors:
        return
    views = {"pinned": small, "reduced": actual, "differences": Image.fromarray(np.uint8(255 * (levels <= TOLERANCE)))}
    for name, view in views.items():
        enlarged = view.resize((3 * view.width, 3 * view.height), Image.Resampling.NEAREST)
        enlarged.save(folder / f"{pinned.stem}.{name}.png")
    image.save(folder / f"{pinned.stem}.actual.png")
    raise AssertionError(
        f"{pinned.stem} differs: {'; '.join(errors)}; open {folder}/{pinned.stem}.*.png; if the change is intended, "
        "run the test again with VAN_PIN_IMAGES=1"
    )


def read(path: Path) -> np.ndarray:
    """Return the pixels (H, W, 3) of a chart, after checking that it is a PNG, not blank, with a white edge."""
    with Image.open(path) as file:
        assert file.format == "PNG"
        image = np.asarray(file.convert("RGB"))
    assert image.std() > 1, "blank"
    edges = (image[:3], image[-3:], image[:, :3], image[:, -3:])
    assert min(edge.min() for edge in edges) == 255, "an artist is cut off at the edge"
    return image


def amount(image: np.ndarray, color: str, *, within: int = 0) -> int:
    """Count the pixels that are at most ``within`` levels from ``color``, such as #0072b2."""
    expected = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)])
    return int((np.abs(image.astype(int) - expected).max(axis=-1) <= within).sum())


def pin(image: Image.Image, path: Path) -> None:
    """Write a reduced copy of ``image`` to ``path``."""
    scale = min(1.0, LONG_SIDE_PX / max(image.size))
    small = reduce(image, tuple(max(1, round(side * scale)) for side in image.size))
    metadata = PngInfo()
    metadata.add_text("size", f"{image.width}x{image.height}")
    path.parent.mkdir(exist_ok=True)
    few_colors = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # 8 levels off at most
    few_colors.save(path, format="png", optimize=True, pnginfo=metadata)


def reduce(image: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """Reduce ``image`` to ``size``, each pixel the mean of the pixels it covers."""
    return image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BOX)


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how far each pixel of two images (H, W, 3) is from the other's neighborhood, in levels (H, W)."""
    one, other = (_filter(image.astype(np.float32), 1, np.mean) for image in (one, other))
    beyond = []
    for image, reference in ((one, other), (other, one)):
        beyond += [_filter(reference, 2, np.min) - image, image - _filter(reference, 2, np.max)]
    return np.max(beyond, axis=(0, -1)).clip(0)


def hues(pixels: np.ndarray) -> np.ndarray:
    """Return the fraction of an image (H, W, 3) that each of 12 hues would fill if it were pure.

    An antialiased line on white or black has nearly the same amount as a sharp one. Each pixel counts for the two hues
    next to its own; nearly gray pixels do not count.
    """
    values = pixels / 255
    maximum, chroma = values.max(-1), np.ptp(values, axis=-1)
    red, green, blue = np.moveaxis(values, -1, 0)
    divisor = np.where(chroma > 0, chroma, 1)
    sixths = np.where(
        maximum == red,
        (green - blue) / divisor % 6,
        np.where(maximum == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    chroma = (chroma - _ALMOST_GRAY).clip(0)
    place, further = np.divmod(sixths * _HUES / 6, 1)
    amounts = np.zeros(_HUES)
    np.add.at(amounts, place.astype(int) % _HUES, chroma * (1 - further))
    np.add.at(amounts, (place.astype(int) + 1) % _HUES, chroma * further)
    return amounts / chroma.size


def _filter(values: np.ndarray, radius: int, reduction: Callable[..., np.ndarray]) -> np.ndarray:
    """Apply mean, minimum or maximum over the rows and columns at most ``radius`` away from each pixel."""
    for axis in (0, 1):
        padded = np.pad(values, [(radius, radius) if side == axis else (0, 0) for side in range(3)], mode="edge")
        count = values.shape[axis]
        values = reduction([padded.take(range(step, step + count), axis) for step in range(2 * radius + 1)], axis=0)
    return values
