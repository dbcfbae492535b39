"""Reading any file gives a complete image or an ``ImageError`` with the reason."""

import io
import resource
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image, ImageFile, PngImagePlugin

from serving.damage import many_scans, runs, tiled
from van.errors import ImageError
from van.images import MAX_PIXELS, read_image

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8))
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
    IMAGE.save(buffer, name, **options)
    return buffer.getvalue()


FILES = {kind: encoded(kind) for kind in KINDS}


def png(width: int, height: int, data: bytes = b"\x00" * 64) -> bytes:
    """Return a PNG whose header may declare any size, with only a few bytes of data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def read_or_reason(file: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | str:
    """Return the pixels, or the reason of an ``ImageError``; any other exception fails the test."""
    try:
        image = read_image(file, max_pixels=max_pixels)
    except ImageError as error:
        return error.reason
    return np.asarray(image)


def test_a_truncated_file_gives_an_error_or_the_whole_image(subtests):
    for kind in KINDS:
        with subtests.test(kind=str(kind)):
            file = FILES[kind]
            whole = np.asarray(read_image(file))
            lengths = {*range(64), *range(64, len(file), max(1, len(file) // 60)), *range(len(file) - 40, len(file))}
            results = {length: read_or_reason(file[:length]) for length in sorted(lengths)}
            for length, result in results.items():
                assert isinstance(result, str) or np.array_equal(result, whole), f"truncated to {length} of {len(file)}"
            assert sum(isinstance(result, str) for result in results.values()) > 100
            with pytest.raises(ImageError, match="damaged or truncated"):
                read_image(file[: len(file) // 2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(set(KINDS) - {"lzw"})),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    at_the_start=st.booleans(),
)
def test_changed_bytes_give_an_error_or_an_image(kind, changes, at_the_start):
    file = bytearray(FILES[kind])
    for position, value in changes:
        file[int(position * (min(len(file), 120) if at_the_start else len(file)))] = value
    result = read_or_reason(bytes(file), max_pixels=1_000_000)
    assert result if isinstance(result, str) else (result.ndim, result.shape[2], result.size > 0) == (3, 3, True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([b"", *(file[:12] for file in FILES.values())]), st.binary(max_size=200))
def test_random_bytes_after_any_magic_number_are_refused(start, rest):
    with pytest.raises(ImageError):
        read_image(start + rest, max_pixels=100)


def test_an_image_above_the_limit_is_refused_without_decoding_it():
    """60000x60000 would be 10.8 GB of RGB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"bomb: .*178,956,970 pixels, got 3,600,000,000"):
        read_image(png(60_000, 60_000), name="bomb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_an_image_of_any_shape_above_the_limit_is_refused(subtests):
    for size in [(2**31 - 1, 1), (1, 2**31 - 1), (13_378, 13_378)]:
        with subtests.test(size=str(size)), pytest.raises(ImageError, match="too large"):
            read_image(png(*size))


def test_max_pixels_is_checked_before_the_data():
    file = png(100, 100)
    with pytest.raises(ImageError, match=r"9,999 pixels, got 10,000 \(100x100\)"):
        read_image(file, max_pixels=9_999)
    with pytest.raises(ImageError, match="damaged or truncated"):  # within the limit the data is decoded
        read_image(file, max_pixels=10_000)
    assert read_image(FILES["png"], max_pixels=19 * 23).size == (23, 19)


def test_max_pixels_above_pillow_s_limit_reports_pillow_s():
    with pytest.raises(ImageError, match=f"at most {MAX_PIXELS:,} pixels"):
        read_image(png(60_000, 60_000), max_pixels=10**12)


def test_a_large_image_below_the_limit_gives_no_warning():
    file = png(9_500, 9_500)
    with pytest.warns(Image.DecompressionBombWarning, match="90250000 pixels"):
        Image.open(io.BytesIO(file))
    with pytest.raises(ImageError, match=r"90,250,000 \(9500x9500\)"):
        read_image(file, max_pixels=90_000_000)


def test_a_file_that_is_no_image_is_named_with_the_known_formats(tmp_path, subtests):
    for content in [b"not an image", b"<svg/>", b"\x00" * 100, b"PK\x03\x04", b"GIF89a"]:
        with subtests.test(content=str(content)):
            path = tmp_path / "notes.png"
            path.write_bytes(content)
            with pytest.raises(ImageError, match=r"notes\.png: .*JPEG, PNG, ") as caught:
                read_image(path)
            assert caught.value.name == str(path)


def test_a_postscript_program_is_not_run():
    """Pillow itself would pass it to an interpreter."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(program)).format == "EPS"
    with pytest.raises(ImageError, match="not a readable image"):
        read_image(program)


def test_an_empty_file_is_reported_as_empty(tmp_path):
    (tmp_path / "a.png").touch()
    for source in (tmp_path / "a.png", b""):
        with pytest.raises(ImageError, match="empty"):
            read_image(source)


def test_a_missing_file_a_directory_and_a_name_too_long_are_reported(tmp_path):
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match=r"File name too long"):
        read_image(tmp_path / ("x" * 300))


def test_the_caller_s_name_is_in_the_error():
    with pytest.raises(ImageError, match=r"upload 3: .*empty") as caught:
        read_image(b"", name="upload 3")
    assert caught.value.name == "upload 3"
    assert "empty" in caught.value.reason


def test_a_tile_much_larger_than_its_image_is_refused_before_decoding():
    """A tile of 46,000 x 46,000 zeros is 2 MB in the file and 2 GB in memory, whatever the image's size is."""
    with pytest.raises(ImageError, match=r"TIFF.*4,194,304.*4,260,096"):
        read_image(tiled(1, 1, 2064, 2064))
    assert read_image(tiled(1, 1, 512, 512)).size == (1, 1)


def test_a_tile_side_of_a_type_that_only_libtiff_reads_is_refused(subtests):
    """Signed and eight-byte integers."""
    for kind in [9, 16, 17]:
        with subtests.test(kind=str(kind)):
            bomb = tiled(1, 1, 2064, 2064).replace(struct.pack("<HH", 322, 4), struct.pack("<HH", 322, kind))
            with pytest.raises(ImageError, match="TIFF tiles"):
                read_image(bomb)


def test_a_jpeg_of_200_scans_is_refused_and_one_of_80_is_read():
    """A kilobyte requests a hundred scans; over 50 million pixels each takes a fiftieth of a second."""
    with pytest.raises(ImageError, match=r"JPEG scans.*100"):
        read_image(many_scans(200, 64), untrusted=True)
    assert read_image(many_scans(80, 64), untrusted=True).size == (64, 64)
    assert read_image(many_scans(200, 64)).size == (64, 64)  # somebody's own files are not scanned twice
    assert read_image(FILES["progressive"] + b"\xff\xda" * 500, untrusted=True).size == (
        23,
        19,
    )  # after the image's end


def test_a_plain_ppm_of_1001_comments_is_refused():
    head, pixels = b"P3 2 2 255\n", b"7 " * 12
    with pytest.raises(ImageError, match=r"PPM comments.*1,000"):
        read_image(head + b"#\n" * 1001 + pixels, untrusted=True)
    assert read_image(head + b"#\n" * 999 + pixels).getpixel((0, 0)) == (7, 7, 7)


def test_a_run_length_encoded_bmp_of_very_many_pixels_is_refused():
    """Two bytes can encode a row of any length, which Pillow fills in Python."""
    with pytest.raises(ImageError, match=r"16,777,216 pixels, got 20,000,000 \(20000000x1\)"):
        read_image(runs(20_000_000, 1, b"\x01\x00\x00\x00"))
    assert read_image(runs(1000, 1, b"\x01\x00\x00\x00")).size == (1000, 1)


def test_decoders_write_nothing_to_the_console(capfd):
    """libtiff would report the damage itself, and so would Pillow's log."""
    broken = FILES["lzw"].replace(struct.pack("<HHI", 284, 3, 1), struct.pack("<HHI", 284, 3, 2))
    many = FILES["tiff"].replace(struct.pack("<HHII", 277, 3, 1, 3), struct.pack("<HHII", 277, 3, 1, 40_000))
    for file in (FILES["lzw"][:-8], broken, many, FILES["lzw"][:200] + bytes(len(FILES["lzw"]) - 200)):
        with pytest.raises(ImageError):
            read_image(file)
    assert capfd.readouterr() == ("", "")


def test_the_calling_program_s_filter_of_pillow_s_warnings_stays():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")
        before = list(warnings.filters)
        read_image(FILES["png"])
        assert list(warnings.filters) == before


def test_a_damaged_tiff_is_refused_from_a_path_as_from_bytes(tmp_path):
    """Strips of zero rows: from a path Pillow would memory-map the pixels, and read whatever follows as the image."""
    written = io.BytesIO()
    IMAGE.convert("CMYK").save(written, "TIFF")
    rows = [struct.pack("<HHI", 278, kind, 1) + struct.pack("<I", IMAGE.height) for kind in (3, 4)]
    file = written.getvalue()
    assert sum(entry in file for entry in rows) == 1
    for entry in rows:
        file = file.replace(entry, entry[:8] + bytes(4))
    (tmp_path / "a.tif").write_bytes(file)
    for source in (file, tmp_path / "a.tif"):
        with pytest.raises(ImageError, match="damaged or truncated"):
            read_image(source)


def test_an_offset_beyond_any_file_is_reported_as_damage_and_not_as_an_os_error(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**62) + bytes(30))  # the offset of the first directory
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(path)


def test_avif_files_are_decoded_one_at_a_time(monkeypatch):
    """Each may hold far more pixels than it declares; files of the other formats are decoded concurrently."""
    loaded, active, max_active = [], [], {"AVIF": 0, "PNG": 0}

    def count_active(load: Callable[..., object]) -> Callable[..., object]:
        def slow_load(file: ImageFile.ImageFile) -> object:
            if any(file is one for one in loaded):  # a conversion calls load() again, which then does nothing
                return load(file)
            loaded.append(file)
            active.append(file)
            max_active[str(file.format)] = max(max_active[str(file.format)], len(active))
            time.sleep(0.1)
            active.remove(file)
            return load(file)

        return slow_load

    for reader in (AvifImagePlugin.AvifImageFile, PngImagePlugin.PngImageFile):
        monkeypatch.setattr(reader, "load", count_active(reader.load))
    for kind in max_active:
        written = io.BytesIO()
        Image.new("RGB", (8, 8)).save(written, format=kind)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(read_image, [written.getvalue()] * 3))
    assert max_active["AVIF"] == 1
    assert max_active["PNG"] > 1
