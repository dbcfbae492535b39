"""Every kind of fault, planted alone in a clean set, is told with its file and its id; a clean set has none."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.made import COLOURS, write_classes
from van.data.check import Report, check, quick_check
from van.data.contact_sheet import draw_offers
from van.data.digits import LABELS
from van.data.offers import CLASSES, KINDS, PARTS
from van.data.scene_files import write_digit_scenes
from van.data.scenes import digit_scenes
from van.errors import DataError

SIZES = {"train": 4, "val": 2}
SIDE = 64


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=SIZES["train"], validation=SIZES["val"], size_px=SIDE)
    return folder


@pytest.fixture
def scenes(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "scenes"))


def told(root: Path) -> list[tuple[str, str, str]]:
    """Problems with files as seen from ``root``."""
    return [
        (p.file.removeprefix(str(root)).lstrip("/"), p.place, p.what.replace(f"{root}/", ""))
        for p in check(root).problems
    ]


def counted(report: Report) -> dict[tuple[str, str], Any]:
    return {(counts.part, counts.kind): counts for counts in report.counts}


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def cut(path: Path) -> None:
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


PANOPTIC_MAP = "coco/annotations/panoptic_train/000001.png"
ADE_MAP = "ade/annotations/training/000002.png"


def test_a_clean_set_has_no_problem_and_is_counted_right(clean):
    report = check(clean)
    assert report.problems == ()
    by_offer = counted(report)
    assert set(by_offer) == {(part, kind) for part in PARTS for kind in KINDS}
    for part, pictures in SIZES.items():
        made = list(digit_scenes(part, count=pictures, size_px=SIDE))
        things = Counter(LABELS[thing.label] for scene in made for thing in scene.things)
        shown = Counter(LABELS[label] for scene in made for label in {thing.label for thing in scene.things})
        for kind in KINDS:
            counts = by_offer[part, kind]
            assert (counts.pictures, counts.smallest, counts.largest) == (pictures, (SIDE, SIDE), (SIDE, SIDE))
            assert {name: counts.per_class[name] for name in LABELS} == {
                name: (shown if kind == "map" else things)[name] for name in LABELS
            }
        assert by_offer[part, "boxes"].marks == things.total()
        assert by_offer[part, "panoptic"].per_class["ground"] == by_offer[part, "map"].per_class["ground"] == pictures
        assert by_offer[part, "panoptic"].marks == things.total() + pictures


def test_a_picture_without_marks_is_counted_and_is_no_problem(scenes):
    for path in (instances(scenes),):
        edit(
            path, lambda content: content.update(annotations=[a for a in content["annotations"] if a["image_id"] != 2])
        )
    report = check(scenes)
    assert report.problems == ()
    assert counted(report)["train", "boxes"].bare == 1
    assert counted(report)["val", "boxes"].bare == counted(report)["train", "map"].bare == 0


def one_pixel(value: Any) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[0, 0] = value

    return change


def first_annotation(**changes: Any) -> Callable[[Any], None]:
    return lambda content: content["annotations"][0].update(changes)


FAULTS: dict[str, tuple[Callable[[Path], Any], list[tuple[str, str, str]]]] = {
    "a picture cut off": (
        lambda root: cut(root / "coco/train/000001.png"),
        [("coco/train/000001.png", "", "is damaged or cut off")],
    ),
    "an empty picture": (
        lambda root: (root / "ade/images/training/000003.png").write_bytes(b""),
        [("ade/images/training/000003.png", "", "is empty")],
    ),
    "text instead of a picture": (
        lambda root: (root / "coco/val/000000.png").write_text("a page that was downloaded"),
        [("coco/val/000000.png", "", "is no picture that can be read")],
    ),
    "a picture that is missing": (
        lambda root: (root / "coco/train/000002.png").unlink(),
        [("coco/annotations/instances_train.json", "picture 3", "missing"),
         ("coco/annotations/panoptic_train.json", "picture 3", "missing")],
    ),
    "a picture that is larger than its annotations say": (
        lambda root: Image.new("RGB", (80, 70)).save(root / "coco/train/000001.png"),
        [("coco/train/000001.png", "", "is 80 wide and 70 high and not 64 wide and 64 high as its annotations say"),
         (PANOPTIC_MAP, "", "is 64 wide and 64 high and not 80 wide and 70 high as its picture")],
    ),
    "a semantic map with a value of no class": (
        lambda root: repaint(root / ADE_MAP, one_pixel(77)),
        [(ADE_MAP, "", "holds 77 (0.02% of the pixels); no class has that value")],
    ),
    "a semantic map in colours": (
        lambda root: Image.new("RGB", (SIDE, SIDE)).save(root / ADE_MAP),
        [(ADE_MAP, "", "holds colours (RGB)")],
    ),
    "a semantic map of another size": (
        lambda root: repaint(root / ADE_MAP, lambda values: values[:-1]),
        [(ADE_MAP, "", "is 64 wide and 63 high and not 64 wide and 64 high as its picture")],
    ),
    "a semantic map that is cut off": (
        lambda root: cut(root / ADE_MAP),
        [(ADE_MAP, "", "is damaged or cut off")],
    ),
    "a picture without a map": (
        lambda root: (root / ADE_MAP).unlink(),
        [("ade/images/training/000002.png", "", f"has no map; wanted {ADE_MAP}")],
    ),
    "a map without a picture": (
        lambda root: (root / "ade/images/training/000002.png").unlink(),
        [(ADE_MAP, "", "is a map without a picture; wanted ade/images/training/000002 (any ending)")],
    ),
    "a panoptic map with an id that nothing describes": (
        lambda root: repaint(root / PANOPTIC_MAP, one_pixel((9, 1, 0))),
        [(PANOPTIC_MAP, "segment 265", "0.02% of the pixels have this id, and nothing describes it")],
    ),
    "a description of a segment that no pixel has": (
        lambda root: repaint(root / PANOPTIC_MAP, lambda values: np.where(values == 2, np.uint8(1), values)),
        [(PANOPTIC_MAP, "segment 2", "is described in segments_info, and no pixel has this id")],
    ),
    "a panoptic map of another size": (
        lambda root: repaint(root / PANOPTIC_MAP, lambda values: np.pad(values, ((0, 2), (0, 0), (0, 0)), mode="edge")),
        [(PANOPTIC_MAP, "", "is 64 wide and 66 high and not 64 wide and 64 high as its picture")],
    ),
    "a panoptic map that is cut off": (
        lambda root: cut(root / PANOPTIC_MAP),
        [(PANOPTIC_MAP, "", "cannot be read as a PNG map")],
    ),
    "a box outside its picture": (
        lambda root: edit(instances(root), first_annotation(bbox=[60, 3, 20, 9])),
        [("coco/annotations/instances_train.json", "annotation 1", "lies outside its picture")],
    ),
    "a box without a width": (
        lambda root: edit(instances(root), first_annotation(bbox=[6, 3, 0, 9])),
        [("coco/annotations/instances_train.json", "annotation 1", "has no width")],
    ),
    "a mask of another size": (
        lambda root: edit(instances(root), first_annotation(segmentation={"size": [50, 50], "counts": [0, 2500]})),
        [("coco/annotations/instances_train.json", "annotation 1", "size of its outline is [50, 50]")],
    ),
    "a mask without a pixel": (
        lambda root: edit(instances(root), first_annotation(segmentation={"size": [SIDE] * 2, "counts": [SIDE**2]})),
        [("coco/annotations/instances_train.json", "annotation 1", "its outline covers no pixel")],
    ),
    "an outline between the pixels": (
        lambda root: edit(instances(root), first_annotation(segmentation=[[9.1, 9.1, 9.2, 9.1, 9.2, 9.2]])),
        [("coco/train/000000.png", "annotation 1", "its outline holds no pixel")],
    ),
    "a picture that is listed twice": (
        lambda root: edit(instances(root), lambda content: content["images"][1].update(file_name="000003.png")),
        [("coco/train/000003.png", "pictures 2, 4", "is listed more than once")],
    ),
    "a part without the kind of marks that the other has": (
        lambda root: (root / "coco/annotations/panoptic_val.json").unlink(),
        [("", "val panoptic", "has panoptic for train and none for val")],
    ),
    "a category that does not exist": (
        lambda root: edit(instances(root), first_annotation(category_id=99)),
        [("coco/annotations/instances_train.json", "annotation 1", "category_id is 99")],
    ),
    "a picture to measure on that is learnt from": (
        lambda root: shutil.copy(root / "coco/train/000003.png", root / "coco/val/000001.png"),
        [("coco/val/000001.png", "", "is the same file as coco/train/000003.png, which is learnt from")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_told_with_its_file_and_id_and_nothing_else_is(scenes, fault):
    plant, expected = FAULTS[fault]
    plant(scenes)
    found = told(scenes)
    assert [(file, place) for file, place, _ in found] == [(file, place) for file, place, _ in expected], found
    for (_, _, what), (_, _, wanted) in zip(found, expected, strict=True):
        assert wanted in what


def test_boxes_are_held_against_the_picture_that_is_there_and_not_against_what_is_said_of_it(scenes):
    Image.new("RGB", (SIDE, 20)).save(scenes / "coco/train/000000.png")
    entries = json.loads(instances(scenes).read_text())["annotations"]
    boxes = {a["id"]: a["bbox"] for a in entries if a["image_id"] == 1}
    beyond = {f"annotation {number}" for number, (_, y, _, height) in boxes.items() if y + height > 22}
    assert beyond
    found = told(scenes)
    assert {place for file, place, what in found if "lies outside its picture" in what} == beyond
    assert {file for file, place, _ in found if place} == {"coco/train/000000.png"}


def test_a_picture_whose_exif_turns_it_is_told_so(scenes):
    for name in ("instances", "panoptic"):
        path = scenes / "coco" / "annotations" / f"{name}_train.json"
        edit(
            path,
            lambda content: content.update(images=[{**i, "height": 80} for i in content["images"]], annotations=[]),
        )
    for number in range(SIZES["train"]):
        Image.new("RGB", (SIDE, 80), (number, 0, 0)).save(scenes / "coco" / "train" / f"{number:06d}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (SIDE, 80)).save(scenes / "coco" / "train" / "000001.png", exif=turned)
    assert ("coco/train/000001.png", "", "is 80 wide and 64 high (does its EXIF turn it?) and not 64 wide and 80 high "
            "as its annotations say") in told(scenes)  # fmt: skip


@pytest.mark.parametrize("what", ["instances_train.json", "panoptic_val.json"])
def test_a_file_that_is_no_json_is_named_and_the_rest_is_still_checked(scenes, what):
    (scenes / "coco" / "annotations" / what).write_text("{")
    cut(scenes / "ade" / "images" / "validation" / "000001.png")
    files = [(file, what.split("(")[0]) for file, _, what in told(scenes)]
    assert (f"coco/annotations/{what}", "cannot be read as JSON ") in files
    assert ("ade/images/validation/000001.png", "is damaged or cut off ") in files


def test_every_picture_is_announced_once(clean):
    seen: list[tuple[int, int]] = []
    check(clean, on_picture=lambda done, total: seen.append((done, total)))
    total = 2 * sum(SIZES.values())  # coco and ade have pictures of their own
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_stopping_in_the_middle_does_not_wait_for_the_rest(tmp_path):
    write_classes(tmp_path, {"a": 200, "b": 2})
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(tmp_path, on_picture=stop)
    assert seen == [1]


def test_class_folders_are_checked_too(tmp_path):
    write_classes(tmp_path / "train", dict.fromkeys(COLOURS, 3))
    write_classes(tmp_path / "val", dict.fromkeys(COLOURS, 2), first_seed=500)
    report = check(tmp_path)
    assert report.problems == ()
    assert {offer: counts.per_class for offer, counts in counted(report).items()} == {
        ("train", CLASSES): dict.fromkeys(COLOURS, 3),
        ("val", CLASSES): dict.fromkeys(COLOURS, 2),
    }
    cut(tmp_path / "train" / "red" / "red-1.png")
    shutil.copy(tmp_path / "train" / "blue" / "blue-0.png", tmp_path / "val" / "green" / "green-1.png")
    found = told(tmp_path)
    assert [(file, place) for file, place, _ in found] == [("train/red/red-1.png", ""), ("val/green/green-1.png", "")]
    assert found[0][2].startswith("is damaged or cut off")
    assert found[1][2].startswith("is the same file as train/blue/blue-0.png")


def test_an_empty_class_folder_is_told(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "c").mkdir()
    ((file, _, what),) = told(tmp_path)
    assert "no pictures in c" in f"{file} {what}"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_what_is_no_data_set_is_refused(tmp_path, make):
    make(tmp_path / "set")
    with pytest.raises(DataError, match=r"set.*(wanted|give)"):
        check(tmp_path / "set")


@pytest.mark.parametrize("size", [(1, 1), (100, 10_000), (10_000, 100)])
def test_pictures_of_any_size_are_checked_and_drawn(tmp_path, size):
    for part in PARTS:
        for folder in ("images", "masks"):
            (tmp_path / folder / part).mkdir(parents=True)
        Image.new("RGB", size, (90, 9, 9) if part == "val" else 0).save(tmp_path / "images" / part / "a.png")
        Image.new("L", size, 1).save(tmp_path / "masks" / part / "a.png")
    report = check(tmp_path)
    assert report.problems == ()
    assert counted(report)["train", "map"].largest == size[::-1]
    draw_offers(report.offers, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert max(sheet.size) < 4000


def test_a_report_is_plain_values(scenes):
    cut(scenes / "coco/train/000001.png")
    record = json.loads(json.dumps(check(scenes).to_dict()))
    assert (record["data"], record["clean"]) == (str(scenes), False)
    assert record["problems"][0]["file"] == str(scenes / "coco/train/000001.png")
    (boxes,) = [part for part in record["parts"] if (part["part"], part["kind"]) == ("train", "boxes")]
    assert (boxes["pictures"], boxes["smallest"]) == (4, {"width": SIDE, "height": SIDE})


def offered(root: Path, kind: str) -> Any:
    (marked,) = [offer.marked for offer in check(root).offers if (offer.part, offer.kind) == ("train", kind)]
    return marked


@pytest.mark.parametrize("kind", KINDS)
def test_the_quick_check_passes_what_is_clean_and_sees_what_is_missing(scenes, kind):
    marked = offered(scenes, kind)
    quick_check(marked, want=kind)
    marked.pictures[3].path.unlink()
    with pytest.raises(DataError, match=r"000003\.png is missing"):
        quick_check(marked, want=kind)


def test_the_quick_check_opens_the_first_pictures_only(scenes):
    marked = offered(scenes, "boxes")
    cut(scenes / "coco/train/000002.png")
    quick_check(marked, want="boxes", first=2)
    with pytest.raises(DataError, match=r"000002\.png: is damaged or cut off.*van data check"):
        quick_check(marked, want="boxes", first=3)


def test_the_quick_check_refuses_what_shows_nothing(scenes):
    edit(instances(scenes), lambda content: content.update(annotations=[]))
    with pytest.raises(DataError, match="nothing is marked in any picture"):
        quick_check(offered(scenes, "boxes"), want="boxes")
    for path in (scenes / "ade" / "annotations" / "training").iterdir():
        repaint(path, lambda values: values * 0)
    with pytest.raises(DataError, match="nothing is marked in the first 3 maps"):
        quick_check(offered(scenes, "map"), want="map", first=3)
