"""COCO files are read as pycocotools reads them; each kind of invalid entry is reported with its location."""

import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from van.datasets.annotations import AnnotatedDataset, Issues
from van.datasets.coco import read_coco
from van.datasets.digits import LABELS
from van.datasets.scenes import write_digit_scenes
from van.errors import DataError

SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=5, validation=4, image_size=64)
    return folder / "coco"


def instances() -> dict[str, Any]:
    """Return three kinds of segmentation, a box alone, a crowd, and an image without annotations; ids unordered."""
    ring = {"size": [30, 40], "counts": [0, 60, 1140]}

    def annotation(
        annotation_id: int, image_id: int, category_id: int, box: list[float], **more: Any
    ) -> dict[str, Any]:
        return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": box, **more}

    return {
        "images": [
            {"id": image_id, "file_name": name, "width": 40, "height": 30}
            for image_id, name in ((9, "deep/c.png"), (2, "a.png"), (5, "b.png"))
        ],
        "annotations": [
            annotation(31, 9, 7, [5, 5, 15, 10], segmentation=[SQUARE], area=150.0, iscrowd=0),
            annotation(12, 2, 3, [0, 0, 2, 30], segmentation=ring, area=60, iscrowd=1),
            annotation(30, 9, 3, [20, 10, 1, 1]),
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def write_coco(root: Path, content: Any, kind: str = "instances") -> Path:
    """Write the annotation file of the training split and images for it; return its path."""
    path = root / "annotations" / f"{kind}_train.json"
    for folder in (root / "train" / "deep", root / "panoptic_train", path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png", "deep/c.png"):
        Image.new("RGB", (40, 30)).save(root / "train" / name)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def written(root: Path, content: Any) -> Path:
    write_coco(root, content)
    return root


def read(root: Path, issues: Issues | None = None) -> AnnotatedDataset:
    return read_coco(root, "train", issues or Issues())


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_digit_scenes_are_read_as_pycocotools_reads_them(subtests, scenes, capsys):
    for split, count in [("train", 5), ("val", 4)]:
        with subtests.test(split=str(split), count=str(count)):
            file = scenes / "annotations" / f"instances_{split}.json"
            dataset = read_coco(scenes, split, Issues())
            reference = COCO(str(file))
            assert dataset.class_names == LABELS
            assert dataset.category_ids == tuple(sorted(reference.getCatIds()))
            assert [image.id for image in dataset.images] == sorted(reference.getImgIds())
            assert len(dataset.images) == count
            assert sum(len(image.annotations) for image in dataset.images) == len(reference.getAnnIds())
            for image in dataset.images:
                assert image.path == scenes / split / image.name
                assert image.size == (64, 64)
                for annotation in image.annotations:
                    entry = reference.anns[annotation.id]
                    mask = reference.annToMask(entry)
                    assert np.array_equal(annotation.mask((64, 64)), mask)
                    assert annotation.area == entry["area"] == mask.sum()
                    assert dataset.category_ids[annotation.label] == entry["category_id"]
                    x, y, width, height = entry["bbox"]
                    assert annotation.box == (x, y, x + width, y + height)
                    assert image.id == entry["image_id"]


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_every_kind_of_segmentation_is_read_as_pycocotools_reads_it(tmp_path, capsys):
    content = instances()
    entry = {"image_id": 5, "category_id": 7, "bbox": [10, 5, 10, 5], "area": 50, "iscrowd": 0}
    content["annotations"] += [
        {**entry, "id": 1, "segmentation": {"size": [30, 40], "counts": compressed_counts()}},
        {**entry, "id": 2, "segmentation": [SQUARE, [30, 20, 35, 20, 35, 25.5]]},
    ]
    file = write_coco(tmp_path, content)
    dataset = read(tmp_path)
    reference = COCO(str(file))
    annotations = {annotation.id: annotation for image in dataset.images for annotation in image.annotations}
    for annotation_id in (31, 12, 1, 2):
        mask = reference.annToMask(reference.anns[annotation_id])
        assert mask.any()
        assert np.array_equal(annotations[annotation_id].mask((30, 40)), mask)
    assert annotations[1].mask((30, 40)).sum() == 50


def compressed_counts() -> str:
    from pycocotools import mask

    pixels = np.zeros((30, 40), np.uint8)
    pixels[5:10, 10:20] = 1
    return mask.encode(np.asfortranarray(pixels))["counts"].decode()


def test_class_indices_follow_category_ids_and_images_are_sorted_by_id(tmp_path):
    dataset = read(written(tmp_path, instances()))
    assert (dataset.class_names, dataset.category_ids, dataset.things) == (("cat", "dog"), (3, 7), ())
    assert [(p.id, p.name, len(p.annotations)) for p in dataset.images] == [
        (2, "a.png", 1),
        (5, "b.png", 0),
        (9, "deep/c.png", 2),
    ]
    assert dataset.images[2].path == tmp_path / "train" / "deep" / "c.png"
    square, dot = dataset.images[2].annotations
    assert (square.label, square.box, square.area, square.crowd) == (1, (5, 5, 20, 15), 150, False)
    assert (dot.label, dot.segmentation, dot.area) == (0, None, 1)  # one pixel, and the area of the box
    assert dataset.images[0].annotations[0].crowd


def test_empty_segmentation_is_valid_only_if_all_are_empty(tmp_path):
    content = instances()
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    dataset = read(written(tmp_path, content))
    assert {annotation.segmentation for image in dataset.images for annotation in image.annotations} == {None}
    content["annotations"][0]["segmentation"] = [SQUARE]
    with pytest.raises(DataError, match=r"annotation 12: segmentation: .*empty"):
        read(written(tmp_path, content))


def test_group_category_of_roboflow_is_a_class_only_if_an_annotation_uses_it(tmp_path):
    content = instances()
    content["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "cat"},
        {"id": 7, "name": "dog", "supercategory": "cat"},
    ]
    write_coco(tmp_path, content)
    dataset = read(tmp_path)
    assert dataset.category_ids == (3, 7)
    assert dataset.class_names == ("cat", "dog")
    content["categories"][0]["name"] = content["categories"][2]["supercategory"] = "pet"
    content["categories"][1]["supercategory"] = "pet"
    content["annotations"][0]["category_id"] = 0
    assert read(written(tmp_path, content)).class_names == ("pet", "cat", "dog")


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    """Return a change that sets the value at a path of keys and indices."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


ANNOTATION = ("annotations", 0)
INVALID = [
    (drop("images"), "", "images: .*list"),
    (put("annotations", value={}), "", r"annotations: .*list.*\{\}"),
    (put("images", 1, value=3), "image at index 1", "object.*3"),
    (drop("images", 1, "id"), "image at index 1", "id: .*missing"),
    (put("images", 1, "id", value=9), "image 9", "id: .*unique.*9"),
    (drop("images", 1, "file_name"), "image 2", "file_name: .*missing"),
    (put("images", 1, "width", value="40"), "image 2", "width: .*whole number.*'40'"),
    (put("images", 1, "height", value=0), "image 2", "height: .*1 pixel.*0"),
    (drop("images", 1, "height"), "image 2", "height: .*missing"),
    (put("images", 1, "file_name", value="../a.png"), "image 2", r"file_name: .*inside.*'\.\./a\.png'"),
    (put("images", 1, "file_name", value="deep/../../a.png"), "image 2", "file_name: .*inside"),
    (put("images", 1, "file_name", value="..\\a.png"), "image 2", "file_name: .*inside"),
    (put("images", 1, "file_name", value="/etc/passwd"), "image 2", "file_name: .*inside.*'/etc/passwd'"),
    (put("images", 1, "file_name", value="C:\\a.png"), "image 2", "file_name: .*inside"),
    (put("images", 1, "file_name", value=""), "image 2", "file_name: .*text"),
    (put("images", 1, "file_name", value="absent.png"), "image 2", r"file_name: .*absent\.png.*missing"),
    (put("images", 1, "file_name", value="x" * 5000), "image 2", "file_name: .*missing"),
    (put("images", 1, "file_name", value="a\0.png"), "image 2", "file_name: .*missing"),
    (put("categories", 1, "id", value=7), "category 7", "id: .*unique.*7"),
    (put("categories", 1, "name", value="dog"), "category 7", "name: .*unique.*'dog'.*category 3"),
    (put("categories", 1, "name", value=None), "category 3", "name: .*text.*None"),
    (drop("categories", 1, "name"), "category 3", "name: .*missing"),
    (drop(*ANNOTATION, "id"), "annotation at index 0", "id: .*missing"),
    (put(*ANNOTATION, "id", value=12), "annotation 12", "id: .*unique.*12"),
    (put(*ANNOTATION, "id", value=True), "annotation at index 0", "id: .*whole number.*True"),
    (put(*ANNOTATION, "id", value=-1), "annotation at index 0", "id: .*at least 0.*-1"),
    (put(*ANNOTATION, value=[]), "annotation at index 0", r"object.*\[\]"),
    (drop(*ANNOTATION, "image_id"), "annotation 31", "image_id: .*missing"),
    (put(*ANNOTATION, "image_id", value=77), "annotation 31", "image_id: .*77"),
    (put(*ANNOTATION, "category_id", value=77), "annotation 31", "category_id: .*77"),
    (put(*ANNOTATION, "category_id", value=[7]), "annotation 31", r"category_id: .*whole number.*\[7\]"),
    (drop(*ANNOTATION, "bbox"), "annotation 31", "bbox: .*x, y, width, height.*missing"),
    (put(*ANNOTATION, "bbox", value=[1, 2, 3]), "annotation 31", r"bbox: .*\[1, 2, 3\]"),
    (put(*ANNOTATION, "bbox", value=[1, 2, None, 4]), "annotation 31", "bbox: .*finite.*None"),
    (put(*ANNOTATION, "bbox", value=[1, 2, float("nan"), 4]), "annotation 31", "bbox: .*finite.*nan"),
    (put(*ANNOTATION, "bbox", value=[1, 2, 10**400, 4]), "annotation 31", "bbox: .*finite.*1000"),
    (put(*ANNOTATION, "bbox", value=[1, 2, 0, 4]), "annotation 31", r"box: .*width.*\(1, 2\) to \(1, 6\)"),
    (put(*ANNOTATION, "bbox", value=[1, 2, 3, -4]), "annotation 31", r"box: .*height.*\(1, 2\) to \(4, -2\)"),
    (put(*ANNOTATION, "bbox", value=[30, 2, 12, 4]), "annotation 31", r"box: .*40x30.*\(42, 6\)"),
    (put(*ANNOTATION, "area", value="big"), "annotation 31", "area: .*finite.*'big'"),
    (put(*ANNOTATION, "area", value=-3), "annotation 31", "area: .*0 pixels.*-3"),
    (put(*ANNOTATION, "iscrowd", value=2), "annotation 31", "iscrowd: .*0 or 1.*2"),
    (put(*ANNOTATION, "segmentation", value=[[]]), "annotation 31", "polygon 0: .*empty"),
    (put(*ANNOTATION, "segmentation", value=[SQUARE[:4]]), "annotation 31", "polygon 0: .*3 points.*2"),
    (put(*ANNOTATION, "segmentation", value=[SQUARE[:7]]), "annotation 31", "polygon 0: .*7 numbers"),
    (put(*ANNOTATION, "segmentation", value=[5, 5, 20, 5, 20, 15]), "annotation 31", "polygon 0: .*list of numbers"),
    (
        put(*ANNOTATION, "segmentation", value={"size": [40, 30], "counts": [0, 1200]}),
        "annotation 31",
        r"segmentation: .*\[30, 40\].*\[40, 30\]",
    ),
    (
        put(*ANNOTATION, "segmentation", value={"size": [30, 40], "counts": [0, 1300]}),
        "annotation 31",
        "counts: .*1200.*1300",
    ),
    (put(*ANNOTATION, "segmentation", value={"size": [30, 40], "counts": "0"}), "annotation 31", "counts: .*1200"),
]


def test_invalid_entry_is_reported_with_file_and_location(subtests, new_folder):
    for change, location, facts in INVALID:
        folder = new_folder()
        with subtests.test(location=str(location), facts=str(facts)):
            content = instances()
            change(content)
            file = write_coco(folder, content)
            issues = Issues(collect=True)
            dataset = read(folder, issues)
            matches = [i for i in issues.collected if i.location == location and re.search(facts, i.message)]
            assert matches, [str(issue) for issue in issues.collected]
            assert {issue.file for issue in issues.collected} == {str(file)}
            if location == "annotation 31":  # only this one is skipped
                assert len(issues.collected) == 1
                assert sorted(annotation.id for image in dataset.images for annotation in image.annotations) == [12, 30]
            with pytest.raises(DataError, match=r"instances_train\.json"):
                read(folder)


def test_self_intersecting_polygon_is_kept_with_a_warning(tmp_path):
    """COCO itself has some; training must not stop for them."""
    content = instances()
    put(*ANNOTATION, "segmentation", value=[SQUARE, [5, 5, 20, 15, 20, 5, 5, 15]])(content)
    issues = Issues()
    dataset = read(written(tmp_path, content), issues)
    (issue,) = issues.collected
    assert (issue.location, issue.is_warning) == ("annotation 31", True)
    assert "polygon 1" in issue.message
    assert sorted(annotation.id for image in dataset.images for annotation in image.annotations) == [12, 30, 31]
    assert issues.raise_unless_minor(num_annotations=3) == []


def test_annotations_of_a_missing_image_are_not_reported_again(tmp_path):
    content = instances()
    content["images"][0]["file_name"] = "absent.png"
    issues = Issues(collect=True)
    dataset = read(written(tmp_path, content), issues)
    assert [issue.location for issue in issues.collected] == ["image 9"]
    assert [image.id for image in dataset.images] == [2, 5]


def test_invalid_json_raises_with_the_path(subtests, new_folder):
    for content in ["", "{", "[" * 100_000, '{"images": ' + "1" * 9000 + "}", "\ud800"]:
        folder = new_folder()
        with subtests.test(content=str(content)):
            path = write_coco(folder, "")
            path.write_bytes(content.encode("utf-8", "surrogatepass"))
            with pytest.raises(DataError, match=r"instances_train\.json.*JSON"):
                read(folder)
            assert gc.isenabled()


def test_json_without_an_object_raises_with_the_expected_keys(tmp_path):
    with pytest.raises(DataError, match=r"instances_train\.json.*images, annotations, categories.*\[\]"):
        read(written(tmp_path, []))


def test_all_issues_are_collected(tmp_path):
    content = instances()
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    content["annotations"][1]["category_id"] = 8
    content["annotations"][2]["image_id"] = 8
    issues = Issues(collect=True)
    read(written(tmp_path, content), issues)
    assert [issue.location for issue in issues.collected] == ["annotation 31", "annotation 12", "annotation 30"]
