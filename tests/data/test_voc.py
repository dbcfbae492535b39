"""Pascal VOC folders: corners from edge to edge, classes of both parts, and what is wrong in which object."""

from pathlib import Path

import pytest
from PIL import Image

from van.data.marks import Problems
from van.data.voc import read_voc
from van.errors import DataError

Corners = tuple[object, object, object, object]


def thing(name: str = "dog", corners: Corners = (1, 1, 10, 5), more: str = "") -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox>{more}</object>"


def write_picture(root: Path, name: str, *things: str, head: str = "") -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    text = f"{head}<annotation>{size}{''.join(things)}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_picture(tmp_path, "b", thing(), thing("cat", (40, 30, 40, 30), "<difficult>1</difficult>"))
    write_picture(tmp_path, "a")
    write_picture(
        tmp_path, "c", thing("ant", (5.5, 6, 20, 30), "<difficult>0</difficult><part><name>leg</name></part>")
    )
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("b\na  1\n")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("c -1\n\n")
    return tmp_path


def test_boxes_run_from_edge_to_edge_and_difficult_ones_are_crowds(root):
    found = read_voc(root, "train", Problems())
    assert [(p.name, p.number, p.size, len(p.marks)) for p in found.pictures] == [
        ("b.jpg", 1, (30, 40), 2),
        ("a.jpg", 2, (30, 40), 0),
    ]
    first, second = found.pictures[0].marks
    assert (first.box, first.area, first.crowd, first.outline, first.number) == ((0, 0, 10, 5), 50, False, None, 1)
    assert first.mask((30, 40)).sum() == 50
    assert (second.box, second.area, second.crowd, second.number) == ((39, 29, 40, 30), 1, True, 2)


def test_both_parts_have_the_sorted_classes_of_both(root):
    train, val = (read_voc(root, part, Problems()) for part in ("train", "val"))
    assert train.labels == val.labels == ("ant", "cat", "dog")
    assert train.category_ids == val.category_ids == (1, 2, 3)
    assert [mark.label for mark in train.pictures[0].marks] == [2, 1]
    assert [mark.label for mark in val.pictures[0].marks] == [0]


def test_trainval_is_learnt_from_only_where_nothing_of_it_is_measured_on(root):
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    with pytest.raises(DataError, match=r"ImageSets/Main has none of train\.txt"):
        read_voc(root, "train", Problems())
    (lists / "val.txt").rename(lists / "test.txt")
    assert [picture.name for picture in read_voc(root, "train", Problems()).pictures] == ["b.jpg", "a.jpg"]
    assert [picture.name for picture in read_voc(root, "val", Problems()).pictures] == ["c.jpg"]
    (lists / "test.txt").unlink()
    with pytest.raises(DataError, match=r"none of val\.txt, valid\.txt, validation\.txt, test\.txt; wanted a list"):
        read_voc(root, "val", Problems())


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (thing(""), "name is missing"),
        (thing(corners=(5, 1, 4, 9)), "has no width"),
        (thing(corners=(5, 9, 5, 8)), "has no height"),
        (thing(corners=(1, 1, 42, 5)), "box from (0, 0) to (42, 5) lies outside its picture, which is 40 wide and 30"),
        (thing(corners=(1, "x", 4, 5)), "bndbox/ymin is 'x'; wanted a number"),
        (thing(corners=(1, 1, "nan", 5)), "bndbox/xmax is 'nan'; wanted a finite number"),
        (thing(corners=(1, 1, "1e999", 5)), "wanted a finite number"),
        ("<object><name>dog</name></object>", "bndbox/xmin is missing"),
        (thing(more="<difficult>maybe</difficult>"), "difficult is 'maybe'; wanted 0 or 1"),
    ],
)
def test_a_wrong_object_is_named_and_alone_left_out(root, wrong, what):
    write_picture(root, "b", thing(), wrong, thing("cat"))
    problems = Problems(collect=True)
    found = read_voc(root, "train", problems)
    (problem,) = problems.found
    assert problem[:2] == (str(root / "Annotations" / "b.xml"), "object 2")
    assert what in problem.what
    assert [found.labels[mark.label] for mark in found.pictures[0].marks] == ["dog", "cat"]
    with pytest.raises(DataError, match=r"b\.xml, object 2: "):
        read_voc(root, "train", Problems())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "cannot be read as XML"),
        ("<annotation><size>", "cannot be read as XML"),
        ("<annotation>&growing;</annotation>", "cannot be read as XML"),
        ("<annotation/>", "size/width is missing"),
        ("<annotation><size><width>0</width><height>30</height></size></annotation>", "0 wide and 30 high"),
        ("<!DOCTYPE annotation><annotation/>", "has a DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY b "bbb"><!ENTITY c "&b;&b;">]><a>&c;</a>', "has a DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "has a DOCTYPE"),
    ],
)
def test_an_xml_file_that_cannot_be_used_is_told(root, content, what):
    (root / "Annotations" / "b.xml").write_text(content)
    with pytest.raises(DataError, match=rf"b\.xml: .*{what}"):
        read_voc(root, "train", Problems())


def test_a_doctype_hides_in_no_encoding(root):
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY b "bbb">]><a>&b;</a>'
    (root / "Annotations" / "b.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="has a DOCTYPE"):
        read_voc(root, "train", Problems())


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("../c", "'../c' leads outside"),
        ("/etc/passwd", "leads outside"),
        ("..\\c", "leads outside"),
        ("gone", "is missing, under any other ending, too"),
        ("b", "'b' is there twice"),
    ],
)
def test_a_wrong_line_of_a_list_is_told(root, line, what):
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"b\n{line}\na\n")
    problems = Problems(collect=True)
    found = read_voc(root, "train", problems)
    (problem,) = problems.found
    assert problem[:2] == (str(root / "ImageSets" / "Main" / "train.txt"), "line 2")
    assert what in problem.what
    assert [picture.name for picture in found.pictures] == ["b.jpg", "a.jpg"]


def test_a_picture_without_its_xml_file_is_told(root):
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"a\.xml: is missing; wanted an XML file for each picture"):
        read_voc(root, "train", Problems())


def test_what_is_wrong_in_the_other_part_is_told_when_that_is_read(root):
    (root / "Annotations" / "c.xml").write_text("<annotation>")
    assert read_voc(root, "train", Problems()).labels == ("cat", "dog")
    with pytest.raises(DataError, match=r"c\.xml"):
        read_voc(root, "val", Problems())
