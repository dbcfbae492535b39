"""Whatever lies in a file, reading it gives a whole picture or a ``PictureError`` that says why not."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.errors import PictureError
from van.pictures import MAX_PIXELS, read_picture

SCENE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8))
KINDS = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
    "avif": ("AVIF", {}),
}


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    name, options = KINDS[kind]
    SCENE.save(buffer, name, **options)
    return buffer.getvalue()


FILES = {kind: encoded(kind) for kind in KINDS}


def png(width: int, height: int, data: bytes = b"\x00" * 64) -> bytes:
    """A PNG made by hand: whatever its header says, there are only a few bytes behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def read_or_reason(file: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | str:
    """Anything but a ``PictureError`` passes through, and fails the test."""
    try:
        picture = read_picture(file, max_pixels=max_pixels)
    except PictureError as error:
        return error.reason
    return np.asarray(picture)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_off_file_gives_an_error_or_the_whole_picture(kind):
    file = FILES[kind]
    whole = np.asarray(read_picture(file))
    cuts = {*range(64), *range(64, len(file), max(1, len(file) // 60)), *range(len(file) - 40, len(file))}
    seen = {length: read_or_reason(file[:length]) for length in sorted(cuts)}
    for length, answer in seen.items():
        assert isinstance(answer, str) or np.array_equal(answer, whole), f"cut at {length} of {len(file)}"
    assert sum(isinstance(answer, str) for answer in seen.values()) > 100
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture(file[: len(file) // 2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(set(KINDS) - {"lzw"})),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    at_the_start=st.booleans(),
)
def test_flipped_bytes_give_an_error_or_a_picture(kind, changes, at_the_start):
    file = bytearray(FILES[kind])
    for place, value in changes:
        file[int(place * (min(len(file), 120) if at_the_start else len(file)))] = value
    answer = read_or_reason(bytes(file), max_pixels=1_000_000)
    assert answer if isinstance(answer, str) else (answer.ndim, answer.shape[2], answer.size > 0) == (3, 3, True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([b"", *(file[:12] for file in FILES.values())]), st.binary(max_size=200))
def test_random_bytes_behind_any_magic_number_are_refused(start, rest):
    with pytest.raises(PictureError):
        read_picture(start + rest, max_pixels=100)


def test_a_bomb_is_refused_without_decoding_it():
    """60000x60000 would be 10.8 GB of RGB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        PictureError, match=r"bomb: is too large: it has 3,600,000,000 pixels, more than 178,956,970; make"
    ):
        read_picture(png(60_000, 60_000), name="bomb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("size", [(2**31 - 1, 1), (1, 2**31 - 1), (13_378, 13_378)])
def test_a_bomb_of_any_shape_is_refused(size):
    with pytest.raises(PictureError, match="too large"):
        read_picture(png(*size))


def test_the_limit_is_the_caller_s_and_comes_before_the_data():
    file = png(100, 100)
    with pytest.raises(PictureError, match=r"100x100 is 10,000 pixels, more than 9,999; make it smaller"):
        read_picture(file, max_pixels=9_999)
    with pytest.raises(PictureError, match="damaged or cut off"):  # within the limit its data is looked at
        read_picture(file, max_pixels=10_000)
    assert read_picture(FILES["png"], max_pixels=19 * 23).size == (23, 19)


def test_a_limit_above_pillow_s_own_is_reported_as_pillow_s():
    with pytest.raises(PictureError, match=f"more than {MAX_PIXELS:,};"):
        read_picture(png(60_000, 60_000), max_pixels=10**12)


def test_a_large_picture_below_the_limit_warns_nobody():
    file = png(9_500, 9_500)
    with pytest.warns(Image.DecompressionBombWarning, match="90250000 pixels"):
        Image.open(io.BytesIO(file))
    with pytest.raises(PictureError, match="9500x9500 is 90,250,000 pixels"):
        read_picture(file, max_pixels=90_000_000)


@pytest.mark.parametrize("content", [b"not a picture", b"<svg/>", b"\x00" * 100, b"PK\x03\x04", b"GIF89a"])
def test_what_is_no_picture_is_called_so(content, tmp_path):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=r"notes\.png: is no picture that can be read \(JPEG, PNG,") as caught:
        read_picture(path)
    assert caught.value.name == str(path)


def test_a_postscript_program_is_not_run():
    """Pillow itself would hand it to an interpreter."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(program)).format == "EPS"
    with pytest.raises(PictureError, match="no picture that can be read"):
        read_picture(program)


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "a.png").touch()
    for source in (tmp_path / "a.png", b""):
        with pytest.raises(PictureError, match="is empty"):
            read_picture(source)


def test_a_missing_file_a_folder_and_a_name_too_long_say_so(tmp_path):
    with pytest.raises(PictureError, match=r"gone\.png: no such file"):
        read_picture(tmp_path / "gone.png")
    with pytest.raises(PictureError, match="is a folder, not a picture"):
        read_picture(tmp_path)
    with pytest.raises(PictureError, match=r"cannot be read \(File name too long\)"):
        read_picture(tmp_path / ("x" * 300))


def test_a_name_given_by_the_caller_is_used():
    with pytest.raises(PictureError, match="upload 3: is empty") as caught:
        read_picture(b"", name="upload 3")
    assert (caught.value.name, caught.value.reason) == ("upload 3", "is empty")
