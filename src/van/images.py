"""Image reading: from a file of any supported kind to an upright RGB image.

EXIF orientation is applied; CMYK, palette, 16-bit and transparent images become RGB on white; an animation gives its
first frame. A file that cannot be read raises ``ImageError`` with the reason, and so does a decompression bomb, which
would cost far more memory or time than its size suggests. The functions are thread-safe.
"""

import contextlib
import ctypes
import errno
import functools
import glob
import io
import itertools
import logging
import os
import re
import struct
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, Union, cast

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from van.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

ImageInput = Union[str, Path, bytes, io.IOBase, Image.Image, np.ndarray, "Tensor"]
"""An image as callers give it: a path, the bytes of a file, an open file, a Pillow image, an array (H, W, 3) of uint8
RGB (OpenCV's are BGR: reverse the last axis), or a tensor (3, H, W) of uint8 RGB or of floats from 0 to 1."""

Box = tuple[float, float, float, float]
"""A box in an image: left, top, right, bottom in pixels from the upper left corner."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
"""File suffixes that count as images when a folder is searched."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats that are opened, recognized by content. Pillow's others are not: one starts a PostScript interpreter."""

MAX_PIXELS = 178_956_970
"""The most pixels an image may have, checked before decoding: half a gigabyte of RGB. Pillow has the same limit."""

_ORIENTATION = 0x0112
_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transpose that undoes each EXIF orientation except 1, which is upright."""

_STRIP_PIXELS = 1 << 20

_MAX_JPEG_SCANS, _MAX_PPM_COMMENTS, _MAX_TILE_PIXELS, _MAX_RLE_PIXELS = 100, 1000, 1 << 22, 1 << 24
"""Limits against decompression bombs. Each scan of a JPEG visits all of its pixels and costs a few bytes in the file;
about ten are usual. Each comment in a plain-text PPM makes Pillow copy a megabyte. A TIFF tile is decoded as a whole,
even for an image of one pixel; most tiles are 256 x 256. BMP run lengths are decoded in Python, 0.1 us a pixel."""

_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_TILE_SIDES, _TIFF_INTEGERS = (322, 323), (3, 4)


def read_image(
    source: Path | str | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS, untrusted: bool = False
) -> Image.Image:
    """Read one image as upright RGB.

    Args:
        source: a path, or the bytes of a file.
        name: the image's name in error messages; the path if None.
        max_pixels: refuse larger images without decoding them; at most ``MAX_PIXELS``.
        untrusted: also refuse files that are small and take seconds of CPU time; for images that strangers send.

    Raises:
        ImageError: the file is missing, truncated, not an image, or too large.
    """
    shown = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        with _HIDE_PILLOW_WARNINGS, _open_stream(source) as stream, Image.open(stream, formats=FORMATS) as file:
            width, height = file.size
            if width * height > max_pixels:
                raise ImageError(shown, _too_large_message(f"{width * height:,} ({width}x{height})", max_pixels))
            if reason := decompression_bomb_reason(file, untrusted=untrusted):
                raise ImageError(shown, reason)
            with _AVIF_LOCK if file.format == "AVIF" else contextlib.nullcontext():
                file.load()
            return to_rgb(_apply_exif_orientation(file))
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile files
        raise ImageError(shown, _error_reason(error, source, max_pixels)) from error


def is_one_image(images: object) -> TypeGuard[ImageInput]:
    """Return whether ``images`` is one ``ImageInput``, not several."""
    return isinstance(images, str | Path | bytes | io.IOBase | Image.Image | np.ndarray) or _is_tensor(images)


def open_image(image: ImageInput, name: str | None = None) -> Image.Image:
    """Open an image of any accepted type as upright RGB.

    Raises:
        ImageError: it cannot be read; the error has ``name``, or the path.
        UsageError: it has another type, or an array or a tensor has another shape, type or range.
    """
    shown = name or "image"
    if isinstance(image, str | Path | bytes):
        return read_image(image, name=name)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, io.IOBase):
        content = image.read()
        if not isinstance(content, bytes):
            raise UsageError(f"{shown}: expected a file that was opened in binary mode ('rb'), got a text file")
        return read_image(content, name=name or getattr(image, "name", None))
    if isinstance(image, np.ndarray):
        return Image.fromarray(_check_array(image, f"{shown}: expected an RGB array (H, W, 3) of uint8", axis=2))
    if not _is_tensor(image):
        raise UsageError(
            f"{shown}: expected a path, the bytes of a file, an open file, a PIL image, an array or a tensor, "
            f"got {type(image).__name__}"
        )
    expected = f"{shown}: expected an RGB tensor (3, H, W) of uint8, or of floats from 0 to 1"
    values = image.detach().cpu()
    if values.is_floating_point():
        values = values.float()
        if values.numel() and not (values.min() >= 0 and values.max() <= 1):
            raise UsageError(
                f"{expected}, got values from {values.min():.3g} to {values.max():.3g}; do not normalize it"
            )
        values = values.mul(255).round().byte()
    return Image.fromarray(_check_array(values.numpy(), expected, axis=0).transpose(1, 2, 0).copy())


def open_images(images: Iterable[ImageInput] | ImageInput) -> list[tuple[str, Image.Image]]:
    """Open several images as upright RGB, each with its name: its path, or "image" and its index.

    Raises:
        ImageError: one of them cannot be read.
        UsageError: one of them has another type.
    """
    return [(name, open_image(image, name)) for name, image in _named(images)]


def read_chunks(images: Iterable[ImageInput], size: int) -> Iterator[list[tuple[str, Image.Image | ImageError]]]:
    """Yield images in chunks of at most ``size``, in order: the name of each with the image, or with its error.

    Raises:
        UsageError: one of them has another type.
    """
    remaining = _named(images)
    while chunk := list(itertools.islice(remaining, size)):
        yield [(name, _open_or_error(image, name)) for name, image in chunk]


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: deep grays are scaled to 8 bits, transparency is composited on white."""
    if image.mode.startswith(("I", "F")):
        return _scale_gray_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def find_images(folder: Path) -> list[Path]:
    """Return every image file below ``folder``, sorted; hidden files and folders are skipped, links are followed."""
    files: list[Path] = []
    visited: set[Path] = set()
    for parent, folder_names, file_names in os.walk(folder, followlinks=True):
        resolved = Path(parent).resolve()
        if resolved in visited:  # a link to a folder above, which would make the walk endless
            folder_names.clear()
            continue
        visited.add(resolved)
        folder_names[:] = sorted(name for name in folder_names if not name.startswith("."))
        files += [Path(parent, name) for name in file_names if not name.startswith(".")]
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES)


def expand_images(arguments: Iterable[str | Path]) -> list[Path]:
    """Expand files, folders and glob patterns to a list of image files, in the order given.

    Files that do not exist stay in the list, so that each is reported by name.

    Raises:
        UsageError: a folder holds no images, or a pattern matches no files.
    """
    paths: list[Path] = []
    for argument in arguments:
        paths += expand_image(argument) or [Path(argument)]
    return paths


def expand_image(argument: str | Path) -> list[Path]:
    """Return the images in a folder, or the files that match a glob pattern; nothing for any other path.

    Raises:
        UsageError: a folder holds no images, or a pattern matches no files.
    """
    path = Path(argument)
    if path.is_dir():
        images = find_images(path)
        if not images:
            raise UsageError(f"{argument}: found no images in this folder; expected {', '.join(SUFFIXES)}")
        return images
    if not path.exists() and glob.has_magic(str(argument)):
        matches = [Path(match) for match in sorted(glob.glob(str(argument), recursive=True)) if Path(match).is_file()]
        if not matches:
            raise UsageError(f"{argument}: the pattern matches no files")
        return matches
    return []


def expand_inputs(images: Iterable[ImageInput] | ImageInput) -> Iterator[ImageInput]:
    """Yield one image, or several one after another; folders and glob patterns among them give all of their files.

    Raises:
        UsageError: as for ``expand_images``, or ``images`` has another type.
    """
    for _, image in _named([images] if is_one_image(images) else images):
        yield from (expand_image(image) if isinstance(image, str | Path) else []) or [image]


@functools.cache
def silence_decoders() -> None:
    """Keep libtiff and Pillow's log from writing to the console about damaged files."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(AttributeError, OSError):  # a libtiff that this call cannot reach keeps writing
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


class _PillowWarningFilter:
    """A thread-safe context that hides Pillow's warnings about large images and unusual metadata.

    ``warnings.catch_warnings`` restores a list that all threads share, so two overlapping readers would leave it
    changed for good. This class counts the readers and removes only the filter that it added.
    """

    def __init__(self) -> None:
        self._filter = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
        self._lock = threading.Lock()
        self._readers = 0
        self._is_ours = False

    def __enter__(self) -> None:
        silence_decoders()
        with self._lock:
            self._readers += 1
            if self._filter not in warnings.filters:
                cast(list[object], warnings.filters).insert(0, self._filter)
                self._is_ours = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers and self._is_ours:  # an equal filter may be the calling program's own
                self._is_ours = False
                with contextlib.suppress(ValueError):
                    cast(list[object], warnings.filters).remove(self._filter)


_HIDE_PILLOW_WARNINGS = _PillowWarningFilter()
_AVIF_LOCK = threading.Lock()
"""One AVIF is decoded at a time: whatever size the file declares, libavif decodes up to 16384 x 16384, about 600 MB."""


def _open_stream(source: Path | str | bytes) -> BinaryIO:
    """Open the contents. Pillow might memory-map a file that it opens itself; truncation then kills the process."""
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def decompression_bomb_reason(file: ImageFile.ImageFile, *, untrusted: bool = True) -> str:
    """Return why an opened file would cost far more to decode than its size suggests, or an empty string.

    What costs memory is always checked; what costs time, and takes a second pass over the file, if ``untrusted``.
    """
    codec = file.tile[0].codec_name if file.tile else ""
    pixels = file.width * file.height
    if codec == "bmp_rle" and pixels > _MAX_RLE_PIXELS:
        return (
            f"run-length encoded BMP: expected at most {_MAX_RLE_PIXELS:,} pixels, got {pixels:,} "
            f"({file.width}x{file.height}); save it without compression"
        )
    if codec == "libtiff" and isinstance(file, TiffImagePlugin.TiffImageFile):
        limit = max(_MAX_TILE_PIXELS, pixels)
        if (tile_pixels := _count_tile_pixels(file)) > limit:
            return f"TIFF tiles: expected at most {limit:,} pixels, got {tile_pixels:,}; save it with tiles of 256x256"
    if untrusted and codec == "jpeg" and _count_jpeg_scans(_read_content(file)) > _MAX_JPEG_SCANS:
        return f"JPEG scans: expected at most {_MAX_JPEG_SCANS}, got more; save it with the usual ten or fewer"
    if untrusted and codec == "ppm_plain" and _read_content(file).count(b"#") > _MAX_PPM_COMMENTS:
        return f"PPM comments: expected at most {_MAX_PPM_COMMENTS:,}, got more; save it without comments"
    return ""


def _read_content(file: ImageFile.ImageFile) -> bytes:
    stream = file.fp
    assert stream is not None  # it is open, and not loaded yet
    position = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(position)
    return content


def _count_jpeg_scans(jpeg: bytes) -> int:
    """Count the scans of the first image in a file, and stop above the limit."""
    if jpeg.count(b"\xff\xda") <= _MAX_JPEG_SCANS:  # true for nearly every file, and quick to check
        return 0
    count, position = 0, 2
    while count <= _MAX_JPEG_SCANS and (match := _JPEG_MARKER.search(jpeg, position)):
        marker, position = match[1][0], match.end()
        if marker == 0xD9:  # end of image; a second image or a video may follow
            break
        count += marker == 0xDA
        if marker not in (0x01, 0xD8):  # all others carry their length
            position += int.from_bytes(jpeg[position : position + 2])
    return count


def _count_tile_pixels(file: TiffImagePlugin.TiffImageFile) -> int:
    """Return the pixels of one tile, 0 for strips.

    A side of a type that libtiff reads and Pillow does not counts as too large, or it would bypass the check.
    """
    content = _read_content(file)
    order, is_big_tiff = "<" if content.startswith(b"II") else ">", content[2:4] in (b"+\0", b"\0+")
    start, offset_format, entry_size = (8, "Q", 20) if is_big_tiff else (4, "I", 12)
    directory = struct.unpack_from(order + offset_format, content, start)[0]
    count = struct.unpack_from(order + ("Q" if is_big_tiff else "H"), content, directory)[0]
    first = directory + (8 if is_big_tiff else 2)
    for entry in range(first, min(first + entry_size * count, len(content) - entry_size + 1), entry_size):
        tag, kind = struct.unpack_from(order + "HH", content, entry)
        if tag in _TILE_SIDES and kind not in _TIFF_INTEGERS:
            return MAX_PIXELS + 1
    sides = [file.tag_v2.get(tag, 0) for tag in _TILE_SIDES]
    return sides[0] * sides[1] if all(isinstance(side, int) for side in sides) else MAX_PIXELS + 1


def _apply_exif_orientation(file: Image.Image) -> Image.Image:
    """Return an upright copy of a loaded file's image; damaged EXIF is ignored."""
    try:
        transpose = _EXIF_TRANSPOSE.get(file.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata must not cost the image
        transpose = None
    if file.format == "PPM" and file.mode == "I":  # Pillow has scaled it to 16 bits
        file = file.convert("I;16")
    return file.copy() if transpose is None else file.transpose(transpose)


def _scale_gray_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grays by one factor for the whole image, strip by strip to save memory."""
    values = np.asarray(image)
    factor = _gray_factor(image.mode, values)
    flat, gray = values.reshape(-1), np.empty(values.size, dtype=np.uint8)
    for start in range(0, values.size, _STRIP_PIXELS):
        strip = flat[start : start + _STRIP_PIXELS].astype(np.float64) * factor
        finite = np.nan_to_num(strip, nan=0.0, posinf=255.0, neginf=0.0)
        gray[start : start + _STRIP_PIXELS] = np.clip(np.rint(finite), 0, 255)
    return Image.fromarray(gray.reshape(values.shape))


def _gray_factor(mode: str, values: np.ndarray) -> float:
    """Return the factor to 8 bits: 16-bit modes declare their range, others are scaled by the brightest pixel."""
    if mode.startswith("I;16"):
        return 255 / 65535
    peak = float(np.max(values, where=np.isfinite(values), initial=0.0))
    if mode == "F" and peak <= 1.0:
        return 255.0
    if peak <= 255.0:
        return 1.0
    return 255 / max(peak, 65535.0)


def _error_reason(error: Exception, source: Path | str | bytes, max_pixels: int) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "expected an image file, got a directory"
    if isinstance(error, Image.DecompressionBombError):  # Pillow's text: "Image size (N pixels) exceeds limit ..."
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        return _too_large_message(f"{int(pixels[1]):,}" if pixels else "more", max_pixels)
    if isinstance(error, UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if not size:
            return "the file is empty"
        return f"not a readable image: expected {', '.join(FORMATS)}, or the file is damaged or truncated"
    # EINVAL is no fault of the disk: a damaged file made the decoder seek to a negative position
    if isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL:
        return f"the file cannot be read ({error.strerror})"
    return f"the file is damaged or truncated ({error or type(error).__name__})"


def _too_large_message(pixels: str, max_pixels: int) -> str:
    limit = min(max_pixels, MAX_PIXELS)
    return f"the image is too large: expected at most {limit:,} pixels, got {pixels}; resize it first"


def _named(images: Iterable[ImageInput] | ImageInput) -> Iterator[tuple[str, ImageInput]]:
    """Yield each image with its name: its path, or "image" and its index."""
    if isinstance(images, bytearray | memoryview) or not isinstance(images, Iterable):
        raise UsageError(f"images: expected an image, or several in a list, got {type(images).__name__}")
    several: Iterable[Any] = images
    return ((str(p) if isinstance(p, str | Path) else f"image {index}", p) for index, p in enumerate(several))


def _open_or_error(image: ImageInput, name: str) -> Image.Image | ImageError:
    try:
        return open_image(image, name)
    except ImageError as error:
        return error


def _is_tensor(value: object) -> "TypeGuard[Tensor]":
    """Return whether it is a tensor of PyTorch, without importing PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _check_array(values: np.ndarray, expected: str, *, axis: int) -> np.ndarray:
    """Check that an image has uint8 values and three channels at ``axis``."""
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[axis] != 3 or 0 in values.shape:
        raise UsageError(f"{expected}, got {values.dtype} {values.shape}; give several images as a list")
    return values
