"""COCO's panoptic files and masks are read; each kind of invalid entry is reported with its location."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.test_coco import drop, put, write_coco
from van.datasets.annotations import AnnotatedDataset, Issues
from van.datasets.coco import read_coco
from van.datasets.coco_panoptic import read_coco_panoptic, read_panoptic_ids
from van.datasets.digits import LABELS
from van.datasets.scenes import BACKGROUND_ID, write_digit_scenes
from van.errors import DataError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=5, validation=4, image_size=64)
    return folder / "coco"


def panoptic() -> dict[str, Any]:
    return {
        "images": [{"id": 4, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [
            {
                "image_id": 4,
                "file_name": "a.png",
                "segments_info": [
                    {"id": 70000, "category_id": 2, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 1},
                    {"id": 3, "category_id": 1, "bbox": [0, 0, 40, 30], "area": 1000, "iscrowd": 0},
                ],
            }
        ],
        "categories": [{"id": 2, "name": "dog", "isthing": 1}, {"id": 1, "name": "sky", "isthing": 0}],
    }


def test_segments_of_digit_scenes_are_the_masks_of_their_instances(subtests, scenes):
    for split in ["train", "val"]:
        with subtests.test(split=str(split)):
            boxes = read_coco(scenes, split, Issues())
            dataset = read_coco_panoptic(scenes, split, Issues())
            assert dataset.class_names == (*LABELS, "background")
            assert dataset.things == (True,) * len(LABELS) + (False,)
            assert dataset.category_ids[-1] == BACKGROUND_ID
            for image, other in zip(dataset.images, boxes.images, strict=True):
                assert (image.path, image.id) == (other.path, other.id)
                ids = read_panoptic_ids(image.mask_path)
                assert ids.dtype == np.int32
                assert set(np.unique(ids)) == {segment.id for segment in image.segments}
                masks = {segment.id: ids == segment.id for segment in image.segments if dataset.things[segment.label]}
                for annotation, mask in zip(other.annotations, masks.values(), strict=True):
                    assert np.array_equal(annotation.mask((64, 64)), mask)


def test_segment_ids_are_decoded_from_colors_low_byte_first(subtests, new_folder):
    for mode in ["RGB", "RGBA", "P"]:
        folder = new_folder()
        with subtests.test(mode=str(mode)):
            ids = np.array([[0, 1, 255], [256, 65_535, 65_536], [70_000, 8_421_504, 2**24 - 1]])
            colors = np.stack([ids % 256, ids // 256 % 256, ids // 65_536], -1).astype(np.uint8)
            image = Image.fromarray(colors)
            image = image.quantize(16) if mode == "P" else image.convert(mode)
            image.save(folder / "a.png")
            assert np.array_equal(read_panoptic_ids(folder / "a.png"), ids)


def test_unreadable_panoptic_mask_raises_with_the_path(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "gray.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "gray.png").read_bytes()[:40])
    for name, message in (
        ("gray.png", "RGB.*mode L"),
        ("a.jpg", "cannot"),
        ("cut.png", "cannot"),
        ("no", "cannot"),
    ):
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            read_panoptic_ids(tmp_path / name)


SEGMENT = ("annotations", 0, "segments_info", 0)
INVALID = [
    (drop("categories", 0, "isthing"), "category 2", "isthing: .*0 or 1.*missing"),
    (put("categories", 0, "isthing", value="yes"), "category 2", "isthing: .*'yes'"),
    (put("annotations", value=[]), "image 4", "panoptic annotation"),
    (put("annotations", 0, "image_id", value=5), "annotation of image 5", "image_id: .*5"),
    (put("annotations", 0, "file_name", value="b.png"), "annotation of image 4", r"file_name: .*b\.png.*missing"),
    (put("annotations", 0, "file_name", value="../a.png"), "annotation of image 4", "file_name: .*inside"),
    (drop("annotations", 0, "segments_info"), "annotation of image 4", "segments_info: .*missing"),
    (put(*SEGMENT, "id", value=3), "annotation of image 4, segment 3", "id: .*unique.*3"),
    (put(*SEGMENT, "id", value=0), "annotation of image 4, segment 0", "id: .*1 to 16777215.*0"),
    (put(*SEGMENT, "id", value=2**24), "annotation of image 4, segment 16777216", "id: .*16777216"),
    (put(*SEGMENT, "category_id", value=9), "annotation of image 4, segment 70000", "category_id: .*9"),
    (put(*SEGMENT, "bbox", value=[0, 0, 0, 4]), "annotation of image 4, segment 70000", "box: .*width"),
    (put(*SEGMENT, "iscrowd", value=None), "annotation of image 4, segment 70000", "iscrowd: .*None"),
]


def test_invalid_entry_is_reported_with_file_and_location(subtests, new_folder):
    for change, location, facts in INVALID:
        folder = new_folder()
        with subtests.test(location=str(location), facts=str(facts)):
            content = panoptic()
            valid = read(folder, content, Issues())
            assert [(s.id, s.label, s.crowd) for s in valid.images[0].segments] == [(70000, 1, True), (3, 0, False)]
            change(content)
            issues = Issues(collect=True)
            read(folder, content, issues)
            assert any(i.location == location and re.search(facts, i.message) for i in issues.collected), (
                issues.collected
            )
            assert {issue.file for issue in issues.collected} == {str(folder / "annotations" / "panoptic_train.json")}


def read(root: Path, content: Any, issues: Issues) -> AnnotatedDataset:
    """Write the annotation file, its images and its only mask, and read them."""
    write_coco(root, content, "panoptic")
    Image.new("RGB", (40, 30), (3, 0, 0)).save(root / "panoptic_train" / "a.png")
    return read_coco_panoptic(root, "train", issues)


def test_second_annotation_of_an_image_raises(tmp_path):
    content = panoptic()
    content["annotations"].append(copy.deepcopy(content["annotations"][0]))
    with pytest.raises(DataError, match=r"annotation of image 4: image_id: .*4"):
        read(tmp_path, content, Issues())
