"""Every file becomes a tensor and a target, or a name and a reason; no file raises."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.synthetic import make_image
from van.datasets.augment import AugmentSettings, training_transform
from van.datasets.image_dataset import ImageDataset, Item
from van.images import FORMATS
from van.preprocess import CenterCropPreprocess, to_tensor

RULE = CenterCropPreprocess(image_size=16, crop_fraction=1.0)
SCENE = Image.fromarray(np.kron(np.array([[[200, 30, 30], [30, 30, 200]]], np.uint8), np.ones((24, 12, 1), np.uint8)))
"""Red on the left, blue on the right."""


def read(path: Path, transform=to_tensor) -> dict:
    return ImageDataset([Item(path, 3, f"folder/{path.name}")], transform)[0]


def colors(path: Path) -> np.ndarray:
    """Return the image that the dataset reads from ``path`` as uint8 (H, W, 3)."""
    sample = read(path)
    assert (sample["target"], sample["name"]) == (3, f"folder/{path.name}")
    return (sample["image"] * 255).round().byte().permute(1, 2, 0).numpy()


def bomb(path: Path, side: int = 20_000) -> None:
    """Write a PNG of a few bytes whose header has ``side`` x ``side`` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    encoded = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(encoded))


def test_image_is_read_with_pixels_target_and_name(tmp_path):
    SCENE.save(tmp_path / "scene.png")
    np.testing.assert_array_equal(colors(tmp_path / "scene.png"), np.asarray(SCENE))


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    SCENE.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png", exif=exif)
    np.testing.assert_array_equal(colors(tmp_path / "rotated.png"), np.asarray(SCENE))


def test_cmyk_jpeg_keeps_its_colors(tmp_path):
    SCENE.convert("CMYK").save(tmp_path / "inks.jpg", quality=100, subsampling=0)
    rgb = colors(tmp_path / "inks.jpg").astype(int)
    assert np.abs(rgb[:, [2, -3]] - np.asarray(SCENE)[:, [2, -3]]).max() < 12  # JPEG, far from the edge


def test_palette_image_keeps_its_colors(tmp_path):
    SCENE.quantize(8).save(tmp_path / "palette.gif")
    np.testing.assert_array_equal(colors(tmp_path / "palette.gif"), np.asarray(SCENE))


def test_16_bit_images_are_scaled_to_8_bits(tmp_path):
    deep = np.linspace(0, 65535, 12 * 8).reshape(8, 12).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    gray = colors(tmp_path / "deep.png").astype(int)
    assert np.abs(gray - (deep / 257.0)[..., None]).max() <= 0.5


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (colors(tmp_path / "clear.png") == 255).all()


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 6), color) for color in ("lime", "black", "black")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (colors(tmp_path / "moving.gif") == (0, 255, 0)).all()


def test_smallest_and_thinnest_images_are_transformed(subtests, new_folder):
    for size in [(1, 1), (1, 3000), (3000, 1), (2, 2)]:
        folder = new_folder()
        with subtests.test(size=str(size)):
            Image.new("RGB", size, (255, 0, 0)).save(folder / "thin.png")
            augment = training_transform(RULE, AugmentSettings(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5))
            for transform in (RULE, augment):
                output = read(folder / "thin.png", transform)["image"]
                assert output.shape == (3, 16, 16)
                assert output.isfinite().all()


def test_preprocessing_is_applied(tmp_path):
    SCENE.save(tmp_path / "scene.png")
    assert read(tmp_path / "scene.png", RULE)["image"].equal(RULE(SCENE))


def test_images_in_memory_equal_those_in_files(tmp_path):
    for mode in ("L", "RGBA", "I;16", "RGB"):
        made = SCENE.convert("L").convert("I").convert("I;16") if mode == "I;16" else SCENE.convert(mode)
        made.save(tmp_path / "made.png")
        samples = ImageDataset([Item(made, 0, "memory"), Item(tmp_path / "made.png", 0, "file")], to_tensor)
        assert samples[0]["image"].equal(samples[1]["image"]), mode
        assert samples[0]["image"].shape == (3, 24, 24)


@pytest.fixture
def broken(tmp_path) -> dict[str, Path]:
    """Files that cannot be read as images, by a fact of the reason."""
    paths = {}
    make_image((10, 200, 30), 0, (64, 64)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    contents = {
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "text.jpg": (b"<html>404 not found</html>", "not a readable image"),
        "empty.jpg": (b"", "is empty"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "readable image"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        paths[reason] = tmp_path / name
    bomb(tmp_path / "bomb.png")
    paths["is too large"] = tmp_path / "bomb.png"
    paths["no such file"] = tmp_path / "absent.jpg"
    (tmp_path / "folder.jpg").mkdir()
    paths["got a directory"] = tmp_path / "folder.jpg"
    return paths


def test_unreadable_files_give_name_and_reason(broken):
    for reason, path in broken.items():
        sample = read(path)
        assert set(sample) == {"name", "unreadable"}, path.name
        assert sample["name"] == f"folder/{path.name}"
        assert reason in sample["unreadable"]
        assert "\n" not in sample["unreadable"]
        assert str(path) not in sample["unreadable"]  # the name identifies the file


def test_unreadable_files_do_not_affect_the_others(broken, tmp_path):
    items = [Item(path, 0, path.name) for path in (tmp_path / "whole.jpg", *broken.values(), tmp_path / "whole.jpg")]
    samples = [ImageDataset(items, RULE)[index] for index in range(len(items))]
    assert ["image" in sample for sample in samples] == [True, *[False] * len(broken), True]
    assert torch.equal(samples[0]["image"], samples[-1]["image"])


def test_decoders_that_run_programs_are_not_used():
    """The format follows from the content; formats that run programs are not tried."""
    assert not {"EPS", "PSD", "FITS", "MPO"} & set(FORMATS)
