"""COCO's panoptic files and maps, and one thing wrong with them at a time."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.test_coco import drop, put, written
from van.data.coco import read_coco, read_panoptic, read_panoptic_ids
from van.data.digits import LABELS
from van.data.marks import Problems
from van.data.scene_files import GROUND, write_digit_scenes
from van.errors import DataError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=5, validation=4, size_px=64)
    return folder / "coco"


def panoptic() -> dict[str, Any]:
    return {
        "images": [{"id": 4, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [
            {
                "image_id": 4,
                "file_name": "a.png",
                "segments_info": [
                    {"id": 70000, "category_id": 2, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 1},
                    {"id": 3, "category_id": 1, "bbox": [0, 0, 40, 30], "area": 1000, "iscrowd": 0},
                ],
            }
        ],
        "categories": [{"id": 2, "name": "dog", "isthing": 1}, {"id": 1, "name": "sky", "isthing": 0}],
    }


@pytest.mark.parametrize("part", ["train", "val"])
def test_written_panoptic_maps_are_explained(scenes, part):
    annotations = scenes / "annotations"
    boxes = read_coco(annotations / f"instances_{part}.json", scenes / part, Problems())
    found = read_panoptic(
        annotations / f"panoptic_{part}.json", annotations / f"panoptic_{part}", scenes / part, Problems()
    )
    assert found.labels == (*LABELS, "ground")
    assert found.things == (True,) * len(LABELS) + (False,)
    assert found.category_ids[-1] == GROUND
    for picture, other in zip(found.pictures, boxes.pictures, strict=True):
        assert (picture.path, picture.number) == (other.path, other.number)
        ids = read_panoptic_ids(picture.map_path)
        assert ids.dtype == np.int32
        assert set(np.unique(ids)) == {segment.id for segment in picture.segments}
        masks = {segment.id: ids == segment.id for segment in picture.segments if found.things[segment.label]}
        for mark, mask in zip(other.marks, masks.values(), strict=True):
            assert np.array_equal(mark.mask((64, 64)), mask)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_ids_are_the_colours_low_byte_first(tmp_path, mode):
    ids = np.array([[0, 1, 255], [256, 65_535, 65_536], [70_000, 8_421_504, 2**24 - 1]])
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65_536], -1).astype(np.uint8)
    picture = Image.fromarray(colours)
    picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_panoptic_ids(tmp_path / "a.png"), ids)


def test_a_map_that_cannot_be_read_is_refused(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:40])
    for name, message in (("grey.png", "wanted colours"), ("a.jpg", "cannot"), ("cut.png", "cannot"), ("no", "cannot")):
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            read_panoptic_ids(tmp_path / name)


SEGMENT = ("annotations", 0, "segments_info", 0)
WRONG_PANOPTIC = [
    (drop("categories", 0, "isthing"), "category 2", "isthing is missing; wanted 0 or 1"),
    (put("categories", 0, "isthing", value="yes"), "category 2", "isthing is 'yes'"),
    (put("annotations", value=[]), "picture 4", "has no panoptic annotation"),
    (put("annotations", 0, "image_id", value=5), "annotation of picture 5", "the file has no such picture"),
    (put("annotations", 0, "file_name", value="b.png"), "annotation of picture 4", "b.png is missing"),
    (put("annotations", 0, "file_name", value="../a.png"), "annotation of picture 4", "leads outside"),
    (drop("annotations", 0, "segments_info"), "annotation of picture 4", "segments_info is missing"),
    (put(*SEGMENT, "id", value=3), "annotation of picture 4, segment 3", "its id 3 is used twice"),
    (put(*SEGMENT, "id", value=0), "annotation of picture 4, segment 0", "id is 0; wanted a colour"),
    (put(*SEGMENT, "id", value=2**24), "annotation of picture 4, segment 16777216", "wanted a colour"),
    (put(*SEGMENT, "category_id", value=9), "annotation of picture 4, segment 70000", "no such category"),
    (put(*SEGMENT, "bbox", value=[0, 0, 0, 4]), "annotation of picture 4, segment 70000", "has no width"),
    (put(*SEGMENT, "iscrowd", value=None), "annotation of picture 4, segment 70000", "iscrowd is None"),
]


@pytest.mark.parametrize(("change", "place", "what"), WRONG_PANOPTIC)
def test_one_thing_wrong_in_a_panoptic_file_is_named(tmp_path, change, place, what):
    content = panoptic()
    good = read_panoptic(written(tmp_path, content), tmp_path / "maps", tmp_path / "pictures", no_maps(tmp_path))
    assert [(s.id, s.label, s.crowd) for s in good.pictures[0].segments] == [(70000, 1, True), (3, 0, False)]
    change(content)
    problems = Problems(collect=True)
    file = written(tmp_path, content)
    read_panoptic(file, tmp_path / "maps", tmp_path / "pictures", problems)
    assert any(problem.place == place and what in problem.what for problem in problems.found), problems.found
    assert {problem.file for problem in problems.found} == {str(file)}


def no_maps(root: Path) -> Problems:
    """Makes the one map that is wanted, and lets nothing be wrong."""
    (root / "maps").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), (3, 0, 0)).save(root / "maps" / "a.png")
    return Problems()


def test_two_annotations_for_one_picture_are_told(tmp_path):
    content = panoptic()
    content["annotations"].append(copy.deepcopy(content["annotations"][0]))
    problems = no_maps(tmp_path)
    with pytest.raises(DataError, match="annotation of picture 4: image_id is 4, as that of another annotation"):
        read_panoptic(written(tmp_path, content), tmp_path / "maps", tmp_path / "pictures", problems)
