"""Marked pictures as samples: read from files, varied for training, whole and in their own pixels for measuring."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.made_marked import SIZE_PX, edit_json, write_scenes
from van.data.find import read_part
from van.data.marked_set import MarkedSet
from van.data.marks import IGNORED, WANTS, Problems
from van.data.scene_augment import SceneAugmentSettings
from van.data.scenes import digit_scenes
from van.engine.loader import seeded
from van.preprocess import HALF, WholePreprocess

RULE = WholePreprocess(short_px=96, long_px=200)
CROPPED = SceneAugmentSettings(scale=(0.5, 1.5), crop_px=48, flip=0.5, distort=0.5)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Six scenes and three held-out ones. Not to be changed."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=6, validation=3)


@pytest.fixture
def copied(scenes, tmp_path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def read(scenes: Path, want: str, part: str = "val", **more) -> MarkedSet:
    root = scenes / ("ade" if want == "map" else "coco")
    return MarkedSet(read_part(root, part, want=want, problems=Problems()), RULE, want=want, **more)


def made(part: str = "val", count: int = 3) -> list:
    """The scenes that the files were written from."""
    return list(digit_scenes(part, count=count, size_px=SIZE_PX))


@pytest.mark.parametrize("want", WANTS)
def test_held_out_pictures_come_whole_and_normalised_with_their_size_and_name(scenes, want):
    samples = read(scenes, want)
    assert len(samples) == 3
    for scene, sample in zip(made(), (samples[place] for place in range(3)), strict=True):
        assert sample["picture"].equal(RULE(scene.picture))
        assert sample["picture"].shape == (3, 96, 96)
        assert sample["size"] == (SIZE_PX, SIZE_PX)
        assert sample["name"].endswith(".png")
        assert set(sample) == {"picture", "target", "size", "name"}


@pytest.mark.parametrize("want", ["boxes", "masks"])
def test_held_out_things_are_those_that_were_drawn_in_the_file_s_pixels(scenes, want):
    samples = read(scenes, want)
    for place, scene in enumerate(made()):
        target = samples[place]["target"]
        assert target["boxes"].tolist() == [list(thing.box) for thing in scene.things]
        assert target["labels"].tolist() == [thing.label for thing in scene.things]
        assert target["area"].tolist() == [int(thing.mask.sum()) for thing in scene.things]
        assert target["iscrowd"].tolist() == [0] * len(scene.things)
        assert target["boxes"].dtype == target["area"].dtype == torch.float32
        assert all(type(value) is torch.Tensor for value in target.values())  # nothing that torchvision would change
        assert ("masks" in target) == (want == "masks")
        if want == "masks":
            np.testing.assert_array_equal(target["masks"], np.stack([thing.mask for thing in scene.things]))


def test_held_out_maps_are_those_that_were_drawn(scenes):
    samples = read(scenes, "map")
    for place, scene in enumerate(made()):
        target = samples[place]["target"]
        assert target.dtype == torch.int64
        np.testing.assert_array_equal(target, scene.semantic_map())


def test_held_out_segments_are_the_things_and_the_ground(scenes):
    samples = read(scenes, "panoptic")
    for place, scene in enumerate(made()):
        target = samples[place]["target"]
        assert target["masks"].dtype == torch.bool
        assert (target["masks"].sum(0) == 1).all()
        found = dict(zip(target["labels"].tolist(), target["masks"], strict=True))
        np.testing.assert_array_equal(found[10], scene.semantic_map() == 0)
        things = [(t.label, int(t.mask.sum())) for t in scene.things]
        rows = zip(target["labels"].tolist(), target["masks"].flatten(1).sum(1).tolist(), strict=True)
        assert sorted(row for row in rows if row[0] != 10) == sorted(things)


@pytest.mark.parametrize("want", WANTS)
def test_training_samples_are_cropped_by_their_seed_and_normalised_like_the_others(scenes, want):
    samples = read(scenes, want, part="train", augment=CROPPED)
    seen = []
    for seed in (4, 5, 4):
        with seeded(seed):
            seen.append(samples[1])
    for sample in seen:
        assert sample["picture"].shape == (3, 48, 48)
        assert sample["picture"].dtype == torch.float32
        assert sample["picture"].abs().max() <= 1  # 0 to 1, less a half, over a half
        assert type(sample["picture"]) is torch.Tensor
        assert sample["size"] == (SIZE_PX, SIZE_PX)
    assert seen[0]["picture"].equal(seen[2]["picture"])
    assert not seen[0]["picture"].equal(seen[1]["picture"])
    target = seen[0]["target"]
    if want == "map":
        assert (target.shape, target.dtype) == ((48, 48), torch.int64)
        assert set(target.unique().tolist()) <= {IGNORED, *range(11)}
        return
    assert set(target) == {
        "boxes": {"boxes", "labels"}, "masks": {"boxes", "labels", "masks"}, "panoptic": {"labels", "masks"},
    }[want]  # fmt: skip
    assert all(type(value) is torch.Tensor for value in target.values())
    if "masks" in target:
        assert target["masks"].shape == (len(target["labels"]), 48, 48)
        assert target["masks"].flatten(1).any(1).all()


def test_training_pictures_are_the_evaluated_ones_where_nothing_varies(scenes):
    still = SceneAugmentSettings(flip=0.0)
    trained = read(scenes, "masks", augment=still)
    for place, scene in enumerate(made()):
        sample = trained[place]
        evaluated = RULE(scene.picture)
        # two libraries resize, and one of them rounds to whole steps of 1/255, which are 2/255 after the mean
        assert (sample["picture"] - evaluated).abs().max() < 4 * 2 / 255
        scale = 96 / SIZE_PX
        wanted = [[side * scale for side in thing.box] for thing in scene.things]
        np.testing.assert_allclose(sample["target"]["boxes"], wanted, atol=0.01)


def test_a_scene_cut_out_of_nothing_but_ground_has_no_things(scenes):
    samples = read(scenes, "masks", part="train", augment=SceneAugmentSettings(scale=(2.0, 2.0), crop_px=24))
    counts = []
    for seed in range(40):
        with seeded(seed):
            target = samples[0]["target"]
        counts.append(len(target["labels"]))
        assert target["boxes"].shape == (counts[-1], 4)
        assert target["masks"].shape == (counts[-1], 24, 24)
    assert min(counts) == 0 < max(counts)


def test_crowds_are_measured_as_such_and_never_learnt(copied):
    path = copied / "coco" / "annotations" / "instances_val.json"
    annotations = json.loads(path.read_text())["annotations"]
    annotations[0]["iscrowd"] = 1
    edit_json(path, annotations=annotations)
    measured = read(copied, "boxes")[0]["target"]
    assert measured["iscrowd"].tolist() == [1] + [0] * (len(measured["labels"]) - 1)
    learnt = read(copied, "boxes", augment=SceneAugmentSettings(flip=0.0))[0]["target"]
    assert len(learnt["labels"]) == len(measured["labels"]) - 1
    assert learnt["labels"].equal(measured["labels"][1:])


def test_a_crowd_of_a_panoptic_map_is_neither_learnt_nor_measured(copied):
    path = copied / "coco" / "annotations" / "panoptic_val.json"
    whole = len(read(copied, "panoptic")[0]["target"]["labels"])
    annotations = json.loads(path.read_text())["annotations"]
    annotations[0]["segments_info"][1]["iscrowd"] = 1
    edit_json(path, annotations=annotations)
    target = read(copied, "panoptic")[0]["target"]
    assert len(target["labels"]) == whole - 1
    assert not target["masks"].any(0).all()  # its pixels belong to nobody


@pytest.mark.parametrize("want", WANTS)
@pytest.mark.parametrize("augment", [None, CROPPED], ids=["measured", "learnt"])
def test_a_damaged_picture_is_named_with_its_reason_and_the_others_are_read(copied, want, augment):
    folder = copied / ("ade/images/validation" if want == "map" else "coco/val")
    path = folder / "000001.png"
    path.write_bytes(path.read_bytes()[:200])
    samples = read(copied, want, augment=augment)
    broken = samples[1]
    assert set(broken) == {"name", "unreadable"}
    assert broken["name"].endswith("000001.png")
    assert "cut off" in broken["unreadable"]
    assert "picture" in samples[0]
    assert "picture" in samples[2]


@pytest.mark.parametrize("want", ["map", "panoptic"])
def test_a_map_of_another_size_is_no_map_of_this_picture(copied, want):
    folder = copied / ("ade/annotations/validation" if want == "map" else "coco/annotations/panoptic_val")
    path = folder / "000002.png"
    with Image.open(path) as file:
        made_smaller = file.resize((60, 50), Image.Resampling.NEAREST)
    made_smaller.save(path)
    sample = read(copied, want)[2]
    assert sample["unreadable"].startswith("its map has 60x50 pixels and it has 64x64; make them equal")


@pytest.mark.parametrize("want", ["map", "panoptic"])
def test_a_damaged_map_makes_its_picture_unreadable(copied, want):
    folder = copied / ("ade/annotations/validation" if want == "map" else "coco/annotations/panoptic_val")
    path = folder / "000000.png"
    path.write_bytes(path.read_bytes()[:60])
    sample = read(copied, want)[0]
    assert set(sample) == {"name", "unreadable"}
    assert "000000.png" in sample["unreadable"]


@pytest.mark.parametrize("want", WANTS)
def test_a_picture_without_any_thing_is_read(copied, want):
    """Of masks and boxes none; a map of ground alone; a panoptic map of which nothing is known."""
    annotations = copied / "coco" / "annotations"
    instances = json.loads((annotations / "instances_val.json").read_text())
    kept = [one for one in instances["annotations"] if one["image_id"] != 1]
    edit_json(annotations / "instances_val.json", annotations=kept)
    panoptic = json.loads((annotations / "panoptic_val.json").read_text())["annotations"]
    panoptic[0]["segments_info"] = []
    edit_json(annotations / "panoptic_val.json", annotations=panoptic)
    Image.new("RGB", (SIZE_PX, SIZE_PX)).save(annotations / "panoptic_val" / "000000.png")
    Image.new("L", (SIZE_PX, SIZE_PX), 1).save(copied / "ade" / "annotations" / "validation" / "000000.png")
    for augment in (None, CROPPED):
        target = read(copied, want, augment=augment)[0]["target"]
        if want == "map":
            assert set(target.unique().tolist()) <= {IGNORED, 0}
        else:
            assert len(target["labels"]) == 0
            assert target["labels"].dtype == torch.int64
        if want in ("masks", "panoptic"):
            assert target["masks"].shape[0] == 0
            assert target["masks"].dtype == torch.bool


@pytest.mark.parametrize("want", WANTS)
def test_pictures_at_their_own_size_are_not_resized(scenes, want):
    sample = read(scenes, want, own_size=True)[0]
    assert sample["picture"].equal(RULE.at_own_size(made()[0].picture))
    assert sample["picture"].shape == (3, SIZE_PX, SIZE_PX)
    assert RULE.mean == HALF


def test_a_boxed_thing_without_an_outline_has_the_mask_of_its_box(copied):
    path = copied / "coco" / "annotations" / "instances_val.json"
    annotations = json.loads(path.read_text())["annotations"]
    del annotations[0]["segmentation"]
    edit_json(path, annotations=annotations)
    target = read(copied, "masks")[0]["target"]
    x1, y1, x2, y2 = (int(side) for side in target["boxes"][0])
    assert target["masks"][0, y1:y2, x1:x2].all()
    assert target["masks"][0].sum() == (x2 - x1) * (y2 - y1)
