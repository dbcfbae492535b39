"""Samples of DenseDataset: augmented for training, whole and in original coordinates for evaluation."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.synthetic_annotated import SIZE_PX, edit_json, write_scenes
from van.datasets.annotations import IGNORE_INDEX, TARGET_TYPES, Issues
from van.datasets.augment import JointAugmentSettings
from van.datasets.dense_dataset import DenseDataset
from van.datasets.formats import load_split
from van.datasets.scenes import generate_digit_scenes
from van.preprocess import HALF, ResizePreprocess
from van.training.loader import seeded

RULE = ResizePreprocess(min_size=96, max_size=200)
CROPPED = JointAugmentSettings(scale=(0.5, 1.5), crop_size=48, hflip=0.5, photometric_distort=0.5)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Six training and three validation scenes; do not change them."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=6, validation=3)


@pytest.fixture
def copied(scenes, tmp_path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def read(scenes: Path, target_type: str, split: str = "val", **more) -> DenseDataset:
    root = scenes / ("ade" if target_type == "semantic" else "coco")
    return DenseDataset(
        load_split(root, split, target_type=target_type, issues=Issues()), RULE, target_type=target_type, **more
    )


def generated(split: str = "val", count: int = 3) -> list:
    """Return the scenes that the files were written from."""
    return list(generate_digit_scenes(split, count=count, image_size=SIZE_PX))


def test_evaluation_images_are_whole_and_normalized_with_size_and_name(subtests, scenes):
    for target_type in TARGET_TYPES:
        with subtests.test(target_type=str(target_type)):
            samples = read(scenes, target_type)
            assert len(samples) == 3
            for scene, sample in zip(generated(), (samples[index] for index in range(3)), strict=True):
                assert sample["image"].equal(RULE(scene.image))
                assert sample["image"].shape == (3, 96, 96)
                assert sample["original_size"] == (SIZE_PX, SIZE_PX)
                assert sample["name"].endswith(".png")
                assert set(sample) == {"image", "target", "original_size", "name"}


def test_evaluation_objects_equal_those_generated(subtests, scenes):
    for target_type in ["boxes", "masks"]:
        with subtests.test(target_type=str(target_type)):
            samples = read(scenes, target_type)
            for index, scene in enumerate(generated()):
                target = samples[index]["target"]
                assert target["boxes"].tolist() == [list(each.box) for each in scene.objects]
                assert target["labels"].tolist() == [each.label for each in scene.objects]
                assert target["area"].tolist() == [int(each.mask.sum()) for each in scene.objects]
                assert target["iscrowd"].tolist() == [0] * len(scene.objects)
                assert target["boxes"].dtype == target["area"].dtype == torch.float32
                assert all(
                    type(value) is torch.Tensor for value in target.values()
                )  # no tv_tensors, which torchvision would transform
                assert ("masks" in target) == (target_type == "masks")
                if target_type == "masks":
                    np.testing.assert_array_equal(target["masks"], np.stack([each.mask for each in scene.objects]))


def test_evaluation_semantic_maps_equal_those_generated(scenes):
    samples = read(scenes, "semantic")
    for index, scene in enumerate(generated()):
        target = samples[index]["target"]
        assert target.dtype == torch.int64
        np.testing.assert_array_equal(target, scene.semantic_mask())


def test_evaluation_segments_are_the_objects_and_the_background(scenes):
    samples = read(scenes, "panoptic")
    for index, scene in enumerate(generated()):
        target = samples[index]["target"]
        assert target["masks"].dtype == torch.bool
        assert (target["masks"].sum(0) == 1).all()
        mask_of = dict(zip(target["labels"].tolist(), target["masks"], strict=True))
        np.testing.assert_array_equal(mask_of[10], scene.semantic_mask() == 0)
        objects = [(t.label, int(t.mask.sum())) for t in scene.objects]
        rows = zip(target["labels"].tolist(), target["masks"].flatten(1).sum(1).tolist(), strict=True)
        assert sorted(row for row in rows if row[0] != 10) == sorted(objects)


def test_training_samples_are_determined_by_the_seed_and_normalized(subtests, scenes):
    for target_type in TARGET_TYPES:
        with subtests.test(target_type=str(target_type)):
            samples = read(scenes, target_type, split="train", augment=CROPPED)
            drawn = []
            for seed in (4, 5, 4):
                with seeded(seed):
                    drawn.append(samples[1])
            for sample in drawn:
                assert sample["image"].shape == (3, 48, 48)
                assert sample["image"].dtype == torch.float32
                assert sample["image"].abs().max() <= 1  # 0 to 1, less a half, over a half
                assert type(sample["image"]) is torch.Tensor
                assert sample["original_size"] == (SIZE_PX, SIZE_PX)
            assert drawn[0]["image"].equal(drawn[2]["image"])
            assert not drawn[0]["image"].equal(drawn[1]["image"])
            target = drawn[0]["target"]
            if target_type == "semantic":
                assert (target.shape, target.dtype) == ((48, 48), torch.int64)
                assert set(target.unique().tolist()) <= {IGNORE_INDEX, *range(11)}
                return
            assert set(target) == {
                "boxes": {"boxes", "labels"}, "masks": {"boxes", "labels", "masks"}, "panoptic": {"labels", "masks"},
            }[target_type]  # fmt: skip
            assert all(type(value) is torch.Tensor for value in target.values())
            if "masks" in target:
                assert target["masks"].shape == (len(target["labels"]), 48, 48)
                assert target["masks"].flatten(1).any(1).all()


def test_training_images_equal_evaluation_images_without_augmentation(scenes):
    none = JointAugmentSettings(hflip=0.0)
    trained = read(scenes, "masks", augment=none)
    for index, scene in enumerate(generated()):
        sample = trained[index]
        evaluated = RULE(scene.image)
        # different libraries resize, and one rounds to steps of 1/255, which are 2/255 after normalization
        assert (sample["image"] - evaluated).abs().max() < 4 * 2 / 255
        scale = 96 / SIZE_PX
        expected = [[side * scale for side in each.box] for each in scene.objects]
        np.testing.assert_allclose(sample["target"]["boxes"], expected, atol=0.01)


def test_crop_of_the_background_has_no_objects(scenes):
    samples = read(scenes, "masks", split="train", augment=JointAugmentSettings(scale=(2.0, 2.0), crop_size=24))
    counts = []
    for seed in range(40):
        with seeded(seed):
            target = samples[0]["target"]
        counts.append(len(target["labels"]))
        assert target["boxes"].shape == (counts[-1], 4)
        assert target["masks"].shape == (counts[-1], 24, 24)
    assert min(counts) == 0 < max(counts)


def test_crowds_are_kept_for_evaluation_and_dropped_for_training(copied):
    path = copied / "coco" / "annotations" / "instances_val.json"
    annotations = json.loads(path.read_text())["annotations"]
    annotations[0]["iscrowd"] = 1
    edit_json(path, annotations=annotations)
    evaluated = read(copied, "boxes")[0]["target"]
    assert evaluated["iscrowd"].tolist() == [1] + [0] * (len(evaluated["labels"]) - 1)
    trained = read(copied, "boxes", augment=JointAugmentSettings(hflip=0.0))[0]["target"]
    assert len(trained["labels"]) == len(evaluated["labels"]) - 1
    assert trained["labels"].equal(evaluated["labels"][1:])


def test_crowd_segments_are_dropped(copied):
    path = copied / "coco" / "annotations" / "panoptic_val.json"
    whole = len(read(copied, "panoptic")[0]["target"]["labels"])
    annotations = json.loads(path.read_text())["annotations"]
    annotations[0]["segments_info"][1]["iscrowd"] = 1
    edit_json(path, annotations=annotations)
    target = read(copied, "panoptic")[0]["target"]
    assert len(target["labels"]) == whole - 1
    assert not target["masks"].any(0).all()  # its pixels belong to no segment


def test_damaged_image_gives_name_and_reason_and_the_others_are_read(subtests, scenes, new_folder):
    for target_type, augment in itertools.product(TARGET_TYPES, (None, CROPPED)):
        copied = Path(shutil.copytree(scenes, new_folder() / "scenes"))
        with subtests.test(target_type=target_type):
            folder = copied / ("ade/images/validation" if target_type == "semantic" else "coco/val")
            path = folder / "000001.png"
            path.write_bytes(path.read_bytes()[:200])
            samples = read(copied, target_type, augment=augment)
            broken = samples[1]
            assert set(broken) == {"name", "unreadable"}
            assert broken["name"].endswith("000001.png")
            assert "truncated" in broken["unreadable"]
            assert "image" in samples[0]
            assert "image" in samples[2]


def test_mask_of_another_size_makes_the_sample_unreadable(subtests, scenes, new_folder):
    for target_type in ("semantic", "panoptic"):
        copied = Path(shutil.copytree(scenes, new_folder() / "scenes"))
        with subtests.test(target_type=target_type):
            folder = copied / (
                "ade/annotations/validation" if target_type == "semantic" else "coco/annotations/panoptic_val"
            )
            path = folder / "000002.png"
            with Image.open(path) as file:
                smaller = file.resize((60, 50), Image.Resampling.NEAREST)
            smaller.save(path)
            sample = read(copied, target_type)[2]
            assert re.search("64x64.*60x50", sample["unreadable"])


def test_damaged_mask_makes_the_sample_unreadable(subtests, scenes, new_folder):
    for target_type in ("semantic", "panoptic"):
        copied = Path(shutil.copytree(scenes, new_folder() / "scenes"))
        with subtests.test(target_type=target_type):
            folder = copied / (
                "ade/annotations/validation" if target_type == "semantic" else "coco/annotations/panoptic_val"
            )
            path = folder / "000000.png"
            path.write_bytes(path.read_bytes()[:60])
            sample = read(copied, target_type)[0]
            assert set(sample) == {"name", "unreadable"}
            assert "000000.png" in sample["unreadable"]


def test_image_without_objects_is_read(subtests, scenes, new_folder):
    for target_type in TARGET_TYPES:
        copied = Path(shutil.copytree(scenes, new_folder() / "scenes"))
        with subtests.test(target_type=target_type):
            """No masks and boxes; a semantic mask of the background alone; a panoptic mask without labeled pixels."""
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
                target = read(copied, target_type, augment=augment)[0]["target"]
                if target_type == "semantic":
                    assert set(target.unique().tolist()) <= {IGNORE_INDEX, 0}
                else:
                    assert len(target["labels"]) == 0
                    assert target["labels"].dtype == torch.int64
                if target_type in ("masks", "panoptic"):
                    assert target["masks"].shape[0] == 0
                    assert target["masks"].dtype == torch.bool


def test_images_without_resize_keep_their_size(subtests, scenes):
    for target_type in TARGET_TYPES:
        with subtests.test(target_type=str(target_type)):
            sample = read(scenes, target_type, without_resize=True)[0]
            assert sample["image"].equal(RULE.without_resize(generated()[0].image))
            assert sample["image"].shape == (3, SIZE_PX, SIZE_PX)
            assert RULE.mean == HALF


def test_object_without_segmentation_has_the_mask_of_its_box(copied):
    path = copied / "coco" / "annotations" / "instances_val.json"
    annotations = json.loads(path.read_text())["annotations"]
    del annotations[0]["segmentation"]
    edit_json(path, annotations=annotations)
    target = read(copied, "masks")[0]["target"]
    x1, y1, x2, y2 = (int(side) for side in target["boxes"][0])
    assert target["masks"][0, y1:y2, x1:x2].all()
    assert target["masks"][0].sum() == (x2 - x1) * (y2 - y1)
