"""Pascal VOC: boxes from edge to edge, classes of both splits, and issues with file and object."""

import re
from pathlib import Path

import pytest
from PIL import Image

from van.datasets.annotations import Issues
from van.datasets.voc import read_voc
from van.errors import DataError

Corners = tuple[object, object, object, object]


def xml_object(name: str = "dog", corners: Corners = (1, 1, 10, 5), more: str = "") -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox>{more}</object>"


def write_image(root: Path, name: str, *objects: str, head: str = "") -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    text = f"{head}<annotation>{size}{''.join(objects)}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text)


def write_root(folder: Path) -> Path:
    write_image(folder, "b", xml_object(), xml_object("cat", (40, 30, 40, 30), "<difficult>1</difficult>"))
    write_image(folder, "a")
    write_image(
        folder, "c", xml_object("ant", (5.5, 6, 20, 30), "<difficult>0</difficult><part><name>leg</name></part>")
    )
    (folder / "ImageSets" / "Main" / "train.txt").write_text("b\na  1\n")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("c -1\n\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path)


def test_boxes_run_from_edge_to_edge_and_difficult_objects_are_crowds(root):
    dataset = read_voc(root, "train", Issues())
    assert [(p.name, p.id, p.size, len(p.annotations)) for p in dataset.images] == [
        ("b.jpg", 1, (30, 40), 2),
        ("a.jpg", 2, (30, 40), 0),
    ]
    first, second = dataset.images[0].annotations
    assert (first.box, first.area, first.crowd, first.segmentation, first.id) == ((0, 0, 10, 5), 50, False, None, 1)
    assert first.mask((30, 40)).sum() == 50
    assert (second.box, second.area, second.crowd, second.id) == ((39, 29, 40, 30), 1, True, 2)


def test_either_split_has_the_sorted_classes_of_both(root):
    train, val = (read_voc(root, split, Issues()) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("ant", "cat", "dog")
    assert train.category_ids == val.category_ids == (1, 2, 3)
    assert [annotation.label for annotation in train.images[0].annotations] == [2, 1]
    assert [annotation.label for annotation in val.images[0].annotations] == [0]


def test_trainval_is_the_training_split_only_without_a_val_list(root):
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    with pytest.raises(DataError, match=r"ImageSets/Main.*train\.txt"):
        read_voc(root, "train", Issues())
    (lists / "val.txt").rename(lists / "test.txt")
    assert [image.name for image in read_voc(root, "train", Issues()).images] == ["b.jpg", "a.jpg"]
    assert [image.name for image in read_voc(root, "val", Issues()).images] == ["c.jpg"]
    (lists / "test.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt or valid\.txt or validation\.txt or test\.txt"):
        read_voc(root, "val", Issues())


INVALID_OBJECTS = [
    (xml_object(""), "name: .*class"),
    (xml_object(corners=(5, 1, 4, 9)), r"box: .*width.*\(4, 0\) to \(4, 9\)"),
    (xml_object(corners=(5, 9, 5, 8)), r"box: .*height.*\(4, 8\) to \(5, 8\)"),
    (xml_object(corners=(1, 1, 42, 5)), r"box: .*40x30.*\(0, 0\) to \(42, 5\)"),
    (xml_object(corners=(1, "x", 4, 5)), "bndbox/ymin: .*'x'"),
    (xml_object(corners=(1, 1, "nan", 5)), "bndbox/xmax: .*finite.*'nan'"),
    (xml_object(corners=(1, 1, "1e999", 5)), "bndbox/xmax: .*finite.*'1e999'"),
    ("<object><name>dog</name></object>", "bndbox/xmin: .*missing"),
    (xml_object(more="<difficult>maybe</difficult>"), "difficult: .*0 or 1.*'maybe'"),
]


def test_invalid_object_is_reported_and_only_it_is_skipped(subtests, new_folder):
    for invalid, facts in INVALID_OBJECTS:
        root = write_root(new_folder())
        with subtests.test(invalid=invalid):
            write_image(root, "b", xml_object(), invalid, xml_object("cat"))
            issues = Issues(collect=True)
            dataset = read_voc(root, "train", issues)
            (issue,) = issues.collected
            assert issue[:2] == (str(root / "Annotations" / "b.xml"), "object 2")
            assert re.search(facts, issue.message)
            assert [dataset.class_names[annotation.label] for annotation in dataset.images[0].annotations] == [
                "dog",
                "cat",
            ]
            with pytest.raises(DataError, match=r"b\.xml: object 2: "):
                read_voc(root, "train", Issues())


INVALID_FILES = [
    ("", "cannot be read as XML"),
    ("<annotation><size>", "cannot be read as XML"),
    ("<annotation>&growing;</annotation>", "cannot be read as XML"),
    ("<annotation/>", "size/width: .*missing"),
    ("<annotation><size><width>0</width><height>30</height></size></annotation>", "size: .*0x30"),
    ("<!DOCTYPE annotation><annotation/>", "DOCTYPE"),
    ('<!DOCTYPE a [<!ENTITY b "bbb"><!ENTITY c "&b;&b;">]><a>&c;</a>', "DOCTYPE"),
    ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "DOCTYPE"),
]


def test_invalid_xml_file_raises_with_the_path(subtests, new_folder):
    for content, facts in INVALID_FILES:
        root = write_root(new_folder())
        with subtests.test(content=content):
            (root / "Annotations" / "b.xml").write_text(content)
            with pytest.raises(DataError, match=rf"b\.xml: .*{facts}"):
                read_voc(root, "train", Issues())


def test_doctype_is_rejected_in_any_encoding(root):
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY b "bbb">]><a>&b;</a>'
    (root / "Annotations" / "b.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="DOCTYPE"):
        read_voc(root, "train", Issues())


INVALID_LINES = [
    ("../c", r"JPEGImages.*'\.\./c'"),
    ("/etc/passwd", "JPEGImages.*'/etc/passwd'"),
    ("..\\c", "JPEGImages"),
    ("absent", r"absent\.jpg.*missing"),
    ("b", "once.*'b'"),
]


def test_invalid_line_of_a_list_is_reported(subtests, new_folder):
    for line, facts in INVALID_LINES:
        root = write_root(new_folder())
        with subtests.test(line=line):
            (root / "ImageSets" / "Main" / "train.txt").write_text(f"b\n{line}\na\n")
            issues = Issues(collect=True)
            dataset = read_voc(root, "train", issues)
            (issue,) = issues.collected
            assert issue[:2] == (str(root / "ImageSets" / "Main" / "train.txt"), "line 2")
            assert re.search(facts, issue.message)
            assert [image.name for image in dataset.images] == ["b.jpg", "a.jpg"]


def test_image_without_xml_file_raises(root):
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"a\.xml: .*no such file"):
        read_voc(root, "train", Issues())


def test_issues_of_the_other_split_are_raised_when_that_is_read(root):
    (root / "Annotations" / "c.xml").write_text("<annotation>")
    assert read_voc(root, "train", Issues()).class_names == ("cat", "dog")
    with pytest.raises(DataError, match=r"c\.xml"):
        read_voc(root, "val", Issues())
