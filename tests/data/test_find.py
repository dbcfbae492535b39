"""The door to marked sets: every layout is found, none is guessed, and labels are matched by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from van.data.digits import LABELS
from van.data.find import check_labels, read_part
from van.data.marks import Mark, Marked, MarkedPicture, Problems, Segment
from van.data.scene_files import write_digit_scenes
from van.errors import DataError, UsageError

SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=3, validation=2, size_px=64)
    return folder


def write_coco(file: Path, pictures: Path, names: tuple[str, ...] = ("cat", "dog"), outline: Any = None) -> None:
    """One picture with a mark of the first class."""
    for folder in (pictures, file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(pictures / "a.png")
    mark = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 15, 10], "iscrowd": 0, "area": 150}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [mark | ({} if outline is None else {"segmentation": outline})],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    file.write_text(json.dumps(content))


def write_yolo(root: Path) -> None:
    for part in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / part).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(root / "images" / part / "a.png")
        (root / "labels" / part / "a.txt").write_text("1 0.5 0.5 0.5 0.5")
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\nval: images/val\n")


def write_voc(root: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part in ("train", "val"):
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{part}.jpg")
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(part)
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        size = "<size><width>40</width><height>30</height></size>"
        text = f"<annotation>{size}<object><name>dog</name>{box}</object></annotation>"
        (root / "Annotations" / f"{part}.xml").write_text(text)


@pytest.mark.parametrize("inner", ["", "coco", "ade"])
@pytest.mark.parametrize("want", ["boxes", "masks", "panoptic", "map"])
def test_written_scenes_are_found_from_their_folder_and_the_one_around_it(scenes, inner, want):
    if inner == ("coco" if want == "map" else "ade"):
        with pytest.raises(DataError, match=f"hold no data set with {want} for train"):
            read_part(scenes / inner, "train", want=want, problems=Problems())
        return
    for part, count in (("train", 3), ("val", 2)):
        found = read_part(scenes / inner, part, want=want, problems=Problems())
        assert len(found.pictures) == count
        assert set(found.labels) - {"ground"} == set(LABELS)
        assert bool(found.things) == (want == "panoptic")
        assert bool(found.map_values) == (want == "map")
        assert any(picture.marks for picture in found.pictures) == (want in ("boxes", "masks"))
        assert all((picture.map_path is not None) == (want in ("map", "panoptic")) for picture in found.pictures)


@pytest.mark.parametrize("above", ["", "images"])
@pytest.mark.parametrize("year", ["", "2017"])
@pytest.mark.parametrize("val", ["val", "valid", "test"])
def test_cocos_own_folders_are_found(tmp_path, above, year, val):
    for name in ("train", val):
        write_coco(tmp_path / "annotations" / f"instances_{name}{year}.json", tmp_path / above / f"{name}{year}")
    for part, name in (("train", "train"), ("val", val)):
        (picture,) = read_part(tmp_path, part, want="boxes", problems=Problems()).pictures
        assert picture.path == tmp_path / above / f"{name}{year}" / "a.png"


@pytest.mark.parametrize("val", ["valid", "val", "test"])
def test_roboflows_folders_are_found(tmp_path, val):
    for name in ("train", val):
        write_coco(tmp_path / name / "_annotations.coco.json", tmp_path / name)
    (picture,) = read_part(tmp_path, "val", want="boxes", problems=Problems()).pictures
    assert picture.path == tmp_path / val / "a.png"


@pytest.mark.parametrize("write", [write_yolo, write_voc])
@pytest.mark.parametrize("inner", ["", "set", "kit/set"])
def test_other_layouts_are_found_from_up_to_two_folders_around(tmp_path, write, inner):
    write(tmp_path / inner)
    for part in ("train", "val"):
        found = read_part(tmp_path, part, want="boxes", problems=Problems())
        (mark,) = found.pictures[0].marks
        assert found.labels[mark.label] == "dog"


def test_the_file_whose_pictures_are_there_is_taken_and_several_are_refused(tmp_path):
    for year in ("2014", "2017"):
        write_coco(tmp_path / "annotations" / f"instances_train{year}.json", tmp_path / f"train{year}")
    with pytest.raises(DataError, match=r"instances_train2014\.json, instances_train2017\.json; wanted one for train"):
        read_part(tmp_path, "train", want="boxes", problems=Problems())
    shutil.rmtree(tmp_path / "train2014")
    (picture,) = read_part(tmp_path, "train", want="boxes", problems=Problems()).pictures
    assert picture.path.parent.name == "train2017"
    shutil.rmtree(tmp_path / "train2017")
    with pytest.raises(DataError, match=r"and no pictures for it; wanted them in train2014/"):
        read_part(tmp_path, "train", want="boxes", problems=Problems())


def test_several_sets_in_one_folder_are_not_chosen_from(tmp_path):
    write_yolo(tmp_path / "one")
    write_voc(tmp_path / "two")
    with pytest.raises(DataError, match="holds more than one data set: one, two; give one of them"):
        read_part(tmp_path, "train", want="boxes", problems=Problems())


@pytest.mark.parametrize(
    ("want", "looked_for"),
    [
        (
            "boxes",
            r"annotations/instances_val\*\.json .*_annotations.coco.json.* data\.yaml .* ImageSets/Main/val\.txt",
        ),
        ("masks", r"annotations/instances_val\*\.json"),
        ("panoptic", r"annotations/panoptic_val\*\.json"),
        ("map", r"images/ and annotations/ \(ADE20K\)"),
    ],
)
def test_where_nothing_fits_it_is_said_what_was_looked_for(tmp_path, want, looked_for):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "settings.yaml").write_text("a: 1")
    with pytest.raises(
        DataError, match=rf"{tmp_path.name} and the folders in it hold no .*wanted {looked_for}.* valid"
    ):
        read_part(tmp_path, "val", want=want, problems=Problems())
    with pytest.raises(DataError, match="no such folder"):
        read_part(tmp_path / "gone", "val", want=want, problems=Problems())


def test_an_unknown_part_or_want_is_refused(tmp_path):
    with pytest.raises(UsageError, match="part is 'test'; wanted train or val"):
        read_part(tmp_path, "test", want="boxes", problems=Problems())
    with pytest.raises(UsageError, match="want is 'points'; wanted boxes or masks or map or panoptic"):
        read_part(tmp_path, "val", want="points", problems=Problems())


def test_masks_are_not_learnt_from_boxes(tmp_path):
    file, pictures = tmp_path / "annotations" / "instances_train.json", tmp_path / "train"
    write_coco(file, pictures)
    assert read_part(tmp_path, "train", want="boxes", problems=Problems()).pictures
    with pytest.raises(DataError, match="none of the 1 marks of train has an outline"):
        read_part(tmp_path, "train", want="masks", problems=Problems())
    write_coco(file, pictures, outline=[SQUARE])
    assert read_part(tmp_path, "train", want="masks", problems=Problems()).pictures


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("categories", "has no classes for train"),
        ("images", "has no pictures for train"),
        ("annotations", "nothing is marked in any of the 1 pictures of train"),
    ],
)
def test_a_part_with_nothing_in_it_is_refused(tmp_path, key, message):
    file = tmp_path / "annotations" / "instances_train.json"
    write_coco(file, tmp_path / "train")
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"annotations": [], key: []}))
    with pytest.raises(DataError, match=message):
        read_part(tmp_path, "train", want="boxes", problems=Problems())
    collected = Problems(collect=True)
    read_part(tmp_path, "train", want="boxes", problems=collected)
    assert [message in problem.what for problem in collected.found] == [True]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "cow"), "here alone dog; there alone cow"),
        (("cat",), "here alone dog; there alone none"),
        (("dog", "cat"), "in another order"),
    ],
)
def test_parts_that_differ_in_their_classes_are_told_when_train_is_read(tmp_path, names, message):
    write_coco(tmp_path / "annotations" / "instances_train.json", tmp_path / "train")
    write_coco(tmp_path / "annotations" / "instances_val.json", tmp_path / "val", names)
    with pytest.raises(DataError, match=rf"instances_train\.json: its classes differ from .*_val\.json: {message}"):
        read_part(tmp_path, "train", want="boxes", problems=Problems())
    assert read_part(tmp_path, "val", want="boxes", problems=Problems()).labels == names


def test_a_part_is_read_though_the_other_is_not_there_or_broken(tmp_path):
    write_coco(tmp_path / "annotations" / "instances_train.json", tmp_path / "train")
    for content in (None, "{", '{"categories": []}'):
        if content is not None:
            (tmp_path / "annotations" / "instances_val.json").write_text(content)
        assert read_part(tmp_path, "train", want="boxes", problems=Problems()).labels == ("cat", "dog")


def made() -> Marked:
    picture = MarkedPicture(
        path=Path("a.png"),
        name="a.png",
        number=1,
        marks=(Mark(label=0, box=(0, 0, 1, 1), number=3), Mark(label=1, box=(0, 0, 2, 2), outline=[SQUARE])),
        segments=(Segment(id=9, label=1, crowd=True),),
    )
    return Marked(
        labels=("cat", "dog"), category_ids=(4, 7), pictures=(picture,), things=(True, False), map_values=(10, 20)
    )


def test_labels_are_those_of_the_network_and_everything_else_stays():
    found = check_labels(made(), ("dog", "ant", "cat"))
    assert found.labels == ("dog", "ant", "cat")
    assert found.category_ids == (7, 8, 4)
    assert found.map_values == (20, 65_534, 10)
    assert found.things == (False, False, True)
    (picture,) = found.pictures
    assert [(mark.label, mark.box, mark.number) for mark in picture.marks] == [
        (2, (0, 0, 1, 1), 3),
        (0, (0, 0, 2, 2), 0),
    ]
    assert picture.marks[1].outline == [SQUARE]
    assert picture.segments == (Segment(id=9, label=0, crowd=True),)
    assert check_labels(made(), ["cat", "dog"]) == made()


def test_classes_that_the_network_does_not_know_are_refused_by_name():
    with pytest.raises(DataError, match="does not know: dog; it knows cat, ant"):
        check_labels(made(), ("cat", "ant"))
