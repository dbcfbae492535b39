"""From a file to an upright RGB picture, whatever is in the file.

EXIF orientation is applied, CMYK, palette, 16-bit and transparent pictures become RGB on white,
an animation gives its first frame. What cannot be read raises ``PictureError`` with the reason, and so does what would
cost far more memory or time than its size tells. Any number of threads may read at once.
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
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from van.errors import PictureError, UsageError

Picture = str | Path | bytes | Image.Image
"""What is taken for a picture: a path, the contents of a file, or Pillow's own."""

Window = tuple[float, float, float, float]
"""A rectangle in a picture: left, top, right, bottom in its pixels, from its upper left corner."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
"""File endings taken for pictures when a folder is searched."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""What is opened at all, told by content: Pillow's other readers go as far as starting a PostScript interpreter."""

MAX_PIXELS = 178_956_970
"""More pixels than this are refused before any is decoded: half a gigabyte of RGB. Pillow's own limit, too."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation but 1."""

_STRIP_PIXELS = 1 << 20

_MOST_SCANS, _MOST_COMMENTS, _MOST_TILE_PIXELS, _MOST_RUN_PIXELS = 100, 1000, 1 << 22, 1 << 24
"""Each pass of a JPEG goes over all of its pixels, a few bytes ask for one, and some ten are usual. Each comment in a
picture of letters makes Pillow copy a megabyte. A tile is unpacked whole, though the picture be one pixel of it, and
most measure 256 x 256. Run lengths are unpacked by Python, a tenth of a microsecond a pixel."""

_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_TILE_SIDES, _TIFF_INTEGERS = (322, 323), (3, 4)


def read_picture(source: Path | str | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one picture as upright RGB.

    Args:
        source: a path, or the bytes of a file.
        name: what messages call it; the path where there is one.
        max_pixels: refuse larger pictures without decoding them; at most ``MAX_PIXELS``.

    Raises:
        PictureError: missing, truncated, not a picture, or too large.
    """
    shown = name or ("picture" if isinstance(source, bytes) else str(source))
    try:
        with _QUIET, _stream(source) as stream, Image.open(stream, formats=FORMATS) as file:
            width, height = file.size
            if width * height > max_pixels:
                raise PictureError(shown, _too_large(f"{width}x{height} is {width * height:,} pixels", max_pixels))
            if trap := _trap(file):
                raise PictureError(shown, trap)
            with _ONE_AVIF if file.format == "AVIF" else contextlib.nullcontext():
                file.load()
            return to_rgb(_upright(file))
    except PictureError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile files
        raise PictureError(shown, _reason(error, source, max_pixels)) from error


def open_pictures(pictures: Iterable[Picture]) -> list[tuple[str, Image.Image]]:
    """Several pictures as upright RGB, each with its name: its path, or its place.

    Raises:
        PictureError: one of them cannot be read.
        UsageError: one of them is something else, such as an array.
    """
    if isinstance(pictures, bytearray | memoryview) or not isinstance(pictures, Iterable):
        raise UsageError(_no_picture("pictures", pictures))
    named = [(str(p) if isinstance(p, str | Path) else f"picture {place}", p) for place, p in enumerate(pictures)]
    return [(name, _opened(picture, name)) for name, picture in named]


def read_chunks(paths: Iterable[Path | str], size: int) -> Iterator[list[tuple[str, Image.Image | PictureError]]]:
    """Files in chunks of at most ``size``, in order: the name of each with its picture, or with the error it gave."""
    remaining = iter(paths)
    while chunk := list(itertools.islice(remaining, size)):
        yield [(str(path), _read_or_error(path)) for path in chunk]


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: deep greys are scaled to 8 bits, transparency is laid on white."""
    if picture.mode.startswith(("I", "F")):
        return _deep_grey(picture).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def find_pictures(folder: Path) -> list[Path]:
    """Every picture file below ``folder``, sorted; hidden files and folders are passed over, links are followed."""
    found: list[Path] = []
    visited: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in visited:  # a link back to where we were
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def expand_pictures(arguments: Iterable[str]) -> list[Path]:
    """Files, folders and glob patterns to a list of picture files, in the order given.

    Files that do not exist stay in the list, so that each is reported by name.

    Raises:
        UsageError: a folder or pattern holds no pictures.
    """
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = find_pictures(path)
            if not found:
                raise UsageError(f"{argument} holds no pictures")
            paths += found
        elif not path.exists() and glob.has_magic(argument):
            matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if Path(match).is_file()]
            if not matches:
                raise UsageError(f"{argument} matches no files")
            paths += matches
        else:
            paths.append(path)
    return paths


@functools.cache
def quiet_decoders() -> None:
    """Keep libtiff and Pillow's own log from writing to the console what damaged files make them say."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(AttributeError, OSError):  # where Pillow's libtiff cannot be reached it goes on talking
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


class _Quiet:
    """Hides Pillow's warnings while any thread reads: notes on large pictures and odd metadata.

    ``warnings.catch_warnings`` puts back a list that all threads share, so two readers that overlap
    would leave it changed for good. This one counts the readers and takes out only what it put in.
    """

    def __init__(self) -> None:
        self._filter = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
        self._lock = threading.Lock()
        self._readers = 0
        self._is_ours = False

    def __enter__(self) -> None:
        quiet_decoders()
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
            if not self._readers and self._is_ours:  # an equal one may be the program's own
                self._is_ours = False
                with contextlib.suppress(ValueError):
                    cast(list[object], warnings.filters).remove(self._filter)


_QUIET = _Quiet()
_ONE_AVIF = threading.Lock()
"""libavif decodes what is inside, up to 16384 x 16384, whatever size the file gives: some 600 MB, once at a time."""


def _stream(source: Path | str | bytes) -> BinaryIO:
    """The contents; a file that Pillow opened itself it may map, and one that is cut off meanwhile ends the process."""
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _trap(file: ImageFile.ImageFile) -> str:
    """Why an opened file would cost far more to decode than its size tells, or nothing."""
    codec = file.tile[0].codec_name if file.tile else ""
    if codec == "bmp_rle" and file.width * file.height > _MOST_RUN_PIXELS:
        return f"is {file.width}x{file.height} in run lengths; wanted at most {_MOST_RUN_PIXELS:,} pixels, or none"
    if codec == "libtiff" and isinstance(file, TiffImagePlugin.TiffImageFile):
        most = max(_MOST_TILE_PIXELS, file.width * file.height)
        if (pixels := _tile_pixels(file)) > most:
            return f"is stored in tiles of {pixels:,} pixels; wanted at most {most:,}, such as 256x256"
    if codec == "jpeg" and _scans(_content(file)) > _MOST_SCANS:
        return f"has more than {_MOST_SCANS} passes over its pixels; wanted a JPEG of the usual ten or fewer"
    if codec == "ppm_plain" and _content(file).count(b"#") > _MOST_COMMENTS:
        return f"holds more than {_MOST_COMMENTS:,} comments; wanted a PPM without"
    return ""


def _content(file: ImageFile.ImageFile) -> bytes:
    stream = file.fp
    assert stream is not None  # it is open, and not loaded yet
    place = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(place)
    return content


def _scans(jpeg: bytes) -> int:
    """Passes over the pixels of the first picture in a file; the first few of them where there are very many."""
    if jpeg.count(b"\xff\xda") <= _MOST_SCANS:  # in nearly every file, and told at once
        return 0
    count, place = 0, 2
    while count <= _MOST_SCANS and (found := _JPEG_MARKER.search(jpeg, place)):
        marker, place = found[1][0], found.end()
        if marker == 0xD9:  # the end; a second picture or a film may follow
            break
        count += marker == 0xDA
        if marker not in (0x01, 0xD8):
            place += int.from_bytes(jpeg[place : place + 2])
    return count


def _tile_pixels(file: TiffImagePlugin.TiffImageFile) -> int:
    """Of one tile; 0 where there are strips. Sides of types that libtiff reads and Pillow does not count as endless."""
    content = _content(file)
    order, big = "<" if content.startswith(b"II") else ">", content[2:4] in (b"+\0", b"\0+")
    start, head, width = (8, "Q", 20) if big else (4, "I", 12)
    place = struct.unpack_from(order + head, content, start)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), content, place)[0]
    first = place + (8 if big else 2)
    for entry in range(first, min(first + width * count, len(content) - width + 1), width):
        tag, kind = struct.unpack_from(order + "HH", content, entry)
        if tag in _TILE_SIDES and kind not in _TIFF_INTEGERS:
            return MAX_PIXELS + 1
    sides = [file.tag_v2.get(tag, 0) for tag in _TILE_SIDES]
    return sides[0] * sides[1] if all(isinstance(side, int) for side in sides) else MAX_PIXELS + 1


def _upright(file: Image.Image) -> Image.Image:
    """A copy of a loaded file's picture, turned as its EXIF says; damaged EXIF says nothing."""
    try:
        turn = _UPRIGHT.get(file.getexif().get(_ORIENTATION, 1))
    except Exception:  # a picture is worth more than its metadata
        turn = None
    if file.format == "PPM" and file.mode == "I":  # Pillow has scaled it to 16 bits
        file = file.convert("I;16")
    return file.copy() if turn is None else file.transpose(turn)


def _deep_grey(picture: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greys to 8 bits, one factor for the whole picture, strip by strip to save memory."""
    values = np.asarray(picture)
    factor = _factor(picture.mode, values)
    flat, grey = values.reshape(-1), np.empty(values.size, dtype=np.uint8)
    for start in range(0, values.size, _STRIP_PIXELS):
        strip = flat[start : start + _STRIP_PIXELS].astype(np.float64) * factor
        finite = np.nan_to_num(strip, nan=0.0, posinf=255.0, neginf=0.0)
        grey[start : start + _STRIP_PIXELS] = np.clip(np.rint(finite), 0, 255)
    return Image.fromarray(grey.reshape(values.shape))


def _factor(mode: str, values: np.ndarray) -> float:
    """What 8-bit white is divided by: 16 bits are declared, any other range is told from the brightest pixel."""
    if mode.startswith("I;16"):
        return 255 / 65535
    peak = float(np.max(values, where=np.isfinite(values), initial=0.0))
    if mode == "F" and peak <= 1.0:
        return 255.0
    if peak <= 255.0:
        return 1.0
    return 255 / max(peak, 65535.0)


def _reason(error: Exception, source: Path | str | bytes, max_pixels: int) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a picture"
    if isinstance(error, Image.DecompressionBombError):  # Pillow's text: "Image size (N pixels) exceeds limit ..."
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        return _too_large(f"it has {int(pixels[1]):,} pixels" if pixels else "too many pixels", max_pixels)
    if isinstance(error, UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        known = ", ".join(FORMATS)
        return f"is no picture that can be read ({known}), or it is damaged or cut off" if size else "is empty"
    if (
        isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL
    ):  # that is a place before the start
        return f"cannot be read ({error.strerror})"
    return f"is damaged or cut off ({error or type(error).__name__})"


def _too_large(what: str, max_pixels: int) -> str:
    return f"is too large: {what}, more than {min(max_pixels, MAX_PIXELS):,}; make it smaller first"


def _read_or_error(path: Path | str) -> Image.Image | PictureError:
    try:
        return read_picture(path)
    except PictureError as error:
        return error


def _no_picture(name: str, value: object) -> str:
    return f"{name} is a {type(value).__name__}; wanted a path, the bytes of a file, or a PIL picture"


def _opened(picture: Picture, name: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if not isinstance(picture, Picture):
        raise UsageError(_no_picture(name, picture))
    return read_picture(picture, name=name)
