"""Each kind of fault, planted in a valid dataset, is reported with file and location; a valid dataset has no issues."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.synthetic import COLORS, write_classes
from van.datasets.annotations import CLASSES, SPLITS
from van.datasets.check import VIEW_TYPES, CheckReport, check_dataset, quick_check
from van.datasets.digits import LABELS
from van.datasets.preview import draw_preview
from van.datasets.scenes import generate_digit_scenes, write_digit_scenes
from van.errors import DataError

SIZES = {"train": 4, "val": 2}
SIDE = 64


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A valid dataset, shared by the tests of this module; do not change it."""
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=SIZES["train"], validation=SIZES["val"], image_size=SIDE)
    return folder


@pytest.fixture
def scenes(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "scenes"))


def issues_of(root: Path) -> list[tuple[str, str, str]]:
    """Return file, location and message of each issue, with paths relative to ``root``."""
    return [
        (i.file.removeprefix(str(root)).lstrip("/"), i.location, i.message.replace(f"{root}/", ""))
        for i in check_dataset(root).issues
    ]


def statistics_of(report: CheckReport) -> dict[tuple[str, str], Any]:
    return {(stats.split, stats.target_type): stats for stats in report.statistics}


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def repaint(path: Path, change: Callable[[np.ndarray], Any]) -> None:
    with Image.open(path) as file:
        values = np.array(file)
    changed = change(values)
    Image.fromarray(values if changed is None else changed).save(path)


def instances(root: Path) -> Path:
    return root / "coco" / "annotations" / "instances_train.json"


def panoptic(root: Path) -> Path:
    return root / "coco" / "annotations" / "panoptic_train.json"


PANOPTIC_MASK = "coco/annotations/panoptic_train/000001.png"
ADE_MASK = "ade/annotations/training/000002.png"


def test_valid_dataset_has_no_issues_and_correct_statistics(clean):
    report = check_dataset(clean)
    assert report.issues == ()
    by_view = statistics_of(report)
    assert set(by_view) == {(split, target_type) for split in SPLITS for target_type in VIEW_TYPES}
    for split, images in SIZES.items():
        written = list(generate_digit_scenes(split, count=images, image_size=SIDE))
        objects = Counter(LABELS[each.label] for scene in written for each in scene.objects)
        images_with = Counter(LABELS[label] for scene in written for label in {each.label for each in scene.objects})
        for target_type in VIEW_TYPES:
            stats = by_view[split, target_type]
            assert (stats.images, stats.smallest, stats.largest) == (images, (SIDE, SIDE), (SIDE, SIDE))
            assert {name: stats.per_class[name] for name in LABELS} == {
                name: (images_with if target_type == "semantic" else objects)[name] for name in LABELS
            }
        assert by_view[split, "boxes"].annotations == objects.total()
        assert (
            by_view[split, "panoptic"].per_class["background"]
            == by_view[split, "semantic"].per_class["background"]
            == images
        )
        assert by_view[split, "panoptic"].annotations == objects.total() + images


def test_unannotated_image_is_counted_and_is_no_issue(scenes):
    edit(
        instances(scenes),
        lambda content: content.update(annotations=[a for a in content["annotations"] if a["image_id"] != 2]),
    )
    report = check_dataset(scenes)
    assert report.issues == ()
    assert statistics_of(report)["train", "boxes"].unannotated == 1
    assert (
        statistics_of(report)["val", "boxes"].unannotated == statistics_of(report)["train", "semantic"].unannotated == 0
    )


def one_pixel(value: Any) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[0, 0] = value

    return change


def first_annotation(**changes: Any) -> Callable[[Any], None]:
    return lambda content: content["annotations"][0].update(changes)


FAULTS: dict[str, tuple[Callable[[Path], Any], list[tuple[str, str, str]]]] = {
    "truncated image": (
        lambda root: truncate(root / "coco/train/000001.png"),
        [("coco/train/000001.png", "", "truncated")],
    ),
    "empty image": (
        lambda root: (root / "ade/images/training/000003.png").write_bytes(b""),
        [("ade/images/training/000003.png", "", "empty")],
    ),
    "text instead of an image": (
        lambda root: (root / "coco/val/000000.png").write_text("a page that was downloaded"),
        [("coco/val/000000.png", "", "image")],
    ),
    "missing image": (
        lambda root: (root / "coco/train/000002.png").unlink(),
        [("coco/annotations/instances_train.json", "image 3", "000002.png is missing"),
         ("coco/annotations/panoptic_train.json", "image 3", "000002.png is missing")],
    ),
    "image of another size than in its annotations": (
        lambda root: Image.new("RGB", (80, 70)).save(root / "coco/train/000001.png"),
        [("coco/train/000001.png", "", "64x64.*annotations.*80x70"),
         (PANOPTIC_MASK, "", "80x70.*image.*64x64")],
    ),
    "semantic mask with an unknown value": (
        lambda root: repaint(root / ADE_MASK, one_pixel(77)),
        [(ADE_MASK, "", r"77 \(0\.02%")],
    ),
    "semantic mask in colors": (
        lambda root: Image.new("RGB", (SIDE, SIDE)).save(root / ADE_MASK),
        [(ADE_MASK, "", "mode RGB")],
    ),
    "semantic mask of another size": (
        lambda root: repaint(root / ADE_MASK, lambda values: values[:-1]),
        [(ADE_MASK, "", "64x64.*image.*64x63")],
    ),
    "truncated semantic mask": (
        lambda root: truncate(root / ADE_MASK),
        [(ADE_MASK, "", "truncated")],
    ),
    "image without a mask": (
        lambda root: (root / ADE_MASK).unlink(),
        [("ade/images/training/000002.png", "", ADE_MASK)],
    ),
    "mask without an image": (
        lambda root: (root / "ade/images/training/000002.png").unlink(),
        [(ADE_MASK, "", "ade/images/training/000002")],
    ),
    "panoptic mask with an id that is not described": (
        lambda root: repaint(root / PANOPTIC_MASK, one_pixel((9, 1, 0))),
        [(PANOPTIC_MASK, "segment 265", r"segments_info.*0\.02%")],
    ),
    "described segment without pixels": (
        lambda root: repaint(root / PANOPTIC_MASK, lambda values: np.where(values == 2, np.uint8(1), values)),
        [(PANOPTIC_MASK, "segment 2", "pixels.*segments_info")],
    ),
    "panoptic mask of another size": (
        lambda root: repaint(
            root / PANOPTIC_MASK, lambda values: np.pad(values, ((0, 2), (0, 0), (0, 0)), mode="edge")
        ),
        [(PANOPTIC_MASK, "", "64x64.*image.*64x66")],
    ),
    "truncated panoptic mask": (
        lambda root: truncate(root / PANOPTIC_MASK),
        [(PANOPTIC_MASK, "", "PNG")],
    ),
    "box outside its image": (
        lambda root: edit(instances(root), first_annotation(bbox=[60, 3, 20, 9])),
        [("coco/annotations/instances_train.json", "annotation 1", r"box: .*64x64.*\(60, 3\) to \(80, 12\)")],
    ),
    "box without a width": (
        lambda root: edit(instances(root), first_annotation(bbox=[6, 3, 0, 9])),
        [("coco/annotations/instances_train.json", "annotation 1", "box: .*width")],
    ),
    "run lengths of another size": (
        lambda root: edit(instances(root), first_annotation(segmentation={"size": [50, 50], "counts": [0, 2500]})),
        [("coco/annotations/instances_train.json", "annotation 1", r"segmentation: .*\[50, 50\]")],
    ),
    "run lengths without a pixel": (
        lambda root: edit(instances(root), first_annotation(segmentation={"size": [SIDE] * 2, "counts": [SIDE**2]})),
        [("coco/annotations/instances_train.json", "annotation 1", "segmentation: .*1 pixel")],
    ),
    "polygon between the pixels": (
        lambda root: edit(instances(root), first_annotation(segmentation=[[9.1, 9.1, 9.2, 9.1, 9.2, 9.2]])),
        [("coco/train/000000.png", "annotation 1", "segmentation: .*1 pixel")],
    ),
    "image that is listed twice": (
        lambda root: edit(instances(root), lambda content: content["images"][1].update(file_name="000003.png")),
        [("coco/train/000003.png", "images 2, 4", "once.*2 times")],
    ),
    "split without a target type of the other": (
        lambda root: (root / "coco/annotations/panoptic_val.json").unlink(),
        [("", "val panoptic", "panoptic.*train")],
    ),
    "unknown category": (
        lambda root: edit(instances(root), first_annotation(category_id=99)),
        [("coco/annotations/instances_train.json", "annotation 1", "category_id: .*99")],
    ),
    "validation image that is a training image": (
        lambda root: shutil.copy(root / "coco/train/000003.png", root / "coco/val/000001.png"),
        [("coco/val/000001.png", "", "training image coco/train/000003.png")],
    ),
}  # fmt: skip


def test_each_fault_is_reported_with_file_and_location_and_nothing_else_is(subtests, clean, new_folder):
    for fault in FAULTS:
        scenes = Path(shutil.copytree(clean, new_folder() / "scenes"))
        with subtests.test(fault=fault):
            plant, expected_issues = FAULTS[fault]
            plant(scenes)
            issues = issues_of(scenes)
            assert [issue[:2] for issue in issues] == [expected[:2] for expected in expected_issues], issues
            for (_, _, message), (_, _, facts) in zip(issues, expected_issues, strict=True):
                assert re.search(facts, message)


def test_boxes_are_validated_against_the_image_file_rather_than_its_annotated_size(scenes):
    Image.new("RGB", (SIDE, 20)).save(scenes / "coco/train/000000.png")
    entries = json.loads(instances(scenes).read_text())["annotations"]
    boxes = {a["id"]: a["bbox"] for a in entries if a["image_id"] == 1}
    outside = {f"annotation {box_id}" for box_id, (_, y, _, height) in boxes.items() if y + height > 22}
    assert outside
    issues = issues_of(scenes)
    assert {location for _, location, message in issues if "64x20" in message and location} == outside
    assert {file for file, location, _ in issues if location} == {"coco/train/000000.png"}


def test_size_mismatch_by_exif_rotation_is_reported_as_such(scenes):
    for name in ("instances", "panoptic"):
        path = scenes / "coco" / "annotations" / f"{name}_train.json"
        edit(
            path,
            lambda content: content.update(images=[{**i, "height": 80} for i in content["images"]], annotations=[]),
        )
    for index in range(SIZES["train"]):
        Image.new("RGB", (SIDE, 80), (index, 0, 0)).save(scenes / "coco" / "train" / f"{index:06d}.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.new("RGB", (SIDE, 80)).save(scenes / "coco" / "train" / "000001.png", exif=rotated)
    messages = [message for file, _, message in issues_of(scenes) if file == "coco/train/000001.png"]
    assert any(re.search("64x80.*80x64.*EXIF", message) for message in messages)


def test_invalid_json_is_reported_and_the_rest_is_checked(subtests, clean, new_folder):
    for name in ("instances_train.json", "panoptic_val.json"):
        scenes = Path(shutil.copytree(clean, new_folder() / "scenes"))
        with subtests.test(name=name):
            (scenes / "coco" / "annotations" / name).write_text("{")
            truncate(scenes / "ade" / "images" / "validation" / "000001.png")
            issues = issues_of(scenes)
            assert any(file == f"coco/annotations/{name}" and "JSON" in message for file, _, message in issues)
            assert any(
                file == "ade/images/validation/000001.png" and "truncated" in message for file, _, message in issues
            )


def test_progress_is_reported_once_per_image(clean):
    progress: list[tuple[int, int]] = []
    check_dataset(clean, on_image=lambda done, total: progress.append((done, total)))
    total = 2 * sum(SIZES.values())  # coco and ade have separate copies of the images
    assert progress == [(done, total) for done in range(1, total + 1)]


def test_interrupt_does_not_wait_for_the_remaining_images(tmp_path):
    write_classes(tmp_path, {"a": 200, "b": 2})
    progress: list[int] = []

    def stop(done: int, total: int) -> None:
        progress.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_dataset(tmp_path, on_image=stop)
    assert progress == [1]


def test_class_folders_are_checked(tmp_path):
    write_classes(tmp_path / "train", dict.fromkeys(COLORS, 3))
    write_classes(tmp_path / "val", dict.fromkeys(COLORS, 2), first_seed=500)
    report = check_dataset(tmp_path)
    assert report.issues == ()
    assert {view: stats.per_class for view, stats in statistics_of(report).items()} == {
        ("train", CLASSES): dict.fromkeys(COLORS, 3),
        ("val", CLASSES): dict.fromkeys(COLORS, 2),
    }
    truncate(tmp_path / "train" / "red" / "red-1.png")
    shutil.copy(tmp_path / "train" / "blue" / "blue-0.png", tmp_path / "val" / "green" / "green-1.png")
    issues = issues_of(tmp_path)
    assert [(file, location) for file, location, _ in issues] == [
        ("train/red/red-1.png", ""),
        ("val/green/green-1.png", ""),
    ]
    assert "truncated" in issues[0][2]
    assert "train/blue/blue-0.png" in issues[1][2]


def test_empty_class_folder_is_reported(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "c").mkdir()
    ((_, _, message),) = issues_of(tmp_path)
    assert "none in c" in message


def test_folder_that_is_no_dataset_raises(subtests, new_folder):
    for make in [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")]:
        folder = new_folder()
        with subtests.test():
            make(folder / "set")
            with pytest.raises(DataError, match=r"set: .*dataset"):
                check_dataset(folder / "set")


def test_images_of_any_size_are_checked_and_drawn(subtests, new_folder):
    for size in [(1, 1), (100, 10_000), (10_000, 100)]:
        folder = new_folder()
        with subtests.test(size=str(size)):
            for split in SPLITS:
                for name in ("images", "masks"):
                    (folder / name / split).mkdir(parents=True)
                Image.new("RGB", size, (90, 9, 9) if split == "val" else 0).save(folder / "images" / split / "a.png")
                Image.new("L", size, 1).save(folder / "masks" / split / "a.png")
            report = check_dataset(folder)
            assert report.issues == ()
            assert statistics_of(report)["train", "semantic"].largest == size[::-1]
            draw_preview(report.views, folder / "preview.png")
            with Image.open(folder / "preview.png") as grid:
                assert max(grid.size) < 4000


def test_report_is_converted_to_plain_values(scenes):
    truncate(scenes / "coco/train/000001.png")
    record = json.loads(json.dumps(check_dataset(scenes).to_dict()))
    assert (record["data"], record["valid"]) == (str(scenes), False)
    assert record["issues"][0]["file"] == str(scenes / "coco/train/000001.png")
    (boxes,) = [each for each in record["splits"] if (each["split"], each["target_type"]) == ("train", "boxes")]
    assert (boxes["images"], boxes["smallest"]) == (4, {"width": SIDE, "height": SIDE})


def train_view(root: Path, target_type: str) -> Any:
    (dataset,) = [v.dataset for v in check_dataset(root).views if (v.split, v.target_type) == ("train", target_type)]
    return dataset


def test_quick_check_accepts_a_valid_dataset_and_finds_a_missing_file(subtests, clean, new_folder):
    for target_type in VIEW_TYPES:
        scenes = Path(shutil.copytree(clean, new_folder() / "scenes"))
        with subtests.test(target_type=target_type):
            dataset = train_view(scenes, target_type)
            quick_check(dataset, target_type=target_type)
            dataset.images[3].path.unlink()
            with pytest.raises(DataError, match=r"000003\.png: .*missing"):
                quick_check(dataset, target_type=target_type)


def test_quick_check_opens_the_first_images_only(scenes):
    dataset = train_view(scenes, "boxes")
    truncate(scenes / "coco/train/000002.png")
    quick_check(dataset, target_type="boxes", num_images=2)
    with pytest.raises(DataError, match=r"000002\.png: .*damaged or truncated.*van data check"):
        quick_check(dataset, target_type="boxes", num_images=3)


def test_quick_check_raises_without_annotations(scenes):
    edit(instances(scenes), lambda content: content.update(annotations=[]))
    with pytest.raises(DataError, match="any of 4 images"):
        quick_check(train_view(scenes, "boxes"), target_type="boxes")
    for path in (scenes / "ade" / "annotations" / "training").iterdir():
        repaint(path, lambda values: values * 0)
    with pytest.raises(DataError, match="first 3 masks"):
        quick_check(train_view(scenes, "semantic"), target_type="semantic", num_images=3)
