"""Every kind of image file is read as the upright RGB image that its author intended."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from van.errors import ImageError
from van.images import SUFFIXES, find_images, read_image, to_rgb

ORIENTATION = 0x0112
FIRST_ROW_AND_COLUMN = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip
"""As the EXIF standard states it: the side of the scene that the stored first row, and first column, shows."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixels(source: bytes) -> np.ndarray:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels that a camera stores for ``upright``: rows, then columns, from the sides that EXIF names."""
    row_side, column_side = FIRST_ROW_AND_COLUMN[orientation]
    rotated = upright if row_side in ("top", "bottom") else upright.transpose(1, 0, 2)
    rotated = rotated[::-1] if row_side in ("bottom", "right") else rotated
    return rotated[:, ::-1] if column_side in ("right", "bottom") else rotated


def test_every_exif_orientation_is_undone_to_the_pixel(subtests):
    for kind in ["PNG", "TIFF", "WEBP"]:
        for orientation in FIRST_ROW_AND_COLUMN:
            with subtests.test(kind=str(kind), orientation=str(orientation)):
                upright = noise(5, 7)
                exif = Image.Exif()
                exif[ORIENTATION] = orientation
                options = {"lossless": True} if kind == "WEBP" else {}
                file = encoded(
                    Image.fromarray(np.ascontiguousarray(stored(upright, orientation))), kind, exif=exif, **options
                )
                assert np.array_equal(pixels(file), upright)
                if kind != "TIFF":  # Pillow rotates these itself, and they must not be rotated twice
                    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), upright) == (orientation == 1)


def test_a_jpeg_with_orientation_6_is_read_upright():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright = np.zeros((32, 16, 3), dtype=np.uint8)
    upright[:16] = 255  # white above
    actual = pixels(encoded(Image.fromarray(np.ascontiguousarray(stored(upright, 6))), "JPEG", exif=exif, quality=95))
    assert actual.shape == upright.shape
    assert actual[:14].min() > 250
    assert actual[18:].max() < 5


def test_an_undefined_orientation_is_ignored(subtests):
    for orientation in [0, 9, 65535]:
        with subtests.test(orientation=str(orientation)):
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            scene = noise(3, 4)
            assert np.array_equal(pixels(encoded(Image.fromarray(scene), "PNG", exif=exif)), scene)


def test_damaged_exif_is_ignored(subtests):
    for damage in [b"MM\x00*\x00\x00", b"no exif at all", b"II*\x00\xff\xff\xff\x7f"]:
        with subtests.test(damage=str(damage)):
            scene = noise(3, 4)
            assert np.array_equal(pixels(encoded(Image.fromarray(scene), "PNG", exif=b"Exif\x00\x00" + damage)), scene)


def test_cmyk_becomes_the_printed_rgb_colors(subtests):
    """No ink is white paper; JPEG stores inks inverted, with Adobe's marker, TIFF does not."""
    for kind, options in [("JPEG", {"quality": 100, "subsampling": 0}), ("TIFF", {})]:
        with subtests.test(kind=str(kind), options=str(options)):
            inks = {(0, 0, 0, 0): (255, 255, 255), (0, 255, 255, 0): (255, 0, 0), (0, 0, 0, 255): (0, 0, 0)}
            for ink, color in inks.items():
                file = encoded(Image.new("CMYK", (16, 16), ink), kind, **options)
                assert (b"Adobe" in file) == (kind == "JPEG")
                assert np.abs(pixels(file).astype(int) - color).max() <= 3


DEEP = np.arange(0, 65536, 131, dtype=np.uint16)[:500].reshape(20, 25)
DEEP_IN_8_BITS = np.rint(DEEP / 257).astype(np.uint8)


def test_16_bit_grays_are_scaled_and_not_clipped(subtests):
    for name, file in {
        "png16": encoded(Image.fromarray(DEEP), "PNG"),
        "tiff16-little-endian": encoded(Image.fromarray(DEEP), "TIFF"),
        "tiff16-big-endian": encoded(Image.frombytes("I;16B", (25, 20), DEEP.astype(">u2").tobytes()), "TIFF"),
        "tiff32-int": encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        "tiff-float": encoded(Image.fromarray(DEEP.astype(np.float32)), "TIFF"),
        "pgm16": b"P5 25 20 65535\n" + DEEP.astype(">u2").tobytes(),
    }.items():
        with subtests.test(name=name):
            actual = pixels(file)
            assert np.array_equal(actual, np.repeat(DEEP_IN_8_BITS[..., None], 3, axis=2))
            plain = np.asarray(Image.open(io.BytesIO(file)).convert("L"))
            assert not np.array_equal(plain, DEEP_IN_8_BITS)  # negative control: Pillow's own conversion clips


def test_a_dark_16_bit_image_stays_dark():
    """Its range is declared, so its brightest pixel must not set the scale."""
    dark = np.full((4, 4), 200, dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(dark), "PNG")).max() == 1
    assert pixels(b"P5 4 4 65535\n" + dark.astype(">u2").tobytes()).max() == 1


def test_float_images_of_any_range_keep_their_grays(subtests):
    for peak, white in [(1.0, 1.0), (255.0, 255.0), (65535.0, 65535.0), (1e9, 1e9)]:
        with subtests.test(peak=str(peak), white=str(white)):
            ramp = np.linspace(0, peak, 64, dtype=np.float32).reshape(8, 8)
            assert np.array_equal(pixels(encoded(Image.fromarray(ramp), "TIFF"))[..., 0], np.rint(ramp / white * 255))


def test_nonfinite_values_become_black_or_white():
    odd = np.array([[np.nan, np.inf], [-np.inf, 0.5]], dtype=np.float32)
    assert pixels(encoded(Image.fromarray(odd), "TIFF"))[..., 0].tolist() == [[0, 255], [0, 128]]


def test_negative_grays_become_black():
    below = np.array([[-5, 0], [100, 255]], dtype=np.int32)
    assert pixels(encoded(Image.fromarray(below), "TIFF"))[..., 0].tolist() == [[0, 0], [100, 255]]


def test_scaling_a_16_bit_image_makes_no_float64_copy(run_python):
    """4096x4096 in 16 bits is 34 MB; one copy in float64 alone would be 134 MB."""
    code = (
        "import tracemalloc, numpy as np; from PIL import Image; from van.images import to_rgb\n"
        "deep = Image.fromarray(np.zeros((4096, 4096), dtype=np.uint16)); tracemalloc.start(); to_rgb(deep)\n"
        "print(tracemalloc.get_traced_memory()[1] // 2**20)"
    )
    assert 32 <= int(run_python(code)) < 128


def test_one_bit_images_become_black_and_white(subtests):
    for kind in ["PNG", "TIFF", "BMP"]:
        with subtests.test(kind=str(kind)):
            board = (np.indices((9, 13)).sum(axis=0) % 2).astype(bool)
            assert np.array_equal(pixels(encoded(Image.fromarray(board), kind))[..., 0], board * 255)


def test_gray_becomes_three_equal_channels(subtests):
    for kind in ["PNG", "TIFF", "BMP", "GIF", "PPM"]:
        with subtests.test(kind=str(kind)):
            gray = noise(9, 13)[..., 0]
            assert np.array_equal(pixels(encoded(Image.fromarray(gray), kind)), np.repeat(gray[..., None], 3, axis=2))


def test_a_palette_becomes_its_colors(subtests):
    for kind in ["PNG", "GIF", "TIFF", "BMP"]:
        with subtests.test(kind=str(kind)):
            palette = Image.fromarray(noise(6, 6)).quantize(16)
            assert np.array_equal(pixels(encoded(palette, kind)), np.asarray(palette.convert("RGB")))


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[..., None] / 255
    return color * opacity + 255 * (1 - opacity)


def test_transparency_is_composited_on_white(subtests):
    for kind in ["PNG", "WEBP", "TIFF"]:
        with subtests.test(kind=str(kind)):
            rgba = noise(16, 16, 4)
            options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
            actual = pixels(encoded(Image.fromarray(rgba), kind, **options))
            assert np.abs(actual - on_white(rgba[..., :3].astype(float), rgba[..., 3])).max() <= 1
            assert np.abs(actual - rgba[..., :3].astype(float)).max() > 100  # negative control: dropping alpha differs


def test_gray_with_alpha_is_composited_on_white():
    gray_alpha = noise(16, 16, 2)
    actual = pixels(encoded(Image.fromarray(gray_alpha), "PNG"))
    assert np.abs(actual - on_white(gray_alpha[..., [0, 0, 0]].astype(float), gray_alpha[..., 1])).max() <= 1


def test_the_transparent_color_of_a_png_becomes_white(subtests):
    for image, transparent in [
        (Image.new("RGB", (2, 2), (10, 20, 30)), (10, 20, 30)),
        (Image.new("L", (2, 2), 7), 7),
        (Image.new("1", (2, 2), 0), 0),
        (Image.new("P", (2, 2), 0), 0),
        (Image.new("P", (2, 2), 0), b"\x00\xff"),
    ]:
        with subtests.test(image=str(image), transparent=str(transparent)):
            assert pixels(encoded(image, "PNG", transparency=transparent)).min() == 255
            assert pixels(encoded(image, "PNG")).max() < 255


def test_an_animation_gives_its_first_frame(subtests):
    for kind in ["GIF", "WEBP", "PNG", "AVIF", "TIFF"]:
        with subtests.test(kind=str(kind)):
            red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
            file = encoded(red, kind, save_all=True, append_images=[blue])
            assert Image.open(io.BytesIO(file)).n_frames == 2
            assert np.abs(pixels(file).astype(int) - (255, 0, 0)).max() <= 4


def test_an_image_of_one_pixel_is_read(subtests):
    for kind in ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"]:
        with subtests.test(kind=str(kind)):
            assert np.abs(pixels(encoded(Image.new("RGB", (1, 1), (200, 200, 200)), kind)).astype(int) - 200).max() <= 3


def test_lab_colors_become_rgb():
    gray = Image.frombytes("LAB", (2, 2), bytes([128, 128, 128] * 4))
    assert pixels(encoded(gray, "TIFF")).shape == (2, 2, 3)


def test_an_rgb_image_in_memory_is_not_copied():
    image = Image.new("RGB", (2, 2))
    assert to_rgb(image) is image


def test_paths_and_bytes_give_the_same_image(tmp_path):
    path = tmp_path / "a b ü.png"
    path.write_bytes(encoded(Image.fromarray(noise(5, 6)), "PNG"))
    for source in (path, str(path)):
        assert np.array_equal(np.asarray(read_image(source)), pixels(path.read_bytes()))


def warning_jpeg() -> bytes:
    """Return a JPEG whose EXIF has an orientation and an entry that points beyond the end."""
    orientation = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    beyond_end = b"\x01\x0f\x00\x02\x00\x00\x00\xff\x00\x00\xff\xff"
    entries = b"\x00\x02" + orientation + beyond_end + b"\x00\x00\x00\x00"
    return encoded(Image.new("RGB", (9, 5)), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + entries)


def test_pillow_s_warnings_are_hidden():
    file = warning_jpeg()
    with pytest.warns(UserWarning, match="Skipping tag 271"):
        Image.open(io.BytesIO(file)).getexif()
    before = list(warnings.filters)
    assert read_image(file).size == (5, 9)
    assert warnings.filters == before


def test_concurrent_reads_do_not_change_the_warning_filters():
    """``warnings.catch_warnings`` fails here: the last reader to finish restores another reader's list."""
    file, before = warning_jpeg(), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: read_image(file).size, range(400)))
    assert set(sizes) == {(5, 9)}
    assert warnings.filters == before


def test_find_images_sorts_and_skips_hidden_files(tmp_path):
    names = ["b/2.PNG", "b/10.png", "a.JPeG", "c/d/e.tiff", "z.jfif"]
    hidden = [".a.png", ".cache/b.png", "b/.ipynb_checkpoints/c.png", "b/._2.PNG"]
    for name in [*names, *hidden, "notes.txt", "png", "b/no-suffix"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == sorted(tmp_path / name for name in names)


def test_find_images_searches_a_hidden_folder_that_is_given(tmp_path):
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "a.png").touch()
    assert find_images(tmp_path / ".data") == [tmp_path / ".data" / "a.png"]


def test_find_images_follows_links_and_stops_at_circular_ones(tmp_path):
    other = tmp_path / "other"
    (other / "inner").mkdir(parents=True)
    (other / "inner" / "a.png").touch()
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(other)
    (other / "inner" / "back").symlink_to(data)
    (data / "dead.png").symlink_to(tmp_path / "missing.png")
    files = find_images(data)
    assert files == [data / "dead.png", data / "linked" / "inner" / "a.png"]
    with pytest.raises(ImageError, match="no such file"):  # a dead link is reported, not skipped
        read_image(files[0])


def test_find_images_finds_none_in_a_missing_folder(tmp_path: Path):
    assert find_images(tmp_path / "missing") == []


def test_every_suffix_is_lower_case_and_known_to_pillow():
    Image.init()
    assert set(SUFFIXES) <= set(Image.registered_extensions())
