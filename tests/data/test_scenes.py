"""Digit scenes: the same by seed, masks that add up, files that COCO's and ADE20K's rules explain."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.data.digits import LABELS, load_digits
from van.data.find import read_part
from van.data.folder import read_split
from van.data.marks import Problems
from van.data.scene_files import GROUND, run_lengths, write_digit_scenes
from van.data.scenes import Scene, digit_scenes
from van.errors import UsageError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(digit_scenes("train", count=30, size_px=96))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=6, validation=3, size_px=64)
    return folder


def test_a_scene_is_the_same_every_time_whatever_the_count(scenes):
    again = list(digit_scenes("train", count=3, size_px=96))
    for first, second in zip(scenes, again, strict=False):
        assert first.picture.tobytes() == second.picture.tobytes()
        assert [thing.label for thing in first.things] == [thing.label for thing in second.things]
    other = next(digit_scenes("train", count=1, size_px=96, seed=1))
    assert other.picture.tobytes() != scenes[0].picture.tobytes()


@pytest.mark.parametrize(
    ("part", "count", "size_px", "seed", "digest"),
    [
        ("train", 12, 128, 0, "f809d2c05266659e4f34a3b7b0c8fcc8cf5e1bbbc19e5a11f065aea92fe9e21b"),
        ("val", 12, 64, 0, "d5f2119c0c595b6bbac4f3bbe31ae1a9b6cf7bee8dbdf389f8c5ea3a0c5a938d"),
        ("train", 40, 32, 3, "797d21955e5d06166538a71390df9fd484961bef02190c23a04fe534a30735c1"),
    ],
)
def test_a_seed_gives_the_scenes_that_it_has_always_given(part, count, size_px, seed, digest):
    """Recorded before scenes could be asked to have fewer digits."""
    found = hashlib.sha256()
    for scene in digit_scenes(part, count=count, size_px=size_px, seed=seed):
        found.update(scene.picture.tobytes())
        for thing in scene.things:
            found.update(bytes([thing.label]) + thing.mask.tobytes())
    assert found.hexdigest() == digest


@pytest.mark.parametrize("most_digits", [1, 2, 9])
def test_a_scene_has_as_many_digits_as_asked_for(most_digits):
    counts = [len(scene.things) for scene in digit_scenes("val", count=150, size_px=96, most_digits=most_digits)]
    assert max(counts) <= most_digits
    assert max(counts) > most_digits / 2
    if most_digits == 1:
        assert set(counts) == {1}


def test_a_digit_without_ink_is_drawn_again_where_each_scene_shows_one(monkeypatch):
    from van.data import scenes as room

    whole, blank = room._placed, iter([True, True, False])
    monkeypatch.setattr(room, "_placed", lambda *a: whole(*a) * (not next(blank, False)))
    (scene,) = digit_scenes("train", count=1, size_px=64, most_digits=1)
    assert len(scene.things) == 1
    assert next(blank, None) is None


def test_held_out_scenes_are_others_and_show_held_out_digits(monkeypatch, scenes):
    from van.data import scenes as room

    shown = set()
    whole = room._placed
    monkeypatch.setattr(room, "_placed", lambda digit, *others: (shown.add(digit.name), whole(digit, *others))[1])
    held_out = list(digit_scenes("val", count=10, size_px=96))
    assert shown <= {item.name for item in load_digits().validation}
    assert held_out[0].picture.tobytes() != scenes[0].picture.tobytes()


def test_masks_do_not_overlap_and_boxes_fit_them(scenes):
    for scene in scenes:
        assert (sum(thing.mask.astype(int) for thing in scene.things) <= 1).all()
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            assert thing.mask[y1:y2, x1:x2].sum() == thing.mask.sum() > 0
            assert thing.mask[y1, :].any() and thing.mask[y2 - 1, :].any()  # noqa: PT018
            assert thing.mask[:, x1].any() and thing.mask[:, x2 - 1].any()  # noqa: PT018


def test_scenes_are_as_varied_as_promised(scenes):
    things = [thing for scene in scenes for thing in scene.things]
    sides = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) for t in things]
    assert {thing.label for thing in things} == set(range(10))
    assert min(sides) < 16
    assert max(sides) > 36
    assert {len(scene.things) for scene in scenes} >= {1, 2, 3, 4}


def test_digits_can_be_told_from_the_ground(scenes):
    """A digit's ink differs in brightness from what lies around it."""
    differences = []
    for scene in scenes:
        grey = np.asarray(scene.picture.convert("L")).astype(float)
        ground = scene.semantic_map() == 0
        differences += [abs(grey[thing.mask].mean() - grey[ground].mean()) for thing in scene.things]
    assert np.median(differences) > 40


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_run_lengths_are_cocos(rows, columns, seed):
    """Runs of zeros and ones by turns, down the columns, zeros first."""
    mask = np.random.default_rng(seed).random((rows, columns)) > 0.5
    written = run_lengths(mask)
    runs = np.repeat(np.arange(len(written["counts"])) % 2, written["counts"])
    assert written["size"] == [rows, columns]
    assert np.array_equal(runs.reshape(columns, rows).T.astype(bool), mask)


@pytest.mark.parametrize(("part", "count"), [("train", 6), ("val", 3)])
def test_the_files_say_what_the_scenes_hold(folder, part, count):
    coco, ade = folder / "coco", folder / "ade"
    instances = json.loads((coco / "annotations" / f"instances_{part}.json").read_text())
    panoptic = json.loads((coco / "annotations" / f"panoptic_{part}.json").read_text())
    ade_part = {"train": "training", "val": "validation"}[part]
    assert [category["name"] for category in instances["categories"]] == list(LABELS)
    assert len({annotation["id"] for annotation in instances["annotations"]}) == len(instances["annotations"])
    for place, scene in enumerate(digit_scenes(part, count=count, size_px=64)):
        image = instances["images"][place]
        assert Image.open(coco / part / image["file_name"]).tobytes() == scene.picture.tobytes()
        assert Image.open(ade / "images" / ade_part / image["file_name"]).tobytes() == scene.picture.tobytes()
        found = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        for annotation, thing in zip(found, scene.things, strict=True):
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == thing.box
            assert annotation["category_id"] == thing.label + 1
            assert annotation["segmentation"] == run_lengths(thing.mask)
        semantic = np.asarray(Image.open(ade / "annotations" / ade_part / image["file_name"]))
        assert np.array_equal(semantic, scene.semantic_map() + 1)
        colours = np.asarray(Image.open(coco / "annotations" / f"panoptic_{part}" / image["file_name"])).astype(int)
        ids = colours @ [1, 256, 65536]
        entry = panoptic["annotations"][place]
        category = {segment["id"]: segment["category_id"] for segment in entry["segments_info"]}
        named = np.vectorize(category.__getitem__)(ids)
        assert np.array_equal(np.where(named == GROUND, 0, named), scene.semantic_map())
        assert all((ids == segment["id"]).sum() == segment["area"] for segment in entry["segments_info"])
    assert (ade / "classes.txt").read_text().splitlines() == ["ground", *LABELS]


def test_scenes_of_one_digit_are_class_folders_too(tmp_path):
    """The same pictures in the same order: the class folder of each scene is its only mark's label."""
    write_digit_scenes(tmp_path / "single", train=40, validation=20, size_px=32, most_digits=1)
    split = read_split(tmp_path / "single" / "classes")
    for part, items, count in (("train", split.train, 40), ("val", split.validation, 20)):
        marked = read_part(tmp_path / "single", part, want="boxes", problems=Problems())
        by_name = {item.source.name: item for item in items}
        assert len(items) == len(by_name) == len(marked.pictures) == count
        for picture in marked.pictures:
            item, (mark,) = by_name[picture.path.name], picture.marks
            assert split.labels[item.target] == marked.labels[mark.label]
            assert item.source.read_bytes() == picture.path.read_bytes()


def test_scenes_of_several_digits_have_no_class_folders(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["ade", "coco"]


def test_nothing_is_written_over_and_nothing_half(folder, tmp_path):
    with pytest.raises(UsageError, match="already holds something"):
        write_digit_scenes(folder)
    with pytest.raises(UsageError, match="count is 0"):
        write_digit_scenes(tmp_path / "new", train=0)
    with pytest.raises(UsageError, match="most_digits is 0; wanted at least 1"):
        write_digit_scenes(tmp_path / "new", most_digits=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("part", "count", "size_px"), [("test", 1, 64), ("train", 0, 64), ("train", 1, 31)])
def test_what_cannot_be_made_is_refused(part, count, size_px):
    with pytest.raises(UsageError, match=r"wanted"):
        next(digit_scenes(part, count=count, size_px=size_px))
