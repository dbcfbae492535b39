"""Whatever lies on the disk becomes a tensor and a target, or a name and a reason; nothing stops the set."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.made import picture
from van.data.augment import AugmentSettings, training_transform
from van.data.pictures import Item, PictureSet
from van.pictures import FORMATS
from van.preprocess import Preprocess, to_tensor

RULE = Preprocess(size_px=16, crop_fraction=1.0)
SCENE = Image.fromarray(np.kron(np.array([[[200, 30, 30], [30, 30, 200]]], np.uint8), np.ones((24, 12, 1), np.uint8)))
"""Red on the left, blue on the right."""


def read(path: Path, transform=to_tensor) -> dict:
    return PictureSet([Item(path, 3, f"folder/{path.name}")], transform)[0]


def colours(path: Path) -> np.ndarray:
    """Bytes (H, W, 3) of what the set reads from ``path``."""
    sample = read(path)
    assert (sample["target"], sample["name"]) == (3, f"folder/{path.name}")
    return (sample["picture"] * 255).round().byte().permute(1, 2, 0).numpy()


def bomb(path: Path, side: int = 20_000) -> None:
    """A PNG of a few bytes that claims ``side`` x ``side`` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_a_plain_picture_comes_with_its_pixels_target_and_name(tmp_path):
    SCENE.save(tmp_path / "scene.png")
    np.testing.assert_array_equal(colours(tmp_path / "scene.png"), np.asarray(SCENE))


def test_a_picture_turned_by_exif_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    SCENE.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(colours(tmp_path / "turned.png"), np.asarray(SCENE))


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    SCENE.convert("CMYK").save(tmp_path / "inks.jpg", quality=100, subsampling=0)
    seen = colours(tmp_path / "inks.jpg").astype(int)
    assert np.abs(seen[:, [2, -3]] - np.asarray(SCENE)[:, [2, -3]]).max() < 12  # JPEG, far from the edge


def test_a_palette_picture_keeps_its_colours(tmp_path):
    SCENE.quantize(8).save(tmp_path / "palette.gif")
    np.testing.assert_array_equal(colours(tmp_path / "palette.gif"), np.asarray(SCENE))


def test_sixteen_bits_become_eight_without_clipping(tmp_path):
    deep = np.linspace(0, 65535, 12 * 8).reshape(8, 12).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    grey = colours(tmp_path / "deep.png").astype(int)
    assert np.abs(grey - (deep / 257.0)[..., None]).max() <= 0.5


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (colours(tmp_path / "clear.png") == 255).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("lime", "black", "black")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (colours(tmp_path / "moving.gif") == (0, 255, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_the_smallest_and_the_thinnest_pictures_train_and_evaluate(tmp_path, size):
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "thin.png")
    augment = training_transform(RULE, AugmentSettings(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5))
    for transform in (RULE, augment):
        seen = read(tmp_path / "thin.png", transform)["picture"]
        assert seen.shape == (3, 16, 16)
        assert seen.isfinite().all()


def test_the_rule_of_the_network_is_applied(tmp_path):
    SCENE.save(tmp_path / "scene.png")
    assert read(tmp_path / "scene.png", RULE)["picture"].equal(RULE(SCENE))


def test_pictures_in_memory_are_read_like_files(tmp_path):
    for mode in ("L", "RGBA", "I;16", "RGB"):
        made = SCENE.convert("L").convert("I").convert("I;16") if mode == "I;16" else SCENE.convert(mode)
        made.save(tmp_path / "made.png")
        samples = PictureSet([Item(made, 0, "memory"), Item(tmp_path / "made.png", 0, "file")], to_tensor)
        assert samples[0]["picture"].equal(samples[1]["picture"]), mode
        assert samples[0]["picture"].shape == (3, 24, 24)


@pytest.fixture
def broken(tmp_path) -> dict[str, Path]:
    """Files that are no picture, by what the reason should say."""
    paths = {}
    picture((10, 200, 30), 0, (64, 64)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    contents = {
        "cut.jpg": (whole[: len(whole) // 2], "cut off"),
        "text.jpg": (b"<html>404 not found</html>", "is no picture that can be read"),
        "empty.jpg": (b"", "is empty"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "is no picture"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        paths[reason] = tmp_path / name
    bomb(tmp_path / "bomb.png")
    paths["is too large"] = tmp_path / "bomb.png"
    paths["no such file"] = tmp_path / "gone.jpg"
    (tmp_path / "folder.jpg").mkdir()
    paths["is a folder"] = tmp_path / "folder.jpg"
    return paths


def test_broken_files_come_back_as_a_name_and_a_reason(broken):
    for reason, path in broken.items():
        sample = read(path)
        assert set(sample) == {"name", "unreadable"}, path.name
        assert sample["name"] == f"folder/{path.name}"
        assert reason in sample["unreadable"]
        assert "\n" not in sample["unreadable"]
        assert str(path) not in sample["unreadable"]  # the name says where, the reason why


def test_one_broken_file_leaves_the_others_readable(broken, tmp_path):
    items = [Item(path, 0, path.name) for path in (tmp_path / "whole.jpg", *broken.values(), tmp_path / "whole.jpg")]
    samples = [PictureSet(items, RULE)[place] for place in range(len(items))]
    assert ["picture" in sample for sample in samples] == [True, *[False] * len(broken), True]
    assert torch.equal(samples[0]["picture"], samples[-1]["picture"])


def test_only_a_handful_of_decoders_is_ever_asked():
    """A file is told by content, and the formats that run programs are not among those tried."""
    assert not {"EPS", "PSD", "FITS", "MPO"} & set(FORMATS)
