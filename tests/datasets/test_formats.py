"""Every layout is detected, ambiguous folders are refused, and class indices are matched by name."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from van.datasets.annotations import AnnotatedDataset, Annotation, ImageRecord, Issues, SegmentAnnotation
from van.datasets.digits import LABELS
from van.datasets.formats import load_split, remap_labels
from van.datasets.scene_files import write_digit_scenes
from van.errors import DataError, UsageError

SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=3, validation=2, image_size=64)
    return folder


def write_coco(file: Path, images: Path, names: tuple[str, ...] = ("cat", "dog"), segmentation: Any = None) -> None:
    """Write one image with an annotation of the first class."""
    for folder in (images, file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(images / "a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 15, 10], "iscrowd": 0, "area": 150}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [annotation | ({} if segmentation is None else {"segmentation": segmentation})],
        "categories": [{"id": category_id, "name": name} for category_id, name in enumerate(names, start=1)],
    }
    file.write_text(json.dumps(content))


def write_yolo(root: Path) -> None:
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(root / "images" / split / "a.png")
        (root / "labels" / split / "a.txt").write_text("1 0.5 0.5 0.5 0.5")
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\nval: images/val\n")


def write_voc(root: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{split}.jpg")
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(split)
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        size = "<size><width>40</width><height>30</height></size>"
        text = f"<annotation>{size}<object><name>dog</name>{box}</object></annotation>"
        (root / "Annotations" / f"{split}.xml").write_text(text)


@pytest.mark.parametrize("inner", ["", "coco", "ade"])
@pytest.mark.parametrize("target_type", ["boxes", "masks", "panoptic", "semantic"])
def test_digit_scenes_are_found_from_their_folder_and_its_parent(scenes, inner, target_type):
    if inner == ("coco" if target_type == "semantic" else "ade"):
        with pytest.raises(DataError, match=f"{target_type} for train"):
            load_split(scenes / inner, "train", target_type=target_type, issues=Issues())
        return
    for split, count in (("train", 3), ("val", 2)):
        dataset = load_split(scenes / inner, split, target_type=target_type, issues=Issues())
        assert len(dataset.images) == count
        assert set(dataset.class_names) - {"background"} == set(LABELS)
        assert bool(dataset.things) == (target_type == "panoptic")
        assert bool(dataset.mask_values) == (target_type == "semantic")
        assert any(image.annotations for image in dataset.images) == (target_type in ("boxes", "masks"))
        assert all(
            (image.mask_path is not None) == (target_type in ("semantic", "panoptic")) for image in dataset.images
        )


@pytest.mark.parametrize("above", ["", "images"])
@pytest.mark.parametrize("year", ["", "2017"])
@pytest.mark.parametrize("val", ["val", "valid", "test"])
def test_layout_of_coco_is_found(tmp_path, above, year, val):
    for name in ("train", val):
        write_coco(tmp_path / "annotations" / f"instances_{name}{year}.json", tmp_path / above / f"{name}{year}")
    for split, name in (("train", "train"), ("val", val)):
        (image,) = load_split(tmp_path, split, target_type="boxes", issues=Issues()).images
        assert image.path == tmp_path / above / f"{name}{year}" / "a.png"


@pytest.mark.parametrize("val", ["valid", "val", "test"])
def test_layout_of_roboflow_is_found(tmp_path, val):
    for name in ("train", val):
        write_coco(tmp_path / name / "_annotations.coco.json", tmp_path / name)
    (image,) = load_split(tmp_path, "val", target_type="boxes", issues=Issues()).images
    assert image.path == tmp_path / val / "a.png"


@pytest.mark.parametrize("write", [write_yolo, write_voc])
@pytest.mark.parametrize("inner", ["", "set", "kit/set"])
def test_other_layouts_are_found_up_to_two_levels_down(tmp_path, write, inner):
    write(tmp_path / inner)
    for split in ("train", "val"):
        dataset = load_split(tmp_path, split, target_type="boxes", issues=Issues())
        (annotation,) = dataset.images[0].annotations
        assert dataset.class_names[annotation.label] == "dog"


def test_annotation_file_with_images_is_read_and_several_raise(tmp_path):
    for year in ("2014", "2017"):
        write_coco(tmp_path / "annotations" / f"instances_train{year}.json", tmp_path / f"train{year}")
    with pytest.raises(DataError, match=r"train.*instances_train2014\.json, instances_train2017\.json"):
        load_split(tmp_path, "train", target_type="boxes", issues=Issues())
    shutil.rmtree(tmp_path / "train2014")
    (image,) = load_split(tmp_path, "train", target_type="boxes", issues=Issues()).images
    assert image.path.parent.name == "train2017"
    shutil.rmtree(tmp_path / "train2017")
    with pytest.raises(DataError, match=r"instances_train2014\.json.*images in train2014/"):
        load_split(tmp_path, "train", target_type="boxes", issues=Issues())


def test_folder_with_several_datasets_raises(tmp_path):
    write_yolo(tmp_path / "one")
    write_voc(tmp_path / "two")
    with pytest.raises(DataError, match="one, two"):
        load_split(tmp_path, "train", target_type="boxes", issues=Issues())


@pytest.mark.parametrize(
    ("target_type", "layouts"),
    [
        (
            "boxes",
            r"annotations/instances_val\*\.json .*_annotations.coco.json.* data\.yaml .* ImageSets/Main/val\.txt",
        ),
        ("masks", r"annotations/instances_val\*\.json"),
        ("panoptic", r"annotations/panoptic_val\*\.json"),
        ("semantic", r"images/ and annotations/ \(ADE20K\)"),
    ],
)
def test_error_without_a_matching_layout_lists_the_expected_ones(tmp_path, target_type, layouts):
    (tmp_path / "images").mkdir()
    (tmp_path / "settings.yaml").write_text("a: 1")
    with pytest.raises(DataError, match=rf"{tmp_path.name}.*{target_type} for val.*{layouts}.* valid"):
        load_split(tmp_path, "val", target_type=target_type, issues=Issues())
    with pytest.raises(DataError, match=r"absent.*no such folder"):
        load_split(tmp_path / "absent", "val", target_type=target_type, issues=Issues())


def test_unknown_split_or_target_type_raises(tmp_path):
    with pytest.raises(UsageError, match=r"split.*train or val.*'test'"):
        load_split(tmp_path, "test", target_type="boxes", issues=Issues())
    with pytest.raises(UsageError, match=r"target_type.*boxes or masks or semantic or panoptic.*'points'"):
        load_split(tmp_path, "val", target_type="points", issues=Issues())


def test_masks_need_segmentations(tmp_path):
    file, images = tmp_path / "annotations" / "instances_train.json", tmp_path / "train"
    write_coco(file, images)
    assert load_split(tmp_path, "train", target_type="boxes", issues=Issues()).images
    with pytest.raises(DataError, match=r"train: .*segmentations.*1 annotations"):
        load_split(tmp_path, "train", target_type="masks", issues=Issues())
    write_coco(file, images, segmentation=[SQUARE])
    assert load_split(tmp_path, "train", target_type="masks", issues=Issues()).images


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("categories", "train: .*1 class"),
        ("images", "train: .*1 image"),
        ("annotations", "train: .*annotations.*1 images"),
    ],
)
def test_split_without_classes_images_or_annotations_raises(tmp_path, key, facts):
    file = tmp_path / "annotations" / "instances_train.json"
    write_coco(file, tmp_path / "train")
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"annotations": [], key: []}))
    with pytest.raises(DataError, match=facts):
        load_split(tmp_path, "train", target_type="boxes", issues=Issues())
    collected = Issues(collect=True)
    load_split(tmp_path, "train", target_type="boxes", issues=collected)
    (issue,) = collected.collected
    assert re.search(facts, issue.message)


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (("cat", "cow"), "train: dog.*val: cow"),
        (("cat",), "train: dog.*val: none"),
        (("dog", "cat"), "another order"),
    ],
)
def test_classes_that_differ_between_splits_raise_when_train_is_read(tmp_path, names, facts):
    write_coco(tmp_path / "annotations" / "instances_train.json", tmp_path / "train")
    write_coco(tmp_path / "annotations" / "instances_val.json", tmp_path / "val", names)
    with pytest.raises(DataError, match=rf"instances_train\.json: .*instances_val\.json.*{facts}"):
        load_split(tmp_path, "train", target_type="boxes", issues=Issues())
    assert load_split(tmp_path, "val", target_type="boxes", issues=Issues()).class_names == names


def test_split_is_read_although_the_other_is_missing_or_invalid(tmp_path):
    write_coco(tmp_path / "annotations" / "instances_train.json", tmp_path / "train")
    for content in (None, "{", '{"categories": []}'):
        if content is not None:
            (tmp_path / "annotations" / "instances_val.json").write_text(content)
        assert load_split(tmp_path, "train", target_type="boxes", issues=Issues()).class_names == ("cat", "dog")


def example_dataset() -> AnnotatedDataset:
    image = ImageRecord(
        path=Path("a.png"),
        name="a.png",
        id=1,
        annotations=(
            Annotation(label=0, box=(0, 0, 1, 1), id=3),
            Annotation(label=1, box=(0, 0, 2, 2), segmentation=[SQUARE]),
        ),
        segments=(SegmentAnnotation(id=9, label=1, crowd=True),),
    )
    return AnnotatedDataset(
        class_names=("cat", "dog"), category_ids=(4, 7), images=(image,), things=(True, False), mask_values=(10, 20)
    )


def test_remap_labels_changes_class_indices_and_nothing_else():
    dataset = remap_labels(example_dataset(), ("dog", "ant", "cat"))
    assert dataset.class_names == ("dog", "ant", "cat")
    assert dataset.category_ids == (7, 8, 4)
    assert dataset.mask_values == (20, 65_534, 10)
    assert dataset.things == (False, False, True)
    (image,) = dataset.images
    assert [(annotation.label, annotation.box, annotation.id) for annotation in image.annotations] == [
        (2, (0, 0, 1, 1), 3),
        (0, (0, 0, 2, 2), 0),
    ]
    assert image.annotations[1].segmentation == [SQUARE]
    assert image.segments == (SegmentAnnotation(id=9, label=0, crowd=True),)
    assert remap_labels(example_dataset(), ["cat", "dog"]) == example_dataset()


def test_classes_that_the_model_lacks_raise_with_their_names():
    with pytest.raises(DataError, match=r"cat, ant.*dog"):
        remap_labels(example_dataset(), ("cat", "ant"))
