"""``van explain``: drawings and maps of every readable image, grids, LKA attention, receptive fields, faithfulness."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.synthetic import COLORS, make_image, write_classes
from explain.small_models import write_peers, write_small
from van.cli.explain.maps import models_and_images
from van.explain import Explainer
from van.model import Model


@pytest.fixture(scope="module")
def peers(tmp_path_factory) -> list[Path]:
    """Checkpoints of a small VAN, a Swin and a ConvNeXt of 128 px."""
    return write_peers(tmp_path_factory.mktemp("peers"))


@pytest.fixture
def mixed(tmp_path) -> list[Path]:
    """Return three images and a file that is no image."""
    write_classes(tmp_path, {"red": 2, "blue": 1})
    (tmp_path / "text.png").write_text("no image")
    names = ["red/red-0.png", "text.png", "blue/blue-0.png", "red/red-1.png"]
    return [tmp_path / name for name in names]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as file:
        return file.size


def test_each_image_has_a_drawing_and_its_map_and_unreadable_ones_are_reported(van, checkpoint, mixed, tmp_path):
    out = tmp_path / "maps"
    ran = van("explain", checkpoint, *mixed, "--out", out, "--batch-size", "2")
    assert ran.status == 1
    assert [line.split(": ")[0] for line in ran.out.splitlines()] == [str(mixed[place]) for place in (0, 2, 3)]
    assert str(mixed[1]) in ran.err
    assert "1 of 4" in ran.err
    names = {"red-red-0", "blue-blue-0", "red-red-1"}
    assert {path.name for path in out.iterdir()} == {f"{n}.{end}" for n in names for end in ("png", "npy")} | {
        "sheet.png"
    }
    explainer = Explainer(Model.load(checkpoint))
    for path in (mixed[0], mixed[2]):
        stored = np.load(out / f"{path.parent.name}-{path.stem}.npy")
        assert stored.shape == size_of(path)[::-1]
        np.testing.assert_allclose(stored, explainer(path).maps[0].to_image_size(), rtol=1e-3, atol=1e-7)
        assert size_of(out / f"{path.parent.name}-{path.stem}.png")[0] >= 300


def test_json_has_the_prediction_the_maps_and_the_files(van, checkpoint, mixed, tmp_path):
    out = tmp_path / "maps"
    arguments = ("--classes", "red", "blue", "--method", "grad-cam", "eigen-cam", "--layer", "stage1", "--json")
    ran = van("explain", checkpoint, mixed[0], mixed[1], "--out", out, *arguments)
    assert ran.status == 1
    first, second = (json.loads(line) for line in ran.out.splitlines())
    assert second == {"image": str(mixed[1]), "error": second["error"]}
    assert first["image"] == str(mixed[0])
    assert {one["label"] for one in first["classes"]} == set(COLORS)
    record = [(one["label"], one["method"], one["layer"]) for one in first["maps"]]
    assert record == [(label, method, "stage1") for method in ("grad-cam", "eigen-cam") for label in ("red", "blue")]
    assert all(Path(file).is_file() for file in first["files"])
    assert [Path(file).name for file in first["files"][1:3]] == ["red-red-0-1-red.npy", "red-red-0-2-blue.npy"]
    stored = np.load(first["files"][1])
    assert np.nanmax(stored) <= np.max(first["maps"][0]["values"]) * 1.001


def test_the_map_has_the_size_of_the_image(van, checkpoint, tmp_path):
    """A wide image: the map is NaN outside the square crop."""
    make_image(COLORS["red"], 1, image_size=(200, 50)).save(tmp_path / "wide.png")
    assert van("explain", checkpoint, tmp_path / "wide.png", "--out", tmp_path / "maps").status == 0
    values = np.load(next((tmp_path / "maps").glob("*.npy")))
    assert values.shape == (50, 200)
    inside = np.isfinite(values).any(0)
    assert np.flatnonzero(inside)[[0, -1]].tolist() == [75, 124]


def text_height(image: np.ndarray) -> int:
    """Return the number of rows with dark pixels."""
    return int((image.min(axis=(1, 2)) < 100).sum())


def test_the_sheet_has_a_row_with_the_file_name_per_image_and_a_column_per_class_and_method(
    van, checkpoint, mixed, tmp_path
):
    out = tmp_path / "maps"
    arguments = ("--classes", "red", "blue", "--method", "grad-cam", "eigen-cam")
    assert van("explain", checkpoint, mixed[0], mixed[2], mixed[3], "--out", out, *arguments).status == 0
    with Image.open(out / "sheet.png") as file:
        sheet = np.asarray(file.convert("RGB"))
    assert sheet.shape[1] > 5 * 480  # the input and two methods for each of two classes
    assert sheet.shape[1] < 6 * 480 + 250
    assert 3 * 480 < sheet.shape[0] < 4 * 600
    assert text_height(sheet[:36]) > 5  # headers
    assert 3 * 8 < text_height(sheet[36:, :60]) < 3 * 24  # one line of file name for each image


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (("--lka", "--compare"), ("--lka", "--compare")),
        (("--limit", "0", "--faithfulness", "--data", "x"), ("--limit", "0")),
        (("--faithfulness",), ("--faithfulness", "--data")),
        (("--data", "x"), ("--data", "--faithfulness")),
        (("--channels", "mean"), ("--channels", "--lka")),
        (("--random-init",), ("--random-init", "--receptive-fields")),
        (("--top", "0"), ("--top", "0")),
    ],
)
def test_inconsistent_flags_are_rejected(van, checkpoint, tmp_path, arguments, flags):
    ran = van("explain", checkpoint, "cat.png", "--out", tmp_path / "out", *arguments)
    assert ran.status == 2
    assert all(flag in ran.err for flag in flags)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_detections_and_segments_are_explained(van, dense_checkpoint, scenes, tmp_path, task):
    images = sorted((scenes / "coco" / "val").glob("*.png"))[:2]
    ran = van("explain", dense_checkpoint(task), *images, "--out", tmp_path / "maps", "--top", "2", "--json")
    assert ran.status == 0
    for line in ran.out.splitlines():
        record = json.loads(line)
        assert len(record["maps"]) in (1, 2)
        assert all(one["method"] == "layer-cam" for one in record["maps"])
        assert all(("box" in one) == (task == "detect") for one in record["maps"])
        if task == "detect":
            box = record["maps"][-1]["box"]
            again = van(
                "explain", dense_checkpoint(task), record["image"], "--out", tmp_path / "box", "--json", "--box", *box
            )
            assert json.loads(again.out)["maps"][0]["box"] == pytest.approx(box, abs=3)


def test_models_are_compared_in_one_grid(van, peers, mixed, tmp_path):
    out = tmp_path / "grid"
    ran = van("explain", "--compare", *peers, mixed[0], mixed[2], "--out", out, "--layer", "stage3")
    assert ran.status == 0
    assert len(ran.out.splitlines()) == 6
    width, height = size_of(out / "compare.png")
    assert width > 4 * 480
    assert height > 2 * 480
    record = [
        json.loads(line)
        for line in van("explain", *peers, mixed[0], "--compare", "--out", out, "--json").out.splitlines()
    ]
    assert [one["model"] for one in record] == [str(path) for path in peers]
    assert all(len(one["maps"]) == 1 for one in record)
    broken = van("explain", "--compare", peers[0], mixed[0], mixed[1], "--out", out)
    assert broken.status == 1
    assert "text.png" in broken.err


def test_arguments_are_split_into_models_and_images(tmp_path):
    arguments = ["van_b2", "runs/best.safetensors", "cat.JPG", str(tmp_path), "a*.png", "swin_tiny", "weights.pth.tar"]
    models, images = models_and_images(arguments)
    assert models == ["van_b2", "runs/best.safetensors", "swin_tiny", "weights.pth.tar"]
    assert images == ["cat.JPG", str(tmp_path), "a*.png"]


def test_invalid_arguments_are_rejected_before_files_are_written(van, checkpoint, dense_checkpoint, mixed, tmp_path):
    out = tmp_path / "maps"
    invalid = {
        ("--classes", "purple"): r"blue, green, red.*'purple'",
        ("--layer", "stage7"): r"layer.*'stage7'",
        ("--method", "saliency"): r"method.*grad-cam.*'saliency'",
        ("--box", "1", "2", "3", "4"): r"box.*classify",
    }
    for arguments, message in invalid.items():
        ran = van("explain", checkpoint, mixed[0], "--out", out, *arguments)
        assert ran.status == 2
        assert re.search(message, ran.err)
    assert not out.exists()
    ran = van("explain", "--compare", checkpoint, "nosuch", "--out", out)
    assert ran.status == 2
    assert re.search(r"--compare.*2 models and 0 images", ran.err)


def test_lka_attention_is_drawn_and_printed(van, checkpoint, mixed, tmp_path):
    out = tmp_path / "lka"
    ran = van("explain", checkpoint, mixed[0], mixed[1], "--out", out, "--lka", "--json")
    assert ran.status == 1
    assert "text.png" in ran.err
    record, skipped = (json.loads(line) for line in ran.out.splitlines())
    assert skipped["image"] == str(mixed[1])
    assert [one["block"] for one in record["lka"]] == [
        "stage1.block2",
        "stage2.block2",
        "stage3.block4",
        "stage4.block1",
    ]
    assert all(len(one["maps"]) == 4 for one in record["lka"])  # the strongest channels
    assert size_of(Path(record["file"]))[0] > 300
    arguments = ("--lka", "stage3.block0", "stage4", "--channels", "5", "0")
    record = json.loads(van("explain", checkpoint, mixed[0], "--out", out, "--json", *arguments).out)
    assert [one["block"] for one in record["lka"]] == ["stage3.block0", "stage4.block0", "stage4.block1"]
    assert all(list(one["maps"]) == ["channel 5", "channel 0"] for one in record["lka"])
    record = json.loads(van("explain", checkpoint, mixed[0], "--out", out, "--json", "--lka", "--channels", "mean").out)
    assert len(record["lka"]) == 13
    assert van("explain", checkpoint, mixed[0], "--out", out, "--lka").out.startswith(f"{mixed[0]}: stage1.block2 ")


def test_networks_without_lka_and_unknown_blocks_are_rejected(van, peers, checkpoint, mixed, tmp_path):
    arguments = (mixed[0], "--out", tmp_path / "lka", "--lka")
    ran = van("explain", peers[2], *arguments)
    assert (ran.status, "ConvNeXt" in ran.err) == (2, True)
    ran = van("explain", checkpoint, *arguments, "stage9")
    assert (ran.status, "'stage9'" in ran.err) == (2, True)
    ran = van("explain", checkpoint, *arguments, "--channels", "best")
    assert (ran.status, "--channels" in ran.err, "best" in ran.err) == (2, True, True)
    assert not (tmp_path / "lka").exists()


def test_receptive_fields_are_measured_drawn_and_printed(van, peers, mixed, tmp_path):
    out = tmp_path / "fields"
    ran = van("explain", "--receptive-fields", *peers[::2], "--image-size", "96", "--out", out)
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert [line.split(":")[0].split() for line in lines] == [
        [name, f"stage{stage}"] for name in ("van_b2", "convnext_tiny") for stage in (1, 2, 3, 4)
    ]
    assert all(re.search(r"effective: \d+ px, theoretical: ", line) for line in lines)
    assert {path.name for path in out.iterdir()} == {"receptive_fields.png", "receptive_field_sizes.png"}
    record = [
        json.loads(line)
        for line in van("explain", "--receptive-fields", peers[0], mixed[0], "--out", out, "--json").out.splitlines()
    ]
    assert [one["layer"] for one in record] == ["stage1", "stage2", "stage3", "stage4"]
    assert record[0]["theoretical"]["height"] == 7 + 4 * (22 + 2)  # the patch, and a block's LKA and 3x3 on its cells
    ran = van("explain", "--receptive-fields", "--random-init", peers[0], "--out", out)
    assert (ran.status, "--random-init" in ran.err) == (2, True)
    ran = van("explain", "--receptive-fields", peers[0], peers[0], "--out", out)
    assert (ran.status, "van_b2, van_b2" in ran.err) == (2, True)


@pytest.fixture(scope="module")
def digit_classifier(tmp_path_factory) -> Path:
    """Return a small VAN for the ten digits with random weights."""
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    return write_small(path, image_size=64, class_names=tuple(str(digit) for digit in range(10)))


def test_faithfulness_is_evaluated_on_annotated_images_with_a_random_control(van, digit_classifier, scenes, tmp_path):
    arguments = ("--faithfulness", "--method", "grad-cam", "layer-cam", "--out", tmp_path / "scores")
    ran = van("explain", digit_classifier, *arguments, "--data", scenes / "coco", "--limit", "3")
    assert ran.status == 0
    head, _, *rows, footer = ran.out.splitlines()
    assert head.split() == ["digits", "deletion", "insertion", "pointing_game", "energy_pointing_game"]
    assert [row[:24].strip() for row in rows] == ["grad-cam, stage3", "layer-cam, norm3", "random, stage3"]
    assert footer.startswith("3 images")
    assert size_of(tmp_path / "scores" / "digits-curves.png")[0] > 500
    record = json.loads(van("explain", digit_classifier, *arguments, "--data", scenes, "--limit", "2", "--json").out)
    assert set(record["scores"]["random"]) == {"deletion", "insertion", "pointing_game", "energy_pointing_game"}
    assert all(0 <= one["mean"] <= 1 for scores in record["scores"].values() for one in scores.values())


def test_class_folders_have_no_pointing_games_and_unreadable_images_are_reported(van, checkpoint, tmp_path):
    write_classes(tmp_path / "set" / "val", dict.fromkeys(COLORS, 2))
    (tmp_path / "set" / "val" / "red" / "text.png").write_text("no image")
    arguments = (
        "--faithfulness",
        "--data",
        tmp_path / "set",
        "--method",
        "grad-cam",
        "--out",
        tmp_path / "scores",
        "--json",
    )
    ran = van("explain", checkpoint, *arguments)
    assert ran.status == 1
    assert "text.png" in ran.err
    record, skipped = map(json.loads, ran.out.splitlines())
    assert set(record["scores"]["grad-cam"]) == {"deletion", "insertion"}
    assert skipped["image"].endswith("text.png")


def test_datasets_without_known_classes_are_rejected(van, checkpoint, scenes, tmp_path):
    ran = van("explain", checkpoint, "--faithfulness", "--data", scenes / "coco", "--out", tmp_path / "scores")
    assert ran.status == 1
    assert re.search(r"blue, green, red.*0, 1, 2, 3, 4", ran.err)
    ran = van(
        "explain", checkpoint, "cat.png", "--faithfulness", "--data", scenes / "coco", "--out", tmp_path / "scores"
    )
    assert (ran.status, "--data" in ran.err, "cat.png" in ran.err) == (2, True, True)
    assert not (tmp_path / "scores").exists()
