"""COCO files: what pycocotools says of them, and one thing wrong at a time."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from van.data.coco import class_names, read_coco
from van.data.digits import LABELS
from van.data.marks import Problems
from van.data.scene_files import write_digit_scenes
from van.errors import DataError

SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=5, validation=4, size_px=64)
    return folder / "coco"


def instances() -> dict[str, Any]:
    """Three kinds of outline, a box alone, a crowd, and a picture with nothing in it; ids in no order."""
    ring = {"size": [30, 40], "counts": [0, 60, 1140]}

    def annotation(number: int, home: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
        return {"id": number, "image_id": home, "category_id": category, "bbox": box, **more}

    return {
        "images": [
            {"id": number, "file_name": name, "width": 40, "height": 30}
            for number, name in ((9, "deep/c.png"), (2, "a.png"), (5, "b.png"))
        ],
        "annotations": [
            annotation(31, 9, 7, [5, 5, 15, 10], segmentation=[SQUARE], area=150.0, iscrowd=0),
            annotation(12, 2, 3, [0, 0, 2, 30], segmentation=ring, area=60, iscrowd=1),
            annotation(30, 9, 3, [20, 10, 1, 1]),
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def written(root: Path, content: Any) -> Path:
    """The file, with pictures for it."""
    (root / "pictures" / "deep").mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png", "deep/c.png"):
        Image.new("RGB", (40, 30)).save(root / "pictures" / name)
    (root / "a.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root / "a.json"


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools under numpy 2
@pytest.mark.parametrize(("part", "count"), [("train", 5), ("val", 4)])
def test_written_scenes_are_read_as_pycocotools_reads_them(scenes, part, count, capsys):
    file = scenes / "annotations" / f"instances_{part}.json"
    found = read_coco(file, scenes / part, Problems())
    reference = COCO(str(file))
    assert found.labels == LABELS
    assert found.category_ids == tuple(sorted(reference.getCatIds()))
    assert [picture.number for picture in found.pictures] == sorted(reference.getImgIds())
    assert len(found.pictures) == count
    assert sum(len(picture.marks) for picture in found.pictures) == len(reference.getAnnIds())
    for picture in found.pictures:
        assert picture.path == scenes / part / picture.name
        assert picture.size == (64, 64)
        for mark in picture.marks:
            annotation = reference.anns[mark.number]
            mask = reference.annToMask(annotation)
            assert np.array_equal(mark.mask((64, 64)), mask)
            assert mark.area == annotation["area"] == mask.sum()
            assert found.category_ids[mark.label] == annotation["category_id"]
            x, y, width, height = annotation["bbox"]
            assert mark.box == (x, y, x + width, y + height)
            assert picture.number == annotation["image_id"]


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_every_kind_of_outline_is_read_as_pycocotools_reads_it(tmp_path, capsys):
    content = instances()
    entry = {"image_id": 5, "category_id": 7, "bbox": [10, 5, 10, 5], "area": 50, "iscrowd": 0}
    content["annotations"] += [
        {**entry, "id": 1, "segmentation": {"size": [30, 40], "counts": packed()}},
        {**entry, "id": 2, "segmentation": [SQUARE, [30, 20, 35, 20, 35, 25.5]]},
    ]
    file = written(tmp_path, content)
    found = read_coco(file, tmp_path / "pictures", Problems())
    reference = COCO(str(file))
    marks = {mark.number: mark for picture in found.pictures for mark in picture.marks}
    for number in (31, 12, 1, 2):
        mask = reference.annToMask(reference.anns[number])
        assert mask.any()
        assert np.array_equal(marks[number].mask((30, 40)), mask)
    assert marks[1].mask((30, 40)).sum() == 50


def packed() -> str:
    from pycocotools import mask

    pixels = np.zeros((30, 40), np.uint8)
    pixels[5:10, 10:20] = 1
    return mask.encode(np.asfortranarray(pixels))["counts"].decode()


def test_labels_count_from_0_by_category_id_and_pictures_are_sorted(tmp_path):
    found = read_coco(written(tmp_path, instances()), tmp_path / "pictures", Problems())
    assert (found.labels, found.category_ids, found.things) == (("cat", "dog"), (3, 7), ())
    assert [(p.number, p.name, len(p.marks)) for p in found.pictures] == [
        (2, "a.png", 1),
        (5, "b.png", 0),
        (9, "deep/c.png", 2),
    ]
    assert found.pictures[2].path == tmp_path / "pictures" / "deep" / "c.png"
    square, dot = found.pictures[2].marks
    assert (square.label, square.box, square.area, square.crowd) == (1, (5, 5, 20, 15), 150, False)
    assert (dot.label, dot.outline, dot.area) == (0, None, 1)  # one pixel, and the area of the box
    assert found.pictures[0].marks[0].crowd


def test_boxes_alone_may_have_empty_outlines_but_not_beside_outlines(tmp_path):
    content = instances()
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    found = read_coco(written(tmp_path, content), tmp_path / "pictures", Problems())
    assert {mark.outline for picture in found.pictures for mark in picture.marks} == {None}
    content["annotations"][0]["segmentation"] = [SQUARE]
    with pytest.raises(DataError, match="annotation 12: its outline is empty"):
        read_coco(written(tmp_path, content), tmp_path / "pictures", Problems())


def test_the_group_that_roboflow_adds_is_no_class_unless_something_is_marked_with_it(tmp_path):
    content = instances()
    content["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "cat"},
        {"id": 7, "name": "dog", "supercategory": "cat"},
    ]
    file = written(tmp_path, content)
    found = read_coco(file, tmp_path / "pictures", Problems())
    assert found.category_ids == (3, 7)
    assert class_names(file) == found.labels == ("cat", "dog")
    content["categories"][0]["name"] = content["categories"][2]["supercategory"] = "pet"
    content["categories"][1]["supercategory"] = "pet"
    content["annotations"][0]["category_id"] = 0
    assert read_coco(written(tmp_path, content), tmp_path / "pictures", Problems()).labels == ("pet", "cat", "dog")


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    """Sets what lies at a path of keys and places."""

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
WRONG = [
    (drop("images"), "", "images is missing; wanted a list"),
    (put("annotations", value={}), "", "annotations is {}; wanted a list"),
    (put("images", 1, value=3), "picture at place 1", "is 3; wanted an object"),
    (drop("images", 1, "id"), "picture at place 1", "id is missing"),
    (put("images", 1, "id", value=9), "picture 9", "its id 9 is used twice"),
    (drop("images", 1, "file_name"), "picture 2", "file_name is missing"),
    (put("images", 1, "width", value="40"), "picture 2", "width is '40'; wanted a whole number"),
    (put("images", 1, "height", value=0), "picture 2", "height is 0; wanted pixels, at least 1"),
    (drop("images", 1, "height"), "picture 2", "height is missing"),
    (put("images", 1, "file_name", value="../a.png"), "picture 2", "file_name is '../a.png', which leads outside"),
    (put("images", 1, "file_name", value="deep/../../a.png"), "picture 2", "leads outside"),
    (put("images", 1, "file_name", value="..\\a.png"), "picture 2", "leads outside"),
    (put("images", 1, "file_name", value="/etc/passwd"), "picture 2", "'/etc/passwd', which leads outside"),
    (put("images", 1, "file_name", value="C:\\a.png"), "picture 2", "leads outside"),
    (put("images", 1, "file_name", value=""), "picture 2", "leads outside"),
    (put("images", 1, "file_name", value="gone.png"), "picture 2", "gone.png is missing"),
    (put("images", 1, "file_name", value="x" * 5000), "picture 2", "is missing"),
    (put("images", 1, "file_name", value="a\0.png"), "picture 2", "is missing"),
    (put("categories", 1, "id", value=7), "category 7", "its id 7 is used twice"),
    (put("categories", 1, "name", value="dog"), "category 7", "name is 'dog', as that of category 3"),
    (put("categories", 1, "name", value=None), "category 3", "name is None; wanted text"),
    (drop("categories", 1, "name"), "category 3", "name is missing"),
    (drop(*ANNOTATION, "id"), "annotation at place 0", "id is missing"),
    (put(*ANNOTATION, "id", value=12), "annotation 12", "its id 12 is used twice"),
    (put(*ANNOTATION, "id", value=True), "annotation at place 0", "id is True; wanted a whole number"),
    (put(*ANNOTATION, "id", value=-1), "annotation at place 0", "id is -1; wanted a whole number, at least 0"),
    (put(*ANNOTATION, value=[]), "annotation at place 0", r"is []; wanted an object"),
    (drop(*ANNOTATION, "image_id"), "annotation 31", "image_id is missing"),
    (put(*ANNOTATION, "image_id", value=77), "annotation 31", "image_id is 77; the file has no such picture"),
    (put(*ANNOTATION, "category_id", value=77), "annotation 31", "category_id is 77; the file has no such category"),
    (put(*ANNOTATION, "category_id", value=[7]), "annotation 31", "category_id is [7]; wanted a whole number"),
    (drop(*ANNOTATION, "bbox"), "annotation 31", "bbox is missing; wanted x, y, width, height"),
    (put(*ANNOTATION, "bbox", value=[1, 2, 3]), "annotation 31", "bbox has 3 numbers"),
    (put(*ANNOTATION, "bbox", value=[1, 2, None, 4]), "annotation 31", "is None; wanted a finite number"),
    (put(*ANNOTATION, "bbox", value=[1, 2, float("nan"), 4]), "annotation 31", "is nan; wanted a finite number"),
    (put(*ANNOTATION, "bbox", value=[1, 2, 10**400, 4]), "annotation 31", "wanted a finite number"),
    (put(*ANNOTATION, "bbox", value=[1, 2, 0, 4]), "annotation 31", "has no width"),
    (put(*ANNOTATION, "bbox", value=[1, 2, 3, -4]), "annotation 31", "has no height"),
    (
        put(*ANNOTATION, "bbox", value=[30, 2, 12, 4]),
        "annotation 31",
        "(42, 6) lies outside its picture, which is 40 w",
    ),
    (put(*ANNOTATION, "area", value="big"), "annotation 31", "area is 'big'; wanted a finite number"),
    (put(*ANNOTATION, "area", value=-3), "annotation 31", "area is -3; wanted pixels, at least 0"),
    (put(*ANNOTATION, "iscrowd", value=2), "annotation 31", "iscrowd is 2; wanted 0 or 1"),
    (put(*ANNOTATION, "segmentation", value=[[]]), "annotation 31", "polygon 0 of its outline is empty"),
    (put(*ANNOTATION, "segmentation", value=[SQUARE[:4]]), "annotation 31", "has 2 points; wanted at least 3"),
    (put(*ANNOTATION, "segmentation", value=[SQUARE[:7]]), "annotation 31", "has 7 numbers"),
    (put(*ANNOTATION, "segmentation", value=[5, 5, 20, 5, 20, 15]), "annotation 31", "is no list of numbers"),
    (
        put(*ANNOTATION, "segmentation", value={"size": [40, 30], "counts": [0, 1200]}),
        "annotation 31",
        "size of its outline is [40, 30]; wanted [30, 40]",
    ),
    (
        put(*ANNOTATION, "segmentation", value={"size": [30, 40], "counts": [0, 1300]}),
        "annotation 31",
        "do not add up: they cover 1300 pixels; wanted 1200",
    ),
    (put(*ANNOTATION, "segmentation", value={"size": [30, 40], "counts": "0"}), "annotation 31", "do not add up"),
]


@pytest.mark.parametrize(("change", "place", "what"), WRONG, ids=[f"{p}: {w}"[:60] for _, p, w in WRONG])
def test_one_thing_wrong_is_named_with_its_file_and_place(tmp_path, change, place, what):
    content = instances()
    change(content)
    file = written(tmp_path, content)
    problems = Problems(collect=True)
    found = read_coco(file, tmp_path / "pictures", problems)
    named = [problem for problem in problems.found if problem.place == place and what in problem.what]
    assert named, [str(problem) for problem in problems.found]
    assert {problem.file for problem in problems.found} == {str(file)}
    if place == "annotation 31":  # it alone is left out
        assert len(problems.found) == 1
        assert sorted(mark.number for picture in found.pictures for mark in picture.marks) == [12, 30]
    with pytest.raises(DataError, match=r"a\.json"):
        read_coco(file, tmp_path / "pictures", Problems())


def test_an_outline_that_crosses_itself_is_told_and_kept(tmp_path):
    """COCO has some, and draws them; training must not stop for them."""
    content = instances()
    put(*ANNOTATION, "segmentation", value=[SQUARE, [5, 5, 20, 15, 20, 5, 5, 15]])(content)
    problems = Problems()
    found = read_coco(written(tmp_path, content), tmp_path / "pictures", problems)
    (problem,) = problems.found
    assert (problem.place, problem.kept) == ("annotation 31", True)
    assert "polygon 1 of its outline crosses itself" in problem.what
    assert sorted(mark.number for picture in found.pictures for mark in picture.marks) == [12, 30, 31]
    assert problems.tolerate(marks=3) == []


def test_what_belongs_to_a_missing_picture_is_not_told_again(tmp_path):
    content = instances()
    content["images"][0]["file_name"] = "gone.png"
    problems = Problems(collect=True)
    found = read_coco(written(tmp_path, content), tmp_path / "pictures", problems)
    assert [problem.place for problem in problems.found] == ["picture 9"]
    assert [picture.number for picture in found.pictures] == [2, 5]


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"images": ' + "1" * 9000 + "}", "\ud800"])
def test_what_is_no_json_is_told(tmp_path, content):
    path = written(tmp_path, "")
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"a\.json: cannot be read as JSON"):
        read_coco(path, tmp_path, Problems())
    assert class_names(path) == ()
    assert gc.isenabled()


def test_json_of_another_shape_is_told(tmp_path):
    with pytest.raises(DataError, match=r"a\.json: holds \[\]; wanted an object with images, annotations, categories"):
        read_coco(written(tmp_path, []), tmp_path, Problems())


def test_several_things_wrong_are_all_collected(tmp_path):
    content = instances()
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    content["annotations"][1]["category_id"] = 8
    content["annotations"][2]["image_id"] = 8
    problems = Problems(collect=True)
    read_coco(written(tmp_path, content), tmp_path / "pictures", problems)
    assert [problem.place for problem in problems.found] == ["annotation 31", "annotation 12", "annotation 30"]
