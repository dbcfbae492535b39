"""Whatever lies in a file, reading it gives a whole picture or a ``PictureError`` that says why not."""

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

from serve.damage import many_scans, runs, tiled
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


def test_a_tile_much_larger_than_its_picture_is_refused_before_it_is_unpacked():
    """A tile of 46,000 x 46,000 zeros is 2 MB in the file and 2 GB in memory, whatever the picture's size is."""
    with pytest.raises(PictureError, match=r"in tiles of 4,260,096 pixels; wanted at most 4,194,304"):
        read_picture(tiled(1, 1, 2064, 2064))
    assert read_picture(tiled(1, 1, 512, 512)).size == (1, 1)


@pytest.mark.parametrize("kind", [9, 16, 17])
def test_a_tile_s_side_in_a_type_that_only_libtiff_reads_hides_nothing(kind):
    """Signed and eight-byte numbers."""
    bomb = tiled(1, 1, 2064, 2064).replace(struct.pack("<HH", 322, 4), struct.pack("<HH", 322, kind))
    with pytest.raises(PictureError, match="in tiles of"):
        read_picture(bomb)


def test_a_jpeg_of_very_many_passes_is_refused_and_one_of_eighty_is_read():
    """A kilobyte asks for a hundred passes; over 50 million pixels each takes a fiftieth of a second."""
    with pytest.raises(PictureError, match="more than 100 passes over its pixels"):
        read_picture(many_scans(200, 64))
    assert read_picture(many_scans(80, 64)).size == (64, 64)
    assert read_picture(FILES["progressive"] + b"\xff\xda" * 500).size == (23, 19)  # behind the picture's end


def test_a_picture_in_letters_of_very_many_comments_is_refused():
    head, pixels = b"P3 2 2 255\n", b"7 " * 12
    with pytest.raises(PictureError, match="more than 1,000 comments"):
        read_picture(head + b"#\n" * 1001 + pixels)
    assert read_picture(head + b"#\n" * 999 + pixels).getpixel((0, 0)) == (7, 7, 7)


def test_run_lengths_of_very_many_pixels_are_refused():
    """Two bytes may stand for a row of any length, which Pillow fills in Python."""
    with pytest.raises(PictureError, match=r"is 20000000x1 in run lengths; wanted at most 16,777,216 pixels"):
        read_picture(runs(20_000_000, 1, b"\x01\x00\x00\x00"))
    assert read_picture(runs(1000, 1, b"\x01\x00\x00\x00")).size == (1000, 1)


def test_nothing_that_lies_in_a_file_reaches_the_console(capfd):
    """libtiff would tell of the damage itself, and so would Pillow's log."""
    broken = FILES["lzw"].replace(struct.pack("<HHI", 284, 3, 1), struct.pack("<HHI", 284, 3, 2))
    many = FILES["tiff"].replace(struct.pack("<HHII", 277, 3, 1, 3), struct.pack("<HHII", 277, 3, 1, 40_000))
    for file in (FILES["lzw"][:-8], broken, many, FILES["lzw"][:200] + bytes(len(FILES["lzw"]) - 200)):
        with pytest.raises(PictureError):
            read_picture(file)
    assert capfd.readouterr() == ("", "")


def test_a_program_s_own_filter_of_pillow_s_warnings_stays():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")
        before = list(warnings.filters)
        read_picture(FILES["png"])
        assert list(warnings.filters) == before


def test_a_path_and_its_contents_are_read_alike(tmp_path):
    """Strips of no rows: from a path Pillow would map the pixels, and take whatever follows for the picture."""
    written = io.BytesIO()
    SCENE.convert("CMYK").save(written, "TIFF")
    rows = [struct.pack("<HHI", 278, kind, 1) + struct.pack("<I", SCENE.height) for kind in (3, 4)]
    file = written.getvalue()
    assert sum(entry in file for entry in rows) == 1
    for entry in rows:
        file = file.replace(entry, entry[:8] + bytes(4))
    (tmp_path / "a.tif").write_bytes(file)
    for source in (file, tmp_path / "a.tif"):
        with pytest.raises(PictureError, match="is damaged or cut off"):
            read_picture(source)


def test_a_place_that_no_file_has_is_damage_and_no_fault_of_the_disk(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**62) + bytes(30))  # where the first directory lies
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture(path)


def test_avif_files_are_decoded_one_at_a_time(monkeypatch):
    """Each may hold far more pixels than it says; of the other formats two are decoded at once."""
    seen, busy, most = [], [], {"AVIF": 0, "PNG": 0}

    def watched(load: Callable[..., object]) -> Callable[..., object]:
        def slowly(file: ImageFile.ImageFile) -> object:
            if any(file is one for one in seen):  # converting asks again, and what is decoded stays so
                return load(file)
            seen.append(file)
            busy.append(file)
            most[str(file.format)] = max(most[str(file.format)], len(busy))
            time.sleep(0.1)
            busy.remove(file)
            return load(file)

        return slowly

    for reader in (AvifImagePlugin.AvifImageFile, PngImagePlugin.PngImageFile):
        monkeypatch.setattr(reader, "load", watched(reader.load))
    for kind in most:
        written = io.BytesIO()
        Image.new("RGB", (8, 8)).save(written, format=kind)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(read_picture, [written.getvalue()] * 3))
    assert most["AVIF"] == 1
    assert most["PNG"] > 1
