"""YOLO: lines become boxes and polygons in pixels of the upright image; issues have file and line."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.datasets.annotations import Issues
from van.datasets.yolo import read_yolo
from van.errors import DataError

DATA_YAML = "names: [cat, dog]\ntrain: images/train\nval: images/val\nnc: 2\n"
TRIANGLE = "1 0.25 0.5 0.75 0.5 0.5 1"


def write_yolo(root: Path, lines: str | None = None, data_yaml: str = DATA_YAML, name: str = "data.yaml") -> Path:
    """Write training images a and b of 40x20 px, b with these lines, and validation image c; return ``root``."""
    for split, images in (("train", "ab"), ("val", "c")):
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        for image in images:
            Image.new("RGB", (40, 20)).save(root / "images" / split / f"{image}.jpg")
    (root / "labels" / "val" / "c.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    if lines is not None:
        (root / "labels" / "train" / "b.txt").write_text(lines)
    (root / name).write_text(data_yaml)
    return root


def test_lines_become_boxes_and_polygons_in_pixels(tmp_path):
    dataset = read_yolo(write_yolo(tmp_path, f"0 0.5 0.25 0.5 0.5\n\n{TRIANGLE}\n"), "train", Issues())
    assert (dataset.class_names, dataset.category_ids) == (("cat", "dog"), (0, 1))
    assert [(p.name, p.id, p.size, len(p.annotations)) for p in dataset.images] == [
        ("a.jpg", 1, (20, 40), 0),
        ("b.jpg", 2, (20, 40), 2),
    ]
    box, polygon = dataset.images[1].annotations
    assert (box.label, box.box, box.segmentation, box.area, box.id) == (0, (10, 0, 30, 10), None, 200, 1)
    assert (polygon.label, polygon.box, polygon.id) == (1, (10, 10, 30, 20), 2)
    assert polygon.segmentation == [[10, 10, 30, 10, 20, 20]]
    assert polygon.area == 100  # half of 20 x 10
    assert abs(polygon.mask((20, 40)).sum() - 100) < 15


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 19), st.integers(1, 40), st.integers(1, 20)), min_size=1))
def test_boxes_written_as_fractions_are_read_back(tmp_path_factory, corners):
    boxes = [(x, y, min(x + width, 40), min(y + height, 20)) for x, y, width, height in corners]
    lines = [f"1 {(a + c) / 80} {(b + d) / 40} {(c - a) / 40} {(d - b) / 20}" for a, b, c, d in boxes]
    dataset = read_yolo(write_yolo(tmp_path_factory.mktemp("yolo"), "\n".join(lines)), "train", Issues())
    assert [annotation.box for annotation in dataset.images[1].annotations] == [pytest.approx(box) for box in boxes]


def test_fractions_refer_to_the_image_after_exif_rotation(tmp_path):
    write_yolo(tmp_path, "0 0.5 0.25 0.5 0.5\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "train" / "b.jpg", exif=exif)
    image = read_yolo(tmp_path, "train", Issues()).images[1]
    assert image.size == (40, 20)
    assert image.annotations[0].box == (5, 0, 15, 20)


def test_splits_are_found_in_every_form_of_data_yaml(subtests, new_folder):
    for data_yaml in [
        "names: {1: dog, 0: cat}\ntrain: images/train\nval: images/val\n",
        "names: [cat, dog]\ntrain: ../images/train\nvalid: ../images/val\n",
        "names: [cat, dog]\npath: /moved/since\ntrain: [images/train]\nval: images/val\n",
        "names: [cat, dog]\npath: images\ntrain: train\nval: val\n",
        "names: [cat, dog]\ntrain: train.txt\ntest: images/val\n",
    ]:
        folder = new_folder()
        with subtests.test(data_yaml=str(data_yaml)):
            write_yolo(folder, "0 0.5 0.5 0.5 0.5", data_yaml)
            (folder / "train.txt").write_text("./images/train/b.jpg\n\nimages/train/a.jpg\n")
            train, val = (read_yolo(folder, split, Issues()) for split in ("train", "val"))
            assert train.class_names == val.class_names == ("cat", "dog")
            assert sorted(image.path.name for image in train.images) == ["a.jpg", "b.jpg"]
            assert sum(len(image.annotations) for image in train.images) == 1
            assert [image.path.name for image in val.images] == ["c.jpg"]


def test_single_yaml_file_may_have_any_name(tmp_path):
    write_yolo(tmp_path, TRIANGLE, name="pets.yaml")
    assert len(read_yolo(tmp_path, "train", Issues()).images) == 2
    (tmp_path / "other.yml").write_text("a: 1")
    with pytest.raises(DataError, match=r"data\.yaml or a single"):
        read_yolo(tmp_path, "train", Issues())


def test_invalid_line_is_reported_and_only_it_is_skipped(subtests, new_folder):
    for line, facts in [
        ("2 0.5 0.5 0.5 0.5", "class: .*0 to 1.*2"),
        ("-1 0.5 0.5 0.5 0.5", "class: .*-1"),
        ("0.5 0.5 0.5 0.5 0.5", r"class: .*0\.5"),
        ("nan 0.5 0.5 0.5 0.5", "class: .*nan"),
        ("cat 0.5 0.5 0.5 0.5", "numbers.*'cat'"),
        ("0 0.5 0.5 0.5", "CLASS x y width height.*4 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 numbers"),
        ("0", "1 numbers"),
        ("0 0.5 0.5 0 0.5", "box: .*width"),
        ("0 0.5 0.5 0.5 -0.5", "box: .*height"),
        ("0 0.5 0.5 nan 0.5", "fractions.*nan"),
        ("0 inf 0.5 0.5 0.5", "fractions.*inf"),
        ("0 20 10 20 10", "fractions.*0 to 1.*20"),
        ("0 0.9 0.5 0.5 0.5", "box: .*40x20"),
        ("0 0.1 0.1 0.9 0.9 0.9 1.2", "polygon 0: .*40x20"),
        ("0 0.1 0.1 0.9 0.1 0.5 0.1", "box: .*height"),
    ]:
        folder = new_folder()
        with subtests.test(line=str(line), facts=str(facts)):
            write_yolo(folder, f"{TRIANGLE}\n{line}\n0 0.5 0.5 0.5 0.5\n")
            issues = Issues(collect=True)
            dataset = read_yolo(folder, "train", issues)
            (issue,) = issues.collected
            assert issue[:2] == (str(folder / "labels" / "train" / "b.txt"), "line 2")
            assert re.search(facts, issue.message)
            assert [(annotation.label, annotation.id) for annotation in dataset.images[1].annotations] == [
                (1, 1),
                (0, 2),
            ]
            with pytest.raises(DataError, match=r"b\.txt: line 2: "):
                read_yolo(folder, "train", Issues())


def test_self_intersecting_polygon_is_kept_with_a_warning(tmp_path):
    write_yolo(tmp_path, f"{TRIANGLE}\n0 0.1 0.1 0.9 0.9 0.9 0.1 0.1 0.9\n")
    issues = Issues()
    dataset = read_yolo(tmp_path, "train", issues)
    (issue,) = issues.collected
    assert (issue.location, issue.is_warning) == ("line 2", True)
    assert "segmentation" in issue.message
    assert len(dataset.images[1].annotations) == 2


def test_unreadable_text_file_and_image_are_reported(tmp_path):
    write_yolo(tmp_path, TRIANGLE)
    (tmp_path / "labels" / "train" / "b.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "images" / "train" / "a.jpg").write_bytes(b"nothing")
    issues = Issues(collect=True)
    dataset = read_yolo(tmp_path, "train", issues)
    assert [Path(issue.file).name for issue in issues.collected] == ["a.jpg", "b.txt"]
    assert [(image.name, image.id) for image in dataset.images] == [("b.jpg", 2)]


def test_split_without_any_text_file_raises(tmp_path):
    """One image without a file has no objects; a forgotten folder would make all of them background."""
    with pytest.raises(DataError, match=r"train: .*labels.*2 images"):
        read_yolo(write_yolo(tmp_path), "train", Issues())


def test_invalid_data_yaml_raises_with_the_key(subtests, new_folder):
    for data_yaml, facts in [
        ("", "names, train and val"),
        ("names: [cat", "cannot be read as YAML"),
        ("[" * 1500, "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("train: images/train", "names: .*nothing"),
        ("names: cat\ntrain: images/train", "names: .*list.*'cat'"),
        ("names: []\ntrain: images/train", r"names: .*\[\]"),
        ("names: [cat, no]\ntrain: images/train", "names: 1: .*text.*False"),
        ("names: [cat, cat]\ntrain: images/train", "names: .*unique.*'cat'"),
        ("names: {1: cat, 2: dog}\ntrain: images/train", "names: .*0 to 1.*1, 2"),
        ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc: .*2.*3"),
        ("names: [cat, dog]\nval: images/val", "folder of images.*train"),
        ("names: [cat, dog]\ntrain: images/absent", "train: .*images/absent"),
        ("names: [cat, dog]\ntrain: 3", "train: .*3"),
        ("names: [cat, dog]\ntrain: images/train\nkpt_shape: [17, 3]", "kpt_shape"),
    ]:
        folder = new_folder()
        with subtests.test(data_yaml=str(data_yaml)), pytest.raises(DataError, match=rf"data\.yaml.*{facts}"):
            read_yolo(write_yolo(folder, TRIANGLE, data_yaml), "train", Issues())


def test_class_names_that_are_numbers_become_text(tmp_path):
    data_yaml = "names: [0, 1]\ntrain: images/train\nval: images/val\n"
    assert read_yolo(write_yolo(tmp_path, TRIANGLE, data_yaml), "val", Issues()).class_names == ("0", "1")
