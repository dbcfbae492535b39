"""The contract of dataset formats, which every registered one passes; finding a dataset, and matching its classes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datasets.examples import EXAMPLES, NAMES, SIZE, write_voc, write_yolo
from datasets.examples import write_coco as write_example
from van.datasets.annotations import (
    CLASSES,
    SPLITS,
    AnnotatedDataset,
    Annotation,
    ImageRecord,
    Issues,
    SegmentAnnotation,
)
from van.datasets.check import check_dataset, load_splits
from van.datasets.dense_dataset import DenseDataset
from van.datasets.digits import LABELS
from van.datasets.formats import FORMATS, format_table, load_split, remap_labels
from van.datasets.image_dataset import ImageDataset, Item
from van.datasets.registry import register_format
from van.datasets.scenes import write_digit_scenes
from van.errors import DataError, UsageError
from van.preprocess import CenterCropPreprocess, ResizePreprocess

SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]
RULE = ResizePreprocess(min_size=30, max_size=60)
by_format = pytest.mark.parametrize("name", list(EXAMPLES))


def test_every_format_has_an_example_and_a_row_in_the_documentation():
    assert list(EXAMPLES) == sorted(FORMATS, key=list(EXAMPLES).index)
    page = (Path(__file__).parents[2] / "docs" / "dataset-formats.md").read_text(encoding="utf-8")
    assert format_table() in page, format_table()


def test_a_format_whose_name_is_taken_raises():
    with pytest.raises(UsageError, match="'coco'"):
        register_format("coco", title="", tasks=(), files="", recognize=lambda root, split: False)(lambda *_: None)


def samples_of(root: Path, split: str, target_type: str, dataset: AnnotatedDataset) -> Any:
    """Return the samples that evaluation reads."""
    if target_type != CLASSES:
        return DenseDataset(dataset, RULE, target_type=target_type)
    items = [Item(image.path, image.annotations[0].label, image.name) for image in dataset.images]
    return ImageDataset(items, CenterCropPreprocess(image_size=32))


@by_format
def test_both_splits_are_read_in_a_stable_order_of_classes_and_images(name, new_folder):
    reads = []
    # found up to two levels down; class folders only there, because every folder of folders could be some
    for inner in ("", "" if name == "class_folders" else "kit/set"):
        root = new_folder()
        EXAMPLES[name].write(root / inner, 3, 2)
        for target_type in FORMATS[name].target_types:
            for split, count in (("train", 3), ("val", 2)):
                dataset = load_split(root, split, target_type=target_type, issues=Issues())
                known = dataset.class_names[:2] if name != "cityscapes" else NAMES
                assert (known, len(dataset.images)) == (NAMES, count)
                assert len({image.id for image in dataset.images}) == count
                samples = samples_of(root, split, target_type, dataset)
                targets = [samples[index]["target"] for index in range(count)]
                reads.append((inner, target_type, split, dataset.class_names, [image.name for image in dataset.images]))
                if target_type == "semantic":
                    assert [int(target[15, 5]) for target in targets] == [0, 1, 0][:count]
                    assert [int(target[15, 35]) for target in targets] == [1, 0, 1][:count]
                elif target_type == CLASSES:
                    assert sorted(targets) == [0, 0, 1][:count] if count == 3 else [0, 1]
                elif target_type == "panoptic":
                    assert [target["labels"].tolist() for target in targets] == [[0, 1], [1, 0], [0, 1]][:count]
                    assert all(target["masks"][0, :, :20].all() for target in targets)
                else:
                    assert [target["labels"].tolist() for target in targets] == [[0], [1], [0]][:count]
                    assert all(target["boxes"].tolist() == [[0, 0, 20, 30]] for target in targets)
    half = len(reads) // 2
    assert [row[1:] for row in reads[:half]] == [row[1:] for row in reads[half:]]


@by_format
def test_a_valid_dataset_has_no_issues(name, tmp_path):
    EXAMPLES[name].write(tmp_path, 4, 2)
    report = check_dataset(tmp_path)
    assert report.issues == ()
    target_types = FORMATS[name].target_types
    assert {(each.split, each.target_type) for each in report.statistics} == {
        (split, target_type) for split in SPLITS for target_type in target_types
    }
    assert {each.images for each in report.statistics} == {4, 2}
    assert {each.largest for each in report.statistics} == {SIZE}


@by_format
def test_a_damaged_annotation_is_reported_with_file_and_location_and_skipped_if_others_are_valid(name, new_folder):
    example, target_type = EXAMPLES[name], FORMATS[name].target_types[0]
    for num_images, may_be_skipped in ((4, False), (30, not example.whole_file)):
        root = new_folder()
        example.write(root, num_images, 2)
        example.damage(root)
        file, location = example.issue
        found = check_dataset(root).issues
        assert (found[0].file, found[0].location) == (str(root / file) if file else str(root), location)
        assert len(found) == 1 or name == "coco_panoptic"  # its mask has pixels of the segment that is skipped
        assert re.search(example.facts, found[0].message)
        with pytest.raises(DataError, match=example.facts):
            load_split(root, "train", target_type=target_type, issues=Issues())
        if may_be_skipped:
            messages: list[str] = []
            dataset = load_split(root, "train", target_type=target_type, log=messages.append)
            assert len(dataset.annotations) == num_images - 1
            assert len(messages) == 1
            assert re.search(example.facts, messages[0])


@by_format
def test_an_unreadable_image_is_named_and_the_others_are_read(name, tmp_path):
    EXAMPLES[name].write(tmp_path, 3, 2)
    path = tmp_path / EXAMPLES[name].image
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    issues = check_dataset(tmp_path).issues
    assert {i.file for i in issues} == {str(path)}
    assert "truncated" in issues[0].message
    for target_type in FORMATS[name].target_types:
        dataset = load_split(tmp_path, "train", target_type=target_type, issues=Issues())
        samples = samples_of(tmp_path, "train", target_type, dataset)
        rows = [samples[index] for index in range(3)]
        assert set(rows[0]) == {"name", "unreadable"}
        assert rows[0]["name"] == dataset.images[0].name
        assert "truncated" in rows[0]["unreadable"]
        assert all("image" in row for row in rows[1:])


@by_format
def test_a_split_may_have_one_image_and_one_without_images_raises(name, new_folder):
    target_type = FORMATS[name].target_types[0]
    for counts in ((1, 1), (0, 1), (1, 0)):
        root = new_folder()
        EXAMPLES[name].write(root, *counts)
        if name == "class_folders":  # one image of each class
            assert len(check_dataset(root).issues) == (min(counts) == 0)
            continue
        for split, count in zip(SPLITS, counts, strict=True):
            if count:
                (image,) = load_split(root, split, target_type=target_type, issues=Issues()).images
                assert image.path.is_file()
            else:
                with pytest.raises(DataError, match=re.escape(str(root))):
                    load_split(root, split, target_type=target_type, issues=Issues())


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


def test_digit_scenes_are_found_from_their_folder_and_its_parent(subtests, scenes):
    for target_type in ["boxes", "masks", "panoptic", "semantic"]:
        for inner in ["", "coco", "ade"]:
            with subtests.test(inner=str(inner), target_type=str(target_type)):
                if inner == ("coco" if target_type == "semantic" else "ade"):
                    with pytest.raises(DataError, match=f"{target_type} for train"):
                        load_split(scenes / inner, "train", target_type=target_type, issues=Issues())
                    continue
                for split, count in (("train", 3), ("val", 2)):
                    dataset = load_split(scenes / inner, split, target_type=target_type, issues=Issues())
                    assert len(dataset.images) == count
                    assert set(dataset.class_names) - {"background"} == set(LABELS)
                    assert bool(dataset.things) == (target_type == "panoptic")
                    assert bool(dataset.mask_values) == (target_type == "semantic")
                    assert any(image.annotations for image in dataset.images) == (target_type in ("boxes", "masks"))
                    assert all(
                        (image.mask_path is not None) == (target_type in ("semantic", "panoptic"))
                        for image in dataset.images
                    )


def test_layout_of_coco_is_found(subtests, new_folder):
    for val in ["val", "valid", "test"]:
        for year in ["", "2017"]:
            for above in ["", "images"]:
                folder = new_folder()
                with subtests.test(above=str(above), year=str(year), val=str(val)):
                    for name in ("train", val):
                        write_coco(
                            folder / "annotations" / f"instances_{name}{year}.json", folder / above / f"{name}{year}"
                        )
                    for split, name in (("train", "train"), ("val", val)):
                        (image,) = load_split(folder, split, target_type="boxes", issues=Issues()).images
                        assert image.path == folder / above / f"{name}{year}" / "a.png"


def test_layout_of_roboflow_is_found(subtests, new_folder):
    for val in ["valid", "val", "test"]:
        folder = new_folder()
        with subtests.test(val=str(val)):
            for name in ("train", val):
                write_coco(folder / name / "_annotations.coco.json", folder / name)
            (image,) = load_split(folder, "val", target_type="boxes", issues=Issues()).images
            assert image.path == folder / val / "a.png"


def test_folder_with_several_datasets_raises(tmp_path):
    write_yolo(tmp_path / "one", 1, 1)
    write_voc(tmp_path / "two", 1, 1)
    with pytest.raises(DataError, match="one, two"):
        load_split(tmp_path, "train", target_type="boxes", issues=Issues())


def test_error_without_a_matching_format_lists_the_expected_ones(subtests, new_folder):
    for target_type in ("boxes", "masks", "panoptic", "semantic"):
        with subtests.test(target_type=target_type):
            folder = new_folder()
            (folder / "images").mkdir()
            (folder / "settings.yaml").write_text("a: 1")
            with pytest.raises(DataError, match=rf"{folder.name}.*{target_type} for val.* valid") as caught:
                load_split(folder, "val", target_type=target_type, issues=Issues())
            for each in FORMATS.values():
                if target_type in each.target_types:
                    assert f"{each.files.format(split='val')} ({each.title})" in str(caught.value)
            with pytest.raises(DataError, match=r"absent.*no such folder"):
                load_split(folder / "absent", "val", target_type=target_type, issues=Issues())


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


def test_split_without_classes_images_or_annotations_raises(subtests, new_folder):
    for key, facts in [
        ("categories", "train: .*1 class"),
        ("images", "train: .*1 image"),
        ("annotations", "train: .*annotations.*1 images"),
    ]:
        folder = new_folder()
        with subtests.test(key=str(key), facts=str(facts)):
            file = folder / "annotations" / "instances_train.json"
            write_coco(file, folder / "train")
            content = json.loads(file.read_text())
            file.write_text(json.dumps(content | {"annotations": [], key: []}))
            with pytest.raises(DataError, match=facts):
                load_split(folder, "train", target_type="boxes", issues=Issues())
            collected = Issues(collect=True)
            load_split(folder, "train", target_type="boxes", issues=collected)
            (issue,) = collected.collected
            assert re.search(facts, issue.message)


def test_classes_that_differ_between_splits_raise_in_training_and_are_reported(subtests, new_folder):
    for names, facts in [
        (("cat", "cow"), "train: dog.*val: cow"),
        (("cat",), "train: dog.*val: none"),
        (("dog", "cat"), "another order"),
    ]:
        folder = new_folder()
        with subtests.test(names=str(names)):
            write_coco(folder / "annotations" / "instances_train.json", folder / "train")
            write_coco(folder / "annotations" / "instances_val.json", folder / "val", names)
            with pytest.raises(DataError, match=f"{facts}.*van data check"):
                load_splits(folder, target_type="boxes")
            assert any(re.search(facts, issue.message) for issue in check_dataset(folder).issues)
            assert load_split(folder, "val", target_type="boxes", issues=Issues()).class_names == names


def test_training_parses_every_annotation_file_once(tmp_path, monkeypatch):
    write_example(tmp_path, 2, 2)
    read: list[str] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), original(path))[1])
    train, val = load_splits(tmp_path, target_type="boxes")
    assert train.class_names == val.class_names == NAMES
    assert sorted(name for name in read if name.endswith(".json")) == ["instances_train.json", "instances_val.json"]


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
    assert (dataset.category_ids, dataset.things) == ((), ())  # those of the model count
    assert dataset.mask_values == (20, -1, 10)
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
