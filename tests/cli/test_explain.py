"""``van explain``: a drawing and a file of numbers for every picture that can be read, and figures of several."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.made import COLOURS, picture, write_classes
from explain.small import write_peers, write_small
from van import Explainer
from van.cli.explain.maps import models_and_pictures


@pytest.fixture(scope="module")
def peers(tmp_path_factory) -> list[Path]:
    """Checkpoints of a small VAN, a Swin and a ConvNeXt of 128 px."""
    return write_peers(tmp_path_factory.mktemp("peers"))


@pytest.fixture
def mixed(tmp_path) -> list[Path]:
    """Three pictures and a file that is none."""
    write_classes(tmp_path, {"red": 2, "blue": 1})
    (tmp_path / "text.png").write_text("no picture")
    names = ["red/red-0.png", "text.png", "blue/blue-0.png", "red/red-1.png"]
    return [tmp_path / name for name in names]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as file:
        return file.size


def test_each_picture_gets_a_drawing_and_its_numbers_and_the_rest_is_named(van, checkpoint, mixed, tmp_path):
    out = tmp_path / "why"
    ran = van("explain", checkpoint, *mixed, "--out", out, "--batch-size", "2")
    assert ran.status == 1
    assert [line.split(": ")[0] for line in ran.out.splitlines()] == [str(mixed[place]) for place in (0, 2, 3)]
    assert f"van: {mixed[1]}: is no picture" in ran.err
    assert "1 of 4 pictures could not be read" in ran.err
    names = {"red-red-0", "blue-blue-0", "red-red-1"}
    assert {path.name for path in out.iterdir()} == {f"{n}.{end}" for n in names for end in ("png", "npy")} | {
        "sheet.png"
    }
    explainer = Explainer.load(checkpoint)
    for path in (mixed[0], mixed[2]):
        stored = np.load(out / f"{path.parent.name}-{path.stem}.npy")
        assert stored.shape == size_of(path)[::-1]
        np.testing.assert_allclose(stored, explainer(path).maps[0].on_picture(), rtol=1e-3, atol=1e-7)
        assert size_of(out / f"{path.parent.name}-{path.stem}.png")[0] >= 300


def test_json_tells_the_answer_the_maps_and_the_files(van, checkpoint, mixed, tmp_path):
    out = tmp_path / "why"
    words = ("--classes", "red", "blue", "--method", "grad-cam", "eigen-cam", "--layer", "stage1", "--json")
    ran = van("explain", checkpoint, mixed[0], mixed[1], "--out", out, *words)
    assert ran.status == 1
    first, second = (json.loads(line) for line in ran.out.splitlines())
    assert second == {"picture": str(mixed[1]), "error": second["error"]}
    assert first["picture"] == str(mixed[0])
    assert {one["label"] for one in first["classes"]} == set(COLOURS)
    told = [(one["label"], one["method"], one["layer"]) for one in first["maps"]]
    assert told == [(label, method, "stage1") for method in ("grad-cam", "eigen-cam") for label in ("red", "blue")]
    assert all(Path(file).is_file() for file in first["files"])
    assert [Path(file).name for file in first["files"][1:3]] == ["red-red-0-1-red.npy", "red-red-0-2-blue.npy"]
    stored = np.load(first["files"][1])
    assert np.nanmax(stored) <= np.max(first["maps"][0]["cells"]) * 1.001


def test_the_map_is_on_the_picture_and_not_on_the_crop(van, checkpoint, tmp_path):
    """A wide picture: nothing is said beside the square that the network saw."""
    picture(COLOURS["red"], 1, size_px=(200, 50)).save(tmp_path / "wide.png")
    assert van("explain", checkpoint, tmp_path / "wide.png", "--out", tmp_path / "why").status == 0
    values = np.load(next((tmp_path / "why").glob("*.npy")))
    assert values.shape == (50, 200)
    seen = np.isfinite(values).any(0)
    assert np.flatnonzero(seen)[[0, -1]].tolist() == [75, 124]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_things_and_regions_are_explained(van, marked, scenes, tmp_path, task):
    pictures = sorted((scenes / "coco" / "val").glob("*.png"))[:2]
    ran = van("explain", marked(task), *pictures, "--out", tmp_path / "why", "--top", "2", "--json")
    assert ran.status == 0
    for line in ran.out.splitlines():
        told = json.loads(line)
        assert len(told["maps"]) in (1, 2)
        assert all(one["method"] == "layer-cam" for one in told["maps"])
        assert all(("box" in one) == (task == "detect") for one in told["maps"])
        if task == "detect":
            box = told["maps"][-1]["box"]
            again = van("explain", marked(task), told["picture"], "--out", tmp_path / "box", "--json", "--box", *box)
            assert json.loads(again.out)["maps"][0]["box"] == pytest.approx(box, abs=3)


def test_models_are_compared_in_one_figure(van, peers, mixed, tmp_path):
    out = tmp_path / "figure"
    ran = van("explain", "--compare", *peers, mixed[0], mixed[2], "--out", out, "--layer", "stage3")
    assert ran.status == 0
    assert len(ran.out.splitlines()) == 6
    width, height = size_of(out / "compare.png")
    assert width > 4 * 480
    assert height > 2 * 480
    told = [
        json.loads(line)
        for line in van("explain", *peers, mixed[0], "--compare", "--out", out, "--json").out.splitlines()
    ]
    assert [one["model"] for one in told] == [str(path) for path in peers]
    assert all(len(one["maps"]) == 1 for one in told)
    broken = van("explain", "--compare", peers[0], mixed[0], mixed[1], "--out", out)
    assert broken.status == 1
    assert "text.png: is no picture" in broken.err


def test_words_are_told_apart_by_what_they_name(tmp_path):
    words = ["van_b2", "runs/best.safetensors", "cat.JPG", str(tmp_path), "a*.png", "swin_tiny", "weights.pth.tar"]
    models, pictures = models_and_pictures(words)
    assert models == ["van_b2", "runs/best.safetensors", "swin_tiny", "weights.pth.tar"]
    assert pictures == ["cat.JPG", str(tmp_path), "a*.png"]


def test_what_is_wrong_is_told_before_anything_is_written(van, checkpoint, marked, mixed, tmp_path):
    out = tmp_path / "why"
    wrong = {
        ("--classes", "purple"): "there is no class 'purple'; known: blue, green, red",
        ("--layer", "stage7"): "there is no layer 'stage7'",
        ("--method", "saliency"): "there is no method 'saliency'; known: grad-cam",
        ("--box", "1", "2", "3", "4"): "a box is for networks that find things; this one's task is classify",
    }
    for words, message in wrong.items():
        ran = van("explain", checkpoint, mixed[0], "--out", out, *words)
        assert ran.status == 2
        assert message in ran.err
    assert not out.exists()
    ran = van("explain", "--compare", checkpoint, "nosuch", "--out", out)
    assert (ran.status, "--compare is given 2 models and 0 pictures; wanted both" in ran.err) == (2, True)


def test_lka_s_own_attention_is_drawn_and_told_in_numbers(van, checkpoint, mixed, tmp_path):
    out = tmp_path / "lka"
    ran = van("explain", checkpoint, mixed[0], mixed[1], "--out", out, "--lka", "--json")
    assert ran.status == 1
    assert "text.png: is no picture" in ran.err
    told, passed_over = (json.loads(line) for line in ran.out.splitlines())
    assert passed_over["picture"] == str(mixed[1])
    assert [one["block"] for one in told["lka"]] == ["stage1.block2", "stage2.block2", "stage3.block4", "stage4.block1"]
    assert all(len(one["maps"]) == 4 for one in told["lka"])  # the strongest channels
    assert size_of(Path(told["file"]))[0] > 300
    words = ("--lka", "stage3.block0", "stage4", "--channels", "5", "0")
    told = json.loads(van("explain", checkpoint, mixed[0], "--out", out, "--json", *words).out)
    assert [one["block"] for one in told["lka"]] == ["stage3.block0", "stage4.block0", "stage4.block1"]
    assert all(list(one["maps"]) == ["channel 5", "channel 0"] for one in told["lka"])
    told = json.loads(van("explain", checkpoint, mixed[0], "--out", out, "--json", "--lka", "--channels", "mean").out)
    assert len(told["lka"]) == 13
    assert van("explain", checkpoint, mixed[0], "--out", out, "--lka").out.startswith(f"{mixed[0]}: stage1.block2 to ")


def test_lka_of_a_network_without_it_or_of_no_block_is_refused(van, peers, checkpoint, mixed, tmp_path):
    words = (mixed[0], "--out", tmp_path / "lka", "--lka")
    ran = van("explain", peers[2], *words)
    assert (ran.status, "ConvNeXt holds no LKA; wanted a VAN" in ran.err) == (2, True)
    ran = van("explain", checkpoint, *words, "stage9")
    assert (ran.status, "blocks holds 'stage9', and there is no such block" in ran.err) == (2, True)
    ran = van("explain", checkpoint, *words, "--channels", "best")
    assert (ran.status, "--channels is best; wanted mean, strongest, or numbers" in ran.err) == (2, True)
    assert not (tmp_path / "lka").exists()


def test_receptive_fields_are_measured_drawn_and_told(van, peers, mixed, tmp_path):
    out = tmp_path / "fields"
    ran = van("explain", "--fields", *peers[::2], "--size-px", "96", "--out", out)
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert [line.split(":")[0].split() for line in lines] == [
        [name, f"stage{stage}"] for name in ("van_b2", "convnext_tiny") for stage in (1, 2, 3, 4)
    ]
    assert all(" px, can read " in line for line in lines)
    assert {path.name for path in out.iterdir()} == {"fields.png", "sides.png"}
    told = [
        json.loads(line)
        for line in van("explain", "--fields", peers[0], mixed[0], "--out", out, "--json").out.splitlines()
    ]
    assert [one["layer"] for one in told] == ["stage1", "stage2", "stage3", "stage4"]
    assert told[0]["theoretical"]["rows"] == 7 + 4 * (22 + 2)  # the patch, and a block's LKA and 3x3 on its cells
    ran = van("explain", "--fields", "--fresh", peers[0], "--out", out)
    assert (ran.status, "--fresh: there is no " in ran.err) == (2, True)
    ran = van("explain", "--fields", peers[0], peers[0], "--out", out)
    assert (ran.status, "two of the models are called alike: van_b2, van_b2" in ran.err) == (2, True)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """A small VAN over the ten digits that has learnt nothing."""
    path = tmp_path_factory.mktemp("reader") / "reader.safetensors"
    return write_small(path, size_px=64, labels=tuple(str(digit) for digit in range(10)))


def test_maps_are_scored_on_marked_pictures_beside_a_random_map(van, reader, scenes, tmp_path):
    words = ("--score", "--method", "grad-cam", "layer-cam", "--out", tmp_path / "scores")
    ran = van("explain", reader, *words, "--data", scenes / "coco", "--limit", "3")
    assert ran.status == 0
    head, _, *rows, counted = ran.out.splitlines()
    assert head.split() == ["reader", "deletion", "insertion", "pointing", "energy"]
    assert [row[:24].strip() for row in rows] == ["grad-cam of stage3", "layer-cam of norm3", "random of stage3"]
    assert counted == "3 pictures"
    assert size_of(tmp_path / "scores" / "reader-curves.png")[0] > 500
    told = json.loads(van("explain", reader, *words, "--data", scenes, "--limit", "2", "--json").out)
    assert set(told["scores"]["random"]) == {"deletion", "insertion", "pointing", "energy"}
    assert all(0 <= one["mean"] <= 1 for scores in told["scores"].values() for one in scores.values())


def test_class_folders_are_scored_without_pointing_and_damaged_pictures_are_named(van, checkpoint, tmp_path):
    write_classes(tmp_path / "set" / "val", dict.fromkeys(COLOURS, 2))
    (tmp_path / "set" / "val" / "red" / "text.png").write_text("no picture")
    words = ("--score", "--data", tmp_path / "set", "--method", "grad-cam", "--out", tmp_path / "scores", "--json")
    ran = van("explain", checkpoint, *words)
    assert ran.status == 1
    assert "text.png: is no picture" in ran.err
    told, passed_over = map(json.loads, ran.out.splitlines())
    assert set(told["scores"]["grad-cam"]) == {"deletion", "insertion"}
    assert passed_over["picture"].endswith("text.png")


def test_a_set_whose_classes_the_network_does_not_know_cannot_score_it(van, checkpoint, scenes, tmp_path):
    ran = van("explain", checkpoint, "--score", "--data", scenes / "coco", "--out", tmp_path / "scores")
    assert ran.status == 1
    assert "has classes (0, 1, 2, 3, 4) of which the network knows none; its own are blue, green, red" in ran.err
    ran = van("explain", checkpoint, "cat.png", "--score", "--data", scenes / "coco", "--out", tmp_path / "scores")
    assert (ran.status, "--score takes its pictures from --data" in ran.err) == (2, True)
    assert not (tmp_path / "scores").exists()
