"""YOLO folders: lines to boxes and outlines in pixels of the upright picture, and what is wrong in which line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.data.marks import Problems
from van.data.yolo import read_yolo
from van.errors import DataError

DESCRIPTION = "names: [cat, dog]\ntrain: images/train\nval: images/val\nnc: 2\n"
TRIANGLE = "1 0.25 0.5 0.75 0.5 0.5 1"


def written(root: Path, lines: str | None = None, description: str = DESCRIPTION, name: str = "data.yaml") -> Path:
    """Two pictures of 40x20 to learn from, b with the lines given, and one to measure on."""
    for part, pictures in (("train", "ab"), ("val", "c")):
        (root / "images" / part).mkdir(parents=True, exist_ok=True)
        (root / "labels" / part).mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            Image.new("RGB", (40, 20)).save(root / "images" / part / f"{picture}.jpg")
    (root / "labels" / "val" / "c.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    if lines is not None:
        (root / "labels" / "train" / "b.txt").write_text(lines)
    (root / name).write_text(description)
    return root


def test_lines_become_boxes_and_outlines_in_pixels(tmp_path):
    found = read_yolo(written(tmp_path, f"0 0.5 0.25 0.5 0.5\n\n{TRIANGLE}\n"), "train", Problems())
    assert (found.labels, found.category_ids) == (("cat", "dog"), (0, 1))
    assert [(p.name, p.number, p.size, len(p.marks)) for p in found.pictures] == [
        ("a.jpg", 1, (20, 40), 0),
        ("b.jpg", 2, (20, 40), 2),
    ]
    box, outlined = found.pictures[1].marks
    assert (box.label, box.box, box.outline, box.area, box.number) == (0, (10, 0, 30, 10), None, 200, 1)
    assert (outlined.label, outlined.box, outlined.number) == (1, (10, 10, 30, 20), 2)
    assert outlined.outline == [[10, 10, 30, 10, 20, 20]]
    assert outlined.area == 100  # half of 20 x 10
    assert abs(outlined.mask((20, 40)).sum() - 100) < 15


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 19), st.integers(1, 40), st.integers(1, 20)), min_size=1))
def test_boxes_written_as_shares_come_back(tmp_path_factory, corners):
    boxes = [(x, y, min(x + width, 40), min(y + height, 20)) for x, y, width, height in corners]
    lines = [f"1 {(a + c) / 80} {(b + d) / 40} {(c - a) / 40} {(d - b) / 20}" for a, b, c, d in boxes]
    found = read_yolo(written(tmp_path_factory.mktemp("yolo"), "\n".join(lines)), "train", Problems())
    assert [mark.box for mark in found.pictures[1].marks] == [pytest.approx(box) for box in boxes]


def test_shares_are_of_the_picture_turned_upright(tmp_path):
    written(tmp_path, "0 0.5 0.25 0.5 0.5\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "train" / "b.jpg", exif=exif)
    picture = read_yolo(tmp_path, "train", Problems()).pictures[1]
    assert picture.size == (40, 20)
    assert picture.marks[0].box == (5, 0, 15, 20)


@pytest.mark.parametrize(
    "description",
    [
        "names: {1: dog, 0: cat}\ntrain: images/train\nval: images/val\n",
        "names: [cat, dog]\ntrain: ../images/train\nvalid: ../images/val\n",
        "names: [cat, dog]\npath: /moved/since\ntrain: [images/train]\nval: images/val\n",
        "names: [cat, dog]\npath: images\ntrain: train\nval: val\n",
        "names: [cat, dog]\ntrain: train.txt\ntest: images/val\n",
    ],
)
def test_the_parts_are_found_however_they_are_said(tmp_path, description):
    written(tmp_path, "0 0.5 0.5 0.5 0.5", description)
    (tmp_path / "train.txt").write_text("./images/train/b.jpg\n\nimages/train/a.jpg\n")
    train, val = (read_yolo(tmp_path, part, Problems()) for part in ("train", "val"))
    assert train.labels == val.labels == ("cat", "dog")
    assert sorted(picture.path.name for picture in train.pictures) == ["a.jpg", "b.jpg"]
    assert sum(len(picture.marks) for picture in train.pictures) == 1
    assert [picture.path.name for picture in val.pictures] == ["c.jpg"]


def test_a_single_yaml_file_of_any_name_will_do(tmp_path):
    written(tmp_path, TRIANGLE, name="pets.yaml")
    assert len(read_yolo(tmp_path, "train", Problems()).pictures) == 2
    (tmp_path / "other.yml").write_text("a: 1")
    with pytest.raises(DataError, match=r"no data\.yaml and no other single YAML file"):
        read_yolo(tmp_path, "train", Problems())


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("2 0.5 0.5 0.5 0.5", "its class is 2; wanted a whole number from 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "its class is -1"),
        ("0.5 0.5 0.5 0.5 0.5", "its class is 0.5"),
        ("nan 0.5 0.5 0.5 0.5", "its class is nan"),
        ("cat 0.5 0.5 0.5 0.5", "holds what is no number"),
        ("0 0.5 0.5 0.5", "has 4 numbers; wanted CLASS x y width height"),
        ("0 0.5 0.5 0.5 0.5 0.9", "has 6 numbers"),
        ("0", "has 1 numbers"),
        ("0 0.5 0.5 0 0.5", "has no width"),
        ("0 0.5 0.5 0.5 -0.5", "has no height"),
        ("0 0.5 0.5 nan 0.5", "holds nan; wanted shares"),
        ("0 inf 0.5 0.5 0.5", "holds inf; wanted shares"),
        ("0 20 10 20 10", "holds 20; wanted shares of the picture's sides, 0 to 1"),
        ("0 0.9 0.5 0.5 0.5", "lies outside its picture, which is 40 wide and 20 high"),
        ("0 0.1 0.1 0.9 0.9 0.9 1.2", "polygon 0 of its outline lies outside"),
        ("0 0.1 0.1 0.9 0.1 0.5 0.1", "has no height"),
    ],
)
def test_a_wrong_line_is_named_and_alone_left_out(tmp_path, line, what):
    written(tmp_path, f"{TRIANGLE}\n{line}\n0 0.5 0.5 0.5 0.5\n")
    problems = Problems(collect=True)
    found = read_yolo(tmp_path, "train", problems)
    (problem,) = problems.found
    assert problem[:2] == (str(tmp_path / "labels" / "train" / "b.txt"), "line 2")
    assert what in problem.what
    assert [(mark.label, mark.number) for mark in found.pictures[1].marks] == [(1, 1), (0, 2)]
    with pytest.raises(DataError, match=r"b\.txt, line 2: "):
        read_yolo(tmp_path, "train", Problems())


def test_an_outline_that_crosses_itself_is_told_and_kept(tmp_path):
    written(tmp_path, f"{TRIANGLE}\n0 0.1 0.1 0.9 0.9 0.9 0.1 0.1 0.9\n")
    problems = Problems()
    found = read_yolo(tmp_path, "train", problems)
    (problem,) = problems.found
    assert (problem.place, problem.what.split(";")[0], problem.kept) == ("line 2", "its outline crosses itself", True)
    assert len(found.pictures[1].marks) == 2


def test_what_is_no_text_and_what_is_no_picture_is_told(tmp_path):
    written(tmp_path, TRIANGLE)
    (tmp_path / "labels" / "train" / "b.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "images" / "train" / "a.jpg").write_bytes(b"nothing")
    problems = Problems(collect=True)
    found = read_yolo(tmp_path, "train", problems)
    assert [Path(problem.file).name for problem in problems.found] == ["a.jpg", "b.txt"]
    assert [(picture.name, picture.number) for picture in found.pictures] == [("b.jpg", 2)]


def test_a_part_without_a_single_file_of_lines_is_told(tmp_path):
    """One picture without a file shows nothing; a folder that was forgotten would teach that all show nothing."""
    with pytest.raises(
        DataError, match=r"none of the 2 pictures of train has a file of lines; wanted them in .*labels"
    ):
        read_yolo(written(tmp_path), "train", Problems())


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("", "holds no keys"),
        ("names: [cat", "cannot be read as YAML"),
        ("[" * 5000, "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("train: images/train", "names is missing"),
        ("names: cat\ntrain: images/train", "names is 'cat'; wanted a list of classes"),
        ("names: []\ntrain: images/train", r"names is \[\]"),
        ("names: [cat, no]\ntrain: images/train", "name 1 is False; wanted text, in quotes"),
        ("names: [cat, cat]\ntrain: images/train", "'cat' is in names more than once"),
        ("names: {1: cat, 2: dog}\ntrain: images/train", "names has the numbers 1, 2; wanted all from 0 to 1"),
        ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc is 3 and there are 2 names"),
        ("names: [cat, dog]\nval: images/val", "has none of train; wanted a folder of pictures"),
        ("names: [cat, dog]\ntrain: images/gone", "train leads to .*gone; there is no such folder"),
        ("names: [cat, dog]\ntrain: 3", "train is 3; wanted a folder"),
        ("names: [cat, dog]\ntrain: images/train\nkpt_shape: [17, 3]", "its lines hold poses"),
    ],
)
def test_a_description_that_does_not_say_enough_is_refused(tmp_path, description, message):
    with pytest.raises(DataError, match=rf"data\.yaml.*{message}"):
        read_yolo(written(tmp_path, TRIANGLE, description), "train", Problems())


def test_names_that_are_numbers_are_text(tmp_path):
    description = "names: [0, 1]\ntrain: images/train\nval: images/val\n"
    assert read_yolo(written(tmp_path, TRIANGLE, description), "val", Problems()).labels == ("0", "1")
